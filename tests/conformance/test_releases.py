"""Which releases of transformers are taken, what they call the cache, and what becomes of a peer's warnings."""

from __future__ import annotations

import re
import tomllib
import warnings
from typing import Any

import pytest
from processes import ROOT

from conformance.errors import PeerUnavailable
from conformance.peers.guard import warnings_kept
from conformance.peers.torch import releases


@pytest.mark.parametrize("version", ["5.0.0", "5.0.0rc1", "4.57.6", "5.1.0rc1"])
def test_an_older_release_is_refused_before_anything_is_run(version: str) -> None:
    with pytest.raises(PeerUnavailable, match=re.escape(f"transformers {version} cannot be judged, expected 5.1.0")):
        releases.refuse_unsupported(version)


@pytest.mark.parametrize("version", ["5.1.0", "5.17.0", "5.24.0", "5.24.1", "5.40.0", "6.0.0", "from-source"])
def test_a_newer_one_is_not(version: str) -> None:
    releases.refuse_unsupported(version)


def test_one_that_nobody_tested_is_said() -> None:
    assert releases.untested("5.24.7") == ""
    assert releases.untested("5.25.0").startswith("transformers 5.25.0 is newer than the releases this was tested with")


def test_the_oldest_is_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = (p for p in project["optional-dependencies"]["conformance"] if p.startswith("transformers"))
    assert wanted == f"transformers>={releases.OLDEST.removesuffix('.0')},<6"


def test_the_cache_is_called_as_the_signature_says() -> None:
    def newer(ids: Any, cache: Any = None) -> None: ...
    def older(ids: Any, past_key_values: Any = None) -> None: ...

    assert releases.cache_name(newer) == "cache"
    assert releases.cache_name(older) == "past_key_values"


def test_warnings_of_a_peer_are_kept_once_and_fail_nothing() -> None:
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with warnings_kept("mine", notes):
            for _ in range(2):
                warnings.warn("old\x1b[2J name", FutureWarning, stacklevel=1)
    assert notes == ["mine warns: FutureWarning: old [2J name"]


def test_a_peer_s_warnings_are_kept_when_it_raises() -> None:
    notes: list[str] = []

    def run() -> None:
        with warnings_kept("mine", notes):
            warnings.warn("first", UserWarning, stacklevel=1)
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert notes == ["mine warns: UserWarning: first"]


def test_our_own_warnings_stay_what_they_are() -> None:
    code = compile("import warnings\nwarnings.warn('ours', RuntimeWarning)", "x.py", "exec")
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="ours"), warnings_kept("mine", notes):
            exec(code, {"__name__": "conformance.measure.ratio"})
    assert notes == []

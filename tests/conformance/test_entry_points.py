"""Entry points of other packages: found by name, and blamed by name where they are broken."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from types import SimpleNamespace
from typing import Any

import pytest

from conformance.errors import PeerUnavailable
from conformance.peers import entry_points as plugins
from t5g2ref.backend import NUMPY, Backend

made: list[tuple[str, Backend]] = []


class Port:
    name, dtype = "port", "float32"

    def versions(self) -> dict[str, str]:
        return {}

    open = run = close = versions


def working(argument: str, backend: Backend) -> Port:
    made.append((argument, backend))
    return Port()


def raising(argument: str, backend: Backend) -> Port:
    raise RuntimeError("no device")


def unavailable(argument: str, backend: Backend) -> Port:
    raise PeerUnavailable("install it first")


def without_run(argument: str, backend: Backend) -> Any:
    return SimpleNamespace(name="x", dtype="float32", versions=dict, open=dict, close=dict)


def with_wrong(**fields: Any) -> Callable[[str, Backend], Any]:
    def create(argument: str, backend: Backend) -> Any:
        port = Port()
        for name, value in fields.items():
            setattr(port, name, value)
        return port

    return create


nameless, typeless = with_wrong(name=""), with_wrong(dtype="float64")
something = 7


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("working", "raising", "unavailable", "without_run", "nameless", "typeless", "something", "nowhere")
    points = [EntryPoint(name, f"{__name__}:{name}", plugins.GROUP) for name in names]
    points += [EntryPoint("lost", "no_such_package.at_all:create", plugins.GROUP)]
    points += [EntryPoint("twice", f"{__name__}:{name}", plugins.GROUP) for name in ("working", "raising")]
    monkeypatch.setattr(plugins, "entry_points", lambda **wanted: EntryPoints(points).select(**wanted))
    made.clear()


def test_one_is_found() -> None:
    peer = plugins.find("working")
    assert isinstance(peer, Port)
    assert isinstance(plugins.find("working:a:b", NUMPY), Port)
    assert made == [("", NUMPY), ("a:b", NUMPY)]


def test_none_is_of_that_name() -> None:
    assert plugins.find("workin") is None
    assert plugins.find("") is None
    assert made == []


def test_names_load_nothing() -> None:
    assert plugins.names() == sorted(
        [
            "working",
            "raising",
            "unavailable",
            "without_run",
            "nameless",
            "typeless",
            "something",
            "nowhere",
            "lost",
            "twice",
        ]
    )
    assert made == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raising", "peer raising .* is broken: RuntimeError: no device"),
        ("unavailable", "^install it first$"),
        ("without_run", r"gave a SimpleNamespace without run\(\)"),
        ("nameless", "gave a Port whose `name` is no line of text"),
        ("typeless", "has dtype 'float64', expected one of float32, bfloat16, float16"),
        ("something", "is broken: TypeError"),
        ("nowhere", "is broken: AttributeError"),
        ("lost", "no_such_package.*is broken: ModuleNotFoundError: No module named 'no_such_package'"),
        ("twice", "peer twice: two packages have it: .*working, .*raising; uninstall one"),
    ],
)
def test_a_broken_one_is_named(name: str, message: str) -> None:
    with pytest.raises(PeerUnavailable, match=message):
        plugins.find(name)

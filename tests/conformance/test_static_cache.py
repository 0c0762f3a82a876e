"""transformers with a preallocated cache: right, and what goes wrong in such a cache is seen without its slots."""

from __future__ import annotations

import pytest
from dumping import case_of, tiny

pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the judge's threads share the cores by it")

from conformance.cases.catalogue import build
from conformance.defects.all import FAULTS
from conformance.defects.exposure import hidden
from conformance.defects.injection import Fault
from conformance.judge.judge import judge
from conformance.peers.find import create
from conformance.peers.torch.static_cache import HIDDEN, shown
from conformance.selftest.faulty_peer import FaultyPeer

SLOTS = [f for f in FAULTS if f.id in ("D57", "D75")]
CASES = ("decoder-steps", "decoder-split", "padded-left-cached", "cross-cached", "masked-steps")


@pytest.mark.parametrize("fault", SLOTS, ids=lambda f: f.key)
def test_a_slot_that_is_read_too_early_is_seen(fault: Fault) -> None:
    """Where neither masks nor the cache's keys are shown, as with such a peer."""
    peer = FaultyPeer(fault.inject)
    peer.taps = shown(tiny().config)
    peer.open(tiny())
    found = judge(peer, tiny(), case_of(tiny(), fault.case), repeat=False)
    assert found.culprit is not None
    assert found.culprit.tap == "decoder.layers.0.self_attn.attention"


def test_what_it_shows() -> None:
    names = shown(tiny().config)
    assert "encoder.text_model.layers.0.self_attn.mask" in names
    assert "decoder.layers.0.self_attn.attention" in names
    assert not [name for name in names if name.startswith("decoder.") and name.endswith(HIDDEN)]


def test_it_exposes_what_no_growing_cache_can() -> None:
    config = tiny().config
    assert {"D57", "D75"} <= set(hidden([config], build(config)))
    assert not {"D57", "D75"} & set(hidden([config], build(config), preallocated=True))
    assert {"D57", "D75"} <= set(hidden([config], [], preallocated=True))


@pytest.mark.usefixtures("peer_installed")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CASES)
def test_transformers_static_cache_conforms(name: str, attention: str) -> None:
    peer = create(f"transformers:{attention}-static")
    assert peer.name == f"transformers:{attention}-static"
    peer.open(tiny())
    found = judge(peer, tiny(), case_of(tiny(), name), repeat=False)
    assert found.passed, (found.culprit, found.error)

"""onnxruntime as a peer: what is exported is the model itself, and what onnxruntime makes of it conforms."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
from dumping import case_of, tiny

pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the judge's threads share the cores by it")

from conformance.cases.case import Case
from conformance.errors import PeerUnavailable
from conformance.judge.judge import judge
from conformance.peers.find import create
from conformance.peers.protocol import Peer

CASES = ("short", "window", "padded-left-cached", "decoder-split", "eoi-cached", "image", "images", "far-positions")
HERE = all(find_spec(name) is not None for name in ("onnxruntime", "onnxscript", "transformers"))


@pytest.mark.usefixtures("peer_installed")
def test_what_is_exported_computes_what_the_model_does() -> None:
    """Four tokens in two calls, with the cache as tensors, beside one call of transformers' own."""
    import torch

    from conformance.peers.torch.onnx_graphs import Encoder, First, Next
    from conformance.peers.torch.transformers import TransformersPeer

    source = TransformersPeer("eager")
    source.open(tiny())
    model = source.model(Case("export", "", ()))
    ids, own = torch.tensor([[33, 17, 42], [33, 5, 90]]), torch.tensor([[33, 7, 8, 9], [33, 11, 12, 13]])
    mask, positions = torch.ones_like(ids), torch.arange(3).expand(2, -1)
    with torch.no_grad():
        hidden = Encoder(model)(ids, mask, positions)
        first, *held = First(model)(own[:, :3], torch.ones(2, 3), torch.arange(3).expand(2, -1), hidden, mask)
        last, k, _ = Next(model)(own[:, 3:], torch.ones(2, 4), torch.full((2, 1), 3), hidden, mask, *held)
        whole = model(input_ids=ids, attention_mask=mask, decoder_input_ids=own).logits.numpy()
    found = torch.cat([first, last], 1).numpy()
    assert k[0].shape[2] == 4
    assert np.abs(found - whole).max() < 1e-5 * np.abs(whole).max()
    source.close()


@pytest.fixture(scope="module")
def exported() -> Iterator[Peer]:
    peer = create("onnxruntime")
    peer.open(tiny())
    yield peer
    peer.close()


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason='needs onnxruntime: pip install "t5g2ref[onnxruntime]"')
@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_conforms(exported: Peer, name: str) -> None:
    found = judge(exported, tiny(), case_of(tiny(), name), repeat=False)
    assert found.passed, (found.culprit, found.error, found.skipped)


@pytest.mark.skipif(HERE or find_spec("transformers") is None, reason="needs transformers, and no onnxruntime")
def test_without_onnxruntime_it_says_what_to_install() -> None:
    with pytest.raises(PeerUnavailable, match=r'needs onnxruntime, .*pip install "t5g2ref\[onnxruntime\]"'):
        create("onnxruntime")


@pytest.mark.usefixtures("peer_installed")
@pytest.mark.parametrize("name", ["short", "cross-cached", "image"])
def test_a_compiled_model_is_asked_like_the_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here without its compiler, which takes a minute for a graph."""
    import torch

    asked: list[dict[str, object]] = []
    monkeypatch.setattr(torch, "compile", lambda model, **how: asked.append(how) or model)
    peer = create("transformers:sdpa-compile")
    assert (peer.name, getattr(peer, "generate", 0)) == ("transformers:sdpa-compile", None)
    peer.open(tiny())
    found = judge(peer, tiny(), case_of(tiny(), name), repeat=False)
    assert found.passed, (found.culprit, found.error)
    assert asked == [{"dynamic": True, "fullgraph": True}]
    peer.close()

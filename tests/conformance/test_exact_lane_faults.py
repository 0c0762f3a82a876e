"""The exact lane on transformers: it passes, and faults in it are found by their bits alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from exact_findings import DEC, ENC, failed
from injected import assert_injected

from conformance.cases import catalogue as cases
from conformance.checkpoints import resolve
from conformance.judge.exact.lane import examine_exact
from conformance.judge.exact.probes import probes
from conformance.measure.finding import Finding
from conformance.target import Target

pytestmark = pytest.mark.slow  # minutes in all


DTYPES = ("float32", "bfloat16", "float16")

needs_torch = pytest.mark.usefixtures("peer_installed")


@pytest.fixture(scope="module")
def target() -> Target:
    return resolve("tiny", synthetic=False)[0]


# Faults in transformers, found by their bits alone


@pytest.fixture(scope="module")
def faults() -> Any:
    import transformers_patches

    return transformers_patches


def with_fault(base: Any, inject: Any, patch: pytest.MonkeyPatch) -> Any:
    """The method that builds a peer's model, and puts the fault in."""

    def build(self: Any, case: Any) -> Any:
        model = base._build(self, case)
        if inject is not None:
            inject(model, patch)
        return model

    return build


def peer_with(inject: Any, patch: pytest.MonkeyPatch, attention: str, dtype: Any) -> Any:
    from conformance.peers.torch.transformers import TransformersPeer

    kind = type("Peer", (TransformersPeer,), {"_build": with_fault(TransformersPeer, inject, patch)})
    return kind(attention, dtype)


def lane(
    attention: str,
    dtype: Any,
    target: Target,
    patch: pytest.MonkeyPatch,
    inject: Callable[[Any, Any], None] | None = None,
) -> list[Finding]:
    """Findings on transformers with one fault; what it holds is read by its own `weights()`."""
    from conformance.peers.torch.transformers import TransformersPeer

    class Peer(TransformersPeer):
        _build = with_fault(TransformersPeer, inject, patch)

    peer = Peer(attention, dtype)
    peer.open(target)
    try:
        return examine_exact(peer, target, dtype)
    finally:
        peer.close()


@needs_torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_passes(attention: str, dtype: str, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    found = lane(attention, dtype, target, monkeypatch)
    assert failed(found) == []
    assert len(found) > 100


def last_bit(model: Any, _: Any) -> None:
    """Of one weight; for the smallest there is."""
    weight = model.model.decoder.layers[4].self_attn.o_proj.weight
    with_bits = weight.data.view(dtype=_integers(weight))
    with_bits[5, 5] ^= 1


def _integers(weight: Any) -> Any:
    import torch

    return torch.int32 if weight.element_size() == 4 else torch.int16


def untied(model: Any, _: Any) -> None:
    import torch

    model.lm_head.out_proj.weight = torch.nn.Parameter(model.lm_head.out_proj.weight + 0.01)


def unrounded_scale(model: Any, _: Any) -> None:
    """√48 in float32, and the product in float32: gemma's well-known mistake, the other way round."""
    import torch

    table = model.model.decoder.embed_tokens
    table.register_forward_hook(
        lambda module, args, out: torch.where(
            (args[0] == module.eoi_token_index)[..., None],
            out,
            (module.weight[args[0]].float() * 48**0.5).to(out.dtype),
        )
    )


def future_leaks(model: Any, patch: pytest.MonkeyPatch) -> None:
    """Each query sees the next token too."""
    from transformers.models.t5gemma2 import modeling_t5gemma2 as modeling

    true = modeling.create_causal_mask

    def create(**kwargs: Any) -> Any:
        def ahead(batch: Any, head: Any, q: Any, k: Any) -> Any:
            return k == q + 1

        return true(**kwargs | {"or_mask_function": ahead})

    patch.setattr(modeling, "create_causal_mask", create)


def window_over_cross(model: Any, patch: pytest.MonkeyPatch) -> None:
    """The last W source tokens are all that the cross half sees (D37)."""
    import torch
    from transformers_patches import on_cross_mask

    width = model.config.decoder.sliding_window

    def cut(mask: Any) -> Any:
        mask = mask.clone()
        mask[..., :-width] = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return mask

    on_cross_mask(patch, lambda given: given, cut)


def decoder_window_at_most(_: Any, patch: pytest.MonkeyPatch) -> None:
    """q − k ≤ W in place of < W (D34)."""
    from transformers.models.t5gemma2 import modeling_t5gemma2 as modeling

    true = modeling.create_sliding_window_causal_mask

    def create(**kwargs: Any) -> Any:
        config = kwargs["config"]
        wider = type(config)(**{**config.to_dict(), "sliding_window": config.sliding_window + 1})
        wider._attn_implementation = config._attn_implementation
        return true(**kwargs | {"config": wider})

    patch.setattr(modeling, "create_sliding_window_causal_mask", create)


FOUND: dict[str, tuple[Any, str, str]] = {
    "encoder causal": ("causal_encoder", f"{ENC}.layers.0", "mask"),
    "window short on the left": (("window", -1, 0), f"{ENC}.layers.0", "mask"),
    "window long on the left": (("window", 1, 0), f"{ENC}.layers.0", "mask"),
    "window short on the right": (("window", 0, -1), f"{ENC}.layers.0", "mask"),
    "window long on the right": (("window", 0, 1), f"{ENC}.layers.0", "mask"),
    "window over the cross half": (window_over_cross, f"{DEC}.layers.0", "mask"),
    "decoder window at most": (decoder_window_at_most, f"{DEC}.layers.0", "mask"),
    "a future token": (future_leaks, f"{DEC}.layers.2", "mask"),
    "embedding untied": (untied, "weights.lm_head.out_proj.weight", "exact"),
    "a weight's last bit": (last_bit, f"weights.{DEC}.layers.4.self_attn.o_proj.weight", "exact"),
    "scale not rounded": (unrounded_scale, f"{DEC}.embed_tokens", "exact"),
}


@needs_torch
@pytest.mark.parametrize("fault", FOUND)
@pytest.mark.parametrize(("attention", "dtype"), [("sdpa", "float32"), ("eager", "bfloat16")])
def test_fault_is_found(
    fault: str, attention: str, dtype: str, target: Target, faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject, tap, status = FOUND[fault]
    if isinstance(inject, str):
        inject = getattr(faults, inject)
    elif isinstance(inject, tuple):
        inject = getattr(faults, inject[0])(*inject[1:])
    harmless = fault == "scale not rounded" and dtype == "float32"
    if not harmless:
        name = "decoder-window" if fault == "decoder window at most" else "window"
        (case,) = cases.select(cases.build(target.config), [name])
        with pytest.MonkeyPatch.context() as patch:
            peers = [peer_with(given, patch, attention, dtype) for given in (inject, None)]
            assert_injected(*peers, target, case)
    found = lane(attention, dtype, target, monkeypatch, inject)
    if harmless:
        assert (tap, status) not in failed(found), "the root of the table's type is this one"
        return
    wrong = failed(found)
    assert wrong[:1] == [(tap, status)], wrong[:3]


@needs_torch
@pytest.mark.parametrize("name", [f"{ENC}.layers.1", f"{DEC}.embed_tokens", "logits"])
def test_a_nan_or_nothing_at_a_tap_is_no_pass(name: str, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    from conformance.judge.exact.moves import Moves

    true = Moves.put

    def broken(self: Any, tap: str, value: Any, **how: Any) -> None:
        bad = np.where(np.arange(value.shape[-1]) == 1, np.float32(np.nan), value) if tap == name else value
        true(self, tap, bad, **how)

    def absent(self: Any, tap: str, value: Any, **how: Any) -> None:
        if tap != name:
            true(self, tap, value, **how)

    for put, statuses in ((broken, {"nan", "exact"}), (absent, {"missing"})):
        monkeypatch.setattr(Moves, "put", put)
        wrong = failed(lane("sdpa", "float32", target, monkeypatch))
        assert {tap for tap, _ in wrong} == {name}
        assert {status for _, status in wrong} <= statuses
        assert len(wrong) >= len(probes(target.config))

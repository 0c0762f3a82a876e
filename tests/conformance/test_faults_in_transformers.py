"""A judge that cannot fail is no judge: faults put into a copy of transformers must be found at the right tap.

Each fault is injected from outside into the peer's own model, the way a port gets it wrong, and the case named with it
is judged. The first failing local tap has to be the one where that fault happens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: the faults are injected into transformers")
pytest.importorskip("transformers", reason="needs transformers: the faults are injected into it")

import torch
from injected import assert_injected
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.t5gemma2 import modeling_t5gemma2 as modeling

from conformance.activations import Dump
from conformance.cases import catalogue as cases
from conformance.cases.case import Case
from conformance.checkpoints import resolve
from conformance.judge.judge import judge
from conformance.judge.judgement import Judgement
from conformance.measure.limits import LIMITS
from conformance.peers.torch.transformers import TransformersPeer

pytestmark = pytest.mark.peer

Inject = Callable[[Any, pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Fault:
    """One defect: how it is injected, the case that shows it, the first tap that must fail, its status and call."""

    name: str
    case: str
    tap: str
    inject: Inject
    status: str = "values"
    call: int = 0


def encoder(model: Any) -> Any:
    return model.model.encoder.text_model


def decoder(model: Any) -> Any:
    return model.model.decoder


def on_output(pick: Callable[[Any], Any], change: Callable[[torch.Tensor], torch.Tensor], call: int = 0) -> Inject:
    """Change what a module gives back, on its call-th call in a forward (the cross keys are k_norm's second)."""

    def inject(model: Any, _: pytest.MonkeyPatch) -> None:
        seen = [0]

        def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            seen[0] += 1
            return change(output.clone()) if (seen[0] - 1) % (call + 1) == call else output

        pick(model).register_forward_hook(hook)

    return inject


def on_weight(pick: Callable[[Any], Any], change: Callable[[torch.Tensor], torch.Tensor]) -> Inject:
    """Change a parameter in place (tied ones stay tied)."""

    def inject(model: Any, _: pytest.MonkeyPatch) -> None:
        with torch.no_grad():
            weight = pick(model)
            weight.copy_(change(weight.clone()))

    return inject


def rotated(x: torch.Tensor) -> torch.Tensor:
    """RoPE at positions 0, 1, 2, … over (B, K, S, H), theta 1234 as in tiny's sliding layers."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[2])[:, None] * 1234.0 ** (-torch.arange(half) / half)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def one_nan(x: torch.Tensor) -> torch.Tensor:
    x.view(-1)[7] = float("nan")
    return x


def window(back: int, ahead: int) -> Inject:
    """Encoder windows that are wrong by `back` and `ahead` keys."""

    def inject(model: Any, patch: pytest.MonkeyPatch) -> None:
        def rule(sliding_window: int, is_causal: bool = True) -> Callable[..., Any]:
            left, right = (sliding_window + 1) // 2 + back, sliding_window // 2 + 1 + ahead

            def inner(batch: Any, head: Any, q: Any, k: Any) -> Any:
                distance = q - k
                return ((distance >= 0) & (distance < left)) | ((distance < 0) & (-distance < right))

            return inner

        patch.setattr(modeling, "sliding_window_mask_function", rule)

    return inject


def exchange_thetas(model: Any, _: pytest.MonkeyPatch) -> None:
    rope = encoder(model).rotary_emb
    rope.sliding_attention_inv_freq, rope.full_attention_inv_freq = (
        rope.full_attention_inv_freq.clone(),
        rope.sliding_attention_inv_freq.clone(),
    )


def erf_gelu(model: Any, _: pytest.MonkeyPatch) -> None:
    decoder(model).layers[3].mlp.act_fn = torch.nn.GELU()


def causal_encoder(model: Any, patch: pytest.MonkeyPatch) -> None:
    true = modeling.create_bidirectional_mask

    def causal(**kwargs: Any) -> Any:
        mask = true(**kwargs)
        if kwargs.get("encoder_hidden_states") is not None:
            return mask
        length = kwargs["inputs_embeds" if "inputs_embeds" in kwargs else "input_embeds"].shape[1]
        below = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        return below if mask is None else mask & below if mask.dtype == torch.bool else mask.masked_fill(~below, -1e38)

    patch.setattr(modeling, "create_bidirectional_mask", causal)


def on_cross_mask(
    patch: pytest.MonkeyPatch, before: Callable[[dict[str, Any]], dict[str, Any]], after: Callable[[Any], Any]
) -> None:
    """Change what the mask of the cross half is made of, and the mask. Since 5.2 or so it is a bidirectional mask;
    before that a causal one, with a function that lets everything through."""

    def wrapped(true: Callable[..., Any], sign: str) -> Callable[..., Any]:
        def make(**kwargs: Any) -> Any:
            return true(**kwargs) if kwargs.get(sign) is None else after(true(**before(kwargs)))

        return make

    for name, sign in (
        ("create_bidirectional_mask", "encoder_hidden_states"),
        ("create_causal_mask", "or_mask_function"),
    ):
        patch.setattr(modeling, name, wrapped(getattr(modeling, name), sign))


def window_over_cross(model: Any, patch: pytest.MonkeyPatch) -> None:
    width = model.config.decoder.sliding_window

    def cut(mask: Any) -> Any:
        mask = mask.clone()
        mask[..., :-width] = False
        return mask

    on_cross_mask(patch, lambda given: given, cut)


def truncated_cross_cache(model: Any, patch: pytest.MonkeyPatch) -> None:
    """As in transformers #45521: the model keeps the cross half in a cache made for the decoder's own windows."""
    from transformers import DynamicCache

    true = modeling.EncoderDecoderCache

    class Pair(true):  # type: ignore[misc, valid-type]
        def __init__(self, own: Any, _: Any) -> None:
            super().__init__(own, DynamicCache(config=model.config.decoder))

    patch.setattr(modeling, "EncoderDecoderCache", Pair)


def short_sliding_cache(_: Any, patch: pytest.MonkeyPatch) -> None:
    """One token too few is kept: sliding_window - 2 behind the new one."""
    true = DynamicSlidingWindowLayer.update

    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        full = true(self, *args, **kwargs)
        if self.keys.shape[2] > (kept := self.sliding_window - 2):
            self.keys, self.values = self.keys[:, :, -kept:], self.values[:, :, -kept:]
        return full

    patch.setattr(DynamicSlidingWindowLayer, "update", update)


def held(given: dict[str, Any]) -> int:
    """How many positions are in the cache among a call's arguments, by either of its names."""
    cache = given.get("cache", given.get("past_key_values"))
    return 0 if cache is None else int(cache.get_seq_length())


def cross_padding_dropped_once_cached(model: Any, patch: pytest.MonkeyPatch) -> None:
    forward, length = decoder(model).forward, [0]

    def counting(*args: Any, **kwargs: Any) -> Any:
        length[0] = held(kwargs)  # here, because the mask itself is made without the cache
        return forward(*args, **kwargs)

    def unmasked(given: dict[str, Any]) -> dict[str, Any]:
        if not length[0]:
            return given
        everything = given | {"attention_mask": None}
        if "or_mask_function" in given:
            everything["or_mask_function"] = modeling.bidirectional_mask_function(None)
        return everything

    patch.setattr(decoder(model), "forward", counting)
    on_cross_mask(patch, unmasked, lambda mask: mask)


def decoder_padding_dropped_once_cached(_: Any, patch: pytest.MonkeyPatch) -> None:
    def without(true: Callable[..., Any]) -> Callable[..., Any]:
        def unmasked(**kwargs: Any) -> Any:
            return true(**kwargs | ({"attention_mask": None} if held(kwargs) else {}))

        return unmasked

    for name in ("create_causal_mask", "create_sliding_window_causal_mask"):
        patch.setattr(modeling, name, without(getattr(modeling, name)))


def first_row_s_positions(pick: Callable[[Any], Any]) -> Inject:
    """`position_ids[:1]`, as where every row is thought to count from 0."""

    def inject(model: Any, patch: pytest.MonkeyPatch) -> None:
        rope = pick(model).rotary_emb
        true = rope.forward
        patch.setattr(rope, "forward", lambda x, positions, layer_type: true(x, positions[:1], layer_type))

    return inject


def positions_counted_from_the_cache(model: Any, patch: pytest.MonkeyPatch) -> None:
    """Given decoder_position_ids are ignored as soon as the cache holds something."""
    true = decoder(model).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return true(*args, **kwargs | ({"position_ids": None} if held(kwargs) else {}))

    patch.setattr(decoder(model), "forward", forward)


def pooled_by_count(model: Any, patch: pytest.MonkeyPatch) -> None:
    """The last token looked for at the number of tokens - 1, which is right on one side only."""
    true, scores = model.forward, []
    model.score.register_forward_hook(lambda module, args, output: scores.append(output))

    def forward(**kwargs: Any) -> Any:
        out = true(**kwargs)
        last = (kwargs["decoder_input_ids"] != model.config.pad_token_id).sum(1) - 1
        out.logits = scores.pop()[torch.arange(len(last)), last]
        return out

    patch.setattr(model, "forward", forward)


def first_logits(model: Any, patch: pytest.MonkeyPatch) -> None:
    """logits_to_keep keeps the first n positions: they are moved to where the last ones are cut off."""
    true, count = model.forward, [0]

    def forward(*args: Any, **kwargs: Any) -> Any:
        count[0] = kwargs.get("logits_to_keep", 0)
        return true(*args, **kwargs)

    def moved(module: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.roll(-count[0], dims=1)
        return output

    patch.setattr(model, "forward", forward)
    model.model.register_forward_hook(moved)


def zeros_for_decoder_ids(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model, "prepare_decoder_input_ids_from_labels", torch.zeros_like)


def first_picture_twice(model: Any, patch: pytest.MonkeyPatch) -> None:
    whole = model.model.encoder
    true = whole.get_image_features

    def features(*args: Any, **kwargs: Any) -> Any:
        out = true(*args, **kwargs)
        out.pooler_output = out.pooler_output[[0, 0, 2]]  # pictures 0 and 1 stand in row 0
        return out

    patch.setattr(whole, "get_image_features", features)


def exchanged_gate_and_up(model: Any, _: pytest.MonkeyPatch) -> None:
    mlp = encoder(model).layers[2].mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj


def scaled_images(model: Any, _: pytest.MonkeyPatch) -> None:
    scale = model.config.decoder.hidden_size**0.5
    model.model.encoder.multi_modal_projector.register_forward_hook(lambda m, a, out: out * scale)


ENC, DEC = "encoder.text_model", "decoder"
FAULTS = [
    Fault(
        "cross keys rotated",
        "short",
        f"{DEC}.layers.0.self_attn.cross_k_norm",
        on_output(lambda m: decoder(m).layers[0].self_attn.k_norm, rotated, call=1),
    ),
    Fault(
        "+ 1 dropped from one norm",
        "short",
        f"{DEC}.layers.1.pre_feedforward_layernorm",
        on_weight(lambda m: decoder(m).layers[1].pre_feedforward_layernorm.weight, lambda w: w - 1),
    ),
    Fault("window one short on the left", "window", f"{ENC}.layers.0.self_attn.mask", window(-1, 0), "mask"),
    Fault("window one long on the right", "window", f"{ENC}.layers.0.self_attn.mask", window(0, 1), "mask"),
    Fault(
        "EOI row scaled",
        "eoi",
        f"{ENC}.embed_tokens",
        on_weight(lambda m: encoder(m).embed_tokens.eoi_embedding, lambda w: w * 48**0.5),
    ),
    Fault("theta exchanged", "window", f"{ENC}.rotary_emb.full_attention.cos", exchange_thetas),
    Fault("erf GELU", "short", f"{DEC}.layers.3.mlp.act_fn", erf_gelu),
    Fault(
        "a NaN in one element",
        "short",
        f"{ENC}.layers.3.self_attn.o_proj",
        on_output(lambda m: encoder(m).layers[3].self_attn.o_proj, one_nan),
        "nan",
    ),
    Fault("encoder causal", "short", f"{ENC}.layers.0.self_attn.mask", causal_encoder, "mask"),
    Fault("window over the cross half", "window", f"{DEC}.layers.0.self_attn.mask", window_over_cross, "mask"),
    Fault("gate and up exchanged", "short", f"{ENC}.layers.2.mlp.gate_proj", exchanged_gate_and_up),
    Fault("image features scaled", "image", "encoder.multi_modal_projector.projected", scaled_images),
    Fault(
        "lm_head not tied: a stale copy",
        "short",
        "lm_head",
        lambda m, _: setattr(m.lm_head.out_proj, "weight", torch.nn.Parameter(m.lm_head.out_proj.weight + 0.01)),
    ),
    Fault(
        "one weight off in the last bit of bfloat16",
        "short",
        f"{DEC}.layers.4.self_attn.o_proj",
        on_weight(lambda m: decoder(m).layers[4].self_attn.o_proj.weight[5:6, 5:6], lambda w: w * (1 + 2**-7)),
    ),
    Fault(
        "padding dropped in the cross half once cached",
        "padded-left-cached",
        f"{DEC}.layers.0.self_attn.mask",
        cross_padding_dropped_once_cached,
        "mask",
        call=1,
    ),
    Fault(
        "decoder padding dropped once cached",
        "padded-left-cached",
        f"{DEC}.layers.0.self_attn.mask",
        decoder_padding_dropped_once_cached,
        "mask",
        call=1,
    ),
    Fault(
        "one row's positions for all, encoder",
        "far-positions",
        f"{ENC}.rotary_emb.full_attention.cos",
        first_row_s_positions(encoder),
    ),
    Fault(
        "one row's positions for all, decoder",
        "far-positions",
        f"{DEC}.rotary_emb.full_attention.cos",
        first_row_s_positions(decoder),
    ),
    Fault(
        "given positions ignored with a cache",
        "far-positions",
        f"{DEC}.rotary_emb.full_attention.cos",
        positions_counted_from_the_cache,
        call=1,
    ),
    Fault("pooled at the count of tokens", "sequence-multi", "logits", pooled_by_count),
    Fault("classifier's decoder ids all 0", "sequence-regression", f"{DEC}.embed_tokens", zeros_for_decoder_ids),
    Fault("logits of the first positions", "second-source", "lm_head", first_logits),
    Fault("first picture's features twice", "images", f"{ENC}.inputs_embeds", first_picture_twice),
]


class Faulty(TransformersPeer):
    """transformers with one fault."""

    def __init__(self, inject: Inject, patch: pytest.MonkeyPatch) -> None:
        super().__init__("sdpa")
        self.inject, self._patch = inject, patch

    def _build(self, case: Case) -> Any:
        model = super()._build(case)
        self.inject(model, self._patch)
        return model


@pytest.fixture(scope="module")
def target() -> Any:
    return resolve("tiny", synthetic=False)[0]


def judged(peer: TransformersPeer, target: Any, name: str) -> Judgement:
    (case,) = cases.select(cases.build(target.config), [name])
    if isinstance(peer, Faulty):
        with pytest.MonkeyPatch.context() as patch:  # gone before the healthy one runs, and before the judgement
            assert_injected(Faulty(peer.inject, patch), TransformersPeer("sdpa"), target, case)
    peer.open(target)
    return judge(peer, target, case)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_fault_is_found_at_its_tap(fault: Fault, target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = judged(Faulty(fault.inject, monkeypatch), target, fault.case)
    assert not result.error
    assert result.culprit is not None, "the fault went unseen"
    found = (result.culprit.tap, result.culprit.status, result.culprit.call)
    assert found == (fault.tap, fault.status, fault.call), result.culprit
    assert result.deviates
    if fault.status == "values":
        # far above what passes, so that the limit needs no tuning (DESIGN: defects are 1e2 to 1e5 in float32);
        # a single weight's last bit is the smallest thing there is
        least = 2.0 if "last bit" in fault.name else 10.0
        assert result.culprit.worst > least * LIMITS["local"]


@pytest.mark.parametrize("name", [f"{ENC}.layers.1.mlp.act_fn", f"{DEC}.norm", "logits"])
def test_missing_tap_is_a_failure(name: str, target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Dump.put
    monkeypatch.setattr(Dump, "put", lambda self, tap, value: None if tap == name else true(self, tap, value))
    result = judged(TransformersPeer("sdpa"), target, "short")
    assert result.culprit is not None
    assert (result.culprit.tap, result.culprit.status) == (name, "missing")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda x: x[..., :-1], "shape"),
        (lambda x: x.astype(np.float64), "dtype"),
        (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 3, np.inf, x).astype(x.dtype), "nan"),
        (lambda x: x + np.float32(1e-3), "values"),
    ],
)
def test_every_gate_can_fail(
    change: Callable[[Any], Any], status: str, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, name = Dump.put, f"{DEC}.layers.2"
    monkeypatch.setattr(Dump, "put", lambda self, tap, value: true(self, tap, change(value) if tap == name else value))
    result = judged(TransformersPeer("eager"), target, "short")
    assert result.culprit is not None
    assert (result.culprit.tap, result.culprit.status) == (name, status)


def verdict(result: Judgement) -> str:
    report = pytest.importorskip("conformance.report.text", reason="needs rich: the verdict is the report's")
    return str(report.Result([("tiny", result)], {}, {}, {}, selected=1, available=1).verdict)


def test_short_sliding_cache_is_found_before_it_raises(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers counts on its own window when it makes the mask, and fails at the first layer; the keys that
    reached its attention are evidence all the same."""
    result = judged(Faulty(short_sliding_cache, monkeypatch), target, "decoder-steps")
    assert result.error.startswith("RuntimeError: ")
    assert result.local
    assert result.culprit is not None
    assert (result.culprit.tap, result.culprit.status) == (f"{DEC}.layers.0.self_attn.keys", "shape")
    assert result.culprit.call > 0
    assert (result.passed, result.deviates, verdict(result)) == (False, True, "DEVIATES")


def test_truncated_cross_cache_is_not_passed(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = judged(Faulty(truncated_cross_cache, monkeypatch), target, "cross-cached")
    assert result.error.startswith("RuntimeError: The size of tensor a (20) must match the size of tensor b (32)")
    assert result.culprit is not None
    # the mask is made for 3 own keys and 29 of the source; there are 3 and 17, fewer than the source alone, so that
    # the halves cannot be told apart and every tap on them shows what reached the attention
    assert (result.culprit.tap, result.culprit.status) == (f"{DEC}.layers.0.self_attn.keys", "shape")
    assert result.culprit.call == 1
    assert (result.passed, result.deviates, verdict(result)) == (False, True, "DEVIATES")


def coarse_cache(_: Any, patch: pytest.MonkeyPatch) -> None:
    """Keys come out of the cache as multiples of 1 / 32, the newest too, as from one that keeps small integers."""
    for kind in (DynamicLayer, DynamicSlidingWindowLayer):

        def update(self: Any, *args: Any, true: Any = kind.update, **kwargs: Any) -> Any:
            keys, values = true(self, *args, **kwargs)
            return (keys * 32).round() / 32, values

        patch.setattr(kind, "update", update)


def test_a_lossy_cache_is_no_fault_of_rope(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turned keys are seen before the cache, and are right; the report says where it begins, and how wide it is."""
    result = judged(Faulty(coarse_cache, monkeypatch), target, "cross-cached")
    assert result.culprit is not None
    assert (result.culprit.tap, result.culprit.status) == (f"{DEC}.layers.0.self_attn.keys", "values")
    assert all(f.passed for f in result.local if f.tap.endswith("k_rope"))
    spread = pytest.importorskip("conformance.report.spread")
    rows = [(f.tap, f.call, f.status) for f in result.local]
    assert spread.cache(result.culprit.tap, result.culprit.call, rows).startswith("the cache")
    assert "in 7 of 7 layers, at the same tap" in spread.layers(result.culprit.tap, rows)


def test_keys_are_seen_without_a_rope_of_that_name(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model file whose RoPE has another name shows its newest keys as they reach the attention."""
    monkeypatch.setattr("conformance.peers.torch.hooks.ROTATE", "no_such_function")
    assert judged(TransformersPeer("sdpa"), target, "cross-cached").culprit is None


def test_what_is_missing_after_an_error_is_no_fault(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All taps before are right, so nothing is known against the peer."""

    def stops(model: Any, patch: pytest.MonkeyPatch) -> None:
        def refuse(module: Any, args: Any) -> None:
            raise RuntimeError("not implemented")

        decoder(model).layers[2].mlp.register_forward_pre_hook(refuse)

    result = judged(Faulty(stops, monkeypatch), target, "short")
    assert result.error == "RuntimeError: not implemented"
    assert result.culprit is not None
    assert (result.culprit.tap, result.culprit.status) == (f"{DEC}.layers.2.mlp.gate_proj", "missing")
    before = result.local[: result.local.index(result.culprit)]
    assert before
    assert all(f.passed for f in before)
    assert (result.passed, result.deviates, verdict(result)) == (False, False, "INCOMPLETE")

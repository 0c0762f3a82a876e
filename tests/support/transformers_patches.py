"""What ports get wrong, put into a copy of transformers from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.models.t5gemma2 import modeling_t5gemma2 as modeling

Inject = Callable[[Any, pytest.MonkeyPatch], None]


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

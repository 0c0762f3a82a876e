"""transformers' T5Gemma 2 as ONNX graphs: the encoder, with and without pictures; the decoder's first and next calls.

The decoder's cache goes in and comes out as tensors. It holds every position, on sliding layers too: the masks hide
what lies behind a window.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from conformance.peers.torch.releases import cache_name

AUTO = torch.export.Dim.AUTO
ROWS = {0: AUTO, 1: AUTO}
SOURCE, FIRST, MORE = 23, 7, 2  # tokens of the inputs that an export is traced with; no two lengths are equal


class Encoder(torch.nn.Module):  # type: ignore[misc]
    """ids, mask, positions (B, S) → hidden (B, S, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model.model.encoder

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any) -> Any:
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        return self.inner(input_ids=input_ids, **given).last_hidden_state


class Seeing(Encoder):
    """The same with pixel_values (I, C, side, side)."""

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, pixel_values: Any = None) -> Any:
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "pixel_values": pixel_values}
        return self.inner(input_ids=input_ids, **given).last_hidden_state


class Decoder(torch.nn.Module):  # type: ignore[misc]
    """ids (B, T), mask over all positions, positions (B, T), the encoder's output and its mask → logits (B, T, V), and
    keys and values by layer: own ones, and of a first call the cross ones."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner, self.held = model, cache_name(type(model).forward)

    def first(self, ids: Any, mask: Any, positions: Any, hidden: Any, encoder_mask: Any) -> Any:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = self._logits(ids, mask, positions, hidden, encoder_mask, cache)
        own, cross = cache.self_attention_cache.layers, cache.cross_attention_cache.layers
        return logits, *([getattr(layer, name) for layer in of] for of in (own, cross) for name in ("keys", "values"))

    def next(self, ids: Any, mask: Any, positions: Any, hidden: Any, encoder_mask: Any, *held: Any) -> Any:
        own, cross = (DynamicCache(list(zip(*pair, strict=True))) for pair in (held[:2], held[2:]))
        cache = EncoderDecoderCache(own, cross)
        for layer in range(len(held[0])):
            cache.is_updated[layer] = True
        logits = self._logits(ids, mask, positions, hidden, encoder_mask, cache)
        layers = cache.self_attention_cache.layers
        return logits, [layer.keys for layer in layers], [layer.values for layer in layers]

    def _logits(self, ids: Any, mask: Any, positions: Any, hidden: Any, encoder_mask: Any, cache: Any) -> Any:
        given = {"decoder_input_ids": ids, "decoder_attention_mask": mask, "decoder_position_ids": positions}
        given |= {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden), "attention_mask": encoder_mask}
        return self.inner(**given, **{self.held: cache}, use_cache=True).logits


class First(Decoder):
    def forward(self, ids: Any, mask: Any, positions: Any, hidden: Any, encoder_mask: Any) -> Any:
        return self.first(ids, mask, positions, hidden, encoder_mask)


class Next(Decoder):
    def forward(
        self, ids: Any, mask: Any, positions: Any, hidden: Any, encoder_mask: Any, k: Any, v: Any, ck: Any, cv: Any
    ) -> Any:
        return self.next(ids, mask, positions, hidden, encoder_mask, k, v, ck, cv)


def exported(model: Any, config: Any, folder: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, str]:
    """Write each graph into the folder as NAME.onnx: encoder, seeing, first, next. Returns what could not be exported:
    name → why.

    Args:
        config: ours, of the same geometry.
    """
    failed = dict[str, str]()
    with torch.no_grad():
        for name, (module, inputs, shapes) in _wanted(model, config).items():
            say(name)
            try:
                _export(module, inputs, shapes, folder / f"{name}.onnx")
            except Exception as error:  # of the exporter, which has many
                failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}"
    return failed


def _wanted(model: Any, config: Any) -> dict[str, tuple[Any, tuple[Any, ...], tuple[Any, ...]]]:
    """Graph → its module, inputs that it is traced with, and which of their axes vary."""
    low, high = 8, config.decoder.vocab_size
    ids = torch.randint(low, min(high, low + 24), (2, SOURCE))
    mask, positions = torch.ones_like(ids), torch.arange(SOURCE).expand(2, -1)
    own = torch.randint(low, min(high, low + 24), (2, FIRST))
    own_mask, own_positions = torch.ones_like(own), torch.arange(FIRST).expand(2, -1)
    hidden = Encoder(model)(ids, mask, positions)
    wanted: dict[str, Any] = {"encoder": (Encoder(model).eval(), (ids, mask, positions), (ROWS,) * 3)}
    if config.has_vision:
        block = [config.boi_token_index, *[config.image_token_index] * config.mm_tokens_per_image]
        seen = torch.tensor([[9, *block, config.eoi_token_index, 10]] * 2)
        side, channels = config.vision.image_size, config.vision.num_channels
        inputs = (seen, torch.ones_like(seen), torch.arange(seen.shape[1]).expand(2, -1))
        wanted["seeing"] = (
            Seeing(model).eval(),
            (*inputs, torch.zeros(2, channels, side, side)),
            (*(ROWS,) * 3, {0: AUTO}),
        )
    decoding = (own, own_mask, own_positions, hidden, mask)
    wanted["first"] = (First(model).eval(), decoding, (ROWS,) * 5)
    _, *held = First(model)(*decoding)
    more = (own[:, :MORE], torch.ones(2, FIRST + MORE, dtype=torch.long), own_positions[:, :MORE] + FIRST, hidden, mask)
    layers = [{0: AUTO, 2: AUTO}] * len(held[0])
    wanted["next"] = (Next(model).eval(), (*more, *held), (*(ROWS,) * 5, *(layers,) * 4))
    return wanted


def _export(module: Any, inputs: tuple[Any, ...], shapes: tuple[Any, ...], path: Path) -> None:
    """Write one graph. What the exporter says of itself goes nowhere: it warns of much, and shows its steps."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        own = {torch.ops.aten._is_all_true.default: _all_true}
        how: dict[str, Any] = {"dynamo": True, "dynamic_shapes": shapes, "verbose": False}
        program = torch.onnx.export(module, inputs, **how, custom_translation_table=own)
        assert program is not None
        program.save(str(path))


def _all_true(x: Any) -> Any:
    """The one operation of this model that the exporter lacks: whether a condition holds everywhere."""
    from onnxscript import opset18 as op

    return op.Cast(op.ReduceMin(op.Cast(x, to=7), keepdims=0), to=9)  # int64, bool

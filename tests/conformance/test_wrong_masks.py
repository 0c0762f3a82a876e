"""Peers with wrong masks or positions, which the probes must find at the layer where they begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from exact_findings import DEC, ENC, failed
from probing import Other, examined, with_decoder

from conformance.activations import Dump
from conformance.checkpoints import resolve
from conformance.peers.reference import ReferencePeer
from conformance.target import Target
from t5g2ref import encoder, masks
from t5g2ref.backend import NUMPY
from t5g2ref.model import T5Gemma2

pytestmark = pytest.mark.slow  # minutes in all


@pytest.fixture(scope="module")
def target() -> Target:
    return resolve("tiny-even", synthetic=False)[0]


class Patched(ReferencePeer):
    """The reference with something of it replaced while it runs as the peer, and not when it is the judge's."""

    def __init__(self, place: Any, name: str, wrong: Callable[[Any], Any], dtype: Any = "float32") -> None:
        super().__init__(NUMPY, dtype)
        self._replacing = place, name, wrong(getattr(place, name))

    def run(self, case: Any, dump: Dump) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*self._replacing)
            super().run(case, dump)


def with_band(change: Callable[[masks.Band], masks.Band], *, everywhere: bool = False) -> Patched:
    """Another rule in the encoder's sliding layers, or in all of them."""

    def wrong(true: Any) -> Any:
        def band(config: Any, kind: str) -> masks.Band:
            found: masks.Band = true(config, kind)
            return change(found) if everywhere or kind.startswith("sliding") else found

        return band

    return Patched(encoder, "encoder_band", wrong)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wider", [-1, +1])
def test_decoder_window_off_by_one(wider: int, dtype: str, target: Target) -> None:
    found = examined(with_decoder(wider, dtype), target, "probe-decoder")
    # the two sliding layers before the first full one, each by itself; a rounding may hide what comes to the second
    both = [(f"{DEC}.layers.{i}", "mask") for i in (0, 1)]
    assert failed(found) == both or (dtype == "bfloat16" and failed(found) == both[:1])
    window = target.config.decoder.sliding_window
    words = {
        -1: f"changing decoder token 0 did not move position {window - 1}, which sees it",
        +1: f"changing decoder token 0 moved position {window}, which is out of its reach",
    }
    detail = next(f.detail for f in found if not f.passed)
    assert words[wider] in detail
    assert failed(examined(with_decoder(wider, dtype), target, "probe-encoder")) == []


@pytest.mark.parametrize(
    ("back", "ahead", "words"),
    [(-1, 0, "did not move"), (1, 0, "moved"), (0, -1, "did not move"), (0, 1, "moved")],
)
def test_encoder_window_off_by_one_on_one_side(back: int, ahead: int, words: str, target: Target) -> None:
    peer = with_band(lambda band: masks.Band(band.back + back, band.ahead + ahead))  # type: ignore[operator]
    found = examined(peer, target, "probe-encoder")
    assert failed(found) == [(f"{ENC}.layers.0", "mask")]
    wrong = next(f for f in found if not f.passed)
    assert f" {words} position " in wrong.detail


def test_encoder_causal(target: Target) -> None:
    found = examined(with_band(lambda band: replace(band, ahead=0), everywhere=True), target, "probe-encoder")
    assert failed(found) == [(f"{ENC}.layers.{i}", "mask") for i in range(target.config.encoder.num_hidden_layers)]
    wrong = next(f for f in found if not f.passed)
    assert "changing encoder token 1 did not move position 0, which sees it" in wrong.detail


def test_pattern_of_layers_shifted(target: Target) -> None:
    """Layer 0 full and layer 1 sliding: the first leaks, the second is blind to nothing more, as all has moved."""
    kinds = target.config.encoder.layer_types
    shifted = Other(lambda c: replace(c, encoder=replace(c.encoder, layer_types=(*kinds[1:], kinds[0]))))
    assert failed(examined(shifted, target, "probe-encoder")) == [(f"{ENC}.layers.0", "mask")]


class Deaf(ReferencePeer):
    """Is not told of something that its inputs hold."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__(NUMPY, "float32")
        self._change = change

    def run(self, case: Any, dump: Dump) -> None:
        super().run(replace(case, runs=tuple(map(self._change, case.runs))), dump)


def test_encoder_padding_ignored(target: Target) -> None:
    found = examined(Deaf(lambda run: replace(run, attention_mask=None)), target, "probe-padding")
    wrong = failed(found)
    assert wrong == [(f"{ENC}.layers.0", "mask")]  # from there on everything has moved for a reason
    assert "changing the right padding moved position" in next(f.detail for f in found if not f.passed)


def test_padding_ignored_in_the_cross_half(target: Target) -> None:
    def started(true: Any) -> Any:
        return lambda self, encoded, trace: true(self, replace(encoded, valid=encoded.valid | True), trace)

    found = examined(Patched(T5Gemma2, "start", started), target, "probe-padding")
    assert failed(found) == [(f"{DEC}.layers.0", "mask")]


@pytest.mark.parametrize("kept", [slice(-14, None), slice(None, 14)])
def test_cross_half_cut_by_the_window(kept: slice, target: Target) -> None:
    """Seen by the probe whose one source token is far away, and by no other: elsewhere a near one passes it on."""

    def started(true: Any) -> Any:
        def start(self: Any, encoded: Any, trace: Any) -> Any:
            valid = np.zeros_like(encoded.valid)
            valid[:, kept] = encoded.valid[:, kept]
            return true(self, replace(encoded, valid=valid), trace)

        return start

    peer = Patched(T5Gemma2, "start", started)
    found = examined(peer, target, "probe-cross")
    assert failed(found) == [(f"{DEC}.layers.{i}", "mask") for i in range(target.config.decoder.num_hidden_layers)]
    first = "encoder token 0" if kept.start else "encoder token 50"
    assert f"changing {first} did not move position 0, which sees it" in next(f.detail for f in found if not f.passed)
    assert failed(examined(peer, target, "probe-encoder")) == []


def test_decoder_padding_ignored(target: Target) -> None:
    found = examined(Deaf(lambda run: replace(run, decoder_attention_mask=None)), target, "probe-padding")
    assert failed(found)[0] == (f"{DEC}.layers.0", "mask")
    assert "changing the left padding moved position 5" in next(f.detail for f in found if not f.passed)


def test_positions_counted_from_the_mask(target: Target) -> None:
    """Left padding shifts them where none are given (D29), which shows against the given ones."""

    def counted(run: Any) -> Any:
        if run.position_ids is not None or run.attention_mask is None:
            return run
        return replace(run, position_ids=np.maximum(run.attention_mask.cumsum(1) - 1, 0))

    found = examined(Deaf(counted), target, "probe-positions")
    wrong = [f for f in found if not f.passed]
    assert (wrong[0].tap, wrong[0].status) == (f"{ENC}.layers.0", "exact")
    assert "changing how positions are given (left padding) moved position 5; " in wrong[0].detail
    assert "right padding" not in wrong[0].detail


def test_given_positions_ignored(target: Target) -> None:
    """By a peer that counts from 1: only what is given is right."""
    ignored = Deaf(lambda run: replace(run, position_ids=None, decoder_position_ids=None))
    assert failed(examined(ignored, target, "probe-positions")) == [], "counted as they are given: cannot be seen"

    def from_one(run: Any) -> Any:
        given = run.decoder_position_ids
        counted = np.arange(run.decoder_input_ids.shape[1])[None].repeat(len(run.decoder_input_ids), 0)
        return replace(run, decoder_position_ids=counted + 1 if given is None else given)

    assert failed(examined(Deaf(from_one), target, "probe-positions"))[0] == (f"{DEC}.layers.0", "exact")


def test_pictures_in_the_wrong_place(target: Target) -> None:
    swapped = Deaf(lambda run: run if run.pixel_values is None else replace(run, pixel_values=run.pixel_values[::-1]))
    found = examined(swapped, target, "probe-images")
    assert failed(found) == []  # of three, the middle one stays where it is
    turned = Deaf(
        lambda run: run if run.pixel_values is None else replace(run, pixel_values=run.pixel_values[[1, 0, 2]])
    )
    found = examined(turned, target, "probe-images")
    assert failed(found) == [(f"{ENC}.inputs_embeds", "mask")]
    assert "changing picture 1 moved position" in next(f.detail for f in found if not f.passed)

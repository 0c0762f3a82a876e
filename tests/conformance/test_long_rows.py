"""Rows past the tiles of kernels: what they reach, where they are judged, and what a run without them says."""

from __future__ import annotations

import numpy as np
from built_cases import built

from conformance.cases.case import Case
from conformance.defects.exposure import reach

TILES = (64, 128, 256)


def case(name: str) -> Case:
    return next(c for c in built("tiny") if c.name == name)


def test_encoder_decoder_and_cross_half_pass_every_tile() -> None:
    long, ragged = case("long-rows").runs
    (answer,) = case("long-answer").runs
    assert long.input_ids.shape[1] > 1024
    assert answer.decoder_input_ids.shape[1] > 1024
    for length in (long.input_ids.shape[1], answer.decoder_input_ids.shape[1]):
        assert all(length % tile for tile in TILES), "the last tile is not full"
    for mask, tile in ((ragged.attention_mask, 128), (ragged.decoder_attention_mask, 64)):
        assert mask is not None
        first = np.flatnonzero(mask[1])[0]
        assert first >= tile, "the short row's first tile is all padding"


def test_they_are_judged_where_they_are_cheap() -> None:
    for name in ("long-rows", "long-answer"):
        assert case(name).costly
        assert case(name).asks("float32")
    assert not case("long-rows").asks("bfloat16")
    assert [c.name for c in built("tiny") if c.costly] == ["long-rows", "long-answer"]
    assert all(c.asks("bfloat16") for c in built("tiny") if c.name != "long-rows")


def test_a_report_says_how_far_rows_went() -> None:
    judged = [("float32", case("long-rows")), ("float32", case("long-answer")), ("bfloat16", case("short"))]
    (line,) = reach(judged)
    assert "1030 keys of the encoder and 1030 of the decoder in float32" in line
    assert "5 keys of the encoder and 4 of the decoder in bfloat16" in line
    assert reach([]) == []

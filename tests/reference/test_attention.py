"""attention: one softmax against loops over queries and heads, whatever the block; what it reads, and what it costs."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import ROUNDOFF, U64, Array, close, frozen, generator, normal, on_grid, rounded, same_bits
from hypothesis import given
from hypothesis import strategies as st

from t5g2ref.attention import Keys, attend, attention_weights, dense_mask, merge_heads, split_heads
from t5g2ref.cache import KeyValue
from t5g2ref.masks import Band
from t5g2ref.numerics import EAGER, SDPA, TIES, Numerics

ORACLE = Numerics("float64")
CAUSAL = Band(None, 0)
SLIDING = Band(3, 2)
SCALE = 12.0**-0.5
BATCH, HEADS, KV, WIDTH = 2, 6, 2, 5


def source(name: str, keys: int, *, start: int = 0, band: Band | None = None, pads: bool = False) -> Keys:
    """Seeded read-only keys and values; with `pads` about a third of them are padding."""
    shape = (BATCH, KV, keys, WIDTH)
    valid = frozen(generator(name).random((BATCH, keys)) > 0.35) if pads else None
    kv = KeyValue(normal(f"{name} keys", *shape), normal(f"{name} values", *shape), start)
    return Keys(kv, valid, Band() if band is None else band)


def queries(rows: int) -> Array:
    return normal("queries", BATCH, HEADS, rows, WIDTH)


def visible(part: Keys, row: int, query: int) -> list[int]:
    """Indices of the keys that this query of this batch row may see: the band by position, and no padding."""
    back, ahead = part.band.back, part.band.ahead
    keys = range(part.kv.length)
    if part.valid is not None:
        keys = [i for i in keys if part.valid[row, i]]  # type: ignore[assignment]
    return [
        i
        for i in keys
        if (back is None or query - back <= part.kv.start + i) and (ahead is None or part.kv.start + i <= query + ahead)
    ]


def brute(q: Array, sources: Sequence[Keys], scale: float, cap: float | None = None, start: int = 0) -> Array:
    """The definition, one query and one head at a time, with sums by math.fsum."""
    out = np.zeros(q.shape)
    for b, h, t in np.ndindex(*q.shape[:3]):
        pairs = []
        for part in sources:
            shared = h // (q.shape[1] // part.kv.keys.shape[1])  # query head h reads kv head h // (N / K)
            for i in visible(part, b, start + t):
                score = math.fsum(x * y for x, y in zip(q[b, h, t], part.kv.keys[b, shared, i], strict=True)) * scale
                pairs.append((score if cap is None else cap * math.tanh(score / cap), part.kv.values[b, shared, i]))
        if not pairs:
            continue  # nothing to attend: zeros
        top = max(score for score, _ in pairs)
        total = math.fsum(math.exp(score - top) for score, _ in pairs)
        for d in range(out.shape[-1]):
            out[b, h, t, d] = math.fsum(math.exp(score - top) * value[d] for score, value in pairs) / total
    return out


def bound(q: Array, sources: Sequence[Keys], scale: float, u: float = U64) -> float:
    """First-order error of `attend`: a score of H products and a scale is off by (H + 3) u · max Σ|q k| · scale =: δ
    (a softcap, 12 u more of it), each weight then by 2 δ + (2 · range + S + 6) u, the weighted sum by S + 1 more."""
    largest = max(float((np.abs(q).max(axis=(0, 1, 2)) * np.abs(s.kv.keys).max(axis=(0, 1, 2))).sum()) for s in sources)
    value = max(float(np.abs(s.kv.values).max()) for s in sources)
    keys, scores = sum(s.kv.length for s in sources), largest * scale
    return 1.01 * (2 * (q.shape[-1] + 15) * scores + 4 * scores + 2 * keys + 7) * u * value


def check(rows: int, sources: Sequence[Keys], **options: Any) -> None:
    q = queries(rows)
    expected = brute(q, sources, SCALE, options.get("cap"), options.get("first_query", 0))
    close(attend(ORACLE, q, sources, scale=SCALE, **options), expected, atol=bound(q, sources, SCALE))


# Values


def test_one_source_everything_visible() -> None:
    # Broken by tiled instead of repeated kv heads (D47): six query heads, two kv heads, h // 3.
    check(7, [source("a", 9)])


@pytest.mark.parametrize("band", [CAUSAL, SLIDING, Band(3, None), Band(0, 0), Band(None, 4)], ids=str)
def test_one_source_in_a_band(band: Band) -> None:
    check(11, [source("a", 11, band=band)])


def test_two_sources_are_one_softmax() -> None:
    # Broken by two softmaxes (D44), by halves exchanged (D43; both have 8 keys), by the band laid over both (D37).
    check(8, [source("own", 8, band=Band(2, 0)), source("cross", 8)])


def test_padding_in_both_sources() -> None:
    # Broken by either padding mask dropped (D38, D39, D42), by a 1/0 mask added to the scores (D40).
    sources = [source("own", 10, band=CAUSAL, pads=True), source("cross", 13, pads=True)]
    assert all(0 < int(s.valid.sum()) < s.valid.size for s in sources)
    check(10, sources)


@pytest.mark.parametrize("key_start", [0, 12, 17])
def test_queries_and_keys_start_anywhere(key_start: int) -> None:
    # A cache: four queries at 20 … 23, keys up to 23 of which the first were dropped. Broken by band positions that
    # count from the block or from the kept keys (D28, D54).
    sources = [source("own", 24 - key_start, start=key_start, band=Band(5, 0)), source("cross", 6, pads=True)]
    check(4, sources, first_query=20)


@pytest.mark.parametrize("cap", [0.4, 5.0])
def test_softcap_is_on_the_scaled_scores(cap: float) -> None:
    check(6, [source("own", 6, band=CAUSAL), source("cross", 5)], cap=cap)


def test_one_key_is_its_value() -> None:
    # By hand: a softmax over one score is 1, whatever the score.
    only = source("a", 5, band=Band(0, 0))
    found = attend(ORACLE, queries(5), [only], scale=SCALE)
    same_bits(found, np.repeat(only.kv.values, HEADS // KV, axis=1))


def test_a_row_with_nothing_allowed_is_zeros() -> None:
    # D41: row 0 is padding throughout, row 1 sees its pads only in the windows of its first queries.
    valid = np.ones((BATCH, 9), bool)
    valid[0] = valid[1, :5] = False
    part = replace(source("a", 9, band=Band(1, 0)), valid=frozen(valid))
    found = attend(ORACLE, queries(9), [part], scale=SCALE)
    assert not found[0].any()
    assert not found[1, :, :5].any()
    assert found[1, :, 5:].all()
    check(9, [part])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("profile", [SDPA, EAGER], ids=lambda p: p.name)
def test_narrow_types_stay_near_the_definition(dtype: Any, profile: Any) -> None:
    nx, q = Numerics(dtype, profile), frozen(rounded(queries(6), dtype))
    sources = [source("own", 6, band=CAUSAL), source("cross", 5, pads=True)]
    narrow = [
        replace(s, kv=KeyValue(frozen(rounded(s.kv.keys, dtype)), frozen(rounded(s.kv.values, dtype)))) for s in sources
    ]
    found = attend(nx, q, narrow, scale=SCALE)
    assert on_grid(found, dtype)
    atol = bound(q, narrow, SCALE, 2.0**-24)  # everything wide is float32
    if dtype != "float32":
        # Then the weights, whose sum is 1, and the result are rounded: 2 u max|v|. EAGER rounds every score twice as
        # well, 2 u |s|, which weight and normaliser feel: 4 u max|s| max|v|.
        value = max(float(np.abs(s.kv.values).max()) for s in narrow)
        shared = [np.repeat(s.kv.keys, HEADS // KV, axis=1) for s in narrow]
        score = max(float(np.abs(q @ k.swapaxes(-1, -2)).max()) for k in shared) * SCALE
        atol += (2 + (4 * score if profile is EAGER else 0)) * ROUNDOFF[dtype] * value
    close(found, brute(q, narrow, SCALE), atol=1.01 * atol, dtype="float32")


def test_eager_rounds_scores_before_and_after_the_scale_and_sdpa_does_not() -> None:
    # Small eighths keep every q · k exact in float32, so the roundings are known: then each step by hand in bfloat16.
    rng = np.random.default_rng(1)
    q, k, v = (frozen(rng.integers(-16, 17, (1, 1, 6, 8)) / 8, "float32") for _ in range(3))
    scale, kv = 0.3, [Keys(KeyValue(k, v))]
    products = q[0, 0].astype(np.float64) @ k[0, 0].T.astype(np.float64)
    scores = {
        "eager": rounded(rounded(products, "bfloat16") * np.float32(scale), "bfloat16"),
        "sdpa": products.astype(np.float32) * np.float32(scale),
    }
    expected = {}
    for name, score in scores.items():
        weights = np.exp(score - score.max(axis=1, keepdims=True))
        weights = rounded(weights / weights.sum(axis=1, keepdims=True), "bfloat16")
        expected[name] = rounded(weights @ v[0, 0], "bfloat16")[None, None]
    # An ulp of exp or of a sum in float32 may tip one weight, and that the result, to the next bfloat16: a step is at
    # most 2⁻⁷ of the value, and near zero 2⁻⁷ of a weight of 1/4 or less.
    rtol, atol = 2.0**-7, 2.0**-9
    for profile in (EAGER, SDPA):
        close(attend(Numerics("bfloat16", profile), q, kv, scale=scale), expected[profile.name], rtol=rtol, atol=atol)
    apart = np.abs(expected["eager"] - expected["sdpa"])
    assert (apart > rtol * np.abs(expected["sdpa"]) + atol).any(), "the two profiles are one here"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_score_near_a_tie_is_rounded_to_its_other_side(dtype: Any) -> None:
    # Between 64 and 128 float16 numbers are 1/16 apart and bfloat16's 1/2. Each score is exact in float32.
    step = {"float16": 2.0**-4, "bfloat16": 2.0**-1}[dtype]
    away = {"tie": 0.0, "just above": 2.0**-16, "just below": -(2.0**-16), "clearly above": step / 16}
    q = np.ones((1, 1, 1, 3), np.float32)
    k = np.asarray([[[[64, step / 2, a] for a in away.values()]]], np.float32)
    near = {"tie": 64.0, "just above": 64 + step, "just below": 64.0, "clearly above": 64 + step}
    other = {"tie": 64 + step, "just above": 64.0, "just below": 64 + step, "clearly above": 64 + step}
    for profile, scores in (EAGER, near), (TIES, other):
        expected = np.exp(np.asarray([*scores.values()]) - 64)
        found = attention_weights(Numerics(dtype, profile), frozen(q), frozen(k), 1.0, None, None, (1, 1, 1, 1, 4))
        close(found.reshape(-1), expected / expected.sum(), rtol=1.01 * ROUNDOFF[dtype], dtype="float32")
    same_bits(
        *(attention_weights(Numerics("float32", p), q, k, 1.0, None, None, (1, 1, 1, 1, 4)) for p in (EAGER, TIES))
    )


# Blocks


@given(rows=st.integers(1, 40), start=st.integers(0, 30), back=st.none() | st.integers(0, 8), pads=st.booleans())
def test_the_size_of_a_block_does_not_matter(rows: int, start: int, back: int | None, pads: bool) -> None:
    # Another block is another order of sums at most: each side within the bound of the definition.
    q = queries(17)
    sources = [source("own", start + 17, band=Band(back, 0), pads=pads), source("cross", 5)]
    whole = attend(ORACLE, q, sources, scale=SCALE, first_query=start, rows=17)
    blocks = attend(ORACLE, q, sources, scale=SCALE, first_query=start, rows=rows)
    close(blocks, whole, atol=2 * bound(q, sources, SCALE))


def test_the_default_block_covers_lengths_beyond_it() -> None:
    # Two whole blocks and a rest: the last one is shorter and must not be left out (the result is made by np.empty).
    length = 2 * ORACLE.backend.block_rows + 3
    part = source("long", length, band=Band(2, 1))
    q = queries(length)
    whole = attend(ORACLE, q, [part], scale=SCALE, rows=length)
    close(attend(ORACLE, q, [part], scale=SCALE), whole, atol=2 * bound(q, [part], SCALE))


# What is read


@pytest.mark.parametrize(("start", "key_start"), [(0, 0), (20, 0), (20, 17)])
@pytest.mark.parametrize("poison", [1e300, -1e300])
def test_a_query_does_not_feel_the_keys_outside_its_band(start: int, key_start: int, poison: float) -> None:
    # One query at a time: whatever it may not see is poisoned, in keys and in values, and it must not change a bit.
    keys, rows = start + 9 - key_start, 9
    clean, q = source("own", keys, start=key_start, band=SLIDING), queries(9)
    expected = attend(ORACLE, q, [clean], scale=SCALE, first_query=start)
    for t in range(rows):
        shown = set(visible(clean, 0, start + t))
        assert 0 < len(shown) < keys
        hidden = [i for i in range(keys) if i not in shown]
        found = attend(ORACLE, q, [poisoned(clean, hidden, poison)], scale=SCALE, first_query=start)
        same_bits(found[:, :, t], expected[:, :, t])


@pytest.mark.parametrize("rows", [1, 4, None])
@pytest.mark.parametrize(("start", "key_start"), [(20, 0), (20, 14)])
def test_keys_beyond_every_band_are_not_even_multiplied(start: int, key_start: int, rows: int | None) -> None:
    # 0 · NaN is NaN: a NaN there can only be unseen if the block never takes it in.
    keys = start + 9 + 6 - key_start
    clean, q = source("own", keys, start=key_start, band=SLIDING), queries(9)
    shown = {i for t in range(9) for i in visible(clean, 0, start + t)}
    hidden = [i for i in range(keys) if i not in shown]
    assert hidden[0] == 0
    assert hidden[-1] == keys - 1
    expected = attend(ORACLE, q, [clean], scale=SCALE, first_query=start, rows=rows)
    same_bits(attend(ORACLE, q, [poisoned(clean, hidden, np.nan)], scale=SCALE, first_query=start, rows=rows), expected)


def poisoned(part: Keys, hidden: list[int], value: float) -> Keys:
    keys, values = part.kv.keys.copy(), part.kv.values.copy()
    keys[:, :, hidden] = values[:, :, hidden] = value
    return replace(part, kv=KeyValue(frozen(keys), frozen(values), part.kv.start))


# What it costs


@given(
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(0, 60),
    st.integers(1, 20),
    st.integers(0, 30),
)
def test_a_block_of_a_sliding_layer_holds_its_band_and_no_more(
    back: int, ahead: int, first: int, rows: int, key_start: int
) -> None:
    part = source("a", 64, start=key_start, band=Band(back, ahead))
    last = first + rows - 1
    (keys, values), allowed = part.part(first, last), part.allowed(ORACLE, first, last)
    if first + rows + ahead > key_start:  # else no key of the source is reached, and none is asked for by the model
        assert keys.shape == values.shape == (BATCH, KV, allowed.shape[-1], WIDTH)
        assert allowed.shape[:2] == (1, rows)
    assert allowed.shape[-1] <= back + ahead + rows


def test_a_sliding_layer_needs_no_square_in_memory() -> None:
    # 4096 × 4096 in float64 is 128 MiB. A block of 128 rows has 2 · 128 · (128 + 15) scores of 8 bytes, 0.3 MB,
    # of which a handful are alive at once, and the result 0.26 MB. 8 MB leaves room and is a sixteenth of the square.
    length, window = 4096, 16
    part = Keys(
        KeyValue(*(normal(name, 1, 1, length, 4) for name in "kv")),
        frozen(np.ones((1, length), bool)),
        Band(window - 1, 0),
    )
    q = normal("q", 1, 2, length, 4)
    tracemalloc.start()
    try:
        attend(ORACLE, q, [part], scale=1.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 2**18 < peak < length * length * 8 / 16  # the lower bound: NumPy's memory is traced at all


# Small parts


def test_dense_mask_is_the_rules_written_out() -> None:
    sources = [source("own", 6, start=4, band=Band(3, 0), pads=True), source("cross", 5, pads=True)]
    found = dense_mask(ORACLE, sources, 7, 3)
    expected = np.zeros((BATCH, 3, 11), bool)
    for b in range(BATCH):
        for t in range(3):
            expected[b, t, visible(sources[0], b, 7 + t)] = True
            expected[b, t, [6 + i for i in visible(sources[1], b, 7 + t)]] = True
    same_bits(found, expected)


def test_split_and_merge_heads() -> None:
    # Head h has the columns h · H … (h + 1) · H − 1.
    x = frozen(np.arange(2 * 3 * 8).reshape(2, 3, 8))
    split = split_heads(x, 2)
    assert split.shape == (2, 4, 3, 2)
    assert split[1, 3, 2].tolist() == x[1, 2, 6:8].tolist()
    same_bits(merge_heads(split), x)

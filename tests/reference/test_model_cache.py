"""The decoder's cache: against no cache, at any split; what it holds, and that it is a value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import Array, frozen, generator, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from small_inputs import SLIDING, Factory, near, steps, tokens

from t5g2ref.cache import Cache
from t5g2ref.config import Config
from t5g2ref.model import T5Gemma2


@pytest.fixture(scope="module")
def cached(model: Factory) -> tuple[T5Gemma2, Cache, Array, Array, Array]:
    """A model, an empty cache over 20 encoder positions (beyond both windows), decoder ids (2, 15) with some padding,
    their mask, and the hidden states of one call with all of them."""
    net = model()
    cache = net.start(net.encode(tokens("source", 2, 20), frozen(generator("source mask").random((2, 20)) > 0.2)))
    ids, mask = tokens("target", 2, 15), np.ones((2, 15), np.int64)
    mask[0, [3, 4, 11]] = mask[1, :2] = 0
    mask = frozen(mask)
    return net, cache, ids, mask, net.decode(ids, cache, mask)[0]


@given(cuts=st.sets(st.integers(1, 14)).map(sorted))
@settings(max_examples=25)
def test_any_split_gives_the_numbers_of_one_call(cached: Any, cuts: list[int]) -> None:
    # D28, D36, D54, D56, D57: positions, windows, validity and the cross half go on from the cache.
    net, cache, ids, mask, whole = cached
    found, after = steps(net, cache, ids, mask, cuts)
    near(found, whole)
    once = net.decode(ids, cache, mask)[1]
    assert after.length == once.length == 15
    same_bits(after.valid, mask.astype(bool))
    for kv, other in zip(after.own, once.own, strict=True):
        assert (kv.start, kv.length) == (other.start, other.length)
        near(kv.keys, other.keys)
        near(kv.values, other.values)


def test_one_position_a_call(cached: Any) -> None:
    net, cache, ids, mask, whole = cached
    near(steps(net, cache, ids, mask, list(range(1, 15)))[0], whole)


@pytest.mark.parametrize("window", [1, 2, 6])
def test_a_sliding_cache_holds_what_the_next_position_can_see(model: Factory, config: Config, window: int) -> None:
    # min(length, W − 1) positions, the last ones; a full layer keeps all. W = 1 keeps none and must still run.
    net = model(config=replace(config, decoder=replace(config.decoder, sliding_window=window)))
    cache = net.start(net.encode(tokens("source", 1, 5)))
    ids = tokens("target", 1, 9)
    whole = net.decode(ids, cache)[0]
    lengths = [1, 3, 1, 4]
    done = 0
    for n in lengths:
        hidden, cache = net.decode(ids[:, done : done + n], cache)
        near(hidden, whole[:, done : done + n])
        done += n
        for kv, kind in zip(cache.own, config.decoder.layer_types, strict=True):
            expected = min(done, window - 1) if kind == SLIDING else done
            assert (kv.length, kv.start) == (expected, done - expected)
            assert kv.keys.shape == kv.values.shape == (1, 2, expected, 10)


def test_the_cross_half_is_kept_whole_and_projected_once(cached: Any) -> None:
    # D36: 20 encoder positions under windows of 7 and 6, before and after decoding.
    net, cache, ids, mask, _ = cached
    after = steps(net, cache, ids, mask, [2, 9])[1]
    for before, kv in zip(cache.cross, after.cross, strict=True):
        assert kv is before
        assert (kv.length, kv.start) == (20, 0)
    same_bits(after.cross_valid, cache.cross_valid)


def test_decoding_does_not_change_the_cache_it_was_given(cached: Any) -> None:
    # An explicit value: the same cache may be continued twice, as a beam search and a comparison do.
    net, empty, ids, mask, _ = cached
    _, cache = net.decode(ids[:, :9], empty, mask[:, :9])
    arrays = [cache.valid, cache.cross_valid, *(a for kv in (*cache.own, *cache.cross) for a in (kv.keys, kv.values))]
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    first, later = net.decode(ids[:, 9:], cache, mask[:, 9:])
    other, _ = net.decode(tokens("another", 2, 3), cache)
    again, _ = net.decode(ids[:, 9:], cache, mask[:, 9:])
    same_bits(again, first)
    assert (other != first[:, :3]).any()
    assert (cache.length, later.length) == (9, 15)
    for a, b in zip(arrays, before, strict=True):
        same_bits(a, b)


def test_reordered_rows_go_on_as_if_they_had_been_there(cached: Any) -> None:
    # D55: both halves, validity included. Row 1 twice and row 0, as beams are.
    net, empty, ids, mask, _ = cached
    _, cache = net.decode(ids[:, :8], empty, mask[:, :8])
    rows = frozen([1, 0, 1])
    moved_cache = cache.reordered(rows)
    assert (moved_cache.batch, moved_cache.length) == (3, 8)
    found, _ = net.decode(ids[rows, 8:], moved_cache, mask[rows, 8:])
    expected, _ = net.decode(ids[:, 8:], cache, mask[:, 8:])
    near(found, expected[rows])


def test_a_second_source_starts_afresh(model: Factory) -> None:
    # D55: nothing of the first source is left anywhere.
    net, ids = model(), tokens("target", 1, 4)
    fresh = model()(tokens("second", 1, 9), ids).logits
    net(tokens("first", 1, 12), ids)
    same_bits(net(tokens("second", 1, 9), ids).logits, fresh)

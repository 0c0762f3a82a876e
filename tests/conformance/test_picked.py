"""Long rows, judged at picked tokens: what is wrong far out is found there, legal runs pass, nothing is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from geometry import one_layer_each, seeded_weights
from helpers import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import judged

from conformance.activations import Dump
from conformance.cases import picked
from conformance.cases.case import Case, Run
from conformance.cases.ingredients import Kit
from conformance.cases.long import long
from conformance.cases.picked import LAST, Picked, tokens
from conformance.cases.plan import plan_of, shape_of, sizes
from conformance.defects.all import FAULTS
from conformance.defects.injection import HEALTHY, Injection, operation, tapped
from conformance.judge.judgement import Judgement
from conformance.judge.sitting import Beside, Manner, Sitting
from conformance.oracle.at_picked import at_picked, neighbours
from conformance.peers.reference import ReferencePeer
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.target import Target
from t5g2ref import blocks, mlp
from t5g2ref.attention import Keys, attend, dense_mask
from t5g2ref.backend import NUMPY
from t5g2ref.cache import KeyValue
from t5g2ref.masks import EVERYTHING, Band
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import EAGER, RUNNING, Numerics
from t5g2ref.params import tree

LENGTH, FAR = 300, 200  # a row that no window of 7 reaches across, and where it begins to be wrong
E, D = "encoder.text_model", "decoder"


@cache
def target() -> Target:
    config = one_layer_each()
    stacks = {name: replace(getattr(config, name), max_position_embeddings=LENGTH) for name in ("encoder", "decoder")}
    config = replace(config, **stacks)
    weights = {name: value for name, value in seeded_weights(config).items() if not name.startswith("score.")}
    return Target("small", config, weights)


@cache
def case() -> Case:
    return long(Kit(target().config, np.random.default_rng(3)), "long-300", LENGTH)


def found(injection: Injection, **how: Any) -> Judgement:
    return judged(FaultyPeer(injection, name="peer", **how), target(), case())


# What is wrong far out


def other_keys(stack: int, change: Callable[[list[Keys]], list[Keys]], begin: int = FAR) -> Injection:
    """Other keys for the queries from position `begin` on, of the encoder (1 group of keys) or of the decoder (2)."""

    def attention(definition: Any, nx: Numerics, q: Array, groups: Any, **how: Any) -> Array:
        first = how.pop("first_query", 0)
        if len(groups) != stack or q.shape[2] <= begin:
            return np.asarray(definition(nx, q, groups, first_query=first, **how))
        near = definition(nx, q[:, :, :begin], groups, first_query=first, **how) if begin else q[:, :, :0]
        far = definition(nx, q[:, :, begin:], change(list(groups)), first_query=first + begin, **how)
        return np.concatenate([near, far], axis=2)

    return operation(attend=attention)


def narrower(groups: list[Keys]) -> list[Keys]:
    """One key less behind the query, on sliding layers."""
    own, *rest = groups
    band = own.band if own.band.back is None else replace(own.band, back=own.band.back - 1)
    return [replace(own, band=band), *rest]


def causal(groups: list[Keys]) -> list[Keys]:
    return [replace(group, band=replace(group.band, ahead=0)) for group in groups]


def cut(groups: list[Keys], length: int = FAR) -> list[Keys]:
    """The encoder's keys up to a length alone."""
    own, cross = groups
    kv = KeyValue(cross.kv.keys[:, :, :length], cross.kv.values[:, :, :length])
    return [own, Keys(kv, None if cross.valid is None else cross.valid[:, :length])]


def last_window(groups: list[Keys]) -> list[Keys]:
    """On sliding layers the encoder's last W keys."""
    own, cross = groups
    if own.band.back is None or cross.kv.length <= own.band.back:
        return groups
    kv = replace(cross.kv.last(own.band.back + 1), start=0)
    return [own, Keys(kv, None if cross.valid is None else cross.valid[:, -kv.length :])]


def turned(definition: Any, nx: Numerics, rope: Any, head_dim: int, positions: Array) -> Any:
    """Positions from FAR on count half."""
    return definition(nx, rope, head_dim, np.where(positions < FAR, positions, (positions + FAR) // 2))


@pytest.mark.parametrize(
    ("injection", "call", "tap"),
    [
        (other_keys(1, narrower), 0, f"{E}.layers.0.self_attn.attention"),
        (other_keys(1, causal), 0, f"{E}.layers.0.self_attn.attention"),
        (other_keys(2, narrower), 1, f"{D}.layers.0.self_attn.attention"),
        (operation(tables=turned), 0, f"{E}.rotary_emb.full_attention.cos"),
    ],
    ids=["window", "causal", "decoder's window", "RoPE"],
)
def test_what_is_wrong_far_out_alone_is_found_there(injection: Injection, call: int, tap: str) -> None:
    culprit = found(injection).culprit
    assert culprit is not None
    assert (culprit.call, culprit.tap) == (call, tap)
    assert culprit.status == "values"
    assert culprit.token[-1] >= FAR, "the position in the row, not the place among the picked tokens"


@pytest.mark.parametrize("change", [cut, last_window], ids=["cut", "last window"])
def test_a_cross_half_that_is_cut_far_out_is_found(change: Callable[[list[Keys]], list[Keys]]) -> None:
    culprit = found(other_keys(2, change, begin=0)).culprit
    assert culprit is not None
    assert (culprit.call, culprit.tap, culprit.status) == (0, f"{D}.layers.0.self_attn.attention", "values")


@pytest.mark.parametrize(
    ("defect", "variant", "tap"),
    [
        ("D20", "", f"{E}.rotary_emb.full_attention.cos"),
        ("D35", "", f"{E}.layers.0.self_attn.mask"),
        ("D37", "last", f"{D}.layers.0.self_attn.mask"),
        ("D79", "cross 128", f"{D}.layers.0.self_attn.attention"),
    ],
)
def test_a_catalogued_defect_has_its_name(defect: str, variant: str, tap: str) -> None:
    """Oracles with a defect walk the picked tokens too."""
    (fault,) = (f for f in FAULTS if (f.id, f.variant) == (defect, variant))
    result = found(fault.inject)
    assert result.culprit is not None
    assert result.culprit.tap == tap
    assert [s.defect for s in result.named if s.named] == [defect]


def test_a_mask_that_is_wrong_far_out_is_found_and_named_by_its_query() -> None:
    def shifted(_: Any, mask: Array) -> Array:
        wrong = mask.copy()
        wrong[:, -1] = np.roll(wrong[:, -1], 1)  # the last query's row
        return wrong

    culprit = found(tapped(f"{E}.layers.0.self_attn.mask", shifted)).culprit
    assert culprit is not None
    assert (culprit.call, culprit.status, culprit.token) == (0, "mask", (0, LENGTH - 1))
    assert culprit.detail.startswith(f"query (0, {LENGTH - 1}):")


def test_a_mask_of_the_long_answer_is_judged() -> None:
    """The first call is right; in the second, the last query sees a key that left its window."""

    def shifted(spot: Any, mask: Array) -> Array:
        if spot.call == 0:
            return mask
        wrong = mask.copy()
        wrong[:, -1, LENGTH - target().config.decoder.sliding_window - 1] = True
        return wrong

    culprit = found(tapped(f"{D}.layers.0.self_attn.mask", shifted)).culprit
    assert culprit is not None
    assert (culprit.call, culprit.status, culprit.token) == (1, "mask", (0, LENGTH - 1))
    assert "1 too many" in culprit.detail


def test_a_key_between_the_picked_tokens_is_not_judged() -> None:
    """What picking leaves out: all go on with the peer's keys. `explain` says so."""
    at = unpicked()

    def one(_: Any, keys: Array) -> Array:
        return keys * np.where(np.arange(keys.shape[2]) == at, np.float32(2), np.float32(1))[:, None]

    assert found(tapped(f"{E}.layers.0.self_attn.k_rope", one)).passed


# Legal runs


@pytest.mark.parametrize("profile", [RUNNING, EAGER], ids=lambda p: p.name)
def test_a_legal_run_passes(profile: Any) -> None:
    result = found(HEALTHY, profile=profile)
    assert result.passed, result.culprit
    assert not result.cumulative
    assert len(result.local) == len(plan_of(target().config, case()))
    assert all(finding.tokens for finding in result.local)


@pytest.mark.parametrize("part", [64, 299])
def test_a_row_that_goes_through_in_parts_shows_the_same_tokens(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shown(ReferencePeer(NUMPY, "float32"))
    monkeypatch.setattr(mlp, "PART", part)
    for name, size in {"SMALL": 1, "ALONE": part}.items():
        monkeypatch.setattr(blocks, name, size)
    parts = shown(ReferencePeer(NUMPY, "float32"))
    assert parts.keys() == whole.keys()
    for place, value in whole.items():
        assert parts[place].shape == value.shape, place
        scale = np.abs(value).max()
        np.testing.assert_allclose(parts[place], value, atol=1e-5 * scale, rtol=0)  # sums of some dozens of terms
    assert found(HEALTHY).passed


def shown(peer: ReferencePeer) -> dict[tuple[int, str], Array]:
    peer.open(target())
    with Dump() as dump:
        peer.run(case(), dump)
        return {(n, name): np.asarray(dump.whole(n, name)) for n in range(dump.calls) for name in dump.names(n)}


@pytest.mark.peer
@pytest.mark.parametrize("name", ["transformers:sdpa", "transformers:eager"])
def test_transformers_passes(name: str) -> None:
    pytest.importorskip("transformers")
    from conformance.peers.find import create

    result = judged(create(name), target(), case())
    assert result.passed, (result.error, result.culprit)
    assert len(result.local) == len(plan_of(target().config, case()))


# What has to be shown


class Short(ReferencePeer):
    """The reference, which shows another part of one tap."""

    def __init__(self, tap: str, part: Callable[[Array], Array]) -> None:
        super().__init__(NUMPY, "float32")
        self._tap, self._part = tap, part

    def _shown(self, dump: Dump, name: str, value: Any) -> Any:
        super()._shown(dump, name, self._part(value) if name == self._tap else value)
        return value


@pytest.mark.parametrize(
    ("tap", "part"),
    [
        (f"{E}.layers.0.mlp.down_proj", lambda x: x[:, :-1]),
        (f"{E}.layers.1", lambda x: np.concatenate([x, x[:, :1]], axis=1)),
        (f"{E}.layers.0.self_attn.mask", lambda x: x[:, 1:]),
        (f"{E}.layers.0.self_attn.k_rope", lambda x: x[:, :, :-1]),
        (f"{D}.layers.1.self_attn.cross_k_norm", lambda x: x[:, :, : LENGTH // 2]),
        (f"{D}.layers.0.self_attn.cross_keys", lambda x: x[:, :, :-1]),
        (f"{E}.layers.0.self_attn.k_rope", lambda x: np.concatenate([x, x[:, :, :1]], axis=2)),
        (f"{E}.layers.0.self_attn.v_proj", lambda x: x[:, picked_source()]),
        (f"{D}.norm", lambda x: x[:, :0]),
    ],
    ids=[
        *("one row less", "one more", "a mask's query", "a key", "half the cross keys", "a copied key"),
        *("a key more", "the picked keys alone", "no row"),
    ],
)
def test_a_missing_row_is_a_failure(tap: str, part: Callable[[Array], Array]) -> None:
    culprit = judged(Short(tap, part), target(), case()).culprit
    assert culprit is not None
    assert (culprit.tap, culprit.status) == (tap, "shape")


def picked_source() -> list[int]:
    chosen = case().runs[0].picked
    assert chosen is not None
    return chosen.source.tolist()  # type: ignore[no-any-return]


def unpicked() -> int:
    """A token far out that is not judged."""
    return next(i for i in range(FAR, LENGTH) if i not in picked_source())


def test_a_key_that_is_no_number_is_found_wherever_it_is() -> None:
    def broken(x: Array) -> Array:
        return np.where(np.arange(x.shape[2]) == unpicked(), np.float32(np.nan), np.float32(1))[:, None] * x

    tap = f"{E}.layers.0.self_attn.k_rope"
    culprit = judged(Short(tap, broken), target(), case()).culprit
    assert culprit is not None
    assert (culprit.tap, culprit.status) == (tap, "nan")
    assert f", {unpicked()}, " in culprit.detail


def test_a_wrong_key_anywhere_is_found_where_it_is_copied() -> None:
    """Keys in the cache are held against those that were shown before, every one of them."""
    at = unpicked()

    def one(x: Array) -> Array:
        wrong = x.copy()
        wrong[:, :, at] += 1
        return wrong

    tap = f"{D}.layers.0.self_attn.cross_values"
    culprit = judged(Short(tap, one), target(), case()).culprit
    assert culprit is not None
    assert (culprit.tap, culprit.token[-1]) == (tap, at)


def test_without_keys_nothing_is_judged() -> None:
    peer = ReferencePeer(NUMPY, "float32")
    peer.taps = tuple(t.name for _, t in plan_of(target().config, case()) if not t.name.endswith("k_rope"))
    result = judged(peer, target(), case())
    assert not result.passed
    assert not result.deviates
    assert "k_rope" in result.error


def test_a_peer_that_does_not_say_that_it_can_is_skipped_by_name() -> None:
    peer = ReferencePeer(NUMPY, "float32")
    peer.picks = False
    (result,) = Sitting(peer, target(), [case()], Manner(), Beside()).opened().judged("long-300")
    assert "picks" in result.skipped
    assert not result.passed


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Picked(np.arange(0), np.arange(2)),
        lambda: Picked(np.arange(4), np.arange(0)),
        lambda: Picked(np.array([1, 9]), np.arange(3)),
        lambda: Picked(np.array([2, 1]), np.arange(3)),
        lambda: Picked(np.array([-1, 1]), np.arange(3)),
        lambda: Picked(np.arange(4), np.array([0, 1])),  # logits are of the last position
    ],
)
def test_an_empty_or_impossible_selection_is_refused(wrong: Callable[[], Picked]) -> None:
    with pytest.raises(ValueError, match=r"picked\.(source|answer): expected"):
        Run(np.ones((1, 5), np.int64), np.ones((1, 3), np.int64), logits_to_keep=1, picked=wrong())


@pytest.mark.parametrize("how", [{"splits": (1, 2)}, {"attention_mask": np.ones((1, 5))}])
def test_a_run_of_several_calls_or_with_masks_picks_none(how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected no mask and one call"):
        Run(np.ones((1, 5), np.int64), np.ones((1, 3), np.int64), picked=Picked(np.arange(5), np.arange(3)), **how)


def test_the_plan_s_shapes_are_those_that_are_shown() -> None:
    peer = ReferencePeer(NUMPY, "float32")
    peer.open(target())
    with Dump() as dump:
        peer.run(case(), dump)
        for call, tap in plan_of(target().config, case()):
            value = dump.whole(call, tap.name)
            assert value is not None
            assert value.shape == shape_of(tap, sizes(target().config, case(), call, tap)), tap.name
            if picked.last_part(tap) not in picked.READ + picked.COPIED and tap.name.startswith(E):
                assert value.size < LENGTH * LENGTH, "no mask of every query and key"


# Which tokens


@given(st.integers(1, 200_000), st.integers(1, 5000), st.integers(0, 9))
def test_picked_tokens_are_in_the_row_and_hold_its_ends_and_edges(length: int, window: int, seed: int) -> None:
    found = tokens(length, (window - 1, window), np.random.default_rng(seed)).tolist()
    assert found == sorted(set(found))
    wanted = {0, 1, window, length - 1 - window, 32_767, 32_768, 65_536, *range(length - LAST, length)}
    assert {i for i in wanted if 0 <= i < length} <= set(found)
    assert all(0 <= i < length for i in found)
    assert len(found) < 64


@given(st.sets(st.integers(0, 40), min_size=1))
def test_neighbours_are_taken_together(positions: set[int]) -> None:
    ordered = np.array(sorted(positions))
    parts = [ordered[first:last].tolist() for first, last in neighbours(ordered)]
    assert [i for part in parts for i in part] == ordered.tolist()
    assert all(part == list(range(part[0], part[-1] + 1)) for part in parts)
    assert all(a[-1] + 1 < b[0] for a, b in pairwise(parts))


BANDS = st.sampled_from([EVERYTHING, Band(3, 2), Band(0, 0), Band(5, 0), Band(None, 0)])


@settings(max_examples=30)
@given(st.integers(1, 24), st.integers(0, 9), BANDS, st.data())
def test_picked_queries_see_what_they_see_in_the_whole_row(length: int, cross: int, band: Band, data: Any) -> None:
    """Rows of attention and of the mask, by the model's own definitions of the whole row."""
    positions = np.array(sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1))))
    rng = np.random.default_rng(length)
    q, k, v = (rng.normal(size=(1, heads, length, 6)) for heads in (4, 2, 2))
    groups = [Keys(KeyValue(k, v), None, band)]
    if cross:
        groups.append(Keys(KeyValue(*(rng.normal(size=(1, 2, cross, 6)) for _ in range(2)))))
    ids = np.ones((1, length), np.int64)
    of = Picked(positions, positions) if length - 1 in positions else Picked(positions, np.arange(length))
    run = replace(Run(ids, ids, picked=of, logits_to_keep=1), cut=True)
    if cross and of.answer is not of.source:
        positions = of.answer
    nx = Numerics()
    own = at_picked(T5Gemma2(target().config, tree(target().weights), nx), run).nx
    at = positions.tolist()
    np.testing.assert_allclose(
        attend(own, q[:, :, at], groups, scale=0.4), attend(nx, q, groups, scale=0.4)[:, :, at], rtol=1e-12, atol=1e-14
    )
    np.testing.assert_array_equal(dense_mask(own, groups, 0, len(at)), dense_mask(nx, groups, 0, length)[:, at])

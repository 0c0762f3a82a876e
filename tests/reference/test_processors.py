"""What is done to logits before an id is chosen: by hand, by property, and against transformers' classes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import Array, close, generator
from hypothesis import given
from hypothesis import strategies as st
from strict_arrays import Strict

from t5g2ref.generate import processors as p
from t5g2ref.generate.rules import Rules, Sampling, narrowed, ruled

NONE = -np.inf
TYPES = ("float32", "float64")


def logits(seed: str, rows: int = 4, size: int = 50, dtype: str = "float64", scale: float = 3.0) -> Array:
    return (generator(seed).standard_normal((rows, size)) * scale).astype(dtype)


def support(x: Array) -> list[list[int]]:
    """The ids of each row that are not forbidden."""
    return [np.nonzero(row > NONE)[0].tolist() for row in x]


# By hand


def test_repetition_penalty_by_hand() -> None:
    """Only ids of the past, each once however often it occurs; away from likely on either side of 0."""
    x = np.array([[4.0, -4.0, 1.0, -1.0], [4.0, -4.0, 1.0, -1.0]])
    found = p.repetition_penalty(np, x, np.array([[0, 1, 1], [3, 3, 3]]), 2.0)
    assert found.tolist() == [[2.0, -8.0, 1.0, -1.0], [4.0, -4.0, 1.0, -2.0]]


def test_no_repeat_ngram_by_hand() -> None:
    x, ids = np.zeros((2, 5)), np.array([[1, 2, 3, 1, 2], [1, 2, 1, 4, 1]])
    assert support(p.no_repeat_ngram(np, x, ids, 3)) == [[0, 1, 2, 4], [0, 1, 2, 3, 4]]
    assert support(p.no_repeat_ngram(np, x, ids, 2)) == [[0, 1, 2, 4], [0, 1, 3]]  # behind 1 came 2 and 4
    assert support(p.no_repeat_ngram(np, x, ids, 1)) == [[0, 4], [0, 3]]
    assert support(p.no_repeat_ngram(np, x, ids, 6)) == [[0, 1, 2, 3, 4]] * 2, "no run of six is there yet"


def test_bad_words_by_hand() -> None:
    x, ids = np.zeros((2, 5)), np.array([[0, 1, 2], [1, 2, 1]])
    words = [(4,), (1, 2, 3), (2, 1, 0), (9, 9, 9, 1), (2, 2)]
    assert support(p.bad_words(np, x, ids, words)) == [[0, 1], [1, 2, 3]]


def test_forbid_by_hand() -> None:
    assert support(p.forbid(np, np.zeros((2, 4)), (0, 3))) == [[1, 2]] * 2


def test_narrowing_by_hand() -> None:
    """Probabilities 0.5, 0.25, 0.125, 0.125 are exact, and so are their sums."""
    x = np.log([[0.125, 0.5, 0.125, 0.25]])
    assert support(p.top_k(np, x, 1)) == [[1]]
    assert support(p.top_k(np, x, 3)) == [[0, 1, 2, 3]], "what equals the last stays"
    assert support(p.top_k(np, x, 4)) == support(p.top_k(np, x, 99)) == [[0, 1, 2, 3]]
    for mass, kept in (
        (1e-9, [1]),
        (0.49, [1]),
        (0.51, [1, 3]),
        (0.74, [1, 3]),
        (0.76, [0, 1, 3]),
        (0.9, [0, 1, 2, 3]),
    ):
        assert support(p.top_p(np, x, mass)) == [kept], "of equals the lower id first"
    for share, kept in ((0.2, [0, 1, 2, 3]), (0.3, [1, 3]), (0.6, [1]), (1.0, [1])):
        assert support(p.min_p(np, x, share)) == [kept]


def test_a_mass_that_is_reached_is_enough() -> None:
    assert support(p.top_p(np, np.zeros((1, 4)), 0.5)) == [[0, 1]]


def test_forbidden_ids_stay_forbidden() -> None:
    x = np.array([[NONE, 1.0, NONE, 0.0]])
    ids = np.array([[0, 1]])
    for found in (
        p.repetition_penalty(np, x, ids, 2.0),
        *(p.no_repeat_ngram(np, x, ids, 3), p.bad_words(np, x, ids, [(1, 3)]), p.temperature(x, 0.1)),
        *(p.top_k(np, x, 3), p.top_p(np, x, 0.999), p.min_p(np, x, 0.0)),
    ):
        assert found[0, [0, 2]].tolist() == [NONE, NONE]
        assert found[0, 1] > NONE
    assert p.log_softmax(np, x)[0, 0] == NONE
    close(np.exp(p.log_softmax(np, x)).sum(), np.array(1.0), atol=1e-15)


# By property


@given(st.integers(0, 10**6), st.integers(1, 8), st.floats(0.01, 1.0), st.floats(0.0, 1.0), st.sampled_from(TYPES))
def test_narrowing_keeps_the_likeliest(seed: int, k: int, mass: float, share: float, dtype: str) -> None:
    """Never none; who stays is unchanged and likelier than who goes; the masses are as asked."""
    x = logits(f"{seed}", dtype=dtype, size=12)
    likely = np.exp(p.log_softmax(np, x))
    for found in (p.top_k(np, x, k), p.top_p(np, x, mass), p.min_p(np, x, share)):
        assert found.dtype == x.dtype
        stays = found > NONE
        assert stays.any(axis=1).all()
        assert (found[stays] == x[stays]).all()
        assert (np.where(stays, x, np.inf).min(axis=1) >= np.where(stays, NONE, x).max(axis=1)).all()
    assert ((p.top_k(np, x, k) > NONE).sum(axis=1) == k).all()
    kept = np.where(p.top_p(np, x, mass) > NONE, likely, 0.0)
    assert (kept.sum(axis=1) >= mass - 1e-12).all()
    least = np.where(kept > 0, kept, np.inf).min(axis=1)
    assert (kept.sum(axis=1) - least < mass + 1e-12).all(), "one fewer would not do"


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 4))
def test_no_ngram_twice(row: list[int], size: int) -> None:
    """An id is forbidden if and only if with it the last run would be there twice."""
    found = p.no_repeat_ngram(np, np.zeros((1, 4)), np.array([row]), size)[0]
    for token in range(4):
        longer = [*row, token]
        runs = [tuple(longer[i : i + size]) for i in range(len(longer) - size + 1)]
        assert (found[token] == NONE) == (bool(runs) and runs[-1] in runs[:-1])


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=6), st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4))
)
def test_no_bad_word_is_completed(row: list[int], words: list[list[int]]) -> None:
    found = p.bad_words(np, np.zeros((1, 4)), np.array([row]), words)[0]
    for token in range(4):
        assert (found[token] == NONE) == any([*row, token][-len(word) :] == word for word in words)


# Drawing


def test_drawing_is_the_inverse_distribution_function() -> None:
    """Ids change where the cumulated probabilities 0.125, 0.625, 0.75, 1 lie, in their order."""
    x = np.log([[0.125, 0.5, 0.125, 0.25]])
    for u, token in ((0.0, 0), (0.124, 0), (0.126, 1), (0.624, 1), (0.626, 2), (0.749, 2), (0.751, 3), (1 - 2**-53, 3)):
        assert p.drawn(np, x, np.array([u])).tolist() == [token]


def test_a_boundary_belongs_to_the_next_id() -> None:
    assert p.drawn(np, np.zeros((1, 4)), np.array([0.5])).tolist() == [2]


def test_sums_that_do_not_rise_draw_nothing_forbidden() -> None:
    """A device sums in parallel: what is cumulated may be a rounding above what stands behind it."""
    library = SimpleNamespace(exp=np.exp, cumsum=lambda x, axis: np.cumsum(x, axis=axis) + np.array([0, 0.1, 0, 0]))
    x = np.array([[0.0, NONE, 0.0, 0.0]])
    assert p.drawn(library, x, np.array([0.35])).tolist() == [2]


def test_frequencies_are_the_probabilities() -> None:
    """A grid of numbers in [0, 1) is drawn from, so that frequencies are exact within a step of the grid."""
    x = logits("small", rows=1, size=7)
    grid = (np.arange(4000) + 0.5) / 4000
    found = np.bincount(p.drawn(np, np.repeat(x, 4000, axis=0), grid), minlength=7) / 4000
    close(found, np.exp(p.log_softmax(np, x))[0], atol=1 / 4000)


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_what_is_forbidden_is_not_drawn(seed: int, u: float) -> None:
    x = np.where(generator(f"{seed}").random((3, 9)) < 0.7, NONE, logits(f"{seed}", 3, 9))
    x[:, 4] = 0.0
    token = p.drawn(np, x, np.full(3, u))
    assert (p.chosen(np, x, token) > NONE).all()


# On an array library with CuPy's rules


def test_the_same_on_another_array_library() -> None:
    """No host array gets among the device's, and nobody waits."""
    xp = Strict()
    x, ids = logits("device", dtype="float32"), generator("ids").integers(0, 50, (4, 9))
    rules = Rules(1.7, 2, ((3,), (int(ids[0, -1]), 4)))
    sampling = Sampling(0.7, 30, 0.9, 0.01)
    expected = narrowed(np, ruled(np, x, ids, rules), sampling)
    with xp.without_waits():
        found = narrowed(xp, ruled(xp, xp.asarray(x), xp.asarray(ids), rules), sampling)
        token = p.drawn(xp, found, xp.asarray(np.full(4, 0.3)))
    assert np.array_equal(xp.asnumpy(found), expected)
    assert np.array_equal(xp.asnumpy(token), p.drawn(np, expected, np.full(4, 0.3)))


def test_nothing_is_written_into_arguments() -> None:
    x, ids = logits("read-only"), generator("ids").integers(0, 50, (4, 9))
    x.flags.writeable = ids.flags.writeable = False
    before = x.copy()
    narrowed(np, ruled(np, x, ids, Rules(1.7, 2, ((3,),))), Sampling(0.7, 30, 0.9, 0.01))
    p.forbid(np, x, (3,))
    assert np.array_equal(x, before)


# Against transformers

OURS: dict[str, Callable[[Array, Array], Array]] = {
    "TemperatureLogitsWarper 0.7": lambda x, _: p.temperature(x, 0.7),
    "TemperatureLogitsWarper 1.9": lambda x, _: p.temperature(x, 1.9),
    "RepetitionPenaltyLogitsProcessor 1.3": lambda x, ids: p.repetition_penalty(np, x, ids, 1.3),
    "RepetitionPenaltyLogitsProcessor 0.8": lambda x, ids: p.repetition_penalty(np, x, ids, 0.8),
    **{f"TopKLogitsWarper {k}": (lambda x, _, k=k: p.top_k(np, x, k)) for k in (1, 7, 299, 400)},
    **{f"TopPLogitsWarper {m}": (lambda x, _, m=m: p.top_p(np, x, m)) for m in (0.01, 0.3, 0.9, 0.999)},
    **{f"MinPLogitsWarper {m}": (lambda x, _, m=m: p.min_p(np, x, m)) for m in (0.001, 0.1, 0.5, 1.0)},
    **{
        f"NoRepeatNGramLogitsProcessor {n}": (lambda x, ids, n=n: p.no_repeat_ngram(np, x, ids, n))
        for n in (1, 2, 3, 40)
    },
    "NoBadWordsLogitsProcessor words": lambda x, ids: p.bad_words(np, x, ids, words(ids)),
    "MinNewTokensLengthLogitsProcessor ends": lambda x, _: p.forbid(np, x, (3, 8)),
}


def words(ids: Array) -> list[list[int]]:
    """Words of one to four ids, some of which a row ends in all but the last of.

    None is longer than the rows: older releases, 5.17 among them, let such a one come.
    """
    ends = [[*ids[row, -n:].tolist(), 20 + n] for row, n in ((0, 1), (1, 2), (2, 3)) if n < ids.shape[1]]
    return [[5], [11], *ends, [6, 7, 8], [ids.shape[1]] * 60]


def theirs(name: str, x: Array, ids: Array) -> Array:
    import torch
    from transformers.generation import logits_process

    kind, value = name.split()
    argument: Any = words(ids) if value == "words" else float(value) if "." in value else value
    arguments = (9, 1, [3, 8]) if value == "ends" else (int(argument) if str(argument).isdigit() else argument,)
    processor = getattr(logits_process, kind)(*arguments)
    found: Array = processor(torch.tensor(ids), torch.tensor(x)).numpy()
    return found


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", OURS)
def test_as_transformers_does(peer_installed: None, name: str, dtype: str, length: int) -> None:
    """The same ids are forbidden, and the rest has the same bits."""
    for seed in range(5):
        x = logits(f"{name} {seed}", rows=5, size=300, dtype=dtype)
        ids = generator(f"{name} {seed}").integers(0, 12, (5, length))  # few ids: runs do occur again
        ids[1, : length // 2] = 0  # a row that began late, behind padding
        found, expected = OURS[name](x, ids), theirs(name, x, ids)
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)


def test_in_transformers_order(peer_installed: None) -> None:
    """Penalty, n-grams, words; then temperature, top-k, top-p, min-p. Any other order gives other numbers."""
    for seed in range(5):
        x = logits(f"order {seed}", rows=5, size=300, scale=1.0)
        ids = generator(f"order {seed}").integers(0, 12, (5, 9))
        found = narrowed(np, ruled(np, x, ids, Rules(1.3, 2, ((5,),))), Sampling(1.9, 99, 0.8, 0.2))
        kinds = ("RepetitionPenalty 1.3", "NoRepeatNGram 2", "NoBadWords")
        for kind in kinds:
            name, _, value = kind.partition(" ")
            x = theirs(f"{name}LogitsProcessor {value}", x, ids) if value else p.bad_words(np, x, ids, [[5]])
        for kind in ("Temperature 1.9", "TopK 99", "TopP 0.8", "MinP 0.2"):
            name, value = kind.split()
            x = theirs(f"{name}LogitsWarper {value}", x, ids)
        assert np.array_equal(found, x)
        assert 1 < (found[0] > NONE).sum() < 99

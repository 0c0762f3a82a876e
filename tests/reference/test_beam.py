"""Beam search: the judge's own search without a cache, transformers' generate, and what is reordered."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from generating import common, host_and_device, ragged
from helpers import Array, close
from hypothesis import given
from hypothesis import strategies as st

import t5g2ref
from conformance.oracle.beams import searched
from t5g2ref.cache import Cache
from t5g2ref.generate.beam import beam_search
from t5g2ref.generate.hypotheses import Beam, Row, Search, advanced
from t5g2ref.generate.rules import Rules
from t5g2ref.model import T5Gemma2

STEPS = 10


@pytest.fixture(scope="module")
def model() -> T5Gemma2:
    return t5g2ref.load(t5g2ref.bundled("tiny"))


# Against a search by definition


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_as_the_search_without_a_cache(beams: int, model: T5Gemma2) -> None:
    """Every step of that one computes all rows from their ids anew: nothing can be lost there."""
    source = ragged(model, beams)
    found = beam_search(model, **source, search=Search(beams), max_new_tokens=STEPS, stop=())
    many = {name: np.repeat(value, beams, axis=0) for name, value in source.items()}

    def step(ids: Array) -> Array:
        logits: Array = model(many["input_ids"], ids, attention_mask=many["attention_mask"]).logits[:, -1]
        return logits

    start = np.full((3, 1), model.config.decoder.bos_token_id)
    expected = searched(step, start, beams, STEPS)
    assert np.array_equal(found.ids, expected.ids)
    close(found.scores, expected.scores, atol=1e-11)
    close(found.log_probs.mean(axis=1), found.scores, atol=1e-14)
    logits = model(many["input_ids"], found.ids[:, :-1], attention_mask=many["attention_mask"]).logits
    close(found.logits, logits, atol=1e-11)  # those along each answer's own path


def test_enough_beams_find_the_likeliest(model: T5Gemma2) -> None:
    """With as many beams as there are answers, the search is exhaustive."""
    allowed = (44, 70, 84, 171)
    rules = Rules(bad_words=tuple((i,) for i in range(311) if i not in allowed))
    found = beam_search(model, [[33, 17, 42]], Search(64), max_new_tokens=3, stop=(), rules=rules)
    answers = np.array([(33, *answer) for answer in product(allowed, repeat=3)])
    logits = model([[33, 17, 42]] * 64, answers[:, :-1]).logits
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    totals = np.take_along_axis(logs, answers[:, 1:, None], axis=2)[..., 0].sum(axis=1)
    order = np.argsort(-totals)
    assert np.array_equal(found.ids, answers[order])
    close(found.scores * 3, totals[order], atol=1e-11)


# What is reordered


@pytest.mark.parametrize("half", ["own", "cross", "valid", "cross_valid", "none"])
def test_both_halves_of_the_cache_are_reordered(half: str, model: T5Gemma2, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that is done leaves the batch: then the encoder's half of the wrong rows would be read, too.

    Broken by a search that reorders one half alone: each alone gives other answers, or does not fit.
    """
    source = ragged(model, 21)
    stop = common(model, source, 6)
    search = Search(3, early_stopping=True)

    def found() -> tuple[Any, ...]:
        result = beam_search(model, **source, search=search, max_new_tokens=STEPS, stop=stop)
        return result.ids.tolist(), result.scores.round(9).tolist()

    expected, whole = found(), Cache.reordered
    alone = []
    for row in range(3):
        one = {name: value[row : row + 1] for name, value in source.items()}
        alone.append(beam_search(model, **one, search=search, max_new_tokens=STEPS, stop=stop))
    assert expected[1] == np.concatenate([one.scores for one in alone]).round(9).tolist()
    assert len({one.ids.shape[1] for one in alone}) > 1, "sources are done at unlike steps"

    def without(self: Cache, rows: Any) -> Cache:
        made, first = whole(self, rows), np.arange(len(rows)) % self.batch  # as many rows, of whatever was in front
        return replace(made, **({} if half == "none" else {half: getattr(whole(self, first), half)}))

    monkeypatch.setattr(Cache, "reordered", without)
    if half == "valid":
        assert found() == expected, "all past positions of an answer are valid, in every row"
    else:
        assert (found() == expected) is (half == "none")


def test_sources_do_not_see_each_other(model: T5Gemma2) -> None:
    source = ragged(model, 22)
    stop = common(model, source, 3)
    for early in (True, False, "never"):
        search = Search(3, 1.0, early)  # type: ignore[arg-type]
        together = beam_search(model, **source, search=search, max_new_tokens=STEPS, stop=stop)
        for row in range(3):
            one = {name: value[row : row + 1] for name, value in source.items()}
            alone = beam_search(model, **one, search=search, max_new_tokens=STEPS, stop=stop)
            length = alone.ids.shape[1]
            assert np.array_equal(together.ids[3 * row : 3 * row + 3, :length], alone.ids)
            close(together.scores[3 * row : 3 * row + 3], alone.scores, atol=1e-11)


# The bookkeeping


def beams_of(*scores: tuple[int, float]) -> list[Beam]:
    """Answers of two ids, the last given, with that log-probability."""
    return [Beam((1, last), (0.0, total), (0, 0), total) for last, total in scores]


def ends(beam: Beam) -> bool:
    return beam.ids[-1] == 9 or len(beam.ids) >= 5


def test_only_the_first_beams_that_end_are_answers() -> None:
    """An answer that ends in third place of two is lost, and the fourth grows on."""
    row = advanced(Row(), beams_of((9, -1.0), (3, -2.0), (9, -3.0), (4, -4.0)), ends, Search(2), 5)
    assert [beam.ids[-1] for beam in row.kept] == [9]
    assert [beam.ids[-1] for beam in row.growing] == [3, 4]
    assert not row.done


def test_when_a_source_is_done() -> None:
    """Kept at −1 and −2 over two ids each, best growing at −3: its mean at 2 ids −1.5, at 5 ids −0.6."""
    kept = beams_of((9, -1.0), (9, -2.0))
    step = [*beams_of((3, -3.0), (4, -4.0))]
    for search, done in (
        (Search(2, 1.0, True), True),
        (Search(2, 1.0, False), True),
        (Search(2, 1.0, "never"), False),
        (Search(2, 0.0, "never"), True),
        (Search(2, -1.0, "never"), True),
    ):
        row = advanced(Row(kept=tuple(kept)), step, ends, search, 5)
        assert row.done is done, search
        assert [beam.ids for beam in row.kept] == [beam.ids for beam in kept]
    equal = advanced(Row(kept=tuple(kept)), beams_of((3, -2.0), (4, -4.0)), ends, Search(2), 5)
    assert equal.done, "as good as the worst kept is no better"
    assert not advanced(Row(), step, ends, Search(2, 1.0, True), 5).done
    assert advanced(Row(), beams_of((9, -1.0), (9, -2.0)), ends, Search(2), 5).done, "nothing grows"


def test_so_many_are_looked_at_that_enough_grow_on() -> None:
    """Each answer may end in as many ways as there are ends, all likelier than what grows."""
    assert [Search(3).width(ends) for ends in (0, 1, 2, 5)] == [6, 6, 9, 18]


def test_a_string_ends_no_beam_before_the_least(model: T5Gemma2) -> None:
    how: dict[str, Any] = {"stop_strings": ["x"], "decode": lambda ids: "x" * len(ids), "stop": ()}
    for least, length in ((0, 1), (4, 4)):
        found = beam_search(model, [[33, 17, 42]], Search(2), max_new_tokens=6, min_new_tokens=least, **how)
        assert found.lengths.tolist() == [length] * 2


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(-50, 0)), max_size=12), st.floats(-3, 3), st.booleans())
def test_kept_are_the_best(scores: list[tuple[int, float]], penalty: float, early: bool) -> None:
    continued = sorted(beams_of(*scores), key=lambda beam: -beam.total)
    row = advanced(Row(), continued, ends, Search(3, penalty, early), 5)
    ranks = [beam.score(penalty) for beam in row.kept]
    assert ranks == sorted(ranks, reverse=True)
    assert len(row.kept) <= 3
    assert {beam.ids[-1] for beam in row.kept} <= {9}
    assert 9 not in {beam.ids[-1] for beam in row.growing}
    assert row.done or row.growing
    for beam in row.kept:
        assert math.isclose(beam.score(penalty), beam.total / 2**penalty)


def test_better_answers_drive_worse_ones_out() -> None:
    """Of five that have ended three stay: by total over 2 ids squared, so the order is that of totals. Of equals the
    earlier stays first."""
    before = Row(kept=tuple(beams_of((9, -2.0), (9, -4.0), (9, -6.0))))
    row = advanced(before, beams_of((9, -1.0), (9, -4.0), (3, -5.0)), ends, Search(3, 2.0), 5)
    assert [beam.total for beam in row.kept] == [-1.0, -2.0, -4.0]
    assert row.kept[2] is before.kept[1]
    worse = advanced(row, beams_of((9, -7.0), (3, -8.0)), ends, Search(3, 2.0), 5)
    assert worse.kept == row.kept


# Other libraries and types


@pytest.mark.parametrize("stop", [(), (44, 70, 84, 171)])
def test_on_another_array_library(stop: tuple[int, ...]) -> None:
    """CuPy's rules, NumPy's numbers: the same bits. The host waits for what is kept of the vocabulary, and no more."""
    host, device = host_and_device()
    nx = device.nx
    source, rules = ragged(host, 30), Rules(1.2, 3, ((5,), (84, 84)))
    expected = beam_search(host, **source, search=Search(3), max_new_tokens=6, min_new_tokens=2, stop=stop, rules=rules)
    found = beam_search(device, **source, search=Search(3), max_new_tokens=6, min_new_tokens=2, stop=stop, rules=rules)
    waits = set(nx.xp.waits)
    assert np.array_equal(found.ids, expected.ids)
    assert np.array_equal(found.scores, expected.scores)
    assert np.array_equal(nx.backend.host(found.logits), expected.logits)
    assert waits <= {
        *("inputs.token_ids", "inputs.keep_mask", "model.T5Gemma2.encode", "steps.sound"),
        *("beam._likeliest", "beam._searched", "beam.beam_search"),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_in_other_types(dtype: Any) -> None:
    model = t5g2ref.load(t5g2ref.bundled("tiny"), dtype)
    found = beam_search(model, **ragged(model, 31), search=Search(2), max_new_tokens=4, stop=())
    assert found.ids.shape == (6, 5)
    assert found.scores.dtype == np.float64
    assert (np.diff(found.scores.reshape(3, 2)) <= 0).all()

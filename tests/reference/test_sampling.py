"""Sampled generation, and what greedy and sampled generation share: rules, ends, scores, errors."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from generating import host_and_device, ragged
from helpers import close, same_bits

import t5g2ref
from t5g2ref.generate import processors
from t5g2ref.generate.beam import beam_search
from t5g2ref.generate.greedy import greedy
from t5g2ref.generate.hypotheses import Search
from t5g2ref.generate.processors import drawn, log_softmax
from t5g2ref.generate.rules import Rules, Sampling, narrowed
from t5g2ref.generate.sample import sample
from t5g2ref.model import T5Gemma2

STEPS = 12


@pytest.fixture(scope="module")
def model() -> T5Gemma2:
    return t5g2ref.load(t5g2ref.bundled("tiny"))


def text(ids: list[int]) -> str:
    """A text of ids: <84><3>."""
    return "".join(f"<{i}>" for i in ids)


# Sampling


def likely(logits: Any, sampling: Sampling) -> dict[int, float]:
    """Id → probability of one row (V,), as the settings are defined: of the likeliest so many ids; then the fewest of
    them that reach the mass; then those that are likely enough beside the first. Written out, one id after another."""
    warm = sorted(((float(x) / sampling.temperature, -i) for i, x in enumerate(logits)), reverse=True)
    left = [(-i, math.exp(x - warm[0][0])) for x, i in warm[: sampling.top_k or None]]
    total, kept, mass = math.fsum(p for _, p in left), list[tuple[int, float]](), 0.0
    for i, p in left:
        if mass < sampling.top_p * total or not kept:
            kept.append((i, p))
        mass += p
    kept = [(i, p) for i, p in kept if p >= sampling.min_p * kept[0][1]]
    whole = math.fsum(p for _, p in kept)
    return {i: p / whole for i, p in sorted(kept)}


def first_above(uniform: float, of: dict[int, float]) -> int:
    """The first id, in the order of ids, whose cumulated probability is above the number."""
    sums = itertools.accumulate(of.values())
    return next(i for i, mass in zip(of, sums, strict=True) if mass > uniform)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.6, 20, 0.9, 0.02)])
def test_each_id_is_drawn_from_the_uncached_model(sampling: Sampling, model: T5Gemma2) -> None:
    """With the generator's numbers, one a row and step; so the same seed gives the same ids."""
    given = ragged(model, 1)
    found = sample(model, **given, sampling=sampling, seed=5, max_new_tokens=STEPS, stop=())
    whole = model(given["input_ids"], found.ids[:, :-1], attention_mask=given["attention_mask"]).logits
    uniform = np.random.default_rng(5)
    for step in range(STEPS):
        rows = [likely(row, sampling) for row in whole[:, step]]
        token = [first_above(u, row) for u, row in zip(uniform.random(3), rows, strict=True)]
        assert found.ids[:, 1 + step].tolist() == token
        expected = [math.log(row[i]) for row, i in zip(rows, token, strict=True)]
        close(found.log_probs[:, step], expected, atol=1e-10)
    again = sample(model, **given, sampling=sampling, seed=5, max_new_tokens=STEPS, stop=())
    same_bits(found.ids, again.ids)
    same_bits(found.log_probs, again.log_probs)
    other = sample(model, **given, sampling=sampling, seed=6, max_new_tokens=STEPS, stop=())
    assert not np.array_equal(found.ids, other.ids)


def test_a_generator_goes_on(model: T5Gemma2) -> None:
    given, numbers = ragged(model, 2), np.random.default_rng(3)
    first, second = (sample(model, **given, seed=numbers, max_new_tokens=6, stop=()).ids for _ in range(2))
    assert np.array_equal(first, sample(model, **given, seed=3, max_new_tokens=6, stop=()).ids)
    assert not np.array_equal(first, second)


def test_narrow_sampling_is_greedy(model: T5Gemma2) -> None:
    given = ragged(model, 3)
    expected = greedy(model, **given, max_new_tokens=STEPS, stop=())
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(min_p=1.0), Sampling(temperature=1e-4)):
        assert np.array_equal(
            sample(model, **given, sampling=sampling, seed=0, max_new_tokens=STEPS, stop=()).ids, expected.ids
        )
    assert not np.array_equal(sample(model, **given, seed=0, max_new_tokens=STEPS, stop=()).ids, expected.ids)


@pytest.mark.parametrize(
    "sampling", [Sampling(top_k=5), Sampling(top_p=0.4), Sampling(min_p=0.3), Sampling(1.7, 40, 0.8, 0.05)]
)
def test_the_support(sampling: Sampling, model: T5Gemma2) -> None:
    """No id outside of what the settings leave comes first, over many numbers and seeds, and each in it does."""
    given = ragged(model, 4, (7,))
    first = greedy(model, **given, max_new_tokens=1).logits[:, 0]
    expected = likely(first[0], sampling)
    kept, left = set(expected), narrowed(np, first, sampling)
    assert set(np.nonzero(left[0] > -np.inf)[0].tolist()) == kept
    assert 1 < len(kept) < first.shape[1]
    for u in (np.arange(3000) + 0.5) / 3000:
        assert int(drawn(np, left, np.array([u]))[0]) == first_above(u, expected)
    tokens = {int(sample(model, **given, sampling=sampling, seed=s, max_new_tokens=1).ids[0, 1]) for s in range(40)}
    assert tokens <= kept
    assert len(tokens) > 1


def test_a_number_of_another_type_is_that_number() -> None:
    """NumPy's float64 would make float64 of float32 logits, and other quotients."""
    logits = np.random.default_rng(1).normal(size=(2, 50)).astype(np.float32)
    given = Sampling(np.float64(0.7), 0, Fraction(3, 4), np.float64(0.1))  # type: ignore[arg-type]
    same_bits(narrowed(np, logits, given), narrowed(np, logits, Sampling(0.7, 0, 0.75, 0.1)))


def test_other_rows_change_nothing_but_the_numbers_drawn(model: T5Gemma2) -> None:
    """A row that has ended still takes its number, so that the others' stay what they were."""
    given = ragged(model, 5)
    free = sample(model, **given, seed=1, max_new_tokens=STEPS, stop=()).ids
    stop = int(free[0, 3])
    found = sample(model, **given, seed=1, max_new_tokens=STEPS, stop=(stop,)).ids
    for row in range(3):
        ends = np.nonzero(free[row, 1:] == stop)[0]
        last = min(int(ends[0]) + 2 if len(ends) else STEPS + 1, found.shape[1])
        assert np.array_equal(found[row, :last], free[row, :last])
        assert (found[row, last:] == model.config.decoder.pad_token_id).all()


def test_on_another_array_library() -> None:
    """CuPy's rules, NumPy's numbers: the same bits, under every rule and end."""
    host, device = host_and_device()
    source = ragged(host, 14)
    options: Any = {"max_new_tokens": 8, "min_new_tokens": 2, "stop": (84, 70), "stop_strings": ["<25"], "decode": text}
    options["rules"] = Rules(1.2, 3, ((5,), (84, 84)))
    for call in (greedy, lambda m, **o: sample(m, sampling=Sampling(0.9, 80, 0.9, 0.01), seed=4, **o)):
        expected, found = (call(m, **source, **options) for m in (host, device))  # type: ignore[operator]
        for name in ("ids", "logits", "log_probs", "lengths"):
            same_bits(device.nx.backend.host(getattr(found, name)), getattr(expected, name))
        assert expected.lengths.min() < expected.lengths.max()


# Rules and scores


def test_rules_hold_in_greedy(model: T5Gemma2) -> None:
    given = ragged(model, 6)
    free = greedy(model, **given, max_new_tokens=STEPS, stop=())
    word = tuple(int(i) for i in free.ids[0, 1:3])
    for rules in (Rules(no_repeat_ngram=1), Rules(bad_words=(word,)), Rules(repetition_penalty=5.0)):
        found = greedy(model, **given, max_new_tokens=STEPS, stop=(), rules=rules)
        assert not np.array_equal(found.ids, free.ids)
        if rules.no_repeat_ngram:
            assert all(len(set(row)) == STEPS + 1 for row in found.ids.tolist()), "the start counts too"
        if rules.bad_words:
            assert text(list(word)) not in text(found.ids[0].tolist())


def test_scores_are_log_probabilities_after_processing(model: T5Gemma2) -> None:
    given = ragged(model, 7)
    found = greedy(model, **given, max_new_tokens=6, stop=())
    for step in range(6):
        expected = log_softmax(np, found.logits[:, step])[np.arange(3), found.ids[:, 1 + step]]
        close(found.log_probs[:, step], expected, atol=1e-14)
    assert found.log_probs.dtype == np.float64
    narrow = sample(model, **given, sampling=Sampling(top_k=1), seed=0, max_new_tokens=6, stop=())
    assert np.array_equal(narrow.log_probs, np.zeros((3, 6))), "one id is left, and is certain"


def test_scores_behind_an_end_are_0(model: T5Gemma2) -> None:
    given = ragged(model, 8)
    free = greedy(model, **given, max_new_tokens=6, stop=()).ids
    found = greedy(model, **given, max_new_tokens=6, stop=(int(free[1, 1]),))
    assert found.log_probs[1, 0] < 0
    assert np.array_equal(found.log_probs[1, 1:], np.zeros(found.log_probs.shape[1] - 1))


# Ends


def test_no_row_ends_before_the_least(model: T5Gemma2) -> None:
    given = ragged(model, 9)
    free = greedy(model, **given, max_new_tokens=STEPS, stop=()).ids
    stop = sorted({int(i) for i in free[:, 1:3].reshape(-1)})
    short = greedy(model, **given, max_new_tokens=STEPS, stop=stop).ids
    assert short.shape[1] == 2, "without a least length all end at once"
    for least in (1, 4, STEPS):
        found = greedy(model, **given, max_new_tokens=STEPS, min_new_tokens=least, stop=stop).ids
        assert not np.isin(found[:, 1 : 1 + least], stop).any()
    for how in ({}, {"seed": 2}):
        call: Any = sample if how else greedy
        found = call(
            model, **given, max_new_tokens=STEPS, min_new_tokens=4, stop_strings=["<"], decode=text, stop=(), **how
        )
        assert found.ids.shape[1] == 5, "a string ends no row earlier either"


def test_a_string_ends_a_row_behind_it(model: T5Gemma2) -> None:
    """Two strings, rows that end apart, each with what ended it; asked for by the new ids alone."""
    given = ragged(model, 10)
    free = greedy(model, **given, max_new_tokens=STEPS, stop=()).ids
    strings = [text(free[0, 3:5].tolist())[1:-1], text(free[1, 6:7].tolist())]
    asked: list[list[int]] = []

    def decode(ids: list[int]) -> str:
        asked.append(ids)
        return text(ids)

    found = greedy(model, **given, max_new_tokens=STEPS, stop=(), stop_strings=strings, decode=decode).ids
    for row in range(3):
        ends = [n for n in range(1, STEPS + 1) if any(s in text(free[row, 1 : 1 + n].tolist()) for s in strings)]
        last = min(ends[0] if ends else STEPS, found.shape[1] - 1)
        assert np.array_equal(found[row, : 1 + last], free[row, : 1 + last])
        assert (found[row, 1 + last :] == model.config.decoder.pad_token_id).all()
    assert asked[0] == [int(free[0, 1])]
    assert type(asked[0][0]) is int


def test_another_start_id(model: T5Gemma2) -> None:
    given = ragged(model, 11)
    found = greedy(model, **given, max_new_tokens=3, stop=(), decoder_start_token_id=99).ids
    assert (found[:, 0] == 99).all()
    begun = greedy(
        model, **given, max_new_tokens=3, stop=(), decoder_start_token_id=99, decoder_input_ids=[[7]] * 3
    ).ids
    assert begun[:, :2].tolist() == [[99, 7]] * 3
    logits = model(given["input_ids"], found[:, :-1], attention_mask=given["attention_mask"]).logits
    assert np.array_equal(found[:, 1:], logits.argmax(axis=-1))


# Errors


def spoiled(model: T5Gemma2, number: float) -> T5Gemma2:
    """A model whose logits of id 7 are that number, where all others are numbers."""

    class Spoiled(T5Gemma2):
        def logits(self, hidden: Any, *args: Any) -> Any:
            found = super().logits(hidden, *args).copy()
            found[-1, :, 7] = number
            return found

    return Spoiled(model.config, model.weights, model.nx)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_nan_is_an_error_before_any_id_is_chosen(number: float, model: T5Gemma2) -> None:
    """np.argmax would choose it. Nothing is told either."""
    given, wrong = ragged(model, 12), spoiled(model, number)
    told: list[Any] = []
    message = "logits: found NaN or infinity in row 2 at step 0, expected finite numbers; look for one in the weights"
    with pytest.raises(ValueError, match=message):
        greedy(wrong, **given, on_token=told.append)
    with pytest.raises(ValueError, match=message):
        sample(wrong, **given, seed=0, on_token=told.append)
    with pytest.raises(ValueError, match=message):
        beam_search(wrong, **given, search=Search(3))
    assert not told
    assert greedy(spoiled(model, -np.inf), **given, max_new_tokens=2).ids.shape == (3, 3), "−∞ only forbids"


def test_nan_that_arises_under_the_settings_is_an_error(model: T5Gemma2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings have bounds, so that logits stay numbers; where they do not, no id is chosen of them either."""
    given, told = ragged(model, 12), list[Any]()

    def spoiling(*found: Any) -> Any:
        logits = found[1].copy()
        logits[1, 5] = np.nan
        return logits

    monkeypatch.setattr(processors, "temperature", lambda logits, _: spoiling(None, logits))
    message = "the logits that sampling narrowed: found NaN or infinity in row 1 at step 0, expected finite numbers"
    with pytest.raises(ValueError, match=message):
        sample(model, **given, sampling=Sampling(0.5), seed=0, on_token=told.append)
    monkeypatch.setattr(processors, "repetition_penalty", spoiling)
    for call in (greedy, lambda m, **o: beam_search(m, search=Search(3), **o)):
        with pytest.raises(ValueError, match="the logits under the rules: found NaN or infinity in row 1 at step 0"):
            call(model, **given, rules=Rules(1.5))  # type: ignore[operator]
    assert not told


def test_rules_that_forbid_everything(model: T5Gemma2) -> None:
    given = ragged(model, 13)
    every = Rules(bad_words=tuple((i,) for i in range(311)))
    message = (
        "logits: rules, stop ids and min_new_tokens forbid every id in row 0 at step 0; expected one that is allowed"
    )
    with pytest.raises(ValueError, match=message):
        greedy(model, **given, rules=every)
    with pytest.raises(ValueError, match=r"beams: source 0 has 0 answers that the rules allow, expected 3; give fewer"):
        beam_search(model, **given, search=Search(3), rules=every)
    pad, free = model.config.decoder.pad_token_id, greedy(model, **given, max_new_tokens=4, stop=()).ids
    rules = Rules(bad_words=tuple((pad, i) for i in range(311)))
    found = greedy(model, **given, rules=rules, stop=(int(free[1, 1]),), max_new_tokens=4)
    assert found.lengths.tolist() == [4, 1, 4], "a row that has ended may have nothing left"


SETTINGS: list[tuple[str, str, Any]] = [
    (
        "temperature: expected a number from 0.0001 to 10000 (for the likeliest id use greedy), found 0",
        "s",
        {"temperature": 0},
    ),
    (
        "temperature: expected a number from 0.0001 to 10000 (for the likeliest id use greedy), found nan",
        "s",
        {"temperature": np.nan},
    ),
    (
        "temperature: expected a number from 0.0001 to 10000 (for the likeliest id use greedy), found 'x'",
        "s",
        {"temperature": "x"},
    ),
    ("top_k: expected an integer of at least 0, 0 for all ids, found -1", "s", {"top_k": -1}),
    ("top_k: expected an integer of at least 0, 0 for all ids, found 2.5", "s", {"top_k": 2.5}),
    ("top_p: expected a number above 0, at most 1, found 0", "s", {"top_p": 0}),
    ("top_p: expected a number above 0, at most 1, found 1.5", "s", {"top_p": 1.5}),
    ("min_p: expected a number from 0 to 1, found -0.5", "s", {"min_p": -0.5}),
    ("repetition_penalty: expected a number from 0.0001 to 10000, found 0.0", "r", {"repetition_penalty": 0.0}),
    ("repetition_penalty: expected a number from 0.0001 to 10000, found inf", "r", {"repetition_penalty": np.inf}),
    ("no_repeat_ngram: expected an integer of at least 0, found True", "r", {"no_repeat_ngram": True}),
    ("bad_words: expected runs of ids, each of at least one, found ()", "r", {"bad_words": ((),)}),
    ("bad_words: expected runs of ids, each of at least one, found 'ab'", "r", {"bad_words": ["ab"]}),
    ("bad_words: expected runs of ids, each of at least one, found [-1]", "r", {"bad_words": [[-1]]}),
    ("beams: expected an integer of at least 2 (for one use greedy), found 1", "b", {"beams": 1}),
    ("length_penalty: expected a number from -20 to 20, found inf", "b", {"length_penalty": np.inf}),
    ("early_stopping: expected True, False or 'never', found 'sometimes'", "b", {"early_stopping": "sometimes"}),
    ("early_stopping: expected True, False or 'never', found 1", "b", {"early_stopping": 1}),
]


@pytest.mark.parametrize(("message", "kind", "given"), SETTINGS, ids=[f"{s[0][:20]} {s[2]}" for s in SETTINGS])
def test_settings_that_are_refused(message: str, kind: str, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        {"s": Sampling, "r": Rules, "b": Search}[kind](**given)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("message", "given"),
    [
        ("max_new_tokens: expected at least 1, found 0", {"max_new_tokens": 0}),
        ("min_new_tokens: expected an integer from 0 to max_new_tokens (5), found 6", {"min_new_tokens": 6}),
        ("min_new_tokens: expected an integer from 0 to max_new_tokens (5), found -1", {"min_new_tokens": -1}),
        ("stop_strings: expected a list of texts, found 'abc'", {"stop_strings": "abc"}),
        ("stop_strings: expected texts, none of them empty, found ('',)", {"stop_strings": [""], "decode": text}),
        ("stop_strings: expected decode beside them, which makes the text of ids; found none", {"stop_strings": ["a"]}),
        ("bad_words: ids must lie in [0, 311), found 311", {"rules": Rules(bad_words=((5, 311),))}),
        ("stop: ids must lie in [0, 311), found 400, which no row would ever have", {"stop": [3, 400]}),
    ],
)
def test_options_that_are_refused(message: str, given: dict[str, Any], model: T5Gemma2) -> None:
    source = ragged(model, 0)
    options: Any = {"max_new_tokens": 5, **given}
    for call in (greedy, lambda m, **o: sample(m, seed=0, **o), lambda m, **o: beam_search(m, search=Search(), **o)):
        with pytest.raises(ValueError, match=r".") as error:
            call(model, **source, **options)  # type: ignore[operator]
        assert str(error.value) == message


def test_numpy_s_numbers_are_numbers(model: T5Gemma2) -> None:
    rules = Rules(np.float32(1.5), np.int64(2), ((np.int64(5), 6),))  # type: ignore[arg-type]
    count: Any = np.int64(3)
    found = greedy(model, [[5]], max_new_tokens=count, min_new_tokens=count, stop=np.array([84]), rules=rules)  # type: ignore[arg-type]
    assert found.ids.shape == (1, 4)
    assert Sampling(np.float64(0.5), np.int32(4)) == Sampling(0.5, 4)  # type: ignore[arg-type]


def test_an_unknown_option(model: T5Gemma2) -> None:
    with pytest.raises(TypeError, match="max_tokens"):
        greedy(model, [[5]], max_tokens=5)  # type: ignore[call-arg]


def test_an_encoder_alone(model: T5Gemma2) -> None:
    alone = T5Gemma2(model.config, replace(model.weights, decoder=None), model.nx)
    with pytest.raises(ValueError, match="this checkpoint is an encoder alone"):
        greedy(alone, [[5]])

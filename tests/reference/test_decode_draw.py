"""Drawing ids in the decoding kernel, on the CPU in emulation, beside the definition: `rules.narrowed`, `drawn`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulated import needs_compiler
from emulated_draw import Drawn, drawn_alone
from helpers import close
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode_kernel import model_of, plan

from t5g2ref.backend import NUMPY
from t5g2ref.backend.cuda.decoding.plan import Plan
from t5g2ref.backend.whole import Chunk
from t5g2ref.generate.processors import chosen, drawn, log_softmax
from t5g2ref.generate.rules import Sampling, narrowed
from t5g2ref.generate.sample import sample
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import SDPA, Numerics
from t5g2ref.one_step import whole_steps
from t5g2ref.rope import rope_tables

SIZE, STEPS, PAD = 331, 3, 0  # ids: no whole number of blocks
BELOW_1 = float(np.nextafter(1.0, 0.0))
# A row has all warps of a processor, four, two or one; of twenty ids one processor has none.
PLANS = {
    "one row": plan(vocabulary=SIZE, batch=1, half=True, processors=5, sampled=True),
    "three rows": plan(vocabulary=SIZE, batch=3, half=False, processors=4, sampled=True),
    "eight rows": plan(vocabulary=SIZE, batch=8, half=True, processors=3, sampled=True),
    "a processor without ids": plan(vocabulary=20, batch=2, half=False, processors=3, sampled=True),
}


def typed(made: Plan, logits: Any) -> Any:
    return np.asarray(logits).astype(ml_dtypes.bfloat16 if made.half else np.float32)


def expected(logits: Any, sampling: Sampling, uniform: Any, ends: Any = ()) -> Drawn:
    """What the definition draws from logits (steps, B, V), step by step, until all rows have ended."""
    running, ids, log_probs = np.ones(logits.shape[1], dtype=bool), [], []
    for step, numbers in zip(logits.astype(np.float32), uniform, strict=True):
        left = narrowed(np, step, sampling)
        found = drawn(np, left, numbers)
        log_probs.append(chosen(np, log_softmax(np, left), found))
        ids.append(np.where(running, found, PAD))
        running = running & ~np.isin(found, ends)
        if not running.any():
            break
    return Drawn(np.stack(ids), np.stack(log_probs))


def same(made: Plan, logits: Any, sampling: Sampling, uniform: Any, ends: Any = ()) -> Drawn:
    """The kernel's, which must be the definition's."""
    logits = typed(made, logits)
    truth, found = expected(logits, sampling, uniform, ends), drawn_alone(made, logits, sampling, uniform, ends, PAD)
    np.testing.assert_array_equal(found.ids, truth.ids)
    close(found.log_probs, truth.log_probs, atol=1e-12)
    return found


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([1.0, 0.7, 0.8, 1.7]),
    top_k=st.sampled_from([0, 0, 1, 2, 7, 64, SIZE - 1, SIZE, 10**30]),
    top_p=st.sampled_from([1.0, 1.0, 0.95, 0.6, 0.3, 1e-9, BELOW_1]),
    min_p=st.sampled_from([0.0, 0.0, 0.03, 0.5, 1.0]),
)


@needs_compiler
@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=12)
@given(
    sampling=samplings,
    seed=st.integers(0, 1 << 30),
    grain=st.sampled_from([0.0, 0.25, 2.0]),
    spread=st.sampled_from([0.3, 2.0, 20.0]),
    forbidden=st.sampled_from([0.0, 0.2, 0.98]),
    ending=st.sampled_from([0, 1]),  # quarters of all ids
)
def test_ids_are_the_definitions(
    name: str, sampling: Sampling, seed: int, grain: float, spread: float, forbidden: float, ending: int
) -> None:
    """With many equal logits, zeros of both signs, ids that are forbidden, and rows that end one after the other."""
    made, rng = PLANS[name], np.random.default_rng(seed)
    size = made.vocabulary
    shape = (STEPS, made.batch, size)
    logits = rng.normal(size=shape) * spread
    if grain:
        logits = np.round(logits / grain) * grain
    logits = np.where(rng.random(shape) < forbidden, -np.inf, logits)
    logits[..., rng.integers(size)] = rng.normal()
    ends = [int(i) for i in rng.permutation(size)[: ending * size // 4]]
    same(made, logits, sampling, rng.random((STEPS, made.batch)), ends)


@needs_compiler
def test_all_ids_alike() -> None:
    """Sums are whole numbers then, so that bounds are met exactly: broken by `<=`, or by another order."""
    made = PLANS["three rows"]
    uniform = np.array([[0.0, BELOW_1, 0.5], [1 / SIZE, 100 / SIZE, 1 - 2.0**-26]])
    logits = np.full((2, 3, SIZE), 3.25)
    for sampling in (Sampling(), Sampling(top_k=5), Sampling(top_p=0.5), Sampling(0.5, 9, 100 / SIZE, 1.0)):
        found = same(made, logits, sampling, uniform)
        assert found.ids[0, 0] == 0
        if sampling.top_p < 1:
            assert found.ids[0, 1] == np.ceil(sampling.top_p * SIZE) - 1, "the lower ids of equals"
        else:
            assert found.ids[0, 1] == SIZE - 1, "whatever equals the last is kept"


@needs_compiler
def test_signs_of_zero_and_quotients_that_are_equal() -> None:
    made = PLANS["three rows"]
    zeros = np.where(np.arange(SIZE) % 2, 0.0, -0.0)
    near = np.float32(1.9) + (np.arange(SIZE) % 5).astype(np.float32) * np.spacing(np.float32(1.9))
    assert len(np.unique(near / np.float32(0.8))) < len(np.unique(near)) == 5
    tiny = np.arange(SIZE) % 7 * 1e-41
    logits = np.broadcast_to(np.stack([zeros, near, tiny]), (2, 3, SIZE))
    uniform = np.array([[0.1, 0.4, 0.7], [0.9, 0.99, BELOW_1]])
    for sampling in (Sampling(0.8, 3), Sampling(0.8, top_p=0.5), Sampling(0.8, 100, 0.41), Sampling(1e4, 7, 0.5)):
        same(made, logits, sampling, uniform)


@needs_compiler
def test_a_number_draws_by_all_of_its_bits() -> None:
    """Of two ids of unlike weight a number lies 2⁻⁴⁰ before the bound, and behind it: broken by anything in float32."""
    made = PLANS["one row"]
    logits = np.full((2, 1, SIZE), -np.inf)
    logits[..., 40], logits[..., 300] = 0.0, -1.0
    bound = 1 / (1 + np.exp(-1.0))
    found = same(made, logits, Sampling(), np.array([[bound - 2.0**-40], [bound + 2.0**-40]]))
    assert found.ids[:, 0].tolist() == [40, 300]


@needs_compiler
def test_nearly_all_of_the_mass() -> None:
    """Rounding may leave a little of it behind the last id, where a key is no number's: it does in three of these."""
    made, rng = PLANS["three rows"], np.random.default_rng(9)
    sizes = rng.choice([1e-30, 1e-12, 0.3, 1.5, 3.0], size=(10, 3, SIZE))  # many first digits
    same(made, rng.normal(size=(10, 3, SIZE)) * sizes, Sampling(top_p=BELOW_1), rng.random((10, 3)))


@needs_compiler
def test_numbers_that_are_none_end() -> None:
    """The host raises the error; until then an id is an id, and nobody waits forever."""
    made = PLANS["three rows"]
    logits = np.zeros((STEPS, 3, SIZE))
    logits[:, 0, ::3], logits[:, 1, 5], logits[:, 2] = np.nan, np.inf, -np.inf
    for sampling in (Sampling(), Sampling(0.8, 5, 0.9, 0.1)):
        found = drawn_alone(made, typed(made, logits), sampling, np.full((STEPS, 3), 0.5))
        assert ((found.ids >= 0) & (found.ids < SIZE)).all()
        assert (found.ids[:, 2] == 0).all(), "as the definition draws where all are −∞"


def test_room_for_drawing() -> None:
    made = PLANS["three rows"]
    greedy = replace(made, sampled=False)
    least = next(memory for memory in range(10_000, 200_000, 64) if not replace(greedy, memory=memory).refusal())
    assert "shared memory" in replace(made, memory=least).refusal()


def test_numbers_that_are_missing_are_refused() -> None:
    """A card would read what lies behind them."""
    model = uncapped()
    nx, config, weights = model.nx, model.config.decoder, model.weights
    assert weights.decoder is not None
    table, cache = weights.encoder.text_model.embed_tokens, model.start(model.encode(np.array([[5, 6], [7, 8]])))
    begin = whole_steps(nx, weights.decoder, table, config, 2, 1.0, -1, Sampling())
    assert begin is not None
    rope, first = rope_tables(nx, config, np.arange(4)[None]), np.array([2, 2])
    for wrong in (None, np.zeros((3, 2)), np.zeros((2, 4))):
        with pytest.raises(ValueError, match=r"^uniform: expected \(4, 2\) numbers"):
            begin(cache, 4).next(first, first == 2, rope, (), 0, wrong)


# Generation


def uncapped(twins: bool = True, last_norm: float | None = None) -> T5Gemma2:
    """tiny without a cap on its logits, and with other weights of the last norm."""
    model = model_of("tiny", twins)
    stack = model.weights.decoder
    assert stack is not None
    if last_norm is not None:
        stack = replace(stack, norm=replace(stack.norm, weight=np.full_like(stack.norm.weight, last_norm)))
    config = replace(model.config, decoder=replace(model.config.decoder, final_logit_softcapping=None))
    return T5Gemma2(config, replace(model.weights, decoder=stack), model.nx)


@needs_compiler
@pytest.mark.parametrize("told", [False, True])
def test_generation_is_the_clear_one(told: bool) -> None:
    """Ids, scores and the generator behind them, where rows end apart, in the middle of what a launch makes."""
    sampling, clear, fast = Sampling(0.8, 64, 0.95, 0.01), uncapped(twins=False), uncapped()
    ids = np.random.default_rng(11).integers(10, 200, (2, 9))
    free = sample(clear, ids, sampling, seed=4, max_new_tokens=9, stop=()).ids[:, 1:]
    options: Any = {"max_new_tokens": 12, "stop": [int(free[0, 2]), int(free[1, 8])]}
    numbers, others = np.random.default_rng(4), np.random.default_rng(4)
    truth = sample(clear, ids, sampling, seed=numbers, **options)
    heard, states = list[Any](), list[Any]()

    def tell(new: Any) -> None:
        heard.append(new)
        states.append(others.bit_generator.state)

    found = sample(fast, ids, sampling, seed=others, on_token=tell if told else None, **options)
    assert truth.lengths.tolist() == [3, 9]
    np.testing.assert_array_equal(found.ids, truth.ids)
    np.testing.assert_array_equal(found.lengths, truth.lengths)
    np.testing.assert_allclose(found.log_probs, truth.log_probs, rtol=0, atol=1e-4)
    assert others.bit_generator.state == numbers.bit_generator.state
    if told:
        np.testing.assert_array_equal(np.stack(heard, axis=1), truth.ids[:, 1:])
        assert states == [after(4, 2 * (step + 1)) for step in range(9)]


def after(seed: int, count: int) -> Any:
    """The state of a generator that has drawn so many numbers."""
    generator = np.random.default_rng(seed)
    generator.random(count)
    return generator.bit_generator.state


@dataclass(frozen=True)
class Told:
    """Steps whose logits are given: ids are 3, 4, …, as if drawn."""

    logits: Callable[[int], Any]  # of a step, (B, V)

    def next(self, ids: Any, running: Any, rope: Any, ends: Any, pad: int, uniform: Any) -> Chunk:
        count, rows = uniform.shape
        logits = np.stack([self.logits(step) for step in range(count)], axis=1)
        made = np.broadcast_to(np.arange(3, 3 + count), (rows, count))
        return Chunk(made, logits, running, bool((np.abs(logits) < 1e33).all()), np.zeros((rows, count)))


def one_that_says(logits: Callable[[int], Any]) -> T5Gemma2:
    twins = {"whole_steps": lambda *_: lambda cache, room: Told(logits)}
    return model_of("tiny", twins=False).with_numerics(Numerics("float32", SDPA, NUMPY.with_twins(twins)))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # as the definition warns
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.nan, "^logits: found NaN or infinity in row 1 at step 2"),
        (np.inf, "^logits: found NaN or infinity in row 1 at step 2"),
        (1e35, "^the logits that sampling narrowed: found NaN or infinity in row 1 at step 2"),
    ],
)
def test_logits_that_are_none_are_the_definitions_error(wrong: float, message: str) -> None:
    """At the same step, behind the ids before it, and with the generator where it was."""

    def logits(step: int) -> Any:
        made = np.zeros((2, 311), np.float32)
        made[1, 7] = wrong if step == 2 else 1.0
        return made

    model, numbers, heard = one_that_says(logits), np.random.default_rng(8), list[Any]()
    source = np.array([[5, 6], [7, 8]])
    with pytest.raises(ValueError, match=message):
        sample(model, source, Sampling(1e-4), seed=numbers, max_new_tokens=6, stop=(), on_token=heard.append)
    assert np.stack(heard).tolist() == [[3, 3], [4, 4]]
    assert numbers.bit_generator.state == after(8, 4)


@needs_compiler
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_the_kernel_says_that_a_quotient_is_none() -> None:
    for model in (uncapped(twins=False, last_norm=1e36), uncapped(last_norm=1e36)):
        options: Any = {"seed": 1, "max_new_tokens": 1, "stop": ()}
        assert np.isfinite(sample(model, np.array([[5, 6], [7, 8]]), Sampling(), **options).logits).all()
        with pytest.raises(ValueError, match=r"^the logits that sampling narrowed: found NaN or infinity in row 0"):
            sample(model, np.array([[5, 6], [7, 8]]), Sampling(1e-4), **options)


def test_who_stops_listening_finds_the_generator_behind_what_was_heard() -> None:
    def enough(new: Any) -> None:
        if new[0] == 5:
            raise KeyboardInterrupt

    model, numbers = one_that_says(lambda step: np.zeros((2, 311), np.float32)), np.random.default_rng(8)
    with pytest.raises(KeyboardInterrupt):
        sample(model, np.array([[5, 6], [7, 8]]), seed=numbers, max_new_tokens=6, stop=(), on_token=enough)
    assert numbers.bit_generator.state == after(8, 6)

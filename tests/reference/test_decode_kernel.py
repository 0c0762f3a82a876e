"""The decoding kernel without a card: who does what, the order of the weights, and steps on the CPU in emulation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulated import launch, needs_compiler
from geometry import F, S, seeded_weights, small_config
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.checkpoints import resolve
from t5g2ref.backend import NUMPY
from t5g2ref.backend.cuda.decoding.plan import MATRICES, WARPS, Plan
from t5g2ref.backend.cuda.decoding.session import Session
from t5g2ref.backend.cuda.decoding.stepping import Stepper, plan_of, ropes_of, settings_of
from t5g2ref.backend.cuda.decoding.weights import packed, prepare
from t5g2ref.config import Dynamic, Rope, Ropes
from t5g2ref.generate.at_once import at_once
from t5g2ref.generate.greedy import greedy
from t5g2ref.generate.options import begin
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import RUNNING, SDPA, Numerics
from t5g2ref.params import tree
from t5g2ref.rope import rope_tables
from t5g2ref.trace import Trace, recorder

MEMORY = 110_000


def plan(**changes: Any) -> Plan:
    sizes = {"layers": 2, "width": 24, "hidden": 40, "vocabulary": 60, "heads": 4, "kv_heads": 2, "head_dim": 8}
    return Plan(**{**sizes, "batch": 1, "half": True, "processors": 3, "memory": MEMORY, **changes})


plans = st.builds(
    plan,
    width=st.integers(1, 90),
    hidden=st.integers(1, 90),
    vocabulary=st.integers(1, 300),
    kv_heads=st.integers(1, 4),
    heads=st.integers(1, 3).map(lambda group: 4 * group),
    head_dim=st.integers(1, 20).map(lambda half: 2 * half),
    batch=st.integers(1, 8),
    half=st.booleans(),
    processors=st.integers(1, 40),
)


@given(plans)
def test_every_block_has_one_warp_and_every_row_its_slots(made: Plan) -> None:
    slots, parts = made.owners
    at = 0
    for m, matrix in enumerate(MATRICES):
        down, across = made.blocks(matrix)
        edges = made.shares[m]
        assert (edges[0], edges[-1]) == (0, down * across)
        assert (np.diff(edges) >= 0).all()
        owner = np.repeat(np.arange(made.processors), np.diff(edges[::WARPS]))  # of each block
        if matrix == "head":
            assert (edges % across == 0).all()
            continue
        for row, owners in enumerate(owner.reshape(down, across)):
            found = list(dict.fromkeys(owners.tolist()))
            assert parts[at + row] == len(found)
            assert matrix != "gated" or len(found) == 1
            for slot, processor in enumerate(found):
                if edges[processor * WARPS] // across == row:  # its first row of blocks
                    assert slots[m, processor] == slot
                else:
                    assert slot == 0
        at += down


def unpacked(blocks: np.ndarray, rows: int, columns: int, half: bool) -> np.ndarray:
    """The matrix, lane by lane as `packed` says."""
    across = -(-columns // (16 if half else 8))
    out = np.full((-(-rows // 16) * 16, across * (16 if half else 8)), np.nan)
    for i, block in enumerate(blocks):
        down, column = divmod(i, across)
        lanes = block.view(ml_dtypes.bfloat16 if half else np.float32).reshape(32, -1).astype(float)
        for lane, values in enumerate(lanes):
            if half:  # a register is two numbers; registers alternate between rows g and g + 8
                g, t = divmod(lane, 4)
                for register, pair in enumerate(values.reshape(4, 2)):
                    row, first = g + 8 * (register % 2), 4 * t + 2 * (register // 2)
                    out[16 * down + row, 16 * column + first : 16 * column + first + 2] = pair
            else:
                row, part = divmod(lane, 2)
                out[16 * down + row, 8 * column + 4 * part : 8 * column + 4 * part + 4] = values
    return out[:rows, :columns]


@given(st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_blocks_have_the_matrix(rows: int, columns: int, half: bool) -> None:
    kind = ml_dtypes.bfloat16 if half else np.float32
    matrix = np.arange(rows * columns).reshape(rows, columns).astype(kind)
    found = unpacked(packed(np, matrix, plan(half=half)), rows, columns, half)
    np.testing.assert_array_equal(found, matrix.astype(float))


def test_a_plan_says_what_it_cannot_do() -> None:
    assert plan().refusal() == ""
    assert "9 rows" in plan(batch=9).refusal()
    assert "16 query heads" in plan(heads=16, kv_heads=1).refusal()
    assert "head of 258" in plan(head_dim=258).refusal()
    assert "shared memory" in plan(memory=10_000).refusal()


def model_of(
    name: str, twins: bool = True, processors: int = 3, dtype: Any = "float32", profile: Any = SDPA
) -> T5Gemma2:
    target = resolve(name, synthetic=False)[0]
    stepper = Stepper(launch, lambda: (processors, MEMORY))
    nx = Numerics(dtype, profile, NUMPY.with_twins(stepper.twins()) if twins else NUMPY)
    return T5Gemma2(target.config, tree({n: nx.array(np.asarray(w)) for n, w in target.rounded(dtype).items()}), nx)


def inputs(batch: int, source: int, past: int) -> tuple[Any, ...]:
    """Padded sources and a padded past."""
    rng = np.random.default_rng(7)
    ids, start = rng.integers(10, 200, (batch, source)), rng.integers(10, 200, (batch, past))
    mask, own = np.ones_like(ids), np.ones_like(start)
    mask[1:, :3], own[1:, :1] = 0, 0
    return ids, mask, start, own


@needs_compiler
@pytest.mark.parametrize(("name", "batch", "processors"), [("tiny", 1, 3), ("tiny-even", 3, 5)])
def test_a_step_shows_what_the_definition_shows(name: str, batch: int, processors: int) -> None:
    clear, fast = model_of(name, twins=False), model_of(name, processors=processors)
    ids, mask, start, own = inputs(batch, 20, 12)
    cache = clear.decode(start, clear.start(clear.encode(ids, mask)), own)[1]
    new = start[:, :1]
    expected, found = dict[str, Any](), dict[str, Any]()
    _, after = clear.decode(new, cache, trace=recorder(expected))
    _, then = fast.decode(new, cache, trace=recorder(found))
    assert list(found) == list(expected)
    for tap, value in expected.items():
        assert (found[tap].shape, found[tap].dtype) == (value.shape, value.dtype), tap
        if value.dtype == bool:
            np.testing.assert_array_equal(found[tap], value, err_msg=tap)
        else:  # two orders of float32 sums, through all layers
            np.testing.assert_allclose(found[tap], value, rtol=0, atol=4e-6 * np.abs(value).max(), err_msg=tap)
    for a, b in zip(after.own, then.own, strict=True):
        assert (a.start, a.length) == (b.start, b.length)
    np.testing.assert_array_equal(after.valid, then.valid)


@needs_compiler
def test_a_row_may_be_shared_by_many_processors() -> None:
    """More than sixteen: narrow models on a card of many."""
    small = small_config()
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
    sizes |= {"layer_types": (S, F), "head_dim": 16, "intermediate_size": 400}
    config = replace(
        small, encoder=replace(small.encoder, **sizes), decoder=replace(small.decoder, **sizes), has_vision=False
    )
    most = plan(width=16, hidden=400, heads=2, kv_heads=2, head_dim=16, vocabulary=311, half=False, processors=20)
    assert max(most.slots) > 16
    nx = Numerics("float32", SDPA)
    clear = T5Gemma2(config, tree(seeded_weights(config)), nx)
    twins = Stepper(launch, lambda: (20, MEMORY)).twins()
    fast = clear.with_numerics(Numerics("float32", SDPA, NUMPY.with_twins(twins)))
    ids = np.array([[5, 6, 7]])
    (a, _), (b, _) = (one.decode(ids[:, :1], clear.start(clear.encode(ids))) for one in (clear, fast))
    np.testing.assert_allclose(b, a, rtol=0, atol=4e-6 * np.abs(a).max())


@needs_compiler
def test_a_trace_that_exchanges_values_is_refused() -> None:
    fast = model_of("tiny")
    cache = fast.start(fast.encode(np.array([[5, 6, 7]])))
    with pytest.raises(ValueError, match="takes no other value"):
        fast.decode(np.array([[2]]), cache, trace=Trace(lambda name, x: x + 0 if name.endswith("q_rope") else x))


@needs_compiler
@settings(max_examples=3, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 3))
def test_generation_is_the_clear_one(source: int, new: int, stops: int) -> None:
    clear, fast = model_of("tiny", twins=False), model_of("tiny")
    rng = np.random.default_rng(source * 100 + new)
    ids = rng.integers(10, 200, (2, source))
    options: Any = {"max_new_tokens": new, "stop": ()}
    whole = greedy(clear, ids, **options)
    options["stop"] = [int(i) for i in whole.ids[0, 1:][:stops]]  # rows that end early, and at different times
    expected, told = greedy(clear, ids, **options), list[Any]()
    found = greedy(fast, ids, on_token=told.append, **options)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(np.stack(told, axis=1), expected.ids[:, 1:])
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-5 * np.abs(expected.logits).max())


def refuse(*_: object) -> None:
    raise AssertionError("the kernel was asked")


def test_angles_that_change_with_the_length_are_made_step_by_step() -> None:
    small = small_config()
    ropes = Ropes(Rope(1234.0), Rope(52_000.0, 6.0, Dynamic(192)))
    config = replace(small, decoder=replace(small.decoder, rope_parameters=ropes))
    twins = Stepper(refuse, lambda: (3, MEMORY)).twins()
    nx = Numerics("float32", SDPA, NUMPY.with_twins(twins))
    begun = begin(T5Gemma2(config, tree(seeded_weights(config)), nx), np.array([[5, 6]]), {"max_new_tokens": 2})
    assert at_once(T5Gemma2(config, tree(seeded_weights(config)), nx), begun, None) is None


def test_other_profiles_and_types_are_the_definitions() -> None:
    target = resolve("tiny", synthetic=False)[0]
    for dtype, profile in (("float64", SDPA), ("float32", RUNNING), ("bfloat16", SDPA)):
        twins = Stepper(refuse, lambda: (3, MEMORY)).twins()
        nx = Numerics(dtype, profile, NUMPY.with_twins(twins))  # type: ignore[arg-type]
        weights = {n: nx.array(np.asarray(w)) for n, w in target.rounded(nx.dtype).items()}
        model = T5Gemma2(target.config, tree(weights), nx)
        assert greedy(model, np.array([[5, 6]]), max_new_tokens=2, stop=()).ids.shape == (1, 3)


@needs_compiler
@pytest.mark.parametrize(("name", "batch"), [("tiny", 2), ("tiny-even", 8)])
def test_bfloat16_rounds_where_the_definition_rounds(name: str, batch: int) -> None:
    """Layer 0, from the same inputs: a sum in another order may land on the neighbouring number, and what follows from
    one or two such in a row a little farther."""
    model = model_of(name, twins=False, dtype="bfloat16")
    nx, config, half = model.nx, model.config.decoder, np.dtype(ml_dtypes.bfloat16)
    ids, mask, start, own = inputs(batch, 9, 3)
    cache = model.decode(start, model.start(model.encode(ids, mask)), own)[1]
    expected = dict[str, Any]()
    model.decode(start[:, :1], cache, trace=recorder(expected))
    size = plan_of(config, batch, True, (3, MEMORY))
    assert model.weights.decoder is not None
    weights = prepare(np, model.weights.decoder, half, size)
    session = Session(
        np,
        size,
        weights,
        None,
        settings_of(config, 1.0, -1),
        launch,
        cross=[(kv.keys.astype(half), kv.values.astype(half)) for kv in cache.cross],
        own=[(kv.keys.astype(half), kv.values.astype(half), kv.start) for kv in cache.own],
        own_valid=cache.valid,
        cross_valid=cache.cross_valid,
        room=4,
    )
    ropes = ropes_of(nx, rope_tables(nx, config, np.full((1, 1), 3)))
    ropes = type(ropes)(ropes.cosines.astype(half), ropes.sines.astype(half))
    embedded = expected["decoder.inputs_embeds"][:, 0].astype(half)
    made = session.run(1, ropes, embedded=embedded, with_head=False, show=True)
    for what, value in made.views(size, 0).items():
        tap = next(tap for tap in expected if tap == f"decoder.layers.0{what and '.'}{what}" or _below(tap, what))
        truth = expected[tap]
        truth = truth.swapaxes(1, 2).reshape(value.shape) if truth.ndim == 4 else truth
        apart = np.abs(value.astype(np.float64) - truth)
        assert apart.max() <= 2.0**-6 * np.abs(truth).max(), what
        if what in ("pre_self_attn_layernorm", "q_proj", "k_proj", "v_proj"):
            assert (apart <= 2.0**-7 * np.abs(truth) + 2.0**-15).all(), what
            assert (apart > 0).mean() < 0.05, what


def _below(tap: str, name: str) -> bool:
    return bool(name) and tap.startswith("decoder.layers.0.") and tap.endswith(f".{name}")

"""Cases of long context: asked for by name, with tokens far out; RoPE's tables far out; what transformers needs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from built_cases import GEOMETRIES, geometry
from geometry import one_layer_each, seeded_weights
from helpers import Array
from judging import judged

from conformance.cases import catalogue, long
from conformance.cases.case import Case, Run
from conformance.cases.ingredients import Kit
from conformance.cases.picked import LAST, Picked
from conformance.defects.exposure import reach
from conformance.defects.injection import HEALTHY, Injection, operation
from conformance.report.terms import Terms, cases
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.target import Target
from t5g2ref.config import Config
from t5g2ref.dtypes import to_grid
from t5g2ref.numerics import Numerics

FAR = 30_000  # a position that some rows of the case begin beyond


@pytest.fixture(params=GEOMETRIES)
def config(request: pytest.FixtureRequest) -> Config:
    return geometry(str(request.param))


def test_each_reaches_its_length_in_both_stacks(config: Config) -> None:
    built = {case.name: case for case in long.build(config)}
    assert tuple(built) == long.NAMES
    for name, length in {"long-8k": 8192, "long-32k": 32_768, "long-128k": 131_072}.items():
        source, answer = built[name].runs
        assert source.input_ids.shape == answer.decoder_input_ids.shape == (1, length)
        assert source.decoder_input_ids.shape[1] > config.decoder.sliding_window
        assert source.logits_to_keep == answer.logits_to_keep == LAST
        assert source.picked is not None
        assert answer.picked is not None
        for stack, at in ((config.encoder, source.picked.source), (config.decoder, answer.picked.answer)):
            wanted = {0, stack.sliding_window, 32_767, 32_768, 65_536, length - 1}
            assert {i for i in wanted if i < length} <= set(at.tolist())
        assert answer.picked.source.tolist() == list(range(answer.input_ids.shape[1]))


def test_they_are_built_alike_and_by_name_alone(config: Config) -> None:
    for one, other in zip(long.build(config), long.build(config), strict=True):
        for a, b in zip(one.runs, other.runs, strict=True):
            np.testing.assert_array_equal(a.input_ids, b.input_ids)
            assert a.picked is None or a.picked.source.tolist() == b.picked.source.tolist()  # type: ignore[union-attr]
    assert not set(long.NAMES) & {case.name for case in catalogue.build(config)}
    assert all(case.types == ("float32",) for case in long.build(config))


@pytest.mark.parametrize(
    ("given", "found"), [((), []), (("long-*",), []), (("long-8k", "short"), ["long-8k"]), (("*",), [])]
)
def test_a_pattern_does_not_ask_for_them(given: tuple[str, ...], found: list[str]) -> None:
    terms = Terms(ckpt="tiny", cases=given, peers=(), environment={})
    assert [case.name for case in cases(terms, geometry("tiny")) if case.name in long.NAMES] == found


def test_an_encoder_alone_has_its_sources() -> None:
    config = replace(geometry("tiny"), has_decoder=False)
    for case in long.build(config):
        assert case.task == "encoder"
        assert all(run.decoder_input_ids.shape[1] == 0 for run in case.runs)
        assert "D34" not in case.exposes


def test_our_runs_walk_the_picked_tokens_alone() -> None:
    case = long.build(geometry("tiny"))[0]
    (source, answer), (whole, _) = case.cut().runs, case.runs
    assert whole.picked is not None
    np.testing.assert_array_equal(source.input_ids, whole.input_ids[:, whole.picked.source])
    np.testing.assert_array_equal(source.position_ids, whole.picked.source[None])
    assert source.cut
    assert answer.decoder_input_ids.shape[1] < 100
    assert case.cut().cut().runs[0].input_ids.shape == source.input_ids.shape


def test_a_report_says_how_far_long_rows_went() -> None:
    (line,) = reach([("float32", long.build(geometry("tiny"))[0])])
    assert "8192 keys of the encoder and 8192 of the decoder in float32" in line


# RoPE's tables far out


def small() -> tuple[Target, Case]:
    config = one_layer_each()
    far = {name: replace(getattr(config, name), max_position_embeddings=1 << 17) for name in ("encoder", "decoder")}
    config = replace(config, **far)
    weights = {name: value for name, value in seeded_weights(config).items() if not name.startswith("score.")}
    case = long.build(config)[-1]
    assert case.name == long.POSITIONS
    return Target("small", config, weights), case


def only_far(change: Any) -> Injection:
    """Tables that are wrong from FAR on: `change(nx, table)` of what they are."""

    def tables(definition: Any, nx: Numerics, rope: Any, head_dim: int, positions: Array) -> Any:
        true = definition(nx, rope, head_dim, positions)
        return tuple(np.where((positions < FAR)[..., None], table, change(table)) for table in true)

    return operation(tables=tables)


def other_frequency(definition: Any, nx: Numerics, rope: Any, head_dim: int, positions: Array) -> Any:
    """θ is off by a ten thousandth: nothing at near positions, a turn far out."""
    return definition(nx, replace(rope, theta=rope.theta * 1.0001), head_dim, positions)


def narrow_frequency(dtype: str) -> Injection:
    """Inverse frequencies that are kept in a half type."""

    def tables(_: Any, nx: Numerics, rope: Any, head_dim: int, positions: Array) -> Any:
        exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        frequencies = to_grid(np.float32(1) / np.float32(rope.theta) ** exponent / np.float32(rope.factor), dtype)
        angles = positions[..., None].astype(np.float32) * frequencies
        angles = np.concatenate([angles, angles], axis=-1)
        return np.cos(angles), np.sin(angles)

    return operation(tables=tables)


def test_positions_reach_the_last_of_128k_and_rise_by_one() -> None:
    run = long.build(geometry("tiny"))[-1].runs[0]
    assert run.position_ids is not None
    assert run.position_ids.max() == 131_071
    assert {4096, 16_384, 32_768, 65_536} <= set(run.position_ids.reshape(-1).tolist())
    assert (np.diff(run.position_ids) == 1).all()
    np.testing.assert_array_equal(run.position_ids, run.decoder_position_ids)


@pytest.mark.parametrize(
    ("injection", "status"),
    [
        (only_far(lambda table: to_grid(table, "bfloat16")), "ceiling"),
        (only_far(lambda table: to_grid(table, "float16")), "ceiling"),
        (operation(tables=other_frequency), "values"),
        (narrow_frequency("bfloat16"), "values"),
        (narrow_frequency("float16"), "values"),
    ],
    ids=["bfloat16 table", "float16 table", "theta", "bfloat16 frequency", "float16 frequency"],
)
def test_a_table_that_is_wrong_far_out_is_found_in_its_own_row(injection: Injection, status: str) -> None:
    """A half type's rounding of cos is as large as what float32's angle may be off there in the fastest planes, so that
    the ratio passes: the bound of each element, which is small in slow planes, proves it."""
    target, case = small()
    culprit = judged(FaultyPeer(injection, name="peer"), target, case).culprit
    assert culprit is not None
    assert ".rotary_emb." in culprit.tap
    assert culprit.status == status
    positions = case.runs[0].position_ids
    assert positions is not None
    assert status == "values" or positions[culprit.token] >= FAR


def test_right_tables_pass_far_out() -> None:
    target, case = small()
    result = judged(FaultyPeer(HEALTHY, name="peer"), target, case)
    assert result.passed, result.culprit


# What transformers needs


@pytest.mark.peer
def test_transformers_says_before_it_runs_that_its_masks_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from conformance.peers.find import create
    from conformance.peers.torch import long_rows

    target, case = small()
    case = long.long(Kit(target.config, np.random.default_rng(3)), "long-96", 96)
    monkeypatch.setattr(long_rows, "free", lambda _: 1000)
    result = judged(create("transformers:sdpa"), target, case)
    assert result.skipped.startswith("transformers sdpa makes masks of every query and key: 0.0 GiB for rows of 96")
    assert not result.local
    assert judged(create("transformers:sdpa"), target, "short").passed, "a short row is not asked about"


@pytest.mark.peer
def test_the_prediction_grows_with_every_query_and_key() -> None:
    pytest.importorskip("torch")
    from conformance.peers.torch.long_rows import needed

    config = geometry("270m")

    def of(length: int, attention: str, answer: int = 4) -> int:
        ids, few = np.ones((1, length), np.int64), np.ones((1, answer), np.int64)
        run = Run(ids, few, picked=Picked(np.arange(4), np.arange(answer)))
        return needed(config, run, attention, "float32")

    sizes = [of(length, "sdpa") for length in (8192, 16_384, 32_768)]
    assert all(3.3 < later / earlier < 4 for earlier, later in pairwise(sizes))
    assert of(32_768, "sdpa") > 20 * 32_768**2, "20 bytes for each query and key while its mask is made"
    assert of(8192, "eager") > of(8192, "sdpa") + 4 * 4 * 4 * 8192**2 - 1, "four arrays of scores of four heads"
    assert of(64, "sdpa", 8192) > 11 * 8192**2


def test_a_device_s_free_memory_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from conformance.peers.torch import long_rows

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    assert long_rows.free("cuda:1") == 7
    monkeypatch.setattr(long_rows, "free_bytes", lambda backend: 5)
    assert long_rows.free("cpu") == 5

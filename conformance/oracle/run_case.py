"""Our side of a comparison: the models that walk through a case, truth first, and what they all do for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from conformance.cases.case import Case, Run
from conformance.oracle.at_picked import at_picked, with_all_valid
from conformance.oracle.quantised import Quantised, Scheme, chosen
from t5g2ref.backend import NUMPY, Backend
from t5g2ref.config import Config
from t5g2ref.dtypes import DType
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import EAGER, EXACT, FLASH, RUNNING, SDPA, TIES, Numerics, Profile
from t5g2ref.on_demand import extended
from t5g2ref.params import tree
from t5g2ref.trace import Trace

TraceOfCall = Callable[[int], Trace]


def legal(dtype: DType) -> tuple[Profile, ...]:
    """The controls' profiles: the legal ways of doing it in `dtype`. In float32 fused and unfused scores are the
    same."""
    return (SDPA, RUNNING) if dtype == "float32" else (SDPA, EAGER, RUNNING, FLASH, TIES)


def models(
    config: Config,
    weights: Mapping[str, Any],
    case: Case,
    dtype: DType,
    backend: Backend = NUMPY,
    scheme: Scheme | None = None,
) -> list[T5Gemma2]:
    """[truth, control, …]: float64 without rounding, then the legal ways of doing it in `dtype`; of a quantised engine
    with its `scheme`.

    `weights` are the backend's arrays, and those that a peer in `dtype` runs with (`Target.rounded`): how they were
    rounded to the type is not a question of arithmetic, so the truth is that of the rounded ones.
    """
    with backend.scope():
        rounded = Numerics(dtype, backend=backend).array
        head = {name: rounded(value) for name, value in case.head(config.decoder.hidden_size).items()}
    node = tree(extended(weights, head))
    config = replace(config, num_labels=case.num_labels)
    truth = Numerics("float64", EXACT, backend, embed_dtype=dtype)
    controls = [Numerics(dtype, profile, backend) for profile in legal(dtype)]
    if scheme is not None:
        of = chosen(weights)
        controls = [Quantised(dtype, profile, backend, scheme=scheme, chosen=of) for profile in legal(dtype)]
    return [T5Gemma2(config, node, nx) for nx in (truth, *controls)]


def program(case: Case) -> Callable[[T5Gemma2, TraceOfCall], None]:
    """What every model does for this case: its runs in order, each call under its own trace."""

    def walk(model: T5Gemma2, trace_of: TraceOfCall) -> None:
        call = 0
        for run in case.runs:
            _walk(at_picked(model, run), case, run, partial(_shifted, trace_of, call))
            call += len(run.bounds)

    return walk


def _shifted(trace_of: TraceOfCall, base: int, call: int) -> Trace:
    """The trace of a run's call, numbered over all runs of the case."""
    return trace_of(base + call)


def _walk(model: T5Gemma2, case: Case, run: Run, trace_of: TraceOfCall) -> None:
    masks: dict[str, Any] = {
        "attention_mask": run.attention_mask,
        "position_ids": run.position_ids,
        "pixel_values": run.pixel_values,
    }
    if case.task == "encoder":
        model.encode(run.input_ids, **masks, trace=trace_of(0))
        return
    if case.task != "lm" or run.labels is not None:
        call: Callable[..., Any] = model.classify if case.task != "lm" else model
        extra = {"per_token": case.task == "token"} if case.task != "lm" else {}
        call(
            run.input_ids,
            None if run.derived else run.decoder_input_ids,
            **masks,
            decoder_attention_mask=run.decoder_attention_mask,
            decoder_position_ids=run.decoder_position_ids,
            labels=run.labels,
            trace=trace_of(0),
            **extra,
        )
        return
    trace = trace_of(0)
    encoded = with_all_valid(model.encode(run.input_ids, **masks, trace=trace), run, model.nx)
    cache = model.start(encoded, trace)
    for n, (first, last) in enumerate(run.bounds):
        trace = trace_of(n)
        mask, positions = run.decoder_attention_mask, run.decoder_position_ids
        hidden, cache = model.decode(
            run.decoder_input_ids[:, first:last],
            cache,
            None if mask is None else mask[:, first:last],
            None if positions is None else positions[:, first:last],
            trace,
        )
        model.logits(kept(hidden, run.logits_to_keep), trace)


def kept(hidden: Any, count: int | None) -> Any:
    """Of a call's hidden states (B, T, D) those that get logits: the last `count`, all when None."""
    return hidden if count is None else hidden[:, -count:]

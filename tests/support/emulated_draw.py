"""Drawing ids as the decoding kernel does, from given logits and without the layers, on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from emulated import library

from t5g2ref.backend.cuda.decoding.plan import BINS, TEXTS, Plan
from t5g2ref.backend.cuda.decoding.session import Arguments, address, narrowing
from t5g2ref.generate.rules import Sampling

# A processor's largest logits are the head's; the rest is `decode` without layers.
ALONE = """
void draw_alone(const Arguments& a) {
    MEMORY;
    int* share = (int*)((Scratch*)memory + 1);
    int* chosen = share + MATRICES * (WARPS + 1);
    int* running = chosen + BATCH;
    for (int i = thread(); i <= WARPS; i += THREADS)
        share[HEAD * (WARPS + 1) + i] = a.shares[HEAD * (GRID * WARPS + 1) + processor() * WARPS + i];
    for (int i = thread(); i < BATCH; i += THREADS) running[i] = a.running[i];
    together();
    Processor p = {a, 0, 0, 0, 0, share, 0, 0, 0, 0, 0, 0, memory, {}, 0, 0, thread() / 32, thread() % 32, 0, 0, 0, 0};
    for (; p.token < a.tokens; ++p.token) {
        for (int n = thread(); n < BATCH; n += THREADS) {
            Best best = Best{-INF, V};
            for (int id = ids_until(p, 0, 1); id < ids_until(p, 1, 1); ++id)
                best = better(best, Best{widen(a.logits[((i64)p.token * BATCH + n) * V + id]), id});
            float* to = a.best + ((i64)n * GRID + processor()) * 2;
            to[0] = best.value;
            to[1] = __int_as_float(best.id);
        }
        meet(p);
        if (!draw(p, chosen, running)) break;
    }
    if (processor() == 0 && thread() == 0) a.met[2] = p.token + (p.token < a.tokens);
}
extern "C" void run(Arguments* a) {
    emu::lags = true;
    const int held = sizeof(Scratch) + 4 * (MATRICES * (WARPS + 1) + 2 * BATCH);
    emu::launch(GRID, THREADS, held, true, [&] { draw_alone(*a); });
}
"""


@dataclass(frozen=True)
class Drawn:
    """What was drawn: ids (steps, B) and their log-probabilities, float64; the steps that were made."""

    ids: np.ndarray[Any, Any]
    log_probs: np.ndarray[Any, Any]


def drawn_alone(
    plan: Plan, logits: np.ndarray[Any, Any], sampling: Sampling, uniform: Any, ends: Sequence[int] = (), pad: int = 0
) -> Drawn:
    """Ids from logits (steps, B, V), of the plan's type, by uniform (steps, B)."""
    steps, batch, size = logits.shape
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "shares": plan.shares,
        "logits": np.ascontiguousarray(logits),
        "uniform": np.ascontiguousarray(uniform),
        "best": np.zeros(batch * plan.processors * 2, np.float32),
        "tally": np.full(2 * batch * plan.processors * BINS, np.nan),
        "drawn": np.full(batch, -1, np.int32),
        "log_probs": np.full((steps, batch), np.nan),
        "ids": np.full((steps + 1, batch), -1, np.int32),
        "running": np.ones(batch, np.int32),
        "ends": np.array([*ends, -1], np.int32),
        "met": np.zeros(4, np.uint32),
    }
    assert plan.vocabulary == size
    assert plan.batch == batch
    pointers = {name: address(array) for name, array in arrays.items()}
    arguments = Arguments(**pointers, tokens=steps, end_count=len(ends), pad=pad, **narrowing(sampling, size))
    folder = files("t5g2ref.backend.cuda.decoding")
    texts = [folder.joinpath(name).read_text(encoding="utf-8") for name in TEXTS if name != "decode.cu"]
    run: Any = library("\n".join([plan.defines(), *texts, ALONE])).run
    run(ctypes.byref(arguments))
    made = int(arrays["met"][2])
    return Drawn(arrays["ids"][1 : made + 1], arrays["log_probs"][:made])

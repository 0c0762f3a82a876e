"""Sampled generation: at each step an id is drawn from the narrowed distribution."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from t5g2ref.generate.at_once import Draws, at_once
from t5g2ref.generate.options import Options, begin
from t5g2ref.generate.processors import drawn
from t5g2ref.generate.rules import AS_IT_IS, Sampling, is_count, narrowed, require
from t5g2ref.generate.steps import Generated, Tell, Way, generated
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array


def sample(
    model: T5Gemma2,
    input_ids: Any = None,
    sampling: Sampling = AS_IT_IS,
    *,
    seed: int | np.random.Generator,
    on_token: Tell | None = None,
    **options: Unpack[Options],
) -> Generated:
    """An id drawn at each step, until every row has ended. Arguments and errors are `greedy`'s but for these.

    The host draws one uniform number a row and step, also for ended rows: the same for every array library. A backend
    that makes many ids without the host is given the numbers of many steps; `at_once` says what may differ.

    Args:
        sampling: how the distribution is narrowed.
        seed: of NumPy's generator, or a generator, which goes on from where it is; `on_token` leaves it alone.
    """
    whole = isinstance(seed, np.random.Generator) or is_count(seed, 0)
    require(whole, "seed", "an integer of at least 0, or a generator", seed)
    xp, generator = model.nx.xp, np.random.default_rng(seed)

    def pick(logits: Array) -> Array:
        """(B,) ids by the next B numbers."""
        return drawn(xp, logits, xp.asarray(generator.random(len(logits))))

    way = Way(lambda logits: narrowed(xp, logits, sampling), pick)
    with model.nx.scope():
        begun = begin(model, input_ids, options)
        return at_once(model, begun, on_token, Draws(sampling, generator)) or generated(model, begun, way, on_token)

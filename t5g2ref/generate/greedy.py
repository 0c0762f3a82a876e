"""Greedy generation: the likeliest id at each step."""

from __future__ import annotations

from typing import Any, Unpack

from t5g2ref.generate.at_once import at_once
from t5g2ref.generate.options import Options, begin
from t5g2ref.generate.steps import Generated, Tell, Way, generated
from t5g2ref.model import T5Gemma2


def greedy(
    model: T5Gemma2, input_ids: Any = None, *, on_token: Tell | None = None, **options: Unpack[Options]
) -> Generated:
    """The likeliest id at each step, the lower of equals, until every row has ended.

    Args:
        input_ids: as for `T5Gemma2.encode`; None beside inputs_embeds.
        on_token: called with the new ids (B,) after each step (for streaming).
        options: see `generate.options.Settings`.

    Raises:
        ValueError: an option without meaning, a source that is refused, NaN in the logits.
    """
    way = Way(narrow=lambda logits: logits, pick=lambda logits: logits.argmax(axis=-1))
    with model.nx.scope():
        begun = begin(model, input_ids, options)
        return at_once(model, begun, on_token) or generated(model, begun, way, on_token)

"""Which id stands at a token: a failure at one special id alone is a failure of what is done with that id."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.cases.case import Case
from conformance.cases.plan import ids_at, plan_of, shape_of, sizes
from t5g2ref.config import Config


def said(config: Config, case: Case, call: int, name: str, token: Sequence[int]) -> str:
    """The id at a token of a tap, with the special id's name in config.json: "301, eoi_token_index".

    It is "" where the tap's tokens are no ids (patches, a loss), or where `token` is none of its tokens.
    """
    tap = next((t for n, t in plan_of(config, case) if (n, t.name) == (call, name)), None)
    ids = None if tap is None else ids_at(case, call, tap, shape_of(tap, sizes(config, case, call, tap)))
    if ids is None or len(token) != 2 or not all(0 <= i < n for i, n in zip(token, ids.shape, strict=True)):
        return ""
    found = int(ids[tuple(token)])
    return ", ".join([str(found), *(special for special, at in _special(config) if at == found)])


def _special(config: Config) -> list[tuple[str, int]]:
    stack = config.decoder
    named = [("pad_token_id", stack.pad_token_id), ("bos_token_id", stack.bos_token_id)]
    named += [("eos_token_id", end) for end in stack.eos_token_id]
    return named + [(f"{kind}_token_index", getattr(config, f"{kind}_token_index")) for kind in ("boi", "eoi", "image")]

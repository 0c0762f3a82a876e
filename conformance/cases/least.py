"""The least that a peer has to show: its logits, or log-probabilities of given ids in their place.

A peer that shows no more is a black box: it is judged by what leaves it. One that shows the residual stream as well is
judged from one tap to the next.
"""

from __future__ import annotations

from conformance.cases.case import Case
from conformance.cases.plan import Shown, plan_of, required
from t5g2ref.config import Config

LOGITS, ENCODED = "logits", "encoder.text_model.norm"
LOG_PROBS, LOG_PROB_IDS = "log_probs", "log_prob_ids"
"""Not taps of ours: log-probabilities (B, T, k), and the ids (B, T, k) that they are of. Both stand for the logits of a
language model's call; k is the vocabulary, or fewer ids, each once in a row."""

PAIR = (LOG_PROBS, LOG_PROB_IDS)


OUTSIDE = (LOGITS, ENCODED, "lm_head", "score", "loss", *PAIR)
"""What a black box may show. Who shows more has to show enough to be judged from one tap to the next."""


def least(config: Config, case: Case) -> list[str]:
    """Per call the one tap that every peer has to show; "" where a call of an encoder alone has none."""
    names = {(call, tap.name) for call, tap in plan_of(config, case)}
    last = LOGITS if config.has_decoder and case.task != "encoder" else ENCODED
    return [last if (call, last) in names else "" for call in range(len(case.calls))]


def paired(case: Case) -> bool:
    """Whether log-probabilities may stand for this case's logits: a classifier's logits are no next token's."""
    return case.task == "lm"


def with_pair(shown: Shown, case: Case) -> Shown:
    """What a peer shows, where its log-probabilities count as logits."""
    if not paired(case) or not all(map(shown, PAIR)):
        return shown
    return lambda name: shown(name) or name == LOGITS


def is_outside(config: Config, case: Case, shown: Shown) -> bool:
    """Whether the peer is a black box: it shows nothing of its inside."""
    return not any(shown(tap.name) for _, tap in plan_of(config, case) if tap.name not in OUTSIDE)


def lacking(config: Config, case: Case, shown: Shown) -> list[str]:
    """What the peer would have to show to be judged, and does not."""
    wanted = [tap.name for _, tap in plan_of(config, case) if required(tap)]
    if is_outside(config, case, shown):
        wanted = least(config, case)
    return [name for name in dict.fromkeys(wanted) if name and not shown(name)]


def in_words(config: Config, case: Case, shown: Shown) -> str:
    """What a black box shows: "logits alone"; "" for a peer that shows its inside."""
    if not is_outside(config, case, shown):
        return ""
    said = ["log-probabilities" if shown(LOG_PROBS) else "logits"] if shown(LOGITS) else []
    said += ["the encoder's output"] if shown(ENCODED) else []
    return f"{said[0]} alone" if len(said) == 1 else " and ".join(said)

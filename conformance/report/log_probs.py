"""What log-probabilities of given ids were off by, in nats, beside a legal run's."""

from __future__ import annotations

from conformance.judge.judgement import Judgement
from conformance.measure.words import in_words


def farthest(found: list[tuple[str, Judgement]]) -> list[str]:
    """A line for each peer that gave them: the case where one is off most, and the largest divergence."""
    lines = []
    given = [j for _, j in found if "far" in j.logits]
    for peer in dict.fromkeys(j.peer for j in given):
        own = [j for j in given if j.peer == peer]
        far, kl = max(own, key=lambda j: j.logits["far"]), max(own, key=lambda j: j.logits["kl"])
        tokens = sum(int(j.logits["tokens"]) for j in own)
        lines.append(
            f"{peer}: the largest |Δ log p| of {tokens} tokens is {in_words(far.logits['far'])} nats in {far.case} (of "
            f"legal runs there {in_words(far.logits['control_far'])}); the largest KL(truth ‖ peer) of a case is "
            f"{in_words(kl.logits['kl'])} nats in {kl.case}, {in_words(kl.logits['kl_ratio'])} times a legal run's"
        )
    return lines

"""A defect's pattern in a peer's error: how much of (oracle with the defect − oracle) is in (peer − oracle).

A coefficient near 1 names a defect even where the error is no larger than a legal one. erf in place of tanh in a
bfloat16 GELU is such a defect: its size hides in the rounding, its pattern does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from conformance.measure.words import in_words


@dataclass(frozen=True)
class Signature:
    """One defect looked for at one place.

    Args:
        defect: its id.
        tap: a tap, or a kind of tap such as `decoder.layers.*.mlp.act_fn` when all of them were taken together.
        coefficient: of the defect's pattern in the peer's error; 1 is all of it, 0 none.
        error: the coefficient's standard error; 1 / error is the power: how many of them the defect would be.
        residual: ‖what the pattern leaves‖ / ‖peer − oracle‖.
        verdict: "named" (1 within the errors, and it explains what legal rounding does not), "akin" (about all of it,
            and something else is wrong as well; at a culprit: most of the error, with another coefficient), "partly"
            (sure, and neither all of it nor nothing), "absent" or "no power".
        head: the attention head, where it is in that one and not in all.
        beside: the other defect, where the error is that of both at once.
    """

    defect: str
    tap: str
    coefficient: float
    error: float
    residual: float
    verdict: str
    head: int | None = None
    beside: str = ""

    @property
    def named(self) -> bool:
        return self.verdict == "named"

    @property
    def part(self) -> str:
        """How much of the pattern is where, in words."""
        size = f"{self.coefficient:.2f} ± {in_words(self.error, 2)}"
        return f"{size} of the pattern of {self.defect} is at {self.tap}{self.of_head}"

    @property
    def size(self) -> str:
        """How much of its pattern was found, in words."""
        whose = f"its pattern and of that of {self.beside}, both at once" if self.beside else "its pattern"
        return f"{self.coefficient:.2f} ± {in_words(self.error, 2)} of {whose}{self.of_head}"

    @property
    def of_head(self) -> str:
        """The head in words, where it is one."""
        return "" if self.head is None else f", head {self.head}"

    @property
    def akin(self) -> bool:
        return self.verdict == "akin"

    @property
    def partly(self) -> bool:
        return self.verdict == "partly"

"""What a case needs of a peer, in words that a peer may use to say what it lacks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from conformance.cases.case import Case, Run
from conformance.cases.prompt import Prompt
from conformance.errors import UsageError

ABILITIES = {
    "images": "pictures beside the encoder's ids",
    "cache": "a decoder that is called again and goes on from what it kept",
    "padding": "masks that hide some of the tokens",
    "positions": "position ids that are given",
    "rows": "several rows in one call",
    "labels": "labels, of which the model itself makes the decoder's ids and a loss",
    "classes": "classifiers",
    "forcing": "decoder ids that are given, not chosen by the model",
}
"""Word → what it means. A peer that lacks something is not asked for the cases that need it."""

_HINTS = {
    "rows": "; --rows gives a row at a time",
    "forcing": "; `replay` judges what it chose itself",
}
TEXT = "text"  # a requirement: every case of text alone that fits what the peer can do
_BESIDE_TEXT = frozenset(("images", "classes"))


def needs(case: Case) -> list[str]:
    """The abilities that a case asks for, in the order of the table."""
    found = {word for run in case.runs for word in _needs(run)} | ({"classes"} if case.task in _CLASSES else set())
    found |= {word for prompt in case.prompts for word in _needs_of(prompt)}
    return [word for word in ABILITIES if word in found]


_CLASSES = ("sequence", "token")


def _needs(run: Run) -> Iterable[str]:
    """The abilities that a run asks for."""
    asked = {
        "images": run.pixel_values is not None,
        "cache": run.splits is not None,
        "padding": not (run.encoder_valid.all() and run.decoder_valid.all()),
        "positions": run.position_ids is not None or run.decoder_position_ids is not None,
        "rows": run.input_ids.shape[0] > 1,
        "labels": run.labels is not None or run.derived,
        "forcing": run.decoder_input_ids.shape[1] > 1 and not run.derived,
    }
    return (word for word, wanted in asked.items() if wanted)


def _needs_of(prompt: Prompt) -> Iterable[str]:
    """The abilities that a prompt for a peer's own generation asks for."""
    asked = {
        "images": prompt.pixel_values is not None,
        "padding": prompt.attention_mask is not None and not prompt.attention_mask.all(),
        "rows": prompt.input_ids.shape[0] > 1,
    }
    return (word for word, wanted in asked.items() if wanted)


def unmet(case: Case, lacks: Iterable[str]) -> str:
    """Why a peer that lacks these is not asked for the case, in words; "" where it is."""
    missing = [word for word in needs(case) if word in set(lacks)]
    return f"the peer lacks {' and '.join(missing)}" if missing else ""


def why_skipped(case: Case, lacks: Iterable[str]) -> str:
    """The same, with what to do instead where one thing alone is missing."""
    why = unmet(case, lacks)
    return why + next((hint for word, hint in _HINTS.items() if why == f"the peer lacks {word}"), "")


@dataclass(frozen=True)
class Required:
    """What a verdict has to cover; other cases are not run, and the verdict says so.

    Args:
        names: of the cases; None for "text": every case that is a language model's, has no picture, and needs nothing
            that the peer says that it lacks.
        given: what was asked for, in words.
    """

    names: tuple[str, ...] | None
    given: str

    def covers(self, case: Case, lacks: Iterable[str]) -> bool:
        """Whether the case belongs to it. One that was named does, even where the peer lacks what it needs."""
        if self.names is not None:
            return case.name in self.names
        return not _BESIDE_TEXT & set(needs(case)) and not unmet(case, lacks)

    def check(self, known: Iterable[str]) -> None:
        """Raises UsageError for a name that no case has."""
        there = list(dict.fromkeys(known))
        if strange := [name for name in self.names or () if name not in there]:
            raise UsageError(f"--require {self.given}: no case is called {strange[0]}; there are: {', '.join(there)}")

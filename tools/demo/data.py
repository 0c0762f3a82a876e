"""The demo's tasks, made by rule: sums and dates in words, numbers among five languages, and denoising.

What is held out hangs on the fact alone: the two numbers of a sum in any order, the date, or the number. A tenth of the
facts are held out, by a hash of their name. No task trains on one of them, in any language, direction or disguise.
Numbers below one hundred and sums of two digits are the vocabulary that the rest is made of: always in training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import permutations
from random import Random

import words

FIRST_DAY, DAYS = date(1900, 1, 1), 73049  # up to 2099-12-31
LARGEST_TERM, LARGEST_NUMBER = 99, 999
MASKS = tuple(f"<mask{i}>" for i in range(4))
MODES = ("[R]", "[X]", "[S]")  # UL2's denoisers: short spans, long ones, and the rest of a sentence
BOI, IMAGE, EOI = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
NAME, ADD = f"name {BOI}", f"add {BOI} {BOI}"
TEXT_TASKS = ("sums", "dates", "numbers", "denoising")
PICTURE_TASKS = ("name", "add")


@dataclass(frozen=True)
class Example:
    """A text and its answer; `fact` is what the split goes by."""

    fact: str
    text: str
    answer: str


@dataclass(frozen=True)
class Sentence:
    """A fact as one sentence. Each of `sides` (first and last word) follows from the rest of the sentence."""

    fact: str
    words: tuple[str, ...]
    sides: tuple[tuple[int, int], ...]


def held_out(fact: str) -> bool:
    """Whether a fact is kept for the measurement; "" never is."""
    return bool(fact) and hashlib.sha256(f"demo {fact}".encode()).digest()[0] % 10 == 0


def _sum_fact(a: int, b: int) -> str:
    return f"sum {min(a, b)} {max(a, b)}" if max(a, b) > 9 else ""


def _number_fact(n: int) -> str:
    return f"number {n}" if n > 99 else ""


def _days() -> Iterator[date]:
    return (FIRST_DAY + timedelta(days=i) for i in range(DAYS))


def sums() -> Iterator[Example]:
    """Every sum of two numbers up to 99."""
    for a in range(LARGEST_TERM + 1):
        for b in range(LARGEST_TERM + 1):
            text = f"add {words.english(a)} and {words.english(b)}"
            yield Example(_sum_fact(a, b), text, words.english(a + b))


def dates() -> Iterator[Example]:
    """Every day of two centuries."""
    for day in _days():
        yield Example(f"date {day}", f"say {day}", words.spoken(day))


def numbers() -> Iterator[Example]:
    """Every number up to 999 from each language to each other."""
    for source, target in permutations(words.LANGUAGES, 2):
        for n in range(LARGEST_NUMBER + 1):
            text = f"{source} to {target}: {words.LANGUAGES[source](n)}"
            yield Example(_number_fact(n), text, words.LANGUAGES[target](n))


def _sentence(fact: str, *parts: tuple[str, bool]) -> Sentence:
    """The sentence of parts, of which those marked True follow from the others."""
    said: list[str] = []
    sides = []
    for text, follows in parts:
        first = len(said)
        said += text.split(" ")
        if follows:
            sides.append((first, len(said) - 1))
    return Sentence(fact, tuple(said), tuple(sides))


def sum_sentence(a: int, b: int) -> Sentence:
    one, two, both = (words.english(n) for n in (a, b, a + b))
    return _sentence(_sum_fact(a, b), (one, True), ("plus", False), (two, True), ("is", False), (both, True))


def date_sentence(day: date) -> Sentence:
    return _sentence(f"date {day}", (str(day), True), ("is", False), (words.spoken(day), True))


def number_sentence(n: int, source: str, target: str) -> Sentence:
    one, two = words.LANGUAGES[source](n), words.LANGUAGES[target](n)
    return _sentence(_number_fact(n), (source, False), (one, True), (f"is {target}", False), (two, True))


def _drawn(rng: Random) -> Sentence:
    """Any fact, as one sentence; the three kinds are equally likely."""
    kind = rng.randrange(3)
    if kind == 0:
        return sum_sentence(rng.randint(0, LARGEST_TERM), rng.randint(0, LARGEST_TERM))
    if kind == 1:
        return date_sentence(FIRST_DAY + timedelta(days=rng.randrange(DAYS)))
    source, target = rng.sample(list(words.LANGUAGES), 2)
    return number_sentence(rng.randint(0, LARGEST_NUMBER), source, target)


def _spans(sentence: Sentence, mode: str, rng: Random) -> list[tuple[int, int]]:
    """The first and last word of each hidden span, in order; all of them in one side."""
    if mode == "[S]":  # the end of the sentence, from somewhere in its last side
        first, last = sentence.sides[-1]
        return [(rng.randint(first, last), last)]
    first, last = rng.choice(sentence.sides)
    size = last - first + 1
    if mode == "[X]":  # at least half of the side
        length = rng.randint((size + 1) // 2, size)
        start = rng.randint(first, last + 1 - length)
        return [(start, start + length - 1)]
    start = rng.randint(first, last)
    end = min(start + rng.randint(0, 1), last)
    return [(start, end)] + ([(end + 2, end + 2)] if end + 2 <= last and rng.random() < 0.5 else [])


def denoised(sentence: Sentence, mode: str, rng: Random) -> Example:
    """The sentence with spans hidden behind masks; the answer gives each mask and what it hides."""
    text, answer, at = [mode], [], 0
    for mask, (first, last) in zip(MASKS, _spans(sentence, mode, rng), strict=False):
        text += [*sentence.words[at:first], mask]
        answer += [mask, *sentence.words[first : last + 1]]
        at = last + 1
    return Example(sentence.fact, " ".join([*text, *sentence.words[at:]]), " ".join(answer))


def denoising(rng: Random) -> Iterator[Example]:
    """Sentences without end, each with one of the three denoisers."""
    while True:
        yield denoised(_drawn(rng), rng.choice(MODES), rng)


def examples(task: str, held: bool, seed: int, most: int) -> list[Example]:
    """At most so many examples of a text task from one side of the split, in an order that the seed gives."""
    rng = Random(f"{task} {held} {seed}")
    if task == "denoising":
        return _some(denoising(rng), held, most)
    everything = {"sums": sums, "dates": dates, "numbers": numbers}[task]()
    found = [one for one in everything if held_out(one.fact) is held]
    rng.shuffle(found)
    return found[:most]


def _some(stream: Iterator[Example], held: bool, most: int) -> list[Example]:
    """The first `most` of the stream from that side, no text twice."""
    found: dict[str, Example] = {}
    while len(found) < most:
        one = next(stream)
        if held_out(one.fact) is held:
            found.setdefault(one.text, one)
    return list(found.values())


def named(digit: int) -> str:
    """The answer to one picture."""
    return words.english(digit)


def added(a: int, b: int) -> str:
    """The answer to two pictures: "three plus five is eight"."""
    return f"{words.english(a)} plus {words.english(b)} is {words.english(a + b)}"


def expanded(prompt: str, tokens_per_image: int) -> str:
    """The prompt with the run of tokens that each picture fills, as T5Gemma 2's processor writes it."""
    return prompt.replace(BOI, f"\n\n{BOI}{IMAGE * tokens_per_image}{EOI}\n\n")

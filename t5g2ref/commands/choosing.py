"""How ids are chosen, from a command line: sampling, search, rules and ends."""

from __future__ import annotations

import argparse
from typing import Any, Literal

from t5g2ref.commands.prompts import Prompts, ids_in
from t5g2ref.generate.hypotheses import Search
from t5g2ref.generate.options import Options
from t5g2ref.generate.rules import Rules, Sampling

EARLY: dict[str | None, bool | Literal["never"]] = {None: False, "no": False, "yes": True, "never": "never"}


def sampling_of(options: argparse.Namespace) -> Sampling | None:
    """What --sample asks for; None without it. ValueError for a setting that needs it."""
    names = ("temperature", "top_k", "top_p", "min_p")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if not options.sample:
        _alone(options, (*names, "seed"), "--sample")
        return None
    if options.beams is not None:
        raise ValueError("give one of --sample and --beams N")
    if options.seed is not None and options.seed < 0:
        raise ValueError(f"--seed: expected an integer of at least 0, found {options.seed}")
    return Sampling(**given)


def search_of(options: argparse.Namespace) -> Search | None:
    """What --beams asks for; None without it. ValueError for a setting that needs it."""
    if options.beams is None:
        _alone(options, ("length_penalty", "early_stopping"), "--beams")
        return None
    penalty = 1.0 if options.length_penalty is None else options.length_penalty
    return Search(options.beams, penalty, EARLY[options.early_stopping])


def options_of(options: argparse.Namespace, prompts: Prompts) -> Options:
    """The rest, for any way to generate. ValueError for a text that needs a tokenizer."""
    tokenizer = prompts.tokenizer
    if options.stop and tokenizer is None:
        raise ValueError("--stop: a text needs a tokenizer.json, and there is none, or ids were given; give --stop-ids")
    words = tuple(tuple(run) for word in options.bad_word for run in _words(word, tokenizer))
    given: Options = {
        "attention_mask": prompts.mask,
        "pixel_values": prompts.pixels,
        "max_new_tokens": options.max_new_tokens,
        "min_new_tokens": options.min_new_tokens,
        "rules": Rules(options.repetition_penalty, options.no_repeat_ngram, words),
    }
    if options.stop_ids is not None:
        given["stop"] = ids_in("--stop-ids", options.stop_ids) if options.stop_ids else ()
    if options.stop:
        given["stop_strings"], given["decode"] = options.stop, tokenizer.decode
    return given


def _alone(options: argparse.Namespace, names: tuple[str, ...], needed: str) -> None:
    """ValueError where one of these was given, which means nothing without the needed one."""
    for name in names:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: works with {needed} alone; add {needed}")


def _words(word: str, tokenizer: Any) -> list[list[int]]:
    """The ids of a word, as it begins a text and behind a space."""
    if tokenizer is None:
        return [ids_in("--bad-word", word)]
    return [tokenizer.encode(text, add_bos=False) for text in (word, f" {word}")]

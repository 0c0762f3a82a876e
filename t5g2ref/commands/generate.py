"""The command `generate`: answers to prompts, as they come or as JSON."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from typing import Any

import t5g2ref
from t5g2ref.backend import find
from t5g2ref.checkpoint.find import home
from t5g2ref.commands.answers import Answer, Stream, beams_of, rows_of, show
from t5g2ref.commands.choosing import options_of, sampling_of, search_of
from t5g2ref.commands.example import filled
from t5g2ref.commands.folders import place
from t5g2ref.commands.generate_options import add_to
from t5g2ref.commands.prompts import Prompts, asked, needed, read
from t5g2ref.config import Config
from t5g2ref.generate.beam import beam_search
from t5g2ref.generate.greedy import greedy
from t5g2ref.generate.options import Options
from t5g2ref.generate.sample import sample
from t5g2ref.model import T5Gemma2


def add(commands: Any) -> None:
    """Add its parser to the commands'."""
    add_to(commands).set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Generate and print; 0. Errors are ValueErrors, raised before a weight is read where that is possible."""
    sampling_of(options)
    search_of(options)
    options = filled(options)
    asked(options)
    found, backend = place(options.checkpoint, beside=needed(options)), find(options.backend)
    prompts = read(options, home(found), Config.load(found))
    given = options_of(options, prompts)
    model = t5g2ref.load(found, options.dtype, backend=backend)
    stream = Stream(prompts.tokenizer) if prompts.streams and search_of(options) is None and not options.json else None
    answers = _answered(options, model, prompts, given, stream)
    if stream is None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # of `_counting`
        show(prompts, answers, as_json=options.json)
    else:
        stream.end()
    return 0


def _answered(
    options: argparse.Namespace, model: T5Gemma2, prompts: Prompts, given: Options, stream: Stream | None
) -> list[list[Answer]]:
    """The answers to each prompt, best first: one, or so many as there are beams."""
    search, sampling, host = search_of(options), sampling_of(options), model.nx.backend.host
    if search is not None:
        return beams_of(beam_search(model, prompts.ids, search, **given), search.beams)
    tell = _counting(given) if stream is None else _telling(stream, host)
    if sampling is not None:
        return rows_of(sample(model, prompts.ids, sampling, seed=options.seed or 0, on_token=tell, **given), host)
    return rows_of(greedy(model, prompts.ids, on_token=tell, **given), host)


def _counting(given: Options) -> Callable[[Any], None] | None:
    """How far all rows are, on standard error where that is a terminal; None where nobody watches."""
    if not sys.stderr.isatty():
        return None
    steps, most = itertools.count(1), given.get("max_new_tokens")

    def tell(_: Any) -> None:
        print(f"\rt5g2ref: id {next(steps)} of at most {most} in each row\x1b[K", end="\r", file=sys.stderr, flush=True)

    return tell


def _telling(stream: Stream, host: Callable[[Any], Any]) -> Callable[[Any], None]:
    """What is called with each step's ids, of which there is one."""
    return lambda token: stream.take(int(host(token)[0]))

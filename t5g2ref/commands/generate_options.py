"""The options of `generate`, and its help."""

from __future__ import annotations

import argparse
from typing import Any

from t5g2ref.commands.folders import NAMES, TRAINED
from t5g2ref.dtypes import DTYPES

ABOUT = """\
Generate an answer to a text, token ids and pictures.

Each step takes the likeliest id. --sample draws from the distribution instead, and --beams searches for the likeliest
answer. One answer is printed as it comes; those to --batch, of --beams and with --json are printed at the end.

The bundled demo is small and was trained on a few tasks: it names and adds digits, spells dates, and more; the
README.md in its folder shows them. The other bundled checkpoints have random weights and no tokenizer.
"""
EXAMPLES = """\
examples
  python -m t5g2ref generate
      The demo adds the digits in two bundled pictures; the command is printed, too.
  python -m t5g2ref generate --prompt "say 2024-03-17" --beams 3 --json
      The demo says a date, in three ways and with their scores.
  python -m t5g2ref generate tiny --ids 5,17,42 --sample --temperature 0.8 --top-p 0.9 --seed 7
      Without a tokenizer ids go in and come out. The same seed draws the same ids.
  python -m t5g2ref generate FOLDER --batch prompts.txt --beams 4 --stop "END" --json
      Four beams to each line of the file. A row ends behind END, or where the checkpoint says.
"""


def add_to(commands: Any) -> argparse.ArgumentParser:
    """The parser, among the commands'."""
    form = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = commands.add_parser(
        "generate", help="an answer to text, ids and pictures", description=ABOUT, epilog=EXAMPLES, formatter_class=form
    )
    names = f"{NAMES} (default: {TRAINED})"
    parser.add_argument("checkpoint", nargs="?", default=TRAINED, help=names)
    _prompts(parser.add_argument_group("what is answered: one of the first three"))
    _sampling(parser.add_argument_group("drawing, in place of the likeliest id"))
    _beams(parser.add_argument_group("searching, in place of the likeliest id"))
    _rules(parser.add_argument_group("what is forbidden, and where an answer ends"))
    _machine(parser.add_argument_group("output, and where it runs"))
    return parser


def _prompts(group: Any) -> None:
    group.add_argument("--prompt", help="text; every <start_of_image> takes the next --image")
    group.add_argument("--ids", help="comma-separated token ids, in place of a text")
    group.add_argument("--batch", metavar="FILE", help="a prompt a line; ids where there is no tokenizer.json")
    group.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; repeatable")
    group.add_argument("--pan-and-scan", action="store_true", help="add crops of long pictures, whatever the files say")


def _sampling(group: Any) -> None:
    group.add_argument("--sample", action="store_true", help="draw each id")
    group.add_argument(
        "--temperature", type=float, metavar="T", help="below 1 the likely becomes likelier (default: 1)"
    )
    group.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest (default: 0, all)")
    group.add_argument("--top-p", type=float, metavar="P", help="among the fewest that have P together (default: 1)")
    group.add_argument("--min-p", type=float, metavar="P", help="among those at P of the likeliest (default: 0)")
    group.add_argument("--seed", type=int, metavar="N", help="of the random numbers (default: 0)")


def _beams(group: Any) -> None:
    group.add_argument("--beams", type=int, metavar="N", help="answers that grow; the best is printed, --json has all")
    group.add_argument(
        *("--length-penalty",),
        type=float,
        metavar="X",
        help="a score is the log-probability over length^X (default: 1)",
    )
    group.add_argument(
        "--early-stopping",
        choices=("yes", "no", "never"),
        help="yes: end with the first N answers; no: once better ones are unlikely (default); never: once impossible",
    )


def _rules(group: Any) -> None:
    group.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1 against repetition")
    group.add_argument("--no-repeat-ngram", type=int, default=0, metavar="N", help="no run of N ids comes twice")
    group.add_argument(
        "--bad-word", action="append", default=[], metavar="TEXT", help="does not come; repeatable; ids with --ids"
    )
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the answer; repeatable")
    group.add_argument("--stop-ids", metavar="IDS", help="comma-separated, in place of the checkpoint's; '' for none")
    group.add_argument("--min-new-tokens", type=int, default=0, metavar="N", help="at least so many ids (default: 0)")
    group.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="at most so many ids (default: 64)")


def _machine(group: Any) -> None:
    group.add_argument("--json", action="store_true", help="a JSON object a prompt: ids, text, log_probs and scores")
    group.add_argument(
        "--dtype",
        default="float32",
        choices=DTYPES,
        help="the type that the model runs in (default: float32); NumPy emulates the last two, slowly",
    )
    group.add_argument(
        "--backend",
        default="numpy",
        metavar="NAME",
        help="where it runs: numpy (default); cupy, the first CUDA device; cupy:1, the second; cupy-fast, with faster "
        "kernels. A device needs CuPy: "
        'pip install "t5g2ref[cuda13]", or [cuda12] for an older driver',
    )

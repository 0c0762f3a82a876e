"""The command `atlas`: one page that shows the architecture at work on an input."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import t5g2ref
from t5g2ref.checkpoint.find import home
from t5g2ref.commands.example import filled
from t5g2ref.commands.folders import NAMES, TRAINED, place
from t5g2ref.commands.prompts import Prompts, needed, read
from t5g2ref.config import Config
from t5g2ref.model import T5Gemma2

ABOUT = """\
Run a checkpoint on an input and write one page of what happened: each value on its way, masks, RoPE, attention of the
encoder and of the decoder's merged row, pictures under their tokens, and the choices. Each part names the line of code
that computes it. The page loads nothing and runs no script. It needs: pip install "t5g2ref[atlas]"
"""


def add(commands: Any) -> None:
    """Add its parser to the commands'."""
    parser = commands.add_parser(
        "atlas", help="a page of all values, masks and attention on an input", description=ABOUT
    )
    names = f"{NAMES} (default: {TRAINED})"
    parser.add_argument("--ckpt", dest="checkpoint", default=TRAINED, metavar="NAME", help=names)
    parser.add_argument("--prompt", help="text; every <start_of_image> takes the next --image (default: an example)")
    parser.add_argument("--ids", help="comma-separated token ids, in place of a text")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; repeatable")
    parser.add_argument("--html", required=True, metavar="FILE", help="where the page goes")
    parser.add_argument("--max-new-tokens", type=int, default=16, metavar="N", help="of the answer (default: 16)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"), help="(default: float32)")
    parser.add_argument("--code", default="", metavar="URL", help="where lines of code link to: https://…/blob/main")
    parser.set_defaults(run=run, batch=None, pan_and_scan=False)


def run(options: argparse.Namespace) -> int:
    """Write the page and say so; 0. Errors are ValueErrors, OSErrors and ImportErrors."""
    from t5g2ref.atlas.gather import gather
    from t5g2ref.atlas.page import checked, ready, render

    ready()
    checked(options.code)
    check_writable(options.html)
    folder, model, prompts = _opened(options)
    found = gather(model, prompts.ids, prompts.pixels, max_new_tokens=options.max_new_tokens)
    answer = _answer(prompts, [] if found.chosen is None else [int(token) for token in found.chosen])
    said = {"title": folder.resolve().name, "prompt": prompts.texts[0], "answer": answer, "code": options.code}
    page = render(found, tokenizer=prompts.tokenizer, **said)
    Path(options.html).write_text(page, encoding="utf-8")
    sizes = f"{len(page.encode()):,} bytes, {len(found.taps)} taps, {len(found.ids)} source tokens"
    print(f"{options.html}: {sizes}" + (f"; {' '.join(answer.split())}" if answer.strip() else ""))
    return 0


def check_writable(name: str) -> None:
    """OSError where no such file can be written: to be known before a model runs."""
    path = Path(name)
    there = path.exists()
    with path.open("ab"):
        pass
    if not there:
        path.unlink()


def _opened(options: argparse.Namespace) -> tuple[Path, T5Gemma2, Prompts]:
    """The checkpoint's folder, its model, and what is asked."""
    options = filled(options)
    if (options.prompt is None) == (options.ids is None):
        raise ValueError("give one of --prompt TEXT and --ids 5,17,42")
    found = place(options.checkpoint, beside=needed(options))
    prompts = read(options, home(found), Config.load(found))
    return home(found), t5g2ref.load(found, options.dtype), prompts


def _answer(prompts: Prompts, ids: list[int]) -> str:
    """The answer in words, or its ids."""
    return " ".join(map(str, ids)) if prompts.tokenizer is None else str(prompts.tokenizer.decode(ids))

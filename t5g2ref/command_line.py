"""Describe a checkpoint, or generate with it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import t5g2ref
from t5g2ref import params, taps
from t5g2ref.backend import BackendError, find
from t5g2ref.checkpoint.folder import Checkpoint, WeightsError, check, fitted
from t5g2ref.config import PRESETS, Config, ConfigError, TextConfig
from t5g2ref.dtypes import DTYPES
from t5g2ref.generate.greedy import greedy
from t5g2ref.notes import noted
from t5g2ref.streams import OutputError, stopped

EXAMPLES = """\
examples
  python -m t5g2ref describe 270m                      geometry and parameters of a released size
  python -m t5g2ref describe FOLDER --taps             every named value of the model and its shape
  python -m t5g2ref generate tiny --ids 5,17,42        the bundled checkpoint has no tokenizer: give ids
  python -m t5g2ref generate FOLDER --prompt "Describe <start_of_image> briefly." --image cat.png
  python -m t5g2ref generate FOLDER --prompt "..." --backend cupy --dtype bfloat16       on the first CUDA device
"""
BUNDLED = ("tiny", "tiny-even", "tiny-released", "tiny-encoder")
OUT_OF_MEMORY = "out of memory; give a smaller checkpoint, picture or text, or a smaller --dtype"


def parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m t5g2ref", description=__doc__, epilog=EXAMPLES, formatter_class=form)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    describe = commands.add_parser("describe", help="geometry, parameters and taps of a checkpoint")
    describe.add_argument("checkpoint", help=f"a folder, {', '.join(BUNDLED)}, or a geometry: {', '.join(PRESETS)}")
    describe.add_argument("--taps", action="store_true", help="list every tap with its shape in letters")
    describe.add_argument("--params", action="store_true", help="list every parameter with its shape")
    generate = commands.add_parser("generate", help="greedy generation")
    generate.add_argument("checkpoint", help=f"a folder, {', '.join(BUNDLED)}")
    generate.add_argument("--prompt", help="text; every <start_of_image> takes the next --image")
    generate.add_argument("--ids", help="comma-separated token ids, in place of --prompt")
    generate.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; repeatable")
    generate.add_argument("--pan-and-scan", action="store_true", help="add crops of long pictures")
    generate.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="at most so many ids (default: 64)"
    )
    generate.add_argument(
        "--dtype",
        default="float32",
        choices=DTYPES,
        help="the type that the model runs in (default: float32); NumPy emulates the last two, slowly",
    )
    generate.add_argument(
        "--backend",
        default="numpy",
        metavar="NAME",
        help="where it runs: numpy (default); cupy, the first CUDA device; cupy:1, the second. A device needs CuPy: "
        'pip install "t5g2ref[cuda13]", or [cuda12] for an older driver',
    )
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 2 with a message for bad input. OutputError where nobody reads any more."""
    options = parser().parse_args(arguments)
    try:
        with _notes_shown():
            status = _describe(options) if options.command == "describe" else _generate(options)
        sys.stdout.flush()
        return status
    except (BackendError, ConfigError, WeightsError, ValueError, OSError, ImportError, MemoryError) as error:
        if stopped(error) or isinstance(error, OutputError):
            raise
        print(f"t5g2ref: {OUT_OF_MEMORY if isinstance(error, MemoryError) else error}", file=sys.stderr)
        return 2


@contextmanager
def _notes_shown() -> Iterator[None]:
    """Notes made inside go to standard error at the end, a line each. What is refused has its one line alone."""
    notes: list[str] = []
    with noted(notes):
        yield
    for text in notes:
        print(f"t5g2ref: note: {text}", file=sys.stderr)


def _folder(name: str) -> Path:
    if name in PRESETS and not Path(name).exists():
        there = f"the folder of a checkpoint, or {', '.join(BUNDLED)}"
        raise ValueError(f"{name} is a geometry without weights; give {there}")
    return t5g2ref.bundled(name) if name in BUNDLED else Path(name)


def _describe(options: argparse.Namespace) -> int:
    if options.checkpoint in PRESETS:
        config = PRESETS[options.checkpoint]
        print(f"{options.checkpoint}: a geometry (no weights)")
    else:
        folder = _folder(options.checkpoint)
        config = Config.load(folder)
        checkpoint = Checkpoint.open(folder)
        config = fitted(checkpoint, config)
        check(checkpoint, config)
        dtypes = sorted({checkpoint.dtype(name) for name in checkpoint.tensors})
        print(f"{folder}: {len(checkpoint.tensors)} tensors in {', '.join(dtypes)}, all in place")
    print(f"  {params.count(config):,} parameters, vocabulary {config.decoder.vocab_size}")
    for name, stack in (("encoder", config.encoder), ("decoder", config.decoder))[: 1 + config.has_decoder]:
        print(f"  {name:8} {_stack(stack)}")
    if config.has_vision:
        print(f"  vision   {_tower(config)}")
    ids = (config.decoder.pad_token_id, config.decoder.bos_token_id, config.decoder.eos_token_id)
    print(f"  ids      pad {ids[0]}, bos {ids[1]}, eos {', '.join(map(str, ids[2])) or 'none'}", end="")
    print(f", boi {config.boi_token_index}, eoi {config.eoi_token_index}, image {config.image_token_index}")
    if options.params:
        for key, shape in params.shapes(config).items():
            print(f"  {key:76} {' x '.join(map(str, shape))}")
    if options.taps:
        for tap in taps.table(config, images=config.has_vision, loss=True):
            print(f"  {tap.name:76} {tap.shape}")
    return 0


def _tower(config: Config) -> str:
    v = config.vision
    return (
        f"{v.num_hidden_layers} layers, width {v.hidden_size}, {v.num_attention_heads} heads, ffn "
        f"{v.intermediate_size}, {v.image_size} px in patches of {v.patch_size} -> {config.mm_tokens_per_image} tokens"
    )


def _stack(stack: TextConfig) -> str:
    kinds = "".join("F" if kind == "full_attention" else "s" for kind in stack.layer_types)
    thetas = " / ".join(f"{rope.theta:g}" for rope in stack.rope_parameters.values())
    factor = stack.rope_parameters["full_attention"].factor
    return (
        f"{stack.num_hidden_layers} layers {kinds}, width {stack.hidden_size}, {stack.num_attention_heads} heads on "
        f"{stack.num_key_value_heads} kv of {stack.head_dim}, ffn {stack.intermediate_size},\n"
        f"           window {stack.sliding_window}, theta {thetas}, factor {factor:g}, "
        f"positions to {stack.max_position_embeddings}"
    )


def _generate(options: argparse.Namespace) -> int:
    if (options.prompt is None) == (options.ids is None):
        raise ValueError("give either --prompt TEXT or --ids 5,17,42")
    folder, backend = _folder(options.checkpoint), find(options.backend)
    tokenizer = None if options.prompt is None else _tokenizer(folder)
    config = Config.load(folder)
    pixels, crops = _pixels(options, config)
    ids = _ids(options, config, tokenizer, crops)
    model = t5g2ref.load(folder, options.dtype, backend=backend)

    def show(token: Any) -> None:
        print(int(backend.host(token)[0]), end=" ", flush=True)

    streaming = tokenizer is None
    result = greedy(
        model,
        ids,
        pixel_values=pixels,
        max_new_tokens=options.max_new_tokens,
        on_token=show if streaming else None,
    )
    row = [int(i) for i in backend.host(result.ids)[0]]
    print("" if tokenizer is None else tokenizer.decode(row, skip_special=True))
    return 0


def _tokenizer(folder: Path) -> Any:
    from t5g2ref.processor.text import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder}: there is no tokenizer.json, which --prompt needs; give token ids with --ids")
    return Tokenizer.from_folder(folder)


def _pixels(options: argparse.Namespace, config: Config) -> tuple[Any, list[int]]:
    if not options.image:
        return None, []
    from t5g2ref.processor.image import preprocess_all

    return preprocess_all(options.image, config.vision.image_size, options.pan_and_scan)


def _ids(options: argparse.Namespace, config: Config, tokenizer: Any, crops: list[int]) -> Any:
    if tokenizer is None:
        try:
            return np.array([[int(token) for token in options.ids.split(",")]])
        except ValueError:
            raise ValueError(f"--ids: expected integers between commas, found {options.ids!r}") from None
    from t5g2ref.processor.text import expand_images

    text = expand_images(options.prompt, crops, tokens_per_image=config.mm_tokens_per_image)
    return np.array([tokenizer.encode(text)])

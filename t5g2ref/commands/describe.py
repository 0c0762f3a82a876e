"""The command `describe`: geometry, parameters and taps of a checkpoint."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping
from typing import Any

from t5g2ref import params, taps
from t5g2ref.checkpoint.folder import Checkpoint, check, fitted
from t5g2ref.commands.anatomy import COUNTED, TOKENS, Anatomy, Node
from t5g2ref.commands.drawn_tree import coloured, lines, painted, short
from t5g2ref.commands.folders import NAMES, place
from t5g2ref.config import PRESETS, Config, TextConfig


def add(commands: Any) -> None:
    """Add its parser to the commands'."""
    describe = commands.add_parser("describe", help="geometry, parameters and taps of a checkpoint, as a tree or JSON")
    describe.add_argument("checkpoint", help=f"{NAMES}; a size is its geometry alone")
    describe.add_argument("--taps", action="store_true", help="list every tap with its shape in letters")
    describe.add_argument("--params", action="store_true", help="list every parameter with its shape")
    describe.add_argument("--json", action="store_true", help="the same as one JSON object")
    length = "tokens of source and of output at which attention's FLOPs are counted (default: 1024)"
    describe.add_argument("--length", type=int, default=1024, metavar="N", help=length)
    describe.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what the checkpoint or the geometry is; 0."""
    if options.length < 1:
        raise ValueError(f"--length: expected at least 1, found {options.length}")
    title, config, dtypes = _opened(options.checkpoint)
    tree = Anatomy(config, dtypes, options.length).tree()
    if options.json:
        print(json.dumps(_as_json(options, title, config, tree), indent=1))
        return 0
    _text(options, title, config, tree)
    return 0


def _text(options: argparse.Namespace, title: str, config: Config, tree: Node) -> None:
    """Print it for people."""
    colour = coloured()
    print(painted(title, "bold", colour))
    print(f"  {params.count(config):,} parameters, vocabulary {config.decoder.vocab_size}")
    _geometry(config, colour)
    print(f"  FLOPs    {_flops(tree)};\n           sources and outputs of {options.length} tokens\n")
    for line in lines(tree, colour):
        print(line)
    counted = f"Under layers that are alike stands one. FLOPs a token: {COUNTED}."
    print("\n" + textwrap.fill(counted, 104, initial_indent="  ", subsequent_indent="  "))
    _lists(options, config)


def _geometry(config: Config, colour: bool) -> None:
    for name, stack in _stacks(config).items():
        print(f"  {name:8} {_stack(stack, colour)}")
    if config.has_vision:
        print(f"  vision   {_tower(config)}")
    ids = (config.decoder.pad_token_id, config.decoder.bos_token_id, config.decoder.eos_token_id)
    print(f"  ids      pad {ids[0]}, bos {ids[1]}, eos {', '.join(map(str, ids[2])) or 'none'}", end="")
    print(f", boi {config.boi_token_index}, eoi {config.eoi_token_index}, image {config.image_token_index}")


def _lists(options: argparse.Namespace, config: Config) -> None:
    if options.params:
        for key, shape in params.shapes(config).items():
            print(f"  {key:76} {' x '.join(map(str, shape))}")
    if options.taps:
        for tap in taps.table(config, images=config.has_vision, loss=True):
            print(f"  {tap.name:76} {tap.shape}")


def _flops(tree: Node) -> str:
    """Each token's, over the whole model."""
    return ", ".join(f"{short(tree.flops[stage])} {said}" for stage, said in TOKENS.items() if tree.flops[stage])


def _stacks(config: Config) -> dict[str, TextConfig]:
    return {"encoder": config.encoder} | ({"decoder": config.decoder} if config.has_decoder else {})


def _as_json(options: argparse.Namespace, title: str, config: Config, tree: Node) -> dict[str, Any]:
    """What the text says, with the same numbers."""
    found = {
        "title": title,
        "parameters": tree.parameters,
        "bytes": tree.bytes,
        "flops": {"counted": COUNTED, "length": options.length, "token": dict(tree.flops)},
        "layers": {name: list(stack.layer_types) for name, stack in _stacks(config).items()},
        "config": config.to_dict(),
        "tree": tree.as_json(),
    }
    if options.params:
        found["params"] = {name: list(shape) for name, shape in params.shapes(config).items()}
    if options.taps:
        found["taps"] = {tap.name: tap.shape for tap in taps.table(config, images=config.has_vision, loss=True)}
    return found


def _opened(name: str) -> tuple[str, Config, Mapping[str, str]]:
    """A line of whose it is, the configuration, and the stored dtype of each parameter."""
    if name in PRESETS:
        config = PRESETS[name]
        return f"{name}: a geometry (no weights)", config, dict.fromkeys(params.shapes(config), config.dtype or "")
    found = place(name)
    config = Config.load(found)
    checkpoint = Checkpoint.open(found)
    config = fitted(checkpoint, config)
    names = check(checkpoint, config)
    stored = sorted({checkpoint.dtype(tensor) for tensor in checkpoint.tensors})
    title = f"{found}: {len(checkpoint.tensors)} tensors in {', '.join(stored)}, all in place"
    return title, config, {tensor: checkpoint.dtype(tensor) for tensor in names}


def _tower(config: Config) -> str:
    v = config.vision
    return (
        f"{v.num_hidden_layers} layers, width {v.hidden_size}, {v.num_attention_heads} heads, ffn "
        f"{v.intermediate_size}, {v.image_size} px in patches of {v.patch_size} -> {config.mm_tokens_per_image} tokens"
    )


def _stack(stack: TextConfig, colour: bool) -> str:
    kinds = "".join(painted("F" if kind == "full_attention" else "s", kind, colour) for kind in stack.layer_types)
    thetas = " / ".join(f"{rope.theta:g}" for rope in stack.rope_parameters.values())
    full = stack.rope_parameters["full_attention"]
    types = [rope.scaling.rope_type if rope.scaling else "" for rope in stack.rope_parameters.values()]
    scaled = f" ({' / '.join(kind or 'plain' for kind in types)})" if any(types) else ""
    return (
        f"{stack.num_hidden_layers} layers {kinds}, width {stack.hidden_size}, {stack.num_attention_heads} heads on "
        f"{stack.num_key_value_heads} kv of {stack.head_dim}, ffn {stack.intermediate_size},\n"
        f"           window {stack.sliding_window}, theta {thetas}, factor {full.factor:g}{scaled}, "
        f"positions to {stack.max_position_embeddings}"
    )

"""The command `describe`: geometry, parameters and taps of a checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

from t5g2ref import params, taps
from t5g2ref.checkpoint.folder import Checkpoint, check, fitted
from t5g2ref.commands.folders import BUNDLED, folder
from t5g2ref.config import PRESETS, Config, TextConfig


def add(commands: Any) -> None:
    """Add its parser to the commands'."""
    describe = commands.add_parser("describe", help="geometry, parameters and taps of a checkpoint")
    describe.add_argument("checkpoint", help=f"a folder, {', '.join(BUNDLED)}, or a geometry: {', '.join(PRESETS)}")
    describe.add_argument("--taps", action="store_true", help="list every tap with its shape in letters")
    describe.add_argument("--params", action="store_true", help="list every parameter with its shape")
    describe.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what the checkpoint or the geometry is; 0."""
    config = _config(options.checkpoint)
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


def _config(name: str) -> Config:
    """The configuration, and a line of whose it is."""
    if name in PRESETS:
        print(f"{name}: a geometry (no weights)")
        return PRESETS[name]
    place = folder(name)
    config = Config.load(place)
    checkpoint = Checkpoint.open(place)
    config = fitted(checkpoint, config)
    check(checkpoint, config)
    dtypes = sorted({checkpoint.dtype(tensor) for tensor in checkpoint.tensors})
    print(f"{place}: {len(checkpoint.tensors)} tensors in {', '.join(dtypes)}, all in place")
    return config


def _tower(config: Config) -> str:
    v = config.vision
    return (
        f"{v.num_hidden_layers} layers, width {v.hidden_size}, {v.num_attention_heads} heads, ffn "
        f"{v.intermediate_size}, {v.image_size} px in patches of {v.patch_size} -> {config.mm_tokens_per_image} tokens"
    )


def _stack(stack: TextConfig) -> str:
    kinds = "".join("F" if kind == "full_attention" else "s" for kind in stack.layer_types)
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

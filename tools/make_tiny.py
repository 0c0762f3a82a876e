"""Make the bundled checkpoints. In `tiny` and `tiny-even` no two hyper-parameters are equal (a test sees to it).

    python tools/make_tiny.py [FOLDER]

Every branch of the model bites in them: groups and several kv heads, head_dim unlike hidden / heads, a query scale of
its own, windows of a few tokens (odd in the encoder and even in the decoder of `tiny`, the other way round in
`tiny-even`), linear RoPE factors, strange thetas and ids, both layer types in both stacks with two full layers each,
an encoder whose settings differ from the decoder's, and no parameter at zero: norms, biases, EOI row and projector
included. Every tensor comes from a generator seeded by its name, so the files can be made again bit for bit.

Two more things differ. `tiny` is stored in bfloat16 and pools 8 × 8 patches to 4 × 4. `tiny-even` is stored in float32,
off bfloat16's grid, so that a copy kept in bfloat16 shows. It pools 12 × 12 patches to 3 × 3, in squares of sixteen as
the released ones do. The mean of four is also what a bilinear resampling gives there.

`tiny-released` is for engines that support released checkpoints only. Its settings are those of the release `270m`,
whose stacks are equal; only sizes and the ids of pictures are smaller. Its window is even, as the released one.
`tiny-encoder` is its encoder as a checkpoint of its own, for ports that have no more.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import t5g2ref
from t5g2ref.checkpoint.folder import save
from t5g2ref.config import PRESETS, Config, Rope, TextConfig, VisionConfig
from t5g2ref.files import MARK
from t5g2ref.params import shapes

S, F = "sliding_attention", "full_attention"

ENCODER = TextConfig(
    vocab_size=311,
    hidden_size=48,
    intermediate_size=88,
    num_hidden_layers=5,
    num_attention_heads=12,
    num_key_value_heads=6,
    head_dim=14,
    max_position_embeddings=4096,
    rms_norm_eps=2e-3,
    query_pre_attn_scalar=20,
    sliding_window=9,
    layer_types=(S, F, S, S, F),
    rope_parameters={S: Rope(777.0), F: Rope(31000.0, 2.5)},
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
    pad_token_id=31,
    bos_token_id=33,
    eos_token_id=(37,),
)
DECODER = replace(
    ENCODER,
    intermediate_size=104,
    num_hidden_layers=7,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=10,
    max_position_embeddings=3000,
    rms_norm_eps=5e-3,
    query_pre_attn_scalar=22,
    sliding_window=18,
    layer_types=(S, S, F, S, S, F, S),
    rope_parameters={S: Rope(1234.0), F: Rope(52000.0, 3.5)},
    final_logit_softcapping=30.0,
)
VISION = VisionConfig(
    hidden_size=44,
    intermediate_size=56,
    num_hidden_layers=4,
    num_attention_heads=11,
    num_channels=3,
    image_size=106,  # two pixels more than the patches cover: the valid convolution drops them
    patch_size=13,
    layer_norm_eps=1e-3,
)
TINY = Config(
    encoder=ENCODER,
    decoder=DECODER,
    vision=VISION,
    mm_tokens_per_image=16,
    boi_token_index=298,
    eoi_token_index=301,
    image_token_index=307,
    num_labels=2,
    problem_type=None,
    dtype="bfloat16",
)
EVEN = replace(
    TINY,
    encoder=replace(ENCODER, sliding_window=24),
    decoder=replace(DECODER, sliding_window=15, final_logit_softcapping=None),
    vision=replace(VISION, image_size=158),
    mm_tokens_per_image=9,
    dtype="float32",
)

RELEASED_TEXT = replace(
    PRESETS["270m"].encoder,
    vocab_size=320,
    hidden_size=40,
    intermediate_size=72,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,  # as in 4b: with one, the order of grouped heads cannot be seen
    head_dim=16,
    query_pre_attn_scalar=16.0,  # the head's size, as released
    sliding_window=14,
    layer_types=PRESETS["270m"].encoder.layer_types[:8],
)
RELEASED = replace(
    PRESETS["270m"],
    encoder=RELEASED_TEXT,
    decoder=RELEASED_TEXT,
    vision=replace(
        PRESETS["270m"].vision,
        hidden_size=24,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=112,
    ),
    mm_tokens_per_image=4,  # 8 x 8 patches, in squares of sixteen
    boi_token_index=309,
    eoi_token_index=310,
    image_token_index=311,
)


MADE = {  # name: configuration and seed; a tensor hangs on its name and the seed, so the last two have one encoder
    "tiny": (TINY, 1),
    "tiny-even": (EVEN, 2),
    "tiny-released": (RELEASED, 3),
    "tiny-encoder": (replace(RELEASED, has_decoder=False), 3),
}


def weights(config: Config, seed: int) -> Iterator[tuple[str, Any]]:
    """(name, float64 array) of every parameter: products keep their scale, norms and biases are far from neutral."""
    for name, shape in shapes(config).items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if len(shape) > 1:
            transposed = name.endswith("mm_input_projection_weight")
            fan_in = shape[0] if transposed else int(np.prod(shape[1:]))
            yield name, rng.normal(0, 1.2 * fan_in**-0.5, shape)
        elif "norm" in name and name.endswith("weight"):
            centre = 1.0 if "layer_norm" in name or "post_layernorm" in name else 0.25
            yield name, rng.uniform(centre - 0.6, centre + 0.6, shape)
        else:
            yield name, rng.normal(0, 0.5, shape)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(t5g2ref.__file__).parent / "checkpoint" / "bundled"
    for name, (config, seed) in MADE.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=MARK, dir=folder) as made:
            save(made, config, weights(config, seed), dtype=config.dtype or "bfloat16", layout="hub")
            for file in ("config.json", "model.safetensors"):
                os.replace(Path(made, file), folder / name / file)
        size = (folder / name / "model.safetensors").stat().st_size
        print(f"{folder / name}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

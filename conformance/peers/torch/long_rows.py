"""How much memory transformers needs for a long row: its masks, and an eager attention's scores, are S × S.

The factors were measured with transformers 5.24 on a CPU, rows of 4096 and 8192; `published/measured.md` has them.
"""

from __future__ import annotations

import torch

from conformance.arrays import free_bytes
from conformance.cases.case import Run
from conformance.checkpoints import GIB
from conformance.peers.protocol import Skip
from t5g2ref.backend import NUMPY
from t5g2ref.config import Config, TextConfig

MASKS = {"encoder": 20, "decoder": 11}  # bytes for each query and key while masks are made of 64-bit positions
SCORES = {"encoder": 4.0, "decoder": 2.5}  # an eager attention's arrays of them, in the model's type
VALUES = 4  # arrays of each width that are there at a time


def refuse(config: Config, run: Run, attention: str, dtype: str, device: str) -> None:
    """Raises Skip for a long run that would not fit in what is free, before anything is computed."""
    if run.picked is None:
        return
    wanted, there = needed(config, run, attention, dtype), free(device)
    if wanted > there:
        raise Skip(
            f"transformers {attention} makes masks of every query and key: {wanted / GIB:.1f} GiB for rows of "
            f"{run.input_ids.shape[1]} and {run.decoder_input_ids.shape[1]} tokens, {there / GIB:.1f} GiB are free"
        )


def needed(config: Config, run: Run, attention: str, dtype: str) -> int:
    """Bytes beside the weights: of the stack that needs more."""
    source, answer = run.input_ids.shape[1], run.decoder_input_ids.shape[1]
    size = int(torch.tensor([], dtype=getattr(torch, dtype)).element_size())

    def of(stack: str, text: TextConfig, queries: int, keys: int) -> int:
        scores = SCORES[stack] * size * text.num_attention_heads if attention == "eager" else 0.0
        widths = text.hidden_size + text.intermediate_size + text.num_attention_heads * text.head_dim
        return int(queries * keys * (MASKS[stack] + scores)) + VALUES * size * queries * widths

    encoder = of("encoder", config.encoder, source, source)
    return max(encoder, of("decoder", config.decoder, answer, answer + source)) if config.has_decoder else encoder


def free(device: str) -> int:
    """Bytes that are free where the model computes."""
    return free_bytes(NUMPY) if device == "cpu" else int(torch.cuda.mem_get_info(torch.device(device))[0])

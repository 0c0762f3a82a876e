"""The decoder's weights in the kernel's order: blocks of 512 bytes, as its lanes take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from t5g2ref.backend.cuda.decoding.plan import BLOCK, Plan

Array = Any
PART = 4096  # rows of blocks of the table that are put in order at a time: a copy of all would be as large again


@dataclass(frozen=True)
class Weights:
    """The decoder's weights as the kernel reads them.

    Args:
        blocks: all matrices, (blocks, 512) bytes.
        norms: per layer pre, q, k, post, pre-feed-forward, post-feed-forward; then the last.
    """

    blocks: Array
    norms: Array


@dataclass(frozen=True)
class Head:
    """The table, as blocks and as the model has it, and the end-of-image id's own row."""

    blocks: Array
    table: Array
    eoi: Array


def prepare(xp: Any, stack: Any, dtype: Any, plan: Plan) -> Weights:
    """The weights of a decoder (`weights.Stack`) in the kernel's order. They are copies: as much memory again."""
    blocks = xp.empty((plan.layers * plan.layer_blocks, BLOCK), xp.uint8)
    at, norms = 0, []
    for layer in stack.layers:
        a, mlp = layer.self_attn, layer.mlp
        matrices = (
            [a.q_proj.weight, a.k_proj.weight, a.v_proj.weight],
            [a.o_proj.weight],
            [paired(xp, mlp.gate_proj.weight, mlp.up_proj.weight)],
            [mlp.down_proj.weight],
        )
        for parts in matrices:
            whole = parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=0)
            block = packed(xp, whole.astype(dtype, copy=False), plan)
            blocks[at : at + len(block)] = block
            at += len(block)
        norms += [layer.pre_self_attn_layernorm, a.q_norm, a.k_norm, layer.post_self_attn_layernorm]
        norms += [layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm]
    vectors = [norm.weight.astype(dtype, copy=False) for norm in (*norms, stack.norm)]
    return Weights(blocks, xp.concatenate(vectors))


def prepare_head(xp: Any, embedding: Any, dtype: Any, plan: Plan) -> Head:
    """The table (`weights.Embedding`) in the kernel's order, beside itself."""
    down, across = plan.blocks("head")
    table, eoi = (
        xp.ascontiguousarray(x.astype(dtype, copy=False)) for x in (embedding.weight, embedding.eoi_embedding)
    )
    blocks = xp.empty((down, across, BLOCK), xp.uint8)
    for first in range(0, down, PART):
        part = packed(xp, table[first * 16 : (first + PART) * 16], plan)
        blocks[first : first + PART] = part.reshape(-1, across, BLOCK)
    return Head(blocks, table, eoi)


def paired(xp: Any, gate: Array, up: Array) -> Array:
    """Eight rows of gate, the same eight of up, and so on; rows of zeros where they end."""
    hidden, width = gate.shape
    whole = xp.zeros((-(-hidden // 8), 2, 8, width), gate.dtype)
    for i, part in enumerate((gate, up)):
        padded = xp.zeros((len(whole) * 8, width), gate.dtype)
        padded[:hidden] = part
        whole[:, i] = padded.reshape(-1, 8, width)
    return whole.reshape(-1, width)


def packed(xp: Any, matrix: Any, plan: Plan) -> Any:
    """A matrix (rows, columns) as blocks, in the order in which the kernel's lanes take them: (blocks, 512) bytes.

    bfloat16: lane 4 · g + t has rows g and g + 8, columns 4t to 4t + 3. `mma.m16n8k16` calls these 2t, 2t + 1, 2t + 8
    and 2t + 9, which is as good where both operands do. float32: lane 2 · r + h has row r, columns 4h to 4h + 3.
    """
    rows, columns = matrix.shape
    down, across = -(-rows // 16), -(-columns // plan.block_columns)
    whole = matrix
    if (rows, columns) != (down * 16, across * plan.block_columns):
        whole = xp.zeros((down * 16, across * plan.block_columns), matrix.dtype)
        whole[:rows, :columns] = matrix
    if plan.half:
        parts = whole.reshape(down, 2, 8, across, 4, 2, 2).transpose(0, 3, 2, 4, 5, 1, 6)
    else:
        parts = whole.reshape(down, 16, across, 8).transpose(0, 2, 1, 3)
    return xp.ascontiguousarray(parts).view(xp.uint8).reshape(down * across, BLOCK)

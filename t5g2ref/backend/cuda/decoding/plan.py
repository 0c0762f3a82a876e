"""How the kernel is laid out for one geometry, one card and one number of rows: what is compiled in, who does what.

Plain numbers and NumPy; no device is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np

TEXTS = (
    *("instructions.cuh", "layout.cuh", "product.cuh", "residual.cuh", "attention.cuh", "head.cuh", "draw.cuh"),
    "decode.cu",  # which says what they are
)
WARPS = 8  # of a processor
BLOCK = 512  # bytes of a block of weights: 16 rows
MOST_BLOCKS = 8  # of a stage of a ring
SPLITS = 32  # parts of the keys at most; a warp has a lane for each
MOST_STAGES, LEAST_STAGES = 16, 3
MOST_ROWS = 8  # batch rows: as many as a matrix unit has columns
MOST_PROCESSORS = 255  # who shares a row of blocks is counted in a byte
MOST_GROUP, WIDEST_HEAD = 8, 256  # what a warp's registers hold
BINS, ROW_BYTES = 16, 40  # of draw.cuh
MATRICES = ("qkv", "out", "gated", "down", "head")


def source() -> str:
    """The kernel's text; `Plan.defines` belongs in front."""
    return "\n".join(files(__package__).joinpath(name).read_text(encoding="utf-8") for name in TEXTS)


@dataclass(frozen=True)
class Plan:
    """The decoder's sizes, the type, the batch and the card.

    Args:
        layers, width, hidden, vocabulary, heads, kv_heads, head_dim: of the decoder; `hidden` is the feed-forward's.
        batch: rows, from 1 to 8.
        half: bfloat16, else float32.
        processors: of the card; each has one block of threads.
        memory: bytes of shared memory that a block may have.
        capped, last_capped: whether scores and logits have a softcap.
        sampled: whether ids are drawn, else the likeliest are taken.
    """

    layers: int
    width: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    batch: int
    half: bool
    processors: int
    memory: int
    capped: bool = False
    last_capped: bool = False
    sampled: bool = False

    def refusal(self) -> str:
        """Why the kernel does not serve this, or ""."""
        group = self.heads // max(1, self.kv_heads)
        wrong = {
            f"{self.batch} rows, at most {MOST_ROWS}": not 1 <= self.batch <= MOST_ROWS,
            f"{self.processors} processors, at most {MOST_PROCESSORS}": self.processors > MOST_PROCESSORS,
            f"{group} query heads to a kv head, at most {MOST_GROUP}": group > MOST_GROUP,
            f"a head of {self.head_dim}, at most {WIDEST_HEAD}": self.head_dim > WIDEST_HEAD,
        }
        why = next((why for why, is_so in wrong.items() if is_so), "")
        return why or ("" if self.ring[0] else "its activations leave no room in shared memory")

    @property
    def block_columns(self) -> int:
        """Columns of a block of weights."""
        return BLOCK // 16 // (2 if self.half else 4)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(rows, columns) of each matrix. Sixteen rows of `gated` are 8 of gate and the same of up."""
        inner = self.heads * self.head_dim
        return {
            "qkv": (inner + 2 * self.kv_heads * self.head_dim, self.width),
            "out": (self.width, inner),
            "gated": (-(-self.hidden // 8) * 16, self.width),
            "down": (self.width, self.hidden),
            "head": (self.vocabulary, self.width),
        }

    def blocks(self, matrix: str) -> tuple[int, int]:
        """(down, across): rows and columns of a matrix in blocks."""
        rows, columns = self.shapes[matrix]
        return -(-rows // 16), -(-columns // self.block_columns)

    @property
    def layer_blocks(self) -> int:
        """Blocks of the four matrices of a layer."""
        return sum(down * across for down, across in map(self.blocks, MATRICES[:4]))

    @cached_property
    def shares(self) -> np.ndarray[Any, Any]:
        """int32 (matrix, warps of the card + 1): the first block of each warp. Of the head a warp has whole rows of
        blocks, of `gated` a processor."""
        count = self.processors * WARPS
        warps = np.arange(count + 1, dtype=np.int64)
        found = []
        for matrix in MATRICES:
            down, across = self.blocks(matrix)
            edges = down * across * warps // count
            if matrix == "head":
                edges = down * warps // count * across
            if matrix == "gated":
                firsts = (
                    down * np.arange(self.processors + 2) // self.processors * across
                )  # one more, for the last edge
                own, warp = warps // WARPS, warps % WARPS
                edges = firsts[own] + (firsts[own + 1] - firsts[own]) * warp // WARPS
            found.append(edges)
        return np.array(found, dtype=np.int32)

    @cached_property
    def owners(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Slots of the sums. (matrix, processor) int32: that of a processor's first row of blocks. (rows of blocks of
        the four matrices,) uint8: how many each has."""
        slots, parts = np.zeros((len(MATRICES), self.processors), np.int32), []
        for m, matrix in enumerate(MATRICES[:4]):
            down, across = self.blocks(matrix)
            edges = self.shares[m, ::WARPS].astype(np.int64)
            busy = np.flatnonzero(np.diff(edges))  # processors with a share
            begins = edges[busy]
            first, last = (
                np.searchsorted(begins, at, side="right") - 1
                for at in (np.arange(down) * across, np.arange(1, down + 1) * across - 1)
            )
            slots[m, busy] = np.arange(len(busy)) - first[begins // across]
            parts.append(last - first + 1)
        return slots, np.concatenate(parts).astype(np.uint8)

    @property
    def slots(self) -> list[int]:
        """The most slots that a row has, of the four matrices."""
        counts = np.cumsum([self.blocks(matrix)[0] for matrix in MATRICES[:3]])
        return [int(parts.max()) for parts in np.split(self.owners[1], counts)]

    @cached_property
    def activations(self) -> int:
        """Bytes of shared memory for what a product is multiplied with, or for what attention or drawing has there."""
        per_block = self.batch * 32
        held = []
        for m, matrix in enumerate(MATRICES):
            longest = int(np.diff(self.shares[m, ::WARPS]).max())
            held.append(min(self.blocks(matrix)[1], longest) * per_block)
        group = self.heads // self.kv_heads
        scratch = 2 * (group + 1) * self.head_dim + WARPS * group * (self.head_dim + 2)
        drawing = 2 * WARPS * BINS * 8 + self.batch * ROW_BYTES if self.sampled else 0
        return _whole(max(*held, 4 * scratch, 4 * self.batch * self.width, drawing))

    @property
    def pieces(self) -> int:
        """Numbers of shared memory for rows of blocks that several warps share, and for the weights of the splits."""
        return max(WARPS * 2 * 16 * self.batch, self.batch * self.heads * SPLITS)

    @cached_property
    def fixed(self) -> int:
        """Bytes of shared memory beside the rings."""
        tables = len(MATRICES) * (WARPS + 1) + (len(MATRICES) - 1) * 2 * WARPS + 2 * self.batch
        numbers = self.pieces + 2 * WARPS + (self.batch + 2) * self.width + tables
        structures = 16 * WARPS * len(MATRICES) + 24 * self.layers
        return 4 * numbers + self.activations + len(self.owners[1]) + structures + 64

    @cached_property
    def ring(self) -> tuple[int, int]:
        """(stages, blocks of a stage) of each warp's ring: all that there is room for, in large stages if it can be."""
        for blocks in (MOST_BLOCKS, MOST_BLOCKS // 2, MOST_BLOCKS // 4):
            stages = min(MOST_STAGES, (self.memory - self.fixed) // (WARPS * (blocks * BLOCK + 8)))
            if stages >= LEAST_STAGES:
                return stages, blocks
        return 0, 0

    @property
    def shared(self) -> int:
        """Bytes of shared memory in all."""
        stages, blocks = self.ring
        return self.fixed + WARPS * stages * (blocks * BLOCK + 8)

    def defines(self, show: bool = False) -> str:
        """The lines in front of the kernel; `show` is whether it shows what is between."""
        values = {
            "LAYERS": self.layers,
            "D": self.width,
            "F": self.hidden,
            "V": self.vocabulary,
            "NQ": self.heads,
            "NKV": self.kv_heads,
            "HD": self.head_dim,
            "BATCH": self.batch,
            "HALF": int(self.half),
            "GRID": self.processors,
            "WARPS": WARPS,
            "BLOCKS": self.ring[1],
            "STAGES": self.ring[0],
            "SPLITS": SPLITS,
            "SLOTS": max(self.slots),
            **{f"SLOTS_{matrix.upper()}": most for matrix, most in zip(MATRICES, self.slots, strict=False)},
            "ACT": self.activations,
            "PIECES": self.pieces,
            "CAPPED": int(self.capped),
            "LAST_CAPPED": int(self.last_capped),
            "SHOW": int(show),
            "SAMPLED": int(self.sampled),
        }
        return "".join(f"#define {name} {value}\n" for name, value in values.items())

    @property
    def shown(self) -> dict[str, int]:
        """What a layer shows of a token, in order: name → width."""
        d, f = self.width, self.hidden
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "pre_self_attn_layernorm": d,
            "q_proj": q,
            "k_proj": kv,
            "v_proj": kv,
            "q_norm": q,
            "k_norm": kv,
            "q_rope": q,
            "k_rope": kv,
            "attention": q,
            "o_proj": d,
            "post_self_attn_layernorm": d,
            "attn_residual": d,
            "pre_feedforward_layernorm": d,
            "gate_proj": f,
            "up_proj": f,
            "act_fn": f,
            "product": f,
            "down_proj": d,
            "post_feedforward_layernorm": d,
            "": d,
        }


def _whole(size: int) -> int:
    return -(-size // 16) * 16

"""Attention: the encoder's, and the decoder's merged self- and cross-attention.

    attention(q) = softmax(q · [k_own ‖ k_enc]ᵀ · scale + mask) · [v_own ‖ v_enc]

One softmax over two groups of keys, own ones first:

    queries (B, N, T, H)  ×  [ own past | own new ‖ encoder ]   keys and values (B, K, S, H)
                               └── causal, window ──┘└ whole ┘  besides padding

Own keys carry RoPE, and a sliding layer sees the last W of them. Over the encoder's keys lies no window, in any layer,
and they carry no RoPE; the queries carry it for both halves.

`attend` is the softmax of both stacks and of the tower. It works in blocks of queries: for each block it takes the keys
that the band can reach, so a sliding layer costs O(S · W) and memory is bounded at any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod

from t5g2ref.blocks import rowwise
from t5g2ref.cache import KeyValue
from t5g2ref.config import TextConfig
from t5g2ref.masks import EVERYTHING, Band
from t5g2ref.numerics import Array, Numerics, twinned
from t5g2ref.ops import across_ties, masked_softmax, rms_norm, scaled_softmax, softcap
from t5g2ref.rope import rotate
from t5g2ref.trace import OFF, Trace
from t5g2ref.weights import SelfAttention

MANY = 1 << 19  # scores; with fewer, those of all heads stay in the cache together


@dataclass(frozen=True)
class Keys:
    """One group of keys under the softmax.

    Args:
        kv: keys and values (B, K, S, H) with the absolute position of the first.
        valid: bool (B, S), False for padding; None when nothing is padded.
        band: which of them a query may see by position; the cross half has none.
    """

    kv: KeyValue
    valid: Array | None = None
    band: Band = EVERYTHING

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Half-open range of absolute positions that the queries first … last can reach of these keys."""
        low, high = self.band.span(first, last, self.kv.start + self.kv.length)
        return max(low, self.kv.start), max(high, self.kv.start)

    def part(self, first: int, last: int) -> tuple[Array, Array]:
        """Keys and values (B, K, s, H) of that range."""
        low, high = (position - self.kv.start for position in self.span(first, last))
        return self.kv.keys[:, :, low:high], self.kv.values[:, :, low:high]

    def allowed(self, nx: Numerics, first: int, last: int) -> Array:
        """bool (B or 1, rows, s): the band's rule and the padding, for that range."""
        low, high = self.span(first, last)
        allowed = _by_row(self.band.allows(nx.xp.arange(first, last + 1), nx.xp.arange(low, high)))
        return (
            allowed if self.valid is None else allowed & self.valid[:, None, low - self.kv.start : high - self.kv.start]
        )


def _by_row(allowed: Array) -> Array:
    """(T, s), the same in every row of the batch, or (B or 1, T, s) → (B or 1, T, s)."""
    return allowed if allowed.ndim == 3 else allowed[None]


@twinned
def attend(
    nx: Numerics,
    q: Array,
    groups: Sequence[Keys],
    *,
    scale: float,
    cap: float | None = None,
    first_query: int = 0,
    rows: int | None = None,
) -> Array:
    """One softmax over the keys of all groups, in their order.

    Shapes: q (B, N, T, H), keys and values (B, K, S, H) with N a multiple of K → (B, N, T, H). Query head h reads
    kv head h // (N / K). `first_query` is the absolute position of q's first row; `rows` the queries in a block.
    """
    batch, heads, length, _ = q.shape
    keys = sum(group.kv.length for group in groups)
    rows = rows or nx.block(length, batch * heads * keys)
    starts = range(0, length, rows)
    blocks = nx.each([partial(_block, nx, q[:, :, t : t + rows], groups, scale, cap, first_query + t) for t in starts])
    return blocks[0] if len(blocks) == 1 else nx.join(blocks, 2)  # (B, N, T, H)


def _block(nx: Numerics, q: Array, groups: Sequence[Keys], scale: float, cap: float | None, first: int) -> Array:
    """softmax(q kᵀ · scale) v for the queries from position `first` on. The G = N / K query heads of a kv head are
    stacked as rows of one product, so that keys are never repeated."""
    batch, heads, rows, width = q.shape
    keys, values = zip(*(group.part(first, first + rows - 1) for group in groups), strict=True)
    # For one block this copies less than it multiplies.
    k, v = (parts[0] if len(parts) == 1 else nx.join(list(parts), 2) for parts in (keys, values))  # (B, K, s, H)
    stacked = q.reshape(batch, k.shape[1], -1, width)  # (B, K, G·rows, H)
    grouped = (batch, k.shape[1], heads // k.shape[1], rows, k.shape[2])  # (B, K, G, rows, s)
    allowed = visible(nx, groups, first, first + rows - 1)  # (B or 1, rows, s)
    allowed = None if allowed is None else allowed[:, None, None]
    if nx.in_cache and not nx.profile.running and prod(grouped) > MANY:
        out = _one_head_at_a_time(nx, (stacked, k, v), scale, cap, allowed, grouped)
    else:
        out = _read(nx, (stacked, k, v), scale, cap, allowed, grouped)
    return out.reshape(batch, heads, rows, v.shape[-1])  # of (B, K, G·rows, H)


Heads = tuple[Array, Array, Array]
"""Stacked queries (B, K, G·rows, H), keys and values (B, K, s, H)."""


def _one_head_at_a_time(
    nx: Numerics, heads: Heads, scale: float, cap: float | None, allowed: Array | None, grouped: tuple[int, ...]
) -> Array:
    """`_read` for each kv head of each batch row in turn, whose scores stay in the cache. The same bits: a head has its
    own products in any case. Not so running sums, whose steps follow from how much there is in all."""
    q, k, v = heads
    out = nx.xp.empty((*q.shape[:3], v.shape[-1]), nx.storage)
    for row, head in product(range(q.shape[0]), range(q.shape[1])):
        one = slice(row, row + 1), slice(head, head + 1)
        seen = allowed[one[0]] if allowed is not None and len(allowed) > 1 else allowed
        out[one] = _read(nx, (q[one], k[one], v[one]), scale, cap, seen, (1, 1, *grouped[2:]))
    return out


def _read(
    nx: Numerics, heads: Heads, scale: float, cap: float | None, allowed: Array | None, grouped: tuple[int, ...]
) -> Array:
    """softmax(q kᵀ · scale) v: (B, K, G·rows, H)."""
    q, k, v = heads
    weights = attention_weights(nx, q, k, scale, cap, allowed, grouped)
    return _weighed(nx, weights.reshape(*q.shape[:3], -1), v)


def _weighed(nx: Numerics, weights: Array, v: Array) -> Array:
    """The weights' sum of values, rounded once. A flash kernel's weights are still wide."""
    return nx.cast(nx.product(weights, nx.wide(v))) if nx.profile.flash_keys else nx.matmul(weights, v)


@twinned
def attention_weights(
    nx: Numerics, q: Array, k: Array, scale: float, cap: float | None, allowed: Array | None, grouped: tuple[int, ...]
) -> Array:
    """softmax(q kᵀ · scale) in shape `grouped`: rounded at each step on the unfused path, kept wide on the fused."""
    k = k.swapaxes(-1, -2)
    if nx.profile.round_scores:
        products = across_ties(nx, q, k) if nx.profile.across_ties else nx.matmul(q, k)
        scores = nx.cast(nx.wide(products) * scale)  # wide: beside a half array the factor would be rounded
        return masked_softmax(nx, softcap(nx, scores, cap).reshape(grouped), allowed)
    return scaled_softmax(nx, nx.product(q, k).reshape(grouped), scale, cap, allowed)


@twinned
def visible(nx: Numerics, groups: Sequence[Keys], first: int, last: int) -> Array | None:
    """bool (B or 1, rows, s): which keys of all groups side by side the queries first … last may see; None for all."""
    if all(group.valid is None and group.band == EVERYTHING for group in groups):
        return None
    xp, masks = nx.xp, [group.allowed(nx, first, last) for group in groups]
    batch = max(mask.shape[0] for mask in masks)
    whole = [m if len(m) == batch else xp.broadcast_to(m, (batch, *m.shape[1:])) for m in masks]
    return whole[0] if len(whole) == 1 else nx.join(whole, 2)


@twinned
def dense_mask(nx: Numerics, groups: Sequence[Keys], first_query: int, length: int) -> Array:
    """bool (B, T, S): what the rules allow, written out over all keys of all groups. For taps only."""
    xp, dense = nx.xp, []
    queries = xp.arange(first_query, first_query + length)
    for group in groups:
        positions = xp.arange(group.kv.start, group.kv.start + group.kv.length)
        allowed = _by_row(group.band.allows(queries, positions))  # (B or 1, T, S)
        allowed = allowed if group.valid is None else allowed & group.valid[:, None]
        dense.append(xp.broadcast_to(allowed, (group.kv.keys.shape[0], *allowed.shape[1:])))
    return xp.concatenate(dense, axis=2)


def split_heads(x: Array, head_dim: int) -> Array:
    """(B, T, N·H) → (B, N, T, H)."""
    return x.reshape(*x.shape[:2], -1, head_dim).swapaxes(1, 2)


def merge_heads(x: Array) -> Array:
    """(B, N, T, H) → (B, T, N·H)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


@rowwise("x", "rope", axis=2)
def project(
    nx: Numerics, w: SelfAttention, config: TextConfig, x: Array, rope: tuple[Array, Array], trace: Trace
) -> tuple[Array, Array, Array]:
    """Queries (B, N, T, H), keys and values (B, K, T, H) of the rows x (B, T, D): project, norm each head of q and
    k over head_dim, then turn by RoPE."""
    width, eps = config.head_dim, config.rms_norm_eps
    q = split_heads(trace("q_proj", nx.linear(x, w.q_proj.weight, w.q_proj.bias)), width)
    k = split_heads(trace("k_proj", nx.linear(x, w.k_proj.weight, w.k_proj.bias)), width)
    v = split_heads(trace("v_proj", nx.linear(x, w.v_proj.weight, w.v_proj.bias)), width)
    q = trace("q_rope", turned_norm(nx, q, w.q_norm.weight, eps, rope, "q_norm", trace))
    k = trace("k_rope", turned_norm(nx, k, w.k_norm.weight, eps, rope, "k_norm", trace))
    return q, k, v


@twinned
def turned_norm(
    nx: Numerics, x: Array, weight: Array, eps: float, rope: tuple[Array, Array], name: str, trace: Trace = OFF
) -> Array:
    """rms_norm of each head, rounded, then turned by RoPE; tap `name` shows the norm."""
    return rotate(nx, trace(name, rms_norm(nx, x, weight, eps)), *rope)


def project_cross(nx: Numerics, w: SelfAttention, config: TextConfig, encoded: Array, trace: Trace = OFF) -> KeyValue:
    """Keys and values (B, K, S_enc, H) of the encoder's output (B, S_enc, D), by the decoder layer's own k_proj,
    v_proj and k_norm. Cross keys get no RoPE."""
    return KeyValue(*_cross(nx, w, config, encoded, trace))


@rowwise("encoded", axis=2)
def _cross(nx: Numerics, w: SelfAttention, config: TextConfig, encoded: Array, trace: Trace) -> tuple[Array, Array]:
    k = split_heads(trace("cross_k_proj", nx.linear(encoded, w.k_proj.weight, w.k_proj.bias)), config.head_dim)
    v = split_heads(trace("cross_v_proj", nx.linear(encoded, w.v_proj.weight, w.v_proj.bias)), config.head_dim)
    return trace("cross_k_norm", rms_norm(nx, k, w.k_norm.weight, config.rms_norm_eps)), v


def self_attention(
    nx: Numerics,
    w: SelfAttention,
    config: TextConfig,
    x: Array,
    rope: tuple[Array, Array],
    band: Band,
    valid: Array | None,
    trace: Trace = OFF,
) -> Array:
    """The encoder's attention: x (B, S, D) → (B, S, D), every query sees the keys of its band that are not padding."""
    q, k, v = project(nx, w, config, x, rope, trace)
    groups = [Keys(KeyValue(k, v), valid, band)]
    trace.lazy("mask", lambda: dense_mask(nx, groups, 0, x.shape[1]))
    return _attended(nx, w, config, q, groups, 0, trace)


def merged_attention(
    nx: Numerics,
    w: SelfAttention,
    config: TextConfig,
    x: Array,
    rope: tuple[Array, Array],
    past: KeyValue,
    band: Band,
    valid: Array | None,
    cross: Keys,
    trace: Trace = OFF,
) -> tuple[Array, KeyValue]:
    """The decoder's attention: one softmax over [own past | own new ‖ encoder].

    Shapes: x (B, T, D) → (B, T, D), and the own keys and values (B, K, past + T, H) that the next call needs.

    Args:
        past: own keys and values of earlier calls, as far as this layer still sees them.
        band: which own keys a query may see by position.
        valid: bool (B, every own position so far and the new ones), False for padding; None when nothing is padded.
        cross: the encoder's keys, as `project_cross` made them, and their padding.
    """
    q, k, v = project(nx, w, config, x, rope, trace)
    first_query, held = past.start + past.length, past.extended(nx, k, v)
    own = KeyValue(trace("keys", held.keys), trace("values", held.values), held.start)
    enc = KeyValue(trace("cross_keys", cross.kv.keys), trace("cross_values", cross.kv.values))
    own_valid = None if valid is None else valid[:, own.start :]
    groups = [Keys(own, own_valid, band), Keys(enc, cross.valid, cross.band)]
    trace.lazy("mask", lambda: dense_mask(nx, groups, first_query, x.shape[1]))
    return _attended(nx, w, config, q, groups, first_query, trace), own


def _attended(
    nx: Numerics, w: SelfAttention, config: TextConfig, q: Array, groups: list[Keys], first_query: int, trace: Trace
) -> Array:
    """Queries (B, N, T, H) and their keys → (B, T, D)."""
    scale = config.query_pre_attn_scalar**-0.5
    out = attend(nx, q, groups, scale=scale, cap=config.attn_logit_softcapping, first_query=first_query)
    return _output(nx, w, trace("attention", merge_heads(out)), trace)


@rowwise("attended")
def _output(nx: Numerics, w: SelfAttention, attended: Array, trace: Trace) -> Array:
    """(B, T, N·H) → (B, T, D)."""
    return trace("o_proj", nx.linear(attended, w.o_proj.weight, w.o_proj.bias))

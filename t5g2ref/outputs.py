"""What stands on the decoder: language-model logits, two classification heads, and the losses of training.

Losses are formed in `nx.wide` and returned as wide scalars. A peer may form a classifier's in its own type.
"""

from __future__ import annotations

from t5g2ref.config import Config
from t5g2ref.numerics import Array, Numerics
from t5g2ref.ops import softcap
from t5g2ref.trace import OFF, Trace
from t5g2ref.weights import Score

IGNORED = -100  # a label that counts neither in the sum nor in the mean (torch's ignore_index)


def lm_logits(nx: Numerics, table: Array, config: Config, hidden: Array, trace: Trace = OFF) -> Array:
    """hidden (B, T, D) · tableᵀ (V, D) → (B, T, V): the embedding table unscaled, then the final softcap if any."""
    logits = trace("lm_head", nx.linear(hidden, table))
    return trace("logits", softcap(nx, logits, config.decoder.final_logit_softcapping))


def classify_tokens(nx: Numerics, w: Score, hidden: Array, trace: Trace = OFF) -> Array:
    """hidden (B, T, D) → scores (B, T, labels) at every decoder position; a biased linear layer."""
    return trace("score", nx.linear(hidden, w.out_proj.weight, w.out_proj.bias))


def pool_last(nx: Numerics, scores: Array, decoder_ids: Array, pad_id: int) -> Array:
    """The row of scores (B, T, labels) at each row's rightmost decoder id that is not padding → (B, labels).

    A row of nothing but padding takes position 0, as transformers does.
    """
    xp = nx.xp
    last = xp.where(decoder_ids != pad_id, xp.arange(decoder_ids.shape[1]), 0).argmax(axis=1)
    return scores[xp.arange(scores.shape[0]), last]


def shift_right(nx: Numerics, labels: Array, bos_id: int, pad_id: int) -> Array:
    """Decoder inputs from labels (B, T): one to the right, bos in front, −100 becomes pad."""
    xp = nx.xp
    first = xp.full((labels.shape[0], 1), bos_id, dtype=labels.dtype)
    shifted = xp.concatenate([first, labels[:, :-1]], axis=1)
    return xp.where(shifted == IGNORED, pad_id, shifted)


def cross_entropy(nx: Numerics, logits: Array, labels: Array) -> Array:
    """Mean of −log softmax(logits)[label] over the labels that are not −100: logits (…, C), labels (…,) → ().

    NaN when every label is ignored (0 / 0), as in torch: there is no loss to speak of.
    """
    xp = nx.xp
    logits = nx.wide(logits).reshape(-1, logits.shape[-1])
    labels = labels.reshape(-1)
    kept = labels != IGNORED
    top = logits.max(axis=-1, keepdims=True)
    normaliser = xp.log(nx.total(xp.exp(logits - top))[:, 0]) + top[:, 0]
    picked = logits[xp.arange(labels.shape[0]), xp.where(kept, labels, 0)]
    if not bool(kept.any()):
        return xp.full((), xp.nan, dtype=nx.wide_dtype)
    return xp.where(kept, normaliser - picked, 0.0).sum() / kept.sum(dtype=nx.wide_dtype)


def sequence_loss(nx: Numerics, config: Config, pooled: Array, labels: Array) -> Array:
    """The loss of a sequence classifier: pooled (B, labels) against labels whose kind picks the loss.

    `problem_type`, or else: one label is regression (mean square), integer labels (B,) are single-label
    (cross-entropy), float labels (B, labels) are multi-label (mean binary cross-entropy on each).
    """
    xp, pooled = nx.xp, nx.wide(pooled)
    kind = config.problem_type or problem_type(config.num_labels, labels)
    if kind == "single_label_classification":
        return cross_entropy(nx, pooled, labels)
    labels = labels.astype(nx.wide_dtype)
    if kind == "regression":
        return ((pooled.reshape(-1) - labels.reshape(-1)) ** 2).mean()
    softplus = xp.maximum(pooled, 0.0) + xp.log1p(xp.exp(-xp.abs(pooled)))
    return (softplus - pooled * labels).mean()


def problem_type(num_labels: int, labels: Array) -> str:
    """regression, single_label_classification or multi_label_classification, from the labels' number and dtype."""
    if num_labels == 1:
        return "regression"
    return "single_label_classification" if labels.dtype.kind in "iu" else "multi_label_classification"

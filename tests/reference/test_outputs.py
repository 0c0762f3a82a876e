"""heads: decoder inputs from labels, the losses against mpmath at 50 digits, and which position a classifier reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from helpers import DIGITS, U64, Array, close, exact, frozen, normal, rounded, same_bits
from hypothesis import given
from hypothesis import strategies as st

from t5g2ref.config import Config
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Numerics
from t5g2ref.outputs import (
    classify_tokens,
    cross_entropy,
    lm_logits,
    pool_last,
    problem_type,
    sequence_loss,
    shift_right,
)
from t5g2ref.weights import Biased, Score

ORACLE = Numerics("float64")
BOS, PAD = 6, 3


# Decoder inputs


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16"])
def test_shift_right(dtype: str) -> None:
    # D08: one to the right, bos in front and not pad, −100 → pad, the last label is never an input.
    labels = frozen([[11, 12, 13, 14], [21, -100, 23, -100], [-100, -100, 7, 8]], dtype)
    expected = np.array([[6, 11, 12, 13], [6, 21, 3, 23], [6, 3, 3, 7]], dtype)
    same_bits(shift_right(ORACLE, labels, BOS, PAD), expected)


def test_shift_right_of_one_label_is_the_bos() -> None:
    assert shift_right(ORACLE, frozen([[9], [-100]]), BOS, PAD).tolist() == [[6], [6]]


@pytest.mark.parametrize(
    "labels",
    [[5, 6], 5, [[[5, 6]]], [[5.0, 6.0]], [[True, False]]],
    ids=["1-D", "0-D", "3-D", "floats", "bools"],
)
def test_only_rows_of_integers_are_shifted(labels: Any, model: Callable[..., T5Gemma2]) -> None:
    with pytest.raises(ValueError, match=r"^labels: expected integers \(batch, length\), found "):
        model().shift_right(np.array(labels))


# Language model


def test_logits_are_products_with_the_unscaled_table(config: Config) -> None:
    # By hand: hidden (1, 2), table rows (3, 4), (0, 1), (−2, 0): 11, 2, −2; no √D, no bias. Then 30 tanh(x / 30).
    hidden, table = frozen([[[1.0, 2.0]]]), frozen([[3.0, 4.0], [0.0, 1.0], [-2.0, 0.0]])
    bare = replace(config, decoder=replace(config.decoder, final_logit_softcapping=None))
    assert lm_logits(ORACLE, table, bare, hidden).tolist() == [[[11.0, 2.0, -2.0]]]
    capped = np.array([[[30 * math.tanh(v / 30) for v in (11.0, 2.0, -2.0)]]])
    close(lm_logits(ORACLE, table, config, hidden), capped, rtol=20 * U64)  # two tanh within 4 ulp, quotient, product


# Cross-entropy

LOGITS = frozen(
    [
        [[0.3, -1.2, 2.5, 0.0], [1e3, -1e3, 0.0, 999.0], [1e5, 1e5, 1e5, -1e5]],
        [[-4.0, 3.0, 3.0, 1.0], [0.1, 0.2, 0.3, 0.4], [1e-30, 0.0, -1e-30, 0.0]],
    ]
)


def exact_cross_entropy(logits: Array, labels: Array) -> Any:
    """Mean of log Σ exp(x) − x[label] over labels ≠ −100."""
    with mp.workdps(DIGITS):
        terms = [
            mp.log(mp.fsum(mp.exp(v) for v in exact(row))) - mp.mpf(float(row[label]))
            for row, label in zip(logits.reshape(-1, logits.shape[-1]), labels.ravel(), strict=True)
            if label != -100
        ]
        return np.float64(mp.fsum(terms) / len(terms))


@pytest.mark.parametrize(
    "labels",
    [
        [[2, 0, 1], [1, 3, 0]],
        [[2, -100, -100], [-100, 3, 0]],  # D65: neither in the sum nor in the mean
        [[-100, -100, -100], [-100, -100, 3]],
        [[0, 1, 3], [3, 0, 2]],  # improbable ones: losses of 2e3 and 2e5
    ],
    ids=["all", "some", "one", "improbable"],
)
def test_cross_entropy(labels: list[list[int]]) -> None:
    # Broken by exp of 1e3 (overflow is an error), a shift by one, a mean over all rows, an ignored row counted.
    targets = frozen(labels)
    found = cross_entropy(ORACLE, LOGITS, targets)
    # log Σ exp: the differences are rounded, |x − top| u each, exp and the sum of 4 add 8 u of at most 4, log 2 u, and
    # adding top back and taking the label off 2 u of the largest logit: at most 4 · max|x| u a row, and so the mean.
    largest = float(np.abs(LOGITS.reshape(-1, 4)[targets.ravel() != -100]).max())
    close(found, exact_cross_entropy(LOGITS, targets), atol=(5 * largest + 16) * U64)


def test_cross_entropy_literals() -> None:
    # By hand: weights 1 : 3, so −ln(1/4) and −ln(3/4).
    logits = frozen([[0.0, math.log(3)]])
    close(cross_entropy(ORACLE, logits, frozen([0])), np.float64(math.log(4)), rtol=8 * U64)
    close(cross_entropy(ORACLE, logits, frozen([1])), np.float64(math.log(4) - math.log(3)), rtol=20 * U64)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_nothing_to_predict_is_nan_without_a_warning(dtype: Any) -> None:
    nx = Numerics(dtype)
    found = cross_entropy(nx, LOGITS.astype(nx.storage), frozen([[-100] * 3] * 2))
    assert found.shape == ()
    assert found.dtype == nx.wide_dtype
    assert np.isnan(found)


@given(st.lists(st.integers(-1, 3), min_size=6, max_size=6).filter(lambda row: max(row) >= 0))
def test_ignored_rows_are_as_if_they_were_not_there(picked: list[int]) -> None:
    labels = np.array([v if v >= 0 else -100 for v in picked])
    kept = labels != -100
    flat = normal("logits", 6, 4)
    whole = cross_entropy(ORACLE, flat, frozen(labels))
    close(whole, cross_entropy(ORACLE, frozen(flat[kept]), frozen(labels[kept])), rtol=8 * U64)  # sums of ≤ 6 terms ≥ 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_losses_of_half_logits_are_formed_wide(dtype: Any) -> None:
    # The peers upcast: a loss on the half grid, or a sum in it, would be off by 2⁻⁹ and more.
    nx = Numerics(dtype)
    logits, labels = frozen(rounded(normal("half", 20, 9, dtype="float32"), dtype)), frozen(np.arange(20) % 9)
    found = cross_entropy(nx, logits, labels)
    # float32: |x| < 5 twice, sums of 9, a mean of 20 terms below 8: 8 · (20 + 30) u at the very most.
    close(found, exact_cross_entropy(logits, labels), atol=400 * 2.0**-24, dtype="float32")
    assert float(rounded(found, dtype)) != float(found)


# Sequence classification


@pytest.mark.parametrize(
    ("ids", "position"),
    [
        ([6, 9, 9, 9, 9], 4),
        ([6, 9, 9, 3, 3], 2),  # right padding (D64: not the last position)
        ([3, 3, 6, 9, 9], 4),  # left padding
        ([6, 3, 9, 3, 3], 2),  # padding inside: the rightmost token counts
        ([6, 3, 3, 3, 3], 0),
        ([3, 3, 3, 3, 9], 4),
        ([3, 3, 3, 3, 3], 0),  # nothing but padding: position 0, as transformers
    ],
)
def test_pool_last(ids: list[int], position: int) -> None:
    # Beside an ordinary row, so that each row is pooled by itself.
    scores = normal("scores", 2, 5, 3)
    found = pool_last(ORACLE, scores, frozen([ids, [6, 8, 3, 3, 3]]), PAD)
    same_bits(found, np.stack([scores[0, position], scores[1, 1]]))


def test_the_pad_id_is_the_configs_and_not_zero() -> None:
    scores = normal("scores", 1, 3, 2)
    same_bits(pool_last(ORACLE, scores, frozen([[6, 9, 0]]), PAD), scores[:, 2])
    same_bits(pool_last(ORACLE, scores, frozen([[6, 9, 3]]), 0), scores[:, 2])


def test_token_scores_have_a_bias() -> None:
    # By hand: (1, 2) · (3, 4) + 10 = 21 and (1, 2) · (−1, 0) − 1 = −2.
    w = Score(Biased(frozen([[3.0, 4.0], [-1.0, 0.0]]), frozen([10.0, -1.0])))
    assert classify_tokens(ORACLE, w, frozen([[[1.0, 2.0]]])).tolist() == [[[21.0, -2.0]]]


@pytest.mark.parametrize(
    ("labels", "dtype", "kind"),
    [
        (1, "float32", "regression"),
        (1, "int64", "regression"),
        (5, "int64", "single_label_classification"),
        (5, "int32", "single_label_classification"),
        (5, "uint8", "single_label_classification"),
        (5, "float32", "multi_label_classification"),
        (5, "float64", "multi_label_classification"),
    ],
)
def test_problem_type(labels: int, dtype: str, kind: str) -> None:
    assert problem_type(labels, np.zeros(3, dtype)) == kind


POOLED = frozen([[0.5, -1.5, 3.0], [1e3, -1e3, 0.0], [-2.0, 700.0, 0.25]])


def exact_multi_label(pooled: Array, labels: Array) -> Any:
    """Mean over all entries of −y ln σ(x) − (1 − y) ln(1 − σ(x))."""
    with mp.workdps(1000):  # 1 − σ(1e3) is 1e−435
        terms = [
            -(y * mp.log(1 / (1 + mp.exp(-x)))) - (1 - y) * mp.log(1 - 1 / (1 + mp.exp(-x)))
            for x, y in zip(exact(pooled.ravel()), exact(labels.ravel()), strict=True)
        ]
        return np.float64(mp.fsum(terms) / len(terms))


def test_multi_label_loss(config: Config) -> None:
    labels = frozen([[1.0, 0.0, 1.0], [0.0, 1.0, 0.5], [0.0, 1.0, 0.0]])
    found = sequence_loss(ORACLE, replace(config, num_labels=3), POOLED, labels)
    # Each term is at most 1001 with 4 roundings of at most that; nine terms summed and divided: (4 + 9) u · 1001.
    close(found, exact_multi_label(POOLED, labels), atol=13 * 1001 * U64)


def test_a_sure_and_right_multi_label_score_still_has_a_loss(config: Config) -> None:
    # −ln(1 − σ(−40)) = ln(1 + e⁻⁴⁰) = 4.248354255291588977…e−18 (mpmath, 50 digits); ln(1 + x) without log1p gives 0.
    found = sequence_loss(ORACLE, replace(config, num_labels=2), frozen([[-40.0, -40.0]]), frozen([[0.0, 0.0]]))
    close(found, np.float64(4.248354255291589e-18), rtol=8 * U64)  # exp, log1p, a sum and a mean of two


def test_single_label_loss(config: Config) -> None:
    labels = frozen([2, 0, 1])
    found = sequence_loss(ORACLE, replace(config, num_labels=3), POOLED, labels)
    close(found, exact_cross_entropy(POOLED, labels), atol=(5 * 1e3 + 16) * U64)  # see test_cross_entropy


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_regression_loss(config: Config, shape: tuple[int, ...], dtype: str) -> None:
    # By hand: scores 1, 2, 4 against 3, 2, −1: (4 + 0 + 25) / 3. Labels (B,) must not broadcast against scores (B, 1).
    pooled, labels = frozen([[1.0], [2.0], [4.0]]), frozen(np.array([3, 2, -1], dtype).reshape(shape))
    close(sequence_loss(ORACLE, replace(config, num_labels=1), pooled, labels), np.float64(29 / 3), rtol=2 * U64)


@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [
        ("regression", frozen(np.ones((3, 3), np.int64)), lambda x, y: np.float64(((x - y) ** 2).mean())),
        ("multi_label_classification", frozen(np.ones((3, 3), np.int64)), exact_multi_label),
    ],
)
def test_problem_type_of_the_config_wins(
    config: Config, kind: str, labels: Array, expected: Callable[[Array, Array], Any]
) -> None:
    # Integer labels of three classes alone would mean single-label.
    found = sequence_loss(ORACLE, replace(config, num_labels=3, problem_type=kind), POOLED, labels)
    # Squares up to 1.002e6 for regression, terms up to 1e3 for the other; nine of them, a few roundings each.
    close(found, expected(POOLED, labels), atol=20 * 1.1e6 * U64)


# In the model


def test_loss_of_the_model_is_not_shifted_once_more(model: Callable[..., T5Gemma2], config: Config) -> None:
    # D65, D08: with labels alone the decoder reads bos and all labels but the last, and row t predicts label t.
    labels = frozen([[10, 20, 30, 4], [40, 50, -100, -100]])
    net = model()
    out = net(frozen([[6, 7, 8], [6, 9, 9]]), labels=labels)
    given = net(frozen([[6, 7, 8], [6, 9, 9]]), frozen([[6, 10, 20, 30], [6, 40, 50, 3]]))
    same_bits(out.logits, given.logits)
    assert given.loss is None
    assert out.loss is not None
    close(out.loss, exact_cross_entropy(out.logits, labels), atol=(5 * 30 + 16) * U64)  # |logits| < 30; see above


def test_classifier_defaults_to_the_shifted_encoder_ids(model: Callable[..., T5Gemma2], config: Config) -> None:
    ids, shifted = frozen([[6, 17, 8, 9], [6, 9, 9, 3]]), frozen([[6, 6, 17, 8], [6, 6, 9, 9]])
    default, given = model().classify(ids), model().classify(ids, shifted)
    same_bits(default.logits, given.logits)
    assert default.logits.shape == (2, config.num_labels)


def test_sequence_logits_are_the_token_logits_of_the_rightmost_token(model: Callable[..., T5Gemma2]) -> None:
    ids, decoder_ids = frozen([[6, 7, 8], [6, 9, 9]]), frozen([[6, 10, 3, 3], [6, 3, 12, 3]])
    tokens = model().classify(ids, decoder_ids, per_token=True).logits
    pooled = model().classify(ids, decoder_ids).logits
    assert tokens.shape == (2, 4, 5)
    same_bits(pooled, np.stack([tokens[0, 1], tokens[1, 2]]))


def test_token_loss_ignores_and_averages_over_positions(model: Callable[..., T5Gemma2]) -> None:
    labels = frozen([[0, 4, -100, -100], [2, -100, 1, -100]])
    out = model().classify(
        frozen([[6, 7, 8], [6, 9, 9]]), frozen([[6, 10, 3, 3], [6, 3, 12, 3]]), per_token=True, labels=labels
    )
    assert out.loss is not None
    largest = float(np.abs(out.logits).max())
    close(out.loss, exact_cross_entropy(out.logits, labels), atol=(5 * largest + 16) * U64)  # see test_cross_entropy

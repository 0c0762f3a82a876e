"""The regression on patterns: coefficients by another solver, and errors that are true where elements hang together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conformance.judge.patterns import regression
from conformance.measure.regression import MOST, clustered, coefficients, fit


def made(rows: Any) -> Any:
    """(rows, rows, clusters) of sums of products, from rows (rows, clusters, elements)."""
    return np.einsum("ike,jke->ijk", rows, rows)


def drawn(seed: int, clusters: int = 40, elements: int = 12, rows: int = 4) -> Any:
    return np.random.default_rng(seed).normal(size=(rows, clusters, elements))


def test_it_is_least_squares_and_its_jackknife() -> None:
    rows = drawn(1)
    found = fit(made(rows), 0, [1, 2, 3])

    def solved(kept: Any) -> Any:
        columns = rows[1:, kept].reshape(3, -1).T
        return np.linalg.lstsq(columns, rows[0, kept].reshape(-1), rcond=None)[0]

    whole = solved(np.ones(40, bool))
    without = np.array([solved(np.arange(40) != k) for k in range(40)])
    np.testing.assert_allclose(found.coefficients, whole, rtol=1e-9)
    np.testing.assert_allclose(found.errors, np.sqrt(39 / 40 * ((without - without.mean(0)) ** 2).sum(0)), rtol=1e-6)
    np.testing.assert_allclose(coefficients(made(rows).sum(axis=2), range(1, 4)), whole, rtol=1e-9)
    rest = rows[0].reshape(-1) - rows[1:].reshape(3, -1).T @ whole
    assert found.left == pytest.approx(rest @ rest, rel=1e-9)
    assert found.whole == pytest.approx((rows[0] ** 2).sum(), rel=1e-12)


def test_columns_that_are_alike_share_a_coefficient() -> None:
    rows = drawn(2)
    rows[2] = rows[1]
    rows[0] = 3 * rows[1] + 1e-3 * rows[0]
    found = fit(made(rows), 0, [1, 2, 3])
    assert found.coefficients[:2] == pytest.approx([1.5, 1.5], abs=1e-2)


def test_a_column_of_zeros_has_no_coefficient() -> None:
    rows = drawn(3)
    rows[1:] = 0
    found = fit(made(rows), 0, [1, 2, 3])
    assert not found.coefficients.any()
    assert np.isinf(found.errors).all()


@pytest.mark.parametrize("clusters", [1, 5, MOST, 1000])
def test_clusters_are_taken_together_and_nothing_is_lost(clusters: int) -> None:
    rows = drawn(4, clusters)
    halves = [made(rows[:, : clusters // 2]), made(rows[:, clusters // 2 :])]
    together = clustered(halves)
    assert together.shape[2] == min(clusters, MOST)
    np.testing.assert_allclose(together.sum(axis=2), made(rows).sum(axis=2), rtol=1e-9, atol=1e-9)


def hanging_together(seed: int, share: float, defect: float = 0.0) -> Any:
    """Peer, two controls and a pattern, whose elements in a cluster are one number each times a few directions: as the
    values of a head are, that hang on a few rounded weights."""
    rng = np.random.default_rng(seed)
    clusters, elements = 60, 64
    few = rng.normal(size=(clusters, 3, elements))

    def noise() -> Any:
        return np.einsum("kf,kfe->ke", rng.normal(size=(clusters, 3)), few)

    pattern = noise() * 0.7
    peer = share * pattern + noise()
    held = np.arange(clusters) % 6 == 0
    return made(np.stack([peer + defect * pattern * held[:, None], noise(), noise(), pattern]))


def test_the_errors_are_true_where_elements_hang_together() -> None:
    """Counted one by one, 64 elements of 3 degrees of freedom would make the error four times too small."""
    fits = [fit(hanging_together(seed, 0.0), 0, [3]) for seed in range(300)]
    sure = np.array([f.coefficients[0] / f.errors[0] for f in fits])
    assert 0.85 < np.sqrt((sure**2).mean()) < 1.2
    assert np.abs(sure).max() < 5


def verdicts(grams: list[Any]) -> Any:
    (found,) = regression(["D51"], "place", grams)
    return found


def test_the_verdicts() -> None:
    """On many clusters, so that chance decides nothing."""

    def judged(share: float, extra: float = 0.0) -> Any:
        rng = np.random.default_rng(5)
        rows = rng.normal(size=(5, 400, 20))
        rows[3] *= 1.5
        peer = rows[0] + share * rows[3] + extra * rows[4]
        return verdicts([made(np.stack([peer, rows[1], rows[2], rows[3]]))])

    assert judged(0.0).verdict == "absent"
    assert judged(1.0).verdict == "named"
    assert judged(0.7).verdict == "akin", "sure, and 1 is not within its errors"
    assert judged(1.0, extra=2.0).verdict == "akin", "it leaves more than rounding does"
    assert judged(0.3).verdict == "partly"
    assert judged(-0.5).verdict == "absent", "a negative part is none"
    assert judged(40.0).verdict == "partly"
    assert judged(0.05).verdict == "absent"


@pytest.mark.parametrize(
    ("share", "noise", "verdict"),
    [
        (1.0, 0.0, "named"),
        (0.3, 0.0, "partly"),
        (0.0, 0.0, "absent"),
        (1.0, 0.5, "named"),
        (0.0, 1.0, "absent"),
        (0.0, 40.0, "no power"),  # rounding that no legal run has: the peer is not accused of a pattern
    ],
)
def test_a_pattern_is_seen_where_legal_runs_have_no_error(share: float, noise: float, verdict: str) -> None:
    """Nothing that chance does moves its coefficient: what there is of it is the peer's."""
    rows = drawn(7, clusters=400)
    peer = share * rows[3] + noise * rows[0]
    assert verdicts([made(np.stack([peer, 0 * rows[1], 0 * rows[2], rows[3]]))]).verdict == verdict


def test_few_clusters_say_nothing() -> None:
    rows = drawn(6, clusters=7, elements=4000)
    rows[0] = rows[3]
    assert verdicts([made(rows)]).verdict == "no power"
    more = drawn(6, clusters=8, elements=4000)
    more[0] = more[3]
    assert verdicts([made(more)]).verdict == "named"

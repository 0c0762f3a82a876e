"""Least squares of one error on others and on patterns, and how sure its coefficients are.

Elements are not independent: all numbers of one attention head hang on the same few rounded weights. So the sums are
kept by cluster (a token, or one of its heads), and the delete-one jackknife over clusters gives the standard errors
(Efron and Stein, *The Annals of Statistics* 9, 1981, 586).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Host = np.ndarray[Any, Any]
MOST = 64  # clusters that are left out one by one; more are taken together, and the errors stay true to a tenth
ALIKE = 1e-9  # of the largest eigenvalue: directions that are less than that are one and the same column


@dataclass(frozen=True)
class Fit:
    """One regression.

    Args:
        coefficients, errors: (columns,), and their standard errors.
        whole, left: the target's sum of squares before and after.
    """

    coefficients: Host
    errors: Host
    whole: float
    left: float


def clustered(grams: Sequence[Host]) -> Host:
    """(rows, rows, clusters), at most MOST of them, of sums of products (rows, rows, …). One row after the other: those
    of a tower that sees a picture are a gigabyte."""
    return np.stack([_clustered([gram[row] for gram in grams]) for row in range(len(grams[0]))])


def _clustered(rows: Sequence[Host]) -> Host:
    """One row of it, (rows, clusters)."""
    together = np.concatenate([row.reshape(len(row), -1) for row in rows], axis=1)
    count = together.shape[1]
    if count <= MOST:
        return together
    return np.asarray(np.add.reduceat(together, np.linspace(0, count, MOST + 1).astype(int)[:-1], axis=1))


def coefficients(gram: Host, columns: Sequence[int]) -> Host:
    """Of the first row on the rows `columns`, as in `fit`; gram (rows, rows) is the sum over all clusters."""
    turned = _basis(gram[np.ix_(columns, columns)])
    within, along = turned.T @ gram[np.ix_(columns, columns)] @ turned, turned.T @ gram[columns, 0]
    return np.asarray(turned @ np.linalg.solve(within, along))


def fit(gram: Host, target: int, columns: Sequence[int]) -> Fit:
    """Row `target` on rows `columns`. Columns that are alike share a coefficient; of one cluster nothing is known."""
    return fits(gram, [target], columns)[0]


def fits(gram: Host, targets: Sequence[int], columns: Sequence[int]) -> list[Fit]:
    """Each row of `targets` on the rows `columns`; see `fit`."""
    size, rows = len(columns), [*columns, *targets]
    by_cluster = np.moveaxis(gram[np.ix_(rows, rows)], 2, 0)
    within, along = by_cluster[:, :size, :size], by_cluster[:, :size, size:]
    turned = _basis(within.sum(axis=0))
    products, within, along = along.sum(axis=0), turned.T @ within @ turned, turned.T @ along
    coefficients = turned @ np.linalg.solve(within.sum(axis=0), along.sum(axis=0))
    errors = _jackknife(within, along, turned)
    found = []
    for i, target in enumerate(targets):
        whole = float(gram[target, target].sum())
        left = max(0.0, whole - float(coefficients[:, i] @ products[:, i]))
        found.append(Fit(coefficients[:, i], errors[:, i], whole, left))
    return found


def _basis(normal: Host) -> Host:
    """(columns, directions): combinations of the columns that are orthonormal; what is alike is one of them."""
    scale = np.sqrt(np.maximum(np.diag(normal), 1e-300))
    values, vectors = np.linalg.eigh(normal / np.outer(scale, scale))
    keep = values > ALIKE * max(values[-1], 1e-300)
    return np.asarray(vectors[:, keep] / np.sqrt(values[keep]) / scale[:, None])


def _jackknife(within: Host, along: Host, turned: Host) -> Host:
    """(columns, targets): standard errors, from the coefficients without one cluster after the other."""
    clusters, size, targets = along.shape
    if clusters < 2 or not size:
        return np.full((len(turned), targets), np.inf)
    others = within.sum(axis=0) - within + 1e-12 * np.eye(size)  # a cluster may hold all of a pattern
    without = turned @ np.linalg.solve(others, along.sum(axis=0) - along)
    spread = ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    return np.asarray(np.sqrt((clusters - 1) / clusters * spread))

"""A learned correction of predictions, to see what the mechanisms leave over. An option of `validate`; no estimate ever uses it.

Per device, operator, data type and clock, a ridge regression of log(measured / predicted) on the logarithms of the sizes and of the
prediction, their squares and products. It is fitted on the half of the shapes called fitted and is to be scored on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from verif.validation.measurement import Measurement
from verif.validation.score import Score, groups

LABEL = "learned residual"

FEWEST = 20
"""Rows of the fitted half below which nothing is learned: the prediction stays as it is."""

PENALTIES = 10.0 ** np.arange(-3, 5)
"""Of the squared coefficients of standardised features; the one with the least generalised cross-validation error counts."""

Array = np.ndarray[Any, Any]


def corrected(score: Score) -> tuple[float, ...]:
    """Predictions in seconds times the learned factors, in the order of the score."""
    values = np.array(score.predicted, dtype=float)
    for chosen in groups(score.measured).values():
        rows = [score.measured[i] for i in chosen]
        fitted = np.array([m.fitted for m in rows])
        predicted = values[chosen]
        if fitted.sum() >= FEWEST:
            residual = np.log([m.latency_s for m in rows]) - np.log(predicted)
            values[chosen] = predicted * np.exp(_regress(_features(rows, predicted, fitted), residual, fitted))
    return tuple(values.tolist())


def _features(rows: Sequence[Measurement], predicted: Array, fitted: Array) -> Array:
    """Standardised on the fitted half: logarithms of what differs between rows, their squares and their products."""
    names = sorted({name for m in rows for name in m.shape})
    table = np.array([[m.shape.get(name, 0) for name in names] for m in rows], dtype=float).reshape(len(rows), len(names))
    linear = _standard(np.column_stack([np.log1p(table), np.log(predicted)]), fitted)
    count = linear.shape[1]
    pairs = [linear[:, i] * linear[:, j] for i in range(count) for j in range(i, count)]
    both = np.column_stack([linear, *pairs]) if count * (count + 3) // 2 <= fitted.sum() // 2 else linear
    return _standard(both, fitted)


def _standard(columns: Array, fitted: Array) -> Array:
    """Of mean 0 and spread 1 over the fitted half; columns that do not differ there are left out."""
    mean, spread = columns[fitted].mean(axis=0), columns[fitted].std(axis=0)
    used = spread > 1e-9
    return np.asarray((columns[:, used] - mean[used]) / spread[used])


def _regress(features: Array, residual: Array, fitted: Array) -> Array:
    """The residual of every row by a ridge regression on the fitted ones, no further than these range."""
    known = residual[fitted]
    mean, n = known.mean(), len(known)
    left, size, right = np.linalg.svd(features[fitted], full_matrices=False)
    turned = left.T @ (known - mean)
    best: tuple[float, Array] = (np.inf, np.zeros(features.shape[1]))
    for penalty in PENALTIES:
        kept = size**2 / (size**2 + penalty)
        wrong = known - mean - left @ (kept * turned)
        error = float(wrong @ wrong) / max(1e-9, n - 1 - float(kept.sum())) ** 2
        if error < best[0]:
            best = (error, right.T @ (size / (size**2 + penalty) * turned))
    learned: Array = np.clip(mean + features @ best[1], known.min(), known.max())
    return learned

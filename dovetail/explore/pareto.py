"""Fronts: designs that no other design beats in everything, and the volume that a front dominates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Vector = Sequence[float]


def front(costs: Sequence[Vector]) -> list[int]:
    """Indices of the vectors that no other dominates (no larger anywhere and smaller somewhere), in their order. Smaller is
    better; of equal vectors all are kept.

    >>> front([(1, 4), (2, 2), (3, 3), (4, 1), (2, 2)])
    [0, 1, 3, 4]
    """
    if not len(costs):
        return []
    points = np.asarray(costs, float)
    order = np.lexsort(points.T[::-1])
    kept: list[int] = []
    best = np.empty((0, points.shape[1]))
    for index in order:
        point = points[index]
        beaten = (best <= point).all(axis=1) & (best < point).any(axis=1)
        if not beaten.any():
            kept.append(int(index))
            best = np.vstack([best, point])
    return sorted(kept)


def ranks(costs: Sequence[Vector]) -> list[int]:
    """For each vector how many fronts have to be taken away before it is on one; 0 for the front itself."""
    out = [0] * len(costs)
    left = list(range(len(costs)))
    rank = 0
    while left:
        on = {left[i] for i in front([costs[i] for i in left])}
        for index in on:
            out[index] = rank
        left = [index for index in left if index not in on]
        rank += 1
    return out


def hypervolume(costs: Sequence[Vector], reference: Vector) -> float:
    """The volume between `costs` and a `reference` that is worse than all of them; vectors beyond it count nothing. Exact, by
    slicing along the last dimension: fine for the hundreds of points of a front in two to four dimensions.

    >>> hypervolume([(1, 2), (2, 1)], (3, 3))
    3.0
    """
    limit = np.asarray(reference, float)
    points = [p for p in np.asarray(costs, float).reshape(-1, len(limit)) if (p < limit).all()]
    return float(_volume(np.asarray(points), limit)) if points else 0.0


def _volume(points: Any, limit: Any) -> float:
    if points.shape[1] == 1:
        return float(limit[0] - points.min())
    points = points[front(points.tolist())]
    if points.shape[1] == 2:
        points = points[np.argsort(points[:, 0])]
        heights = np.minimum.accumulate(np.concatenate([[limit[1]], points[:, 1]]))
        return float(((limit[0] - points[:, 0]) * (heights[:-1] - heights[1:])).sum())
    points = points[np.argsort(points[:, -1])]
    ends = np.append(points[1:, -1], limit[-1])
    total = 0.0
    for count, (start, end) in enumerate(zip(points[:, -1], ends, strict=True), 1):
        if end > start:
            total += (end - start) * _volume(points[:count, :-1], limit[:-1])
    return total


def normalised(costs: Sequence[Vector]) -> tuple[list[list[float]], list[float]]:
    """Costs scaled to their own extent, 0 the best and 1 the worst of each, and the reference 1.1 for hypervolumes."""
    points = np.asarray(costs, float)
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    return scaled.tolist(), [1.1] * points.shape[1]

"""A fitted cost model over stored points: what it predicts is a proposal, never a result.

Gaussian-process regression with a squared-exponential kernel (Rasmussen and Williams, Gaussian Processes for Machine Learning,
2006, algorithm 2.1) on the logarithm of each objective. Parameters are scaled to [0, 1], numbers by their logarithm where they
span more than a decade, choices one-hot. Length scale and noise are those of greatest marginal likelihood on a small grid. Its
error is that on points held out of the fit, in five folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dovetail.explore.errors import ExploreError
from dovetail.explore.pareto import front
from dovetail.explore.space import Parameters, Space, magnitudes

if TYPE_CHECKING:
    from dovetail.explore.exploration import Exploration
    from dovetail.explore.objectives import Objective
    from dovetail.explore.store import Memory, Store
    from dovetail.explore.study import Point, Study

NEEDED = 8
"""Points below which nothing is fitted."""

MOST = 800
"""Points that are fitted; of more, these are drawn evenly. The fit takes the cube of their number."""

FOLDS = 5
_LENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
_NOISES = (1e-6, 1e-4, 1e-2)
_DECADE = 10.0


@dataclass(frozen=True)
class Features:
    """Points of a space as vectors in [0, 1]; a parameter that does not exist at a point is at 0, and a flag says so."""

    space: Space

    def encode(self, points: Sequence[Mapping[str, Any]]) -> Any:
        """An array [points, features]."""
        columns: list[list[float]] = []
        for p in self.space.parameters:
            sizes = magnitudes(p.values)
            if sizes is not None:
                low, high = min(sizes), max(sizes)
                logarithmic = low > 0 and high / low >= _DECADE
                scale = {v: _position(s, low, high, logarithmic) for v, s in zip(p.values, sizes, strict=True)}
                columns.append([scale[point[p.name]] if p.name in point else 0.0 for point in points])
            else:
                columns += [[float(point.get(p.name) == value) for point in points] for value in p.values]
            if p.when is not None:
                columns.append([float(p.name in point) for point in points])
        return np.asarray(columns, float).T.reshape(len(points), -1)


def _position(value: float, low: float, high: float, logarithmic: bool) -> float:
    if high == low:
        return 0.0
    return float(np.log(value / low) / np.log(high / low)) if logarithmic else (value - low) / (high - low)


@dataclass(frozen=True)
class _Fit:
    """One objective: the inputs, their weights, the mean and the kernel."""

    inputs: Any
    weights: Any
    mean: float
    length: float

    def predict(self, inputs: Any) -> Any:
        return self.mean + _kernel(inputs, self.inputs, self.length) @ self.weights


def _kernel(a: Any, b: Any, length: float) -> Any:
    distance = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
    return np.exp(-np.maximum(distance, 0) / (2 * length**2))


def _fitted(inputs: Any, targets: Any) -> _Fit:
    mean = float(targets.mean())
    centred = targets - mean
    variance = float(centred.var()) or 1.0
    best: tuple[float, _Fit] | None = None
    for length in _LENGTHS:
        kernel = _kernel(inputs, inputs, length)
        for noise in _NOISES:
            factor = np.linalg.cholesky(kernel + noise * np.eye(len(inputs)))
            weights = np.linalg.solve(factor.T, np.linalg.solve(factor, centred))
            likelihood = -0.5 * float(centred @ weights) / variance - float(np.log(np.diag(factor)).sum())
            if best is None or likelihood > best[0]:
                best = (likelihood, _Fit(inputs, weights, mean, length))
    assert best is not None
    return best[1]


@dataclass(frozen=True)
class Surrogate:
    """Fitted objectives. `error` is the median and `worst` the largest relative error on held-out points, by objective."""

    space: Space
    objectives: tuple[Objective, ...]
    fits: tuple[_Fit, ...]
    error: Mapping[str, float]
    worst: Mapping[str, float]
    points: int

    @classmethod
    def fit(cls, space: Space, objectives: Sequence[Objective], points: Sequence[Point]) -> Surrogate:
        """Fits every objective. Raises `ExploreError` for fewer than eight points, or an objective that is not above 0."""
        usable = [p for p in points if p.objectives]
        if len(usable) < NEEDED:
            raise ExploreError(f"a surrogate needs at least {NEEDED} evaluated points, found {len(usable)}")
        if len(usable) > MOST:
            usable = [usable[i * len(usable) // MOST] for i in range(MOST)]
        inputs = Features(space).encode([p.parameters for p in usable])
        fits, error, worst = [], {}, {}
        fold = np.random.default_rng(0).permutation(len(usable)) % FOLDS
        for objective in objectives:
            values = np.asarray([p.objectives[objective.name] for p in usable])
            if (values <= 0).any():
                raise ExploreError(f"objective {objective.name!r}: a surrogate needs values above 0, found {values.min()}")
            targets = np.log(values)
            wrong = np.empty(len(usable))
            for held in range(FOLDS):
                out = fold == held
                predicted = _fitted(inputs[~out], targets[~out]).predict(inputs[out])
                wrong[out] = np.abs(np.expm1(predicted - targets[out]))
            fits.append(_fitted(inputs, targets))
            error[objective.name], worst[objective.name] = float(np.median(wrong)), float(wrong.max())
        return cls(space, tuple(objectives), tuple(fits), error, worst, len(usable))

    def predict(self, points: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        """Predicted objectives of points."""
        inputs = Features(self.space).encode(points)
        columns = [np.exp(fit.predict(inputs)) for fit in self.fits]
        return [{o.name: float(column[i]) for o, column in zip(self.objectives, columns, strict=True)} for i in range(len(points))]

    def propose(self, candidates: Sequence[Parameters], count: int, known: Sequence[Point] = ()) -> list[Parameters]:
        """Up to `count` candidates that are predicted to extend the front of the known points, the predicted front first; the
        following fronts fill up. Proposals are to be estimated: predictions are no results."""
        left = list(range(len(candidates)))
        predicted = self.predict(candidates)
        costs = [[o.sign * p[o.name] for o in self.objectives] for p in predicted]
        base = [[o.sign * p.objectives[o.name] for o in self.objectives] for p in known]
        chosen: list[int] = []
        while left and len(chosen) < count:
            on = [i for i in front(base + [costs[i] for i in left]) if i >= len(base)] if base else front([costs[i] for i in left])
            picked = [left[i - len(base)] for i in on]
            if not picked:  # nothing is predicted to extend the front: the best of the rest
                base = []
                continue
            room = count - len(chosen)
            spread = picked if len(picked) <= room else [picked[i * len(picked) // room] for i in range(room)]
            chosen += spread
            taken = set(picked)
            left = [i for i in left if i not in taken]
        return [candidates[i] for i in chosen[:count]]

    def __str__(self) -> str:
        parts = [f"{name}: median {100 * self.error[name]:.2g} %, worst {100 * self.worst[name]:.2g} %" for name in self.error]
        return f"surrogate of {self.points} points, error on held-out points: {'; '.join(parts)}"


def propose_and_check(
    exploration: Exploration, study: Study, count: int, store: Store | Memory, seed: int = 0, **how: Any
) -> tuple[Study, Surrogate]:
    """`study` with up to `count` proposals of a surrogate fitted to it, each estimated, and the surrogate."""
    known = {tuple(p.parameters.items()) for p in study.points}
    model = Surrogate.fit(study.space, study.objectives, study.points)
    pool = [p for p in exploration.space.sample(4096, seed) if tuple(p.items()) not in known]
    points, ran = exploration.evaluate(model.propose(pool, count, study.feasible), store, **how)
    return exploration.study([*study.points, *points], store, study.evaluated + ran, study.elapsed_s), model

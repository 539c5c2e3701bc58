"""Which parameter moves an objective most, and which bound stops it from getting better.

Finite differences over the points of a study: every pair that differs by one step of one parameter and in nothing else gives
the change of the logarithm of the objective. Beside it the rank correlation over all points (C. Spearman, 1904), which needs
no pairs. Both are of this study's ranges: another range gives other answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dovetail.explore import expression
from dovetail.explore.errors import ExploreError
from dovetail.explore.objectives import Objective
from dovetail.explore.space import Parameter, Space, Value
from dovetail.explore.study import Point, Study
from dovetail.explore.words import parameters as spelled
from dovetail.human import percent

STOPPED = 0.01
"""An improvement per step below this share counts as none."""


@dataclass(frozen=True)
class Effect:
    """One parameter on one objective. `step` is the mean factor by which a step changes it, up or down, `largest` the largest one,
    `trend` the mean factor of a step upwards (1 for choices, which have no order); `pairs` is what they follow from. `rank` is the
    rank correlation, None where values have no order or nothing changes."""

    parameter: str
    step: float
    largest: float
    trend: float
    pairs: int
    rank: float | None

    def __str__(self) -> str:
        if not self.pairs:
            return f"{self.parameter}: no two designs differ in it alone"
        if self.largest == 1:
            return f"{self.parameter}: changes nothing"
        way = "" if self.rank is None else f", {'falls' if self.trend < 1 else 'rises'} with it (rank correlation {self.rank:+.2f})"
        return f"{self.parameter}: {self.step:.3g}x per step, at most {self.largest:.3g}x{way}"


@dataclass(frozen=True)
class Sensitivity:
    """Effects on one objective, the strongest first, and what stops the strongest at the best point."""

    objective: Objective
    effects: tuple[Effect, ...]
    stop: str

    def lines(self) -> list[str]:
        """A line per parameter and one for the bound."""
        return [f"sensitivity of {self.objective.name}:", *(f"  {e}" for e in self.effects), f"  {self.stop}"]


def sensitivity(study: Study, name: str | None = None) -> Sensitivity:
    """The effects on an objective, by default the first. Raises `ExploreError` when fewer than two designs are feasible."""
    chosen = study.objective(name)
    points = [p for p in study.points if p.feasible]
    if len(points) < 2:
        raise ExploreError(f"study {study.name!r}: sensitivity needs at least two feasible designs, found {len(points)}")
    effects = sorted((_effect(points, study.space, p, chosen) for p in study.space.parameters), key=lambda e: -e.step)
    return Sensitivity(chosen, tuple(effects), _stop(study, chosen, effects))


def _others(point: Point, name: str, space: Space) -> tuple[tuple[str, Value], ...]:
    """Everything else about a point; parameters that exist only for some values of this one are left out."""
    dependent = {p.name for p in space.parameters if p.when and name in expression.names(p.when)}
    return tuple((n, v) for n, v in point.parameters.items() if n != name and n not in dependent)


def _effect(points: Sequence[Point], space: Space, parameter: Parameter, objective: Objective) -> Effect:
    groups: dict[Any, dict[int, float]] = {}
    for point in points:
        if parameter.name in point.parameters and point.objectives[objective.name] > 0:
            at = parameter.values.index(point.parameters[parameter.name])
            line = groups.setdefault(_others(point, parameter.name, space), {})
            value = math.log(point.objectives[objective.name])
            line[at] = min(line.get(at, value), value, key=lambda v: objective.sign * v)  # of several, the best
    changes = []
    for line in groups.values():
        order = sorted(line)
        pairs = list(pairwise(order)) if parameter.numeric else [(a, b) for a in order for b in order if a < b]
        changes += [line[b] - line[a] for a, b in pairs]
    sizes = [abs(c) for c in changes]
    return Effect(
        parameter.name,
        math.exp(sum(sizes) / len(sizes)) if sizes else 1.0,
        math.exp(max(sizes, default=0.0)),
        math.exp(sum(changes) / len(changes)) if changes and parameter.numeric else 1.0,
        len(changes),
        _rank_correlation(points, parameter, objective),
    )


def _rank_correlation(points: Sequence[Point], parameter: Parameter, objective: Objective) -> float | None:
    if not parameter.numeric:
        return None
    pairs = [
        (parameter.values.index(p.parameters[parameter.name]), p.objectives[objective.name])
        for p in points
        if parameter.name in p.parameters
    ]
    if len(pairs) < 3:
        return None
    x, y = (_mean_ranks(np.asarray(column, float)) for column in zip(*pairs, strict=True))
    spread = float(x.std() * y.std())
    return float(((x - x.mean()) * (y - y.mean())).mean() / spread) if spread else None


def _mean_ranks(values: Any) -> Any:
    """Ranks of values; equal ones share the mean of theirs."""
    unique, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse].reshape(len(values)) if len(unique) else values


def _stop(study: Study, objective: Objective, effects: Sequence[Effect]) -> str:
    """Where the best point stops improving along the strongest parameter, and the bound there."""
    best = study.best(objective.name)
    strongest = next((e for e in effects if e.pairs and e.parameter in best.parameters), None)
    bound = _bound(best, objective)
    if strongest is None:
        return f"the best design ({spelled(best)}) is bound by {bound}"
    parameter = study.space[strongest.parameter]
    rest = _others(best, parameter.name, study.space)
    same = [p for p in study.feasible if parameter.name in p.parameters and _others(p, parameter.name, study.space) == rest]
    ranked = sorted(same, key=lambda p: -objective.sign * p.objectives[objective.name])
    line = {p.parameters[parameter.name]: p for p in ranked}  # the best of several comes last and stays
    values = [v for v in parameter.values if v in line]
    at = values.index(best.parameters[parameter.name])
    gains = []
    for a, b in pairwise(values):
        before, after = (objective.sign * line[v].objectives[objective.name] for v in (a, b))
        gains.append((a, b, (before - after) / abs(before) if before else 0.0))
    flat = next((a for a, _, gain in gains if 0 <= abs(gain) < STOPPED), None)
    if not parameter.numeric:
        return f"{parameter.name} moves it most; the best is {best.parameters[parameter.name]}, bound by {bound}"
    if flat is not None:
        there = _bound(line[flat], objective)
        return f"{parameter.name} moves it most; beyond {flat} a step gains less than {percent(STOPPED)}: the bound is {there}"
    edge = "the end of its range" if at in (0, len(values) - 1) else "inside its range"
    return f"{parameter.name} moves it most; the best is at {best.parameters[parameter.name]}, {edge}, bound by {bound}"


def _bound(point: Point, objective: Objective) -> str:
    """What limits the workload that an objective is about, or the longest one."""
    longest = point.bound_run(objective.label)
    if longest is None:
        return "nothing that was measured"
    share = longest.metrics["bound_utilization"]
    return f"{longest.metrics['bound']} ({percent(share)} of its peak, {longest.workload.label})"

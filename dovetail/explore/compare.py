"""Two studies side by side: the best of each objective, and how much of their common front each one holds."""

from __future__ import annotations

from dovetail.explore.errors import ExploreError
from dovetail.explore.objectives import Objective
from dovetail.explore.pareto import front, hypervolume, normalised
from dovetail.explore.study import Study
from dovetail.explore.words import parameters, quantity


def shared(a: Study, b: Study) -> list[Objective]:
    """Objectives that both studies have. Raises `ExploreError` when there is none."""
    names = {o.name for o in b.objectives}
    found = [o for o in a.objectives if o.name in names]
    if not found:
        mine, theirs = (", ".join(o.name for o in s.objectives) for s in (a, b))
        raise ExploreError(f"studies {a.name!r} and {b.name!r} share no objective: {mine} against {theirs}")
    return found


def volumes(a: Study, b: Study) -> tuple[float, float]:
    """The share of the volume of the front of both together that each study dominates, over the objectives that they share."""
    objectives = shared(a, b)
    mine, theirs = ([[o.sign * p.objectives[o.name] for o in objectives] for p in s.feasible] for s in (a, b))
    if not mine + theirs:
        return 0.0, 0.0
    scaled, reference = normalised(mine + theirs)
    whole = hypervolume(scaled, reference)
    return hypervolume(scaled[: len(mine)], reference) / whole, hypervolume(scaled[len(mine) :], reference) / whole


def on_common_front(a: Study, b: Study) -> tuple[int, int]:
    """How many designs of each study are on the front of both together."""
    objectives = shared(a, b)
    mine, theirs = ([[o.sign * p.objectives[o.name] for o in objectives] for p in s.feasible] for s in (a, b))
    on = front(mine + theirs)
    return sum(1 for i in on if i < len(mine)), sum(1 for i in on if i >= len(mine))


def comparison(a: Study, b: Study) -> list[str]:
    """The comparison in lines."""
    lines = [f"{a.name} against {b.name}:"]
    for objective in shared(a, b):
        if not a.feasible or not b.feasible:
            continue
        best = [s.best(objective.name) for s in (a, b)]
        first, second = (p.objectives[objective.name] for p in best)
        ratio = f" ({first / second:.3g}x)" if second else ""
        lines.append(
            f"  best {objective.name}: {quantity(first, objective)} at {parameters(best[0])}; "
            f"{quantity(second, objective)} at {parameters(best[1])}{ratio}"
        )
    for study in (a, b):
        if not study.feasible:
            lines.append(f"  {study.name} has no feasible design")
    count, share = on_common_front(a, b), volumes(a, b)
    lines.append(
        f"  front of both: {count[0]} designs of {a.name}, {count[1]} of {b.name}; they dominate {100 * share[0]:.1f} % and "
        f"{100 * share[1]:.1f} % of its volume"
    )
    return lines

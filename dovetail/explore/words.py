"""A study in words: numbers with their units and the few lines that the terminal shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dovetail.human import decimal, digits, joules, seconds

if TYPE_CHECKING:
    from dovetail.explore.objectives import Objective
    from dovetail.explore.study import Point, Study

_LONGEST_REASON = 300


def number(value: float) -> str:
    """A number as people read it, without a unit."""
    return digits(value) if value == 0 or 1e-4 <= abs(value) < 1e15 else f"{value:.3g}"


def quantity(value: float, objective: Objective) -> str:
    """The value of an objective with its unit.

    >>> from dovetail.explore.objectives import objective
    >>> quantity(0.0119, objective("latency", [], [])), quantity(2.5e9, objective("dram_traffic", [], []))
    ('11.9 ms', '2.5 GB')
    """
    match objective.unit:
        case "s":
            return seconds(value)
        case "J":
            return joules(value)
        case "B" | "MAC/s" as unit:
            return decimal(value, unit)
        case "":
            return number(value)
        case unit:
            return f"{number(value)} {unit}"


def parameters(point: Point) -> str:
    """`rows=32, columns=64`."""
    return ", ".join(f"{name}={value}" for name, value in point.parameters.items()) or "no parameters"


def described(study: Study) -> str:
    """How many designs there are and what became of them."""
    total, bad = len(study.points), len(study.infeasible)
    failed = sum(1 for p in study.points if p.failed)
    names = " and ".join(o.name for o in study.objectives)
    parts = [f"{study.name}: {total} design{'s' if total != 1 else ''}, {len(study.pareto())} on the front of {names}"]
    if bad - failed:
        parts.append(f"{bad - failed} infeasible")
    if failed:
        parts.append(f"{failed} failed")
    return ", ".join(parts)


def summary(study: Study) -> list[str]:
    """Size, the best of each objective with the bound that limits it, and the commonest reason for an infeasible design."""
    lines = [described(study)]
    if study.feasible:
        for objective in study.objectives:
            best = study.best(objective.name)
            run = best.bound_run(objective.label)
            bound = f"; bound by {run.metrics['bound']}" if run else ""
            lines.append(f"best {objective.name}: {quantity(best.objectives[objective.name], objective)} at {parameters(best)}{bound}")
    if study.infeasible:
        counts: dict[str, int] = {}
        for point in study.infeasible:
            counts[point.reason] = counts.get(point.reason, 0) + 1
        reason = max(counts, key=lambda r: counts[r])
        lines.append(f"infeasible, {counts[reason]} of {len(study.infeasible)}: {shortened(reason)}")
    if study.notes:
        lines.append("note: " + "; ".join(study.notes))
    return lines


def shortened(text: str) -> str:
    """A reason that fits a few lines: what is left out is from its middle, for the hint comes last."""
    line = " ".join(text.split())
    if len(line) <= _LONGEST_REASON:
        return line
    end = _LONGEST_REASON // 3
    return f"{line[: _LONGEST_REASON - end - 3]} … {line[-end:]}"

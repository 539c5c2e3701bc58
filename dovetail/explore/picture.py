"""The pictures of a study as inline SVG: two objectives against each other, and parallel coordinates.

Colours are classes of the page's style sheet, so that they follow its light or dark theme; every mark carries the number of its
point, so that the page can show the same design in all pictures at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dovetail.explore.objectives import Objective
from dovetail.explore.space import magnitudes
from dovetail.explore.study import Point, Study
from dovetail.explore.words import quantity

MOST_LINES = 1500
"""Lines of parallel coordinates; of more designs, the front and an even choice of the others are drawn."""

_CHARACTER = 7.0
_DECADE = 10.0


@dataclass(frozen=True)
class Scale:
    """Values on an axis from 0 to 1, logarithmic where they span a decade."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Sequence[float]) -> Scale:
        low, high = min(values), max(values)
        return cls(low, high, low > 0 and high / low >= _DECADE)

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return 0.5
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """The ends and up to three round values between them that leave room for their labels."""
        if self.high == self.low:
            return [self.low]
        if self.logarithmic:
            decades = [10.0**e for e in range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)]
            inner = decades[:: max(1, math.ceil(len(decades) / 3))]
        else:
            step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
            step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if (self.high - self.low) / s <= 4)
            inner = [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [self.low, *(t for t in inner if 0.18 < self(t) < 0.82), self.high]


def scatter(study: Study, x: Objective, y: Objective, numbers: dict[int, int], width: int) -> str:
    """Feasible designs by two objectives; those on the front of all objectives stand out, and steps join the front of these two.

    `numbers` gives each point's number in the page by its identity; `width` is in CSS pixels.
    """
    points = study.feasible
    height = round(width * (0.42 if width > 500 else 0.9))
    sx, sy = (Scale.of([p.objectives[o.name] for p in points]) for o in (x, y))
    labels = [quantity(tick, y) for tick in sy.ticks()]
    left, right, top, bottom = 30 + _CHARACTER * max(len(label) for label in labels), 38, 14, 46

    def at(p: Point) -> tuple[float, float]:
        return (
            left + sx(p.objectives[x.name]) * (width - left - right),
            height - bottom - sy(p.objectives[y.name]) * (height - top - bottom),
        )

    out = [_open(width, height, f"{y.name} against {x.name}")]
    shown = [0.0]
    for tick in sx.ticks():
        px = left + sx(tick) * (width - left - right)
        label = escape(quantity(tick, x))
        half = len(label) * _CHARACTER / 2
        out.append(f'<line class="grid" x1="{px:.1f}" y1="{top}" x2="{px:.1f}" y2="{height - bottom}"/>')
        if px - half > shown[-1] or tick == sx.low:
            centre = min(max(px, half), width - half)
            out.append(f'<text x="{centre:.1f}" y="{height - bottom + 16}" text-anchor="middle">{label}</text>')
            shown.append(centre + half + 4)
    for tick, label in zip(sy.ticks(), labels, strict=True):
        py = height - bottom - sy(tick) * (height - top - bottom)
        out.append(f'<line class="grid" x1="{left:.1f}" y1="{py:.1f}" x2="{width - right}" y2="{py:.1f}"/>')
        out.append(f'<text x="{left - 6:.1f}" y="{py + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    arrows = {o.name: "less is better" if o.direction == "minimize" else "more is better" for o in (x, y)}
    middle = (left + width - right) / 2
    out.append(f'<text class="axis" x="{middle:.1f}" y="{height - 8}" text-anchor="middle">{escape(x.name)} ({arrows[x.name]})</text>')
    out.append(
        f'<text class="axis" transform="translate(12 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.name)} ({arrows[y.name]})</text>"
    )
    on_front = {id(p) for p in study.pareto()}
    ordered = sorted(points, key=lambda p: id(p) in on_front)
    steps = _steps([at(p) for p in points], x.sign, y.sign)
    out.append(f'<polyline class="front-line" points="{steps}"/>')
    for p in ordered:
        px, py = at(p)
        kind, radius = ("front", 4.5) if id(p) in on_front else ("other", 3)
        out.append(f'<circle class="mark {kind}" data-p="{numbers[id(p)]}" cx="{px:.1f}" cy="{py:.1f}" r="{radius}"/>')
    return "".join(out) + "</svg>"


def _steps(places: Sequence[tuple[float, float]], x_sign: int, y_sign: int) -> str:
    """The staircase through the points that no other beats in both directions, in picture coordinates (y downwards)."""
    from dovetail.explore.pareto import front

    costs = [(x_sign * px, -y_sign * py) for px, py in places]
    chosen = sorted({places[i] for i in front(costs)})
    out: list[str] = []
    for before, after in zip([None, *chosen], chosen, strict=False):
        if before is not None:
            corner = (after[0], before[1]) if x_sign > 0 else (before[0], after[1])
            out.append(f"{corner[0]:.1f},{corner[1]:.1f}")
        out.append(f"{after[0]:.1f},{after[1]:.1f}")
    return " ".join(out)


def parallel(study: Study, numbers: dict[int, int], width: int, vertical: bool = False) -> str:
    """A line per feasible design through its parameters and objectives; better is to the top (or left) on objectives. On a narrow
    page the axes lie under each other."""
    points = study.feasible
    on_front = {id(p) for p in study.pareto()}
    drawn = [p for p in points if id(p) in on_front]
    rest = [p for p in points if id(p) not in on_front]
    room = max(0, MOST_LINES - len(drawn))
    drawn = (rest if len(rest) <= room else [rest[i * len(rest) // room] for i in range(room)]) + drawn
    axes = [_Axis.parameter(study, name) for name in study.space.names] + [_Axis.objective(study, o) for o in study.objectives]
    count = len(axes)
    height = 64 * count + 10 if vertical else 340
    margin = 56
    out = [_open(width, height, "parallel coordinates of parameters and objectives")]

    def place(index: int, share: float) -> tuple[float, float]:
        if vertical:
            return 14 + share * (width - 28), 34 + 64 * index
        x = margin + index * (width - 2 * margin) / max(1, count - 1) if count > 1 else width / 2
        return x, 300 - share * 250

    for p in drawn:
        path = []
        for index, axis in enumerate(axes):
            share = axis.share(p)
            if share is not None:
                px, py = place(index, share)
                path.append(f"{px:.1f},{py:.1f}")
        kind = "front" if id(p) in on_front else "other"
        out.append(f'<polyline class="path {kind}" data-p="{numbers[id(p)]}" points="{" ".join(path)}"/>')
    slot = (width - 28) if vertical else (width - 2 * margin) / max(1, count - 1) if count > 1 else width
    for index, axis in enumerate(axes):
        (x1, y1), (x2, y2) = place(index, 0), place(index, 1)
        out.append(f'<line class="axis-line" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
        most = max(3, int(slot / _CHARACTER) - 1)
        low, high, name = (escape(_cut(text, most)) for text in (axis.low, axis.high, axis.name))
        if vertical:
            out.append(f'<text class="axis" x="14" y="{y1 - 8:.1f}">{name}</text>')
            out.append(f'<text x="14" y="{y1 + 15:.1f}">{low}</text>')
            out.append(f'<text x="{width - 14}" y="{y1 + 15:.1f}" text-anchor="end">{high}</text>')
        else:
            for text, y, kind in ((name, 18, "axis"), (high, 38, "end"), (low, 318, "end")):
                half = len(text) * _CHARACTER / 2
                x = min(max(x1, half), width - half)
                out.append(f'<text class="{kind}" x="{x:.1f}" y="{y}" text-anchor="middle">{text}</text>')
    return "".join(out) + "</svg>"


@dataclass(frozen=True)
class _Axis:
    """One axis: its name, the texts at its ends, and the place of each value (by text)."""

    name: str
    low: str
    high: str
    places: dict[str, float]
    of: Objective | None = None
    scale: Scale | None = None

    @classmethod
    def parameter(cls, study: Study, name: str) -> _Axis:
        values = study.space[name].values
        sizes = magnitudes(values)
        order = sorted(values, key=lambda v: (magnitudes([v]) or [0.0])[0]) if sizes else list(values)
        places = {str(v): i / max(1, len(order) - 1) if len(order) > 1 else 0.5 for i, v in enumerate(order)}
        return cls(name, str(order[0]), str(order[-1]), places)

    @classmethod
    def objective(cls, study: Study, objective: Objective) -> _Axis:
        values = [p.objectives[objective.name] for p in study.feasible]
        scale = Scale.of(values)
        ends = (scale.high, scale.low) if objective.direction == "minimize" else (scale.low, scale.high)
        return cls(objective.name, quantity(ends[0], objective), quantity(ends[1], objective), {}, objective, scale)

    def share(self, point: Point) -> float | None:
        if self.of is not None and self.scale is not None:
            at = self.scale(point.objectives[self.of.name])
            return 1 - at if self.of.direction == "minimize" else at
        return self.places[str(point.parameters[self.name])] if self.name in point.parameters else None


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _open(width: int, height: int, label: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{escape(label)}">'

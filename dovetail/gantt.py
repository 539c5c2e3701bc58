"""The timeline picture of a report: when each resource is busy, with repeated layers shown once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from matplotlib.colors import to_rgba
from matplotlib.ticker import FixedLocator, FuncFormatter

from dovetail.figures import CHARACTER, INK, MUTED, OTHER, Picture, Shape, colours, freeze, svg
from dovetail.human import seconds
from dovetail.report import Report
from dovetail.timeline import operator_of, resources
from sim.trace import Entries, Fold, Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BARS = 20_000
"""Bars that the picture takes in before it stops and says so."""

MAX_TILES = 64
"""Spans of one operator's loop that are drawn one by one; a longer loop becomes one bar per resource."""

PALEST = 0.15
"""Opacity of a bar whose resource is hardly ever busy, so that it stays visible."""


MIXED = "several operators"
"""What a summary of more than one operator is called."""


@dataclass(frozen=True)
class Bar:
    """A stretch of time in which resource `on` works for `operator`, `busy` of its femtoseconds."""

    on: str
    operator: str
    start: int
    end: int
    busy: int


@dataclass(frozen=True)
class Repeat:
    """A fold in the picture: its first iteration lies between `start` and `end`, and happened `count` times."""

    start: int
    end: int
    count: int


class Unfolding:
    """A recording with each fold of several operators (a layer) shown once, and what was made of it.

    What follows such a fold moves forward to the end of its first iteration, so nothing overlaps that did not before. A loop
    within one operator keeps its time: short ones are drawn span by span, longer ones as one bar per resource. `cut` says
    that the picture ends before the run does.
    """

    def __init__(self, entries: Entries, operator: Callable[[str], str], limit: int = MAX_BARS) -> None:
        self.bars: list[Bar] = []
        self.repeats: list[Repeat] = []
        self._operator = operator
        self._limit = limit
        self._skipped = 0
        self._visit(entries, 0)
        self.cut = len(self.bars) >= limit

    def _visit(self, entries: Entries, shift: int) -> tuple[int, int] | None:
        """Takes in `entries`, `shift` later than recorded; the first start and the last end in the picture."""
        extents = []
        for entry in entries:
            if len(self.bars) >= self._limit:
                break
            extents.append(self._span(entry, shift) if isinstance(entry, Span) else self._fold(entry, shift))
        starts_and_ends = [extent for extent in extents if extent is not None]
        if not starts_and_ends:
            return None
        return min(start for start, _ in starts_and_ends), max(end for _, end in starts_and_ends)

    def _span(self, span: Span, shift: int) -> tuple[int, int]:
        start, end = span.start + shift - self._skipped, span.end + shift - self._skipped
        self.bars.append(Bar(span.on, self._operator(span.name), start, end, end - start))
        return start, end

    def _fold(self, fold: Fold, shift: int) -> tuple[int, int] | None:
        uses: dict[str, Bar] = {}
        spans = self._summarise((fold,), shift - self._skipped, uses)
        operators = {bar.operator for bar in uses.values()}
        if len(operators) == 1 and MIXED not in operators:
            if spans > MAX_TILES:
                self.bars += uses.values()
            else:
                for i in range(fold.count):
                    self._visit(fold.body, shift + i * fold.period)
            return min(bar.start for bar in uses.values()), max(bar.end for bar in uses.values())
        before = self._skipped
        extent = self._visit(fold.body, shift)
        if extent is not None and fold.count > 1:
            length = fold.period - (self._skipped - before)
            self.repeats.append(Repeat(extent[0], extent[0] + length, fold.count))
            extent = (extent[0], max(extent[1], extent[0] + length))
            self._skipped += (fold.count - 1) * fold.period
        return extent

    def _summarise(self, entries: Entries, shift: int, uses: dict[str, Bar]) -> int:
        """Adds one bar per resource to `uses` for all of `entries`; the number of spans. Several operators make it MIXED."""
        spans = 0
        for entry in entries:
            if isinstance(entry, Span):
                spans += 1
                bar = Bar(entry.on, self._operator(entry.name), entry.start + shift, entry.end + shift, entry.end - entry.start)
                _join(uses, bar)
                continue
            inner: dict[str, Bar] = {}
            spans += entry.count * self._summarise(entry.body, shift, inner)
            for bar in inner.values():
                _join(uses, Bar(bar.on, bar.operator, bar.start, bar.end + (entry.count - 1) * entry.period, entry.count * bar.busy))
        return spans


def _join(uses: dict[str, Bar], bar: Bar) -> None:
    seen = uses.get(bar.on)
    if seen is not None:
        operator = bar.operator if bar.operator == seen.operator else MIXED
        bar = Bar(bar.on, operator, min(seen.start, bar.start), max(seen.end, bar.end), seen.busy + bar.busy)
    uses[bar.on] = bar


def timeline(report: Report) -> Picture | None:
    """The run from its start, a row per resource, repeats shown once; None when the report has no trace."""
    kinds = {row.name: row.kind for row in report.operators}
    owners: dict[str, str] = {}

    def operator(task: str) -> str:
        if task not in owners:
            owners[task] = operator_of(task, frozenset(kinds)) or task
        return owners[task]

    shown = Unfolding(report.trace.entries, operator)
    if not shown.bars:
        return None
    used = {kinds.get(bar.operator, "other") for bar in shown.bars}
    order = [row.kind for row in sorted(report.operators, key=lambda row: -row.total_fs) if row.kind in used]
    colour = {**colours(order), **({"other": OTHER} if "other" in used else {})}
    shades = {bar.operator: colour[kinds.get(bar.operator, "other")] for bar in shown.bars}
    rows = [name for name in resources(report) if any(bar.on == name for bar in shown.bars)]
    label = f"Timeline of {report.workload} on {report.device}: busy times of {', '.join(rows)}"
    wide, narrow = (
        svg("timeline", shape, label, partial(_draw, shown, rows, shades))
        for shape in (Shape("wide", 8.2, 0.9 + 0.34 * len(rows), 7.2), Shape("narrow", 3.5, 1.0 + 0.34 * len(rows), 8.4))
    )
    notes = ["A pale bar is busy for a part of its time, the paler the less."]
    if shown.repeats:
        notes.insert(0, "Repeated layers are shown once, under a bracket with their number.")
    if shown.cut:
        notes.append(f"The picture stops after {len(shown.bars)} bars; the Chrome trace goes on.")
    return Picture(wide, narrow, tuple(colour.items()), " ".join(notes))


def _draw(shown: Unfolding, rows: list[str], shades: dict[str, str], axes: Axes, shape: Shape) -> None:
    begin = min(bar.start for bar in shown.bars)
    length = max(1, max(bar.end for bar in shown.bars) - begin)
    axes.set_xlim(0, length)
    axes.set_ylim(len(rows) - 0.4, -1.15)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=2, width=0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(FixedLocator([float(tick) for tick in nice_ticks(length, 4 if shape.narrow else 9)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value / 10**15)))
    axes.set_xlabel("time")
    freeze(axes)
    pixel = length / axes.get_window_extent().width
    for row, name in enumerate(rows):
        _row(axes, row, merged([bar for bar in shown.bars if bar.on == name], pixel), shades, begin, pixel, 0.9 * shape.font)
    _brackets(axes, shown.repeats, begin, length, CHARACTER * shape.font * pixel)


def merged(bars: list[Bar], pixel: float) -> list[Bar]:
    """Bars of one resource; those of one operator that begin less than a pixel after the one before join it."""
    out: list[Bar] = []
    for bar in bars:
        if out and out[-1].operator == bar.operator and bar.start - out[-1].end <= pixel:
            last = out[-1]
            out[-1] = Bar(bar.on, bar.operator, last.start, max(last.end, bar.end), last.busy + bar.busy)
        else:
            out.append(bar)
    return out


def _row(axes: Axes, row: int, bars: list[Bar], shades: dict[str, str], begin: int, pixel: float, font: float) -> None:
    """Draws one row of bars, each as opaque as it is busy; a bar that is long enough is labelled."""
    opacity = [max(PALEST, min(1.0, bar.busy / max(1, bar.end - bar.start))) for bar in bars]
    faces = [to_rgba(shades[bar.operator], alpha) for bar, alpha in zip(bars, opacity, strict=True)]
    places = [(bar.start - begin, max(bar.end - bar.start, pixel / 3)) for bar in bars]
    axes.broken_barh(places, (row - 0.36, 0.72), facecolors=faces, edgecolors="none")
    for bar, alpha in zip(bars, opacity, strict=True):
        short = bar.operator.rsplit(".", 1)[-1]
        if bar.end - bar.start > (CHARACTER * font * len(short) + 2) * pixel:
            ink = _on(shades[bar.operator]) if alpha > 0.6 else INK
            axes.text((bar.start + bar.end) / 2 - begin, row, short, ha="center", va="center_baseline", fontsize=font, color=ink)


def _brackets(axes: Axes, repeats: list[Repeat], begin: int, length: int, character: float) -> None:
    """Draws a bracket with its number over each repeat, the longest first, where there is room."""
    style: dict[str, Any] = {"color": MUTED, "linewidth": 0.8, "clip_on": False}
    drawn: list[tuple[int, int]] = []
    for repeat in sorted(repeats, key=lambda r: (r.start - r.end, r.start)):
        x0, x1 = repeat.start - begin, min(repeat.end - begin, length)
        text = f"×{repeat.count}"  # noqa: RUF001 - the multiplication sign is meant
        if x1 - x0 < character * len(text) or any(x0 < b and a < x1 for a, b in drawn):
            continue
        drawn.append((x0, x1))
        axes.plot([x0, x0, x1, x1], [-0.5, -0.65, -0.65, -0.5], **style)
        axes.text((x0 + x1) / 2, -0.72, text, ha="center", va="bottom")


def _on(shade: str) -> str:
    """Black or white, whichever reads better on a colour (ITU-R BT.601 luma)."""
    red, green, blue = (int(shade[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"


def nice_ticks(length: int, most: int) -> list[int]:
    """Multiples of 1, 2 or 5 times a power of ten from 0 to `length`, at most `most` of them.

    >>> nice_ticks(47, 6)
    [0, 10, 20, 30, 40]
    """
    step = 1
    while length // step + 1 > most:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return list(range(0, length + 1, step))

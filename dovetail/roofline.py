"""The roofline of a report: operators as points under the ceilings of units and memories, on logarithmic scales."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dovetail.figures import CHARACTER, INK, NEWLINE, Picture, Shape, colours, freeze, svg
from dovetail.human import decimal
from dovetail.report import OperatorRow, Report, Roof

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def on_roofline(row: OperatorRow) -> bool:
    """Whether an operator has a place on a log-log roofline: it computes, it moves bytes and it takes time."""
    return row.flops > 0 and row.bytes > 0 and row.latency_fs > 0


def roofline(report: Report, ranked: Sequence[OperatorRow]) -> Picture:
    """Operators as points (numbered by their rank in `ranked`) under the ceilings of the units and memories."""
    points = [(number, row) for number, row in enumerate(ranked, 1) if on_roofline(row)]
    colour = colours(row.bound for _, row in points)
    missing = len(ranked) - len(points)
    note = ""
    if missing:
        note = f"Not drawn, as they compute nothing or move nothing at the main memory: {missing} of {len(ranked)} operators."
    label = f"Roofline of {report.workload} on {report.device}"
    wide, narrow = (
        svg("roofline", shape, label, partial(_roofline, report, points, colour))
        for shape in (Shape("wide", 8.2, 3.9, 7.2), Shape("narrow", 3.5, 3.8, 8.4))
    )
    return Picture(wide, narrow, tuple((f"limited by {name}", c) for name, c in colour.items()), note)


def _roofline(report: Report, points: Sequence[tuple[int, OperatorRow]], colour: dict[str, str], axes: Axes, shape: Shape) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    total = sum(row.total_fs for _, row in points) or 1
    intensity = [row.flops / row.bytes for _, row in points]
    achieved = [row.flops * 10**15 / row.latency_fs for _, row in points]
    ridges = [roof.peak_flops / roof.bandwidth for roof in report.roofs]
    peaks = [roof.peak_flops for roof in report.roofs]
    low_x, high_x = _span([*intensity, *ridges])
    low_y, high_y = _span([*achieved, *peaks])
    axes.set_xlim(low_x / 2.5, max(high_x * 3, _right_edge(report, shape, low_x / 2.5)))
    axes.set_ylim(low_y / 2.5, high_y * 3)
    axes.grid(True, which="major")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(LogLocator(numticks=5 if shape.narrow else 8))
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e6 else f"{value:.0e}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: decimal(value, "")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", length=2, width=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("FLOP per byte of main memory" if shape.narrow else "operational intensity (FLOP per byte of main memory)")
    axes.set_ylabel("FLOP/s")
    areas = [14 + 260 * row.total_fs / total for _, row in points]
    axes.scatter(
        intensity, achieved, s=areas, c=[colour[row.bound] for _, row in points], alpha=0.75, linewidths=0.6, edgecolors=INK, zorder=3
    )
    freeze(axes)
    centres: Any = axes.transData.transform(list(zip(intensity, achieved, strict=True))) if points else ()
    discs = [(float(x), float(y), math.sqrt(area / math.pi)) for (x, y), area in zip(centres, areas, strict=True)]
    boxes = _ceilings(axes, report, shape, discs)
    _numbers(axes, [number for number, _ in points], discs, boxes, 0.9 * shape.font)


Box = tuple[float, float, float, float]
"""Left, bottom, right and top in display coordinates."""

Disc = tuple[float, float, float]
"""Centre and radius in display coordinates."""


def _level_name(roof: Roof, shape: Shape) -> str:
    unit = " ".join(dict.fromkeys((roof.unit, roof.format)))
    return f"{unit}{NEWLINE if shape.narrow else ' '}{decimal(roof.peak_flops, 'FLOP/s')}"


def _right_edge(report: Report, shape: Shape, left: float) -> float:
    """Where the picture must end so that the name of each level fits right of its ridge, on a log scale from `left`."""
    width = 72 * shape.width - 50  # points, less the labels of the other axis
    edge = 0.0
    for roof in report.roofs:
        name = CHARACTER * shape.font * max(len(line) for line in _level_name(roof, shape).split(NEWLINE)) + 4
        ridge = math.log(roof.peak_flops / roof.bandwidth)
        name = min(name, 0.6 * width)
        edge = max(edge, (ridge * width - name * math.log(left)) / (width - name))
    return math.exp(edge)


def _ceilings(axes: Axes, report: Report, shape: Shape, discs: Sequence[Disc]) -> list[Box]:
    """Draws memories as diagonals and units as levels, each with its name off the `discs`; returns the places that all take."""
    font = shape.font
    boxes: list[Box] = []
    left, right = axes.get_xlim()
    low, _ = axes.get_ylim()
    for name in dict.fromkeys(roof.memory for roof in report.roofs):
        ridges = sorted(roof.peak_flops / roof.bandwidth for roof in report.roofs if roof.memory == name)
        bandwidth = next(roof.bandwidth for roof in report.roofs if roof.memory == name)
        start = max(left, low / bandwidth)
        axes.plot([start, ridges[-1]], [start * bandwidth, ridges[-1] * bandwidth], color=INK, linewidth=1)
        stretches = list(itertools.pairwise([start, *(ridge for ridge in ridges if ridge > start)])) or [(start, start)]
        free = max(stretches, key=lambda ends: ends[1] / ends[0])
        middle = math.sqrt(free[0] * free[1])
        (x0, y0), (x1, y1) = axes.transData.transform([(middle, middle * bandwidth), (2 * middle, 2 * middle * bandwidth)])
        slope = math.atan2(y1 - y0, x1 - x0)
        axes.annotate(
            f"{name} {decimal(bandwidth, 'B/s')}", (middle, middle * bandwidth), xytext=(-3 * math.sin(slope), 3 * math.cos(slope)),
            textcoords="offset points", rotation=math.degrees(slope), rotation_mode="anchor", ha="center", va="bottom",
        )  # fmt: skip
        boxes += _along(axes, (start, start * bandwidth), (ridges[-1], ridges[-1] * bandwidth))
    taken: list[float] = []
    for roof in sorted(report.roofs, key=lambda r: -r.peak_flops):
        axes.plot([roof.peak_flops / roof.bandwidth, right], [roof.peak_flops] * 2, color=INK, linewidth=1, linestyle=(0, (5, 2)))
        boxes += _along(axes, (roof.peak_flops / roof.bandwidth, roof.peak_flops), (right, roof.peak_flops))
        lines = _level_name(roof, shape).split(NEWLINE)
        tall = 1.3 * font * len(lines)
        x, y = axes.transData.transform((right, roof.peak_flops))
        wide = CHARACTER * font * max(map(len, lines))
        above = not any(abs(y + tall / 2 - other) < tall for other in taken)
        taken.append(y + tall / 2 if above else y - tall / 2)
        near = [r for cx, cy, r in discs if cx + r > x - wide and abs(cy - y) < tall + r]
        lift = 2 + max(near, default=0.0)
        axes.annotate(
            NEWLINE.join(lines), (right, roof.peak_flops), xytext=(-1, lift if above else -lift), textcoords="offset points",
            ha="right", va="bottom" if above else "top", linespacing=1.1,
        )  # fmt: skip
        boxes.append((x - wide, y + lift if above else y - lift - tall, x, y + lift + tall if above else y - lift))
    return boxes


def _along(axes: Axes, begin: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """Small boxes that cover a line, so that numbers keep off it."""
    (x0, y0), (x1, y1) = axes.transData.transform([begin, end])
    steps = max(1, int(math.dist((x0, y0), (x1, y1)) / 4))
    places = ((x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(steps + 1))
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in places]


def _numbers(axes: Axes, numbers: Sequence[int], discs: Sequence[Disc], boxes: list[Box], font: float) -> None:
    """Writes row numbers beside points; points on one spot share a label, and a label that finds no free place is left out."""
    frame = axes.get_window_extent()
    groups: list[list[int]] = []
    for i in range(len(discs)):
        near = (g for g in groups if math.dist(discs[g[0]][:2], discs[i][:2]) < 9)
        group = next(near, None)
        groups.append([i]) if group is None else group.append(i)
    boxes = [*boxes, *((x - 2, y - 2, x + 2, y + 2) for x, y, _ in discs)]
    for group in groups:
        text = ranges(numbers[i] for i in group)
        if len(text) > 14:
            text = text[: text.rindex(",", 0, 13) if "," in text[:13] else 12] + ", …"
        x, y, _ = discs[group[0]]
        radius = max(discs[i][2] for i in group) + 2
        width, height = CHARACTER * font * len(text) + 1, 1.2 * font
        sides = ((1, 0), (0, 1), (0, -1), (-1, 0), (0.75, 0.75), (0.75, -0.75), (-0.75, 0.75), (-0.75, -0.75))
        for far, (dx, dy) in itertools.product((0, 8, 16), sides):
            cx, cy = x + dx * (radius + far + width / 2), y + dy * (radius + far + height / 2)
            box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            inside = box[0] > frame.x0 and box[2] < frame.x1 and box[1] > frame.y0 and box[3] < frame.y1
            if inside and not any(_overlap(box, other) for other in boxes):
                boxes.append(box)
                axes.annotate(text, (cx, cy), xycoords="figure pixels", ha="center", va="center_baseline", fontsize=font)
                break


def ranges(numbers: Iterable[int]) -> str:
    """Row numbers with runs shortened.

    >>> ranges([1, 2, 3, 7, 9, 10])
    '1-3, 7, 9, 10'
    """
    ordered = sorted(numbers)
    runs: list[list[int]] = []
    for number in ordered:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _span(values: Sequence[float]) -> tuple[float, float]:
    positive = [v for v in values if v > 0]
    return (min(positive), max(positive)) if positive else (1.0, 10.0)

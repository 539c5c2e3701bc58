"""Scores as one self-contained HTML page: tables, predicted against measured, and error against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import isclose, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dovetail.figures import MUTED, Picture, Shape, colours, svg
from dovetail.files import atomic_writer
from verif.validation import rows
from verif.validation.hygiene import RULE
from verif.validation.residual import LABEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from verif.validation import Score

DRAWN = 150
"""Points of one colour in a picture, at most: evenly spaced among the rows."""

SUPERSCRIPTS = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")

Points = dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]]


def write(
    score: Score,
    other: dict[str, int],
    path: Path,
    beside: Mapping[str, Sequence[float]] | None = None,
    half: bool | None = None,
) -> None:
    """Writes the page, with the errors of other predictions `beside` ours. `half` keeps the shapes fitted on (True) or the others (False);
    what is learned is scored on the others alone. Raises `OSError` naming `path` when it cannot be written."""
    environment = Environment(
        loader=PackageLoader("dovetail"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = Markup  # the pictures are our own
    table = _joined(score, beside or {}, half)
    page = environment.get_template("validation.html.j2").render(
        rule=RULE,
        table=table,
        baselines=[*score.baselines, *(beside or {})],
        shown={None: "All shapes", True: "The fitted half of the shapes", False: "The held-out half of the shapes"}[half],
        transferred=bool(score.transferred),
        learned=LABEL if LABEL in (beside or {}) else "",
        excluded=len(score.excluded),
        refused=dict(score.refused),
        other=other,
        pictures=_pictures(score, half, table),
    )
    with atomic_writer(path) as file:
        file.write(page)


def _joined(score: Score, others: Mapping[str, Sequence[float]], half: bool | None) -> list[dict[str, Any]]:
    """The score's rows with the halves, the baselines and other predictions beside them."""

    def key(row: dict[str, object]) -> tuple[object, ...]:
        return tuple(row[name] for name in ("device", "operator", "dtype", "size_class"))

    beside = {"fitted": rows(score, half=True), "held_out": rows(score, half=False)}
    beside |= {label: rows(score, values, half) for label, values in score.baselines.items()}
    beside |= {label: rows(score, values, False if label == LABEL else half) for label, values in others.items()}
    found = {label: {key(row): row["mape"] for row in table} for label, table in beside.items()}
    return [{**row, **{label: table.get(key(row)) for label, table in found.items()}} for row in rows(score, half=half)]


def _pictures(score: Score, half: bool | None, table: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Picture, Picture]]:
    """Title, errors in words, and the two pictures of every operator of a device."""
    out = []
    groups: dict[tuple[str, str], list[int]] = {}
    for index, m in enumerate(score.measured):
        if half is not None and m.fitted != half:
            continue
        groups.setdefault((m.device, m.operator if m.clock == "kernel" else f"{m.operator} ({m.clock})"), []).append(index)
    for (device, operator), chosen in sorted(groups.items()):
        points = _points(score, chosen)
        colour = colours(points)
        name = f"{device}-{operator}".replace(" ", "-").replace("(", "").replace(")", "")
        legend = tuple(colour.items())
        both = []
        for what, draw in (("predicted against measured", _against), ("error against size", _errors)):
            label = f"{operator} on {device}: {what}"
            shapes = (Shape("wide", 4.4, 3.2, 7.2), Shape("narrow", 3.5, 3.0, 8.4))
            wide, narrow = (svg(f"{name}-{what.split()[0]}", shape, label, partial(draw, points, colour)) for shape in shapes)
            both.append(Picture(wide, narrow, legend))
        classes = [row for row in table if (row["device"], row["operator"], row["size_class"]) == (device, operator, "all")]
        words = "; ".join(f"{row['dtype']}: {100 * row['mape']:.1f} % over {row['n']} rows" for row in classes)
        out.append((f"{operator} on {device}", words, both[0], both[1]))
    return out


def _points(score: Score, chosen: Sequence[int]) -> Points:
    by_dtype: dict[str, list[int]] = {}
    for index in chosen:
        by_dtype.setdefault(score.measured[index].dtype, []).append(index)
    points = {}
    for dtype, indices in by_dtype.items():
        some = indices[:: len(indices) // DRAWN + 1]
        measured = np.array([score.measured[i].latency_s for i in some])
        predicted = np.array([score.predicted[i] for i in some])
        size = np.array([score.measured[i].work[0] or score.measured[i].work[1] for i in some], dtype=float)
        points[dtype] = (measured, predicted, size)
    return points


def power_of_ten(value: float, _: object = None) -> str:
    """A tick of a logarithmic axis in plain text; nothing between powers of ten.

    >>> power_of_ten(1e-1), power_of_ten(100.0), power_of_ten(1e12), power_of_ten(20.0)
    ('0.1', '100', '10\u00b9\u00b2', '')
    """
    exponent = round(log10(value))
    if not isclose(value, 10.0**exponent):
        return ""
    return f"{value:g}" if -3 <= exponent <= 3 else "10" + str(exponent).translate(SUPERSCRIPTS)


def _plain_ticks(*axes: Axis) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in axes:
        axis.set_major_formatter(FuncFormatter(power_of_ten))
        axis.set_minor_formatter(NullFormatter())


def _against(points: Points, colour: dict[str, str], axes: Axes, shape: Shape) -> None:
    ends = [
        float(edge(values)) for measured, predicted, _ in points.values() for values in (measured, predicted) for edge in (np.min, np.max)
    ]
    low, high = min(ends) * 1e6, max(ends) * 1e6
    low, high = low / 1.3, high * 1.3
    axes.plot([low, high], [low, high], color=MUTED, linewidth=0.8)
    for dtype, (measured, predicted, _) in points.items():
        axes.scatter(measured * 1e6, predicted * 1e6, s=3, color=colour[dtype], linewidths=0, alpha=0.7)
    axes.set(xscale="log", yscale="log", xlabel="measured, us", ylabel="predicted, us")
    _plain_ticks(axes.xaxis, axes.yaxis)


def _errors(points: Points, colour: dict[str, str], axes: Axes, shape: Shape) -> None:
    axes.axhline(0, color=MUTED, linewidth=0.8)
    for dtype, (measured, predicted, size) in points.items():
        axes.scatter(size, np.clip(predicted / measured - 1, -1, 1) * 100, s=3, color=colour[dtype], linewidths=0, alpha=0.7)
    axes.set(xscale="log", xlabel="operations, or bytes where there are none", ylabel="error, % (at most 100)")
    _plain_ticks(axes.xaxis)

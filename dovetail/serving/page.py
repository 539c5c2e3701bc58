"""A run of a server as one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dovetail import human
from dovetail.figures import LINE, PALETTE, Picture, Shape, svg
from dovetail.serving.arrivals import NS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dovetail.serving.report import ServingReport

SHAPES = (Shape("wide", 9.0, 3.2, 11), Shape("narrow", 4.6, 3.4, 12))
POINTS = 600
"""Points of a line over time: each is the mean of the iterations of its slice."""


def page(report: ServingReport) -> str:
    """The page of a report."""
    environment = Environment(
        loader=PackageLoader("dovetail"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = Markup
    data = report.to_json()
    template = environment.get_template("serving.html.j2")
    return template.render(report=report, data=data, tiles=_tiles(data), pictures=_pictures(report), rows=_rows(data), human=human)


def _tiles(data: dict[str, Any]) -> list[tuple[str, str, str]]:
    rate = data["throughput"]
    tiles = [
        ("Throughput", f"{human.digits(rate['output_tokens_per_s'])} tokens/s", f"{human.digits(rate['requests_per_s'])} requests/s"),
        ("Requests", f"{data['finished']}", f"of {data['requests']} in {human.seconds(data['duration_s'])}"),
    ]
    for label, key in (("First token", "ttft_s"), ("Between tokens", "tbt_s"), ("Whole answer", "e2e_s")):
        if found := data[key]:
            tiles.append((f"{label}, median", human.seconds(found["p50"]), f"99th percentile {human.seconds(found['p99'])}"))
    tiles.append(("Batch", human.digits(data["batch"]["mean"]), f"decoding on average, {data['batch']['max']} at most"))
    return tiles


def _rows(data: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    names = (("first token", "ttft_s"), ("between tokens", "tbt_s"), ("whole answer", "e2e_s"))
    return [(label, data[key]) for label, key in names if data[key]]


def _pictures(report: ServingReport) -> list[tuple[str, Picture]]:
    served = report.served
    if not served.lasts:
        return []
    ends = np.array(served.lasts) / NS
    slices = np.array_split(np.arange(len(ends)), min(POINTS, len(ends)))

    def over_time(values: Any) -> tuple[Any, Any]:
        values = np.asarray(values, dtype=float)
        return [ends[s[-1]] for s in slices], [values[s].mean() for s in slices]

    def load(axes: Axes, shape: Shape) -> None:
        axes.plot(*over_time(served.decoding), color=PALETTE[0])
        axes.set_ylabel("sequences")
        axes.set_ylim(bottom=0)
        _frame(axes, "seconds")

    def memory(axes: Axes, shape: Shape) -> None:
        axes.plot(*over_time(served.held), color=PALETTE[2])
        axes.axhline(report.capacity["tokens"], color=PALETTE[1], linestyle="--")
        axes.set_ylabel("tokens")
        axes.set_ylim(bottom=0)
        _frame(axes, "seconds")

    durations = (np.array(served.lasts) - np.array(served.starts)) / NS
    weights = np.array(served.decoding, dtype=float)

    def between(axes: Axes, shape: Shape) -> None:
        used = weights > 0
        if used.any():
            order = np.argsort(durations[used])
            shares = np.cumsum(weights[used][order]) / weights[used].sum()
            step = max(1, len(order) // POINTS)
            axes.plot(durations[used][order][::step] * 1e3, shares[::step], color=PALETTE[0])
        axes.set_ylabel("share of tokens")
        axes.set_ylim(0, 1)
        _frame(axes, "milliseconds since the token before")

    drawn = (
        ("Sequences that decode", load, (("mean of the iterations of a slice", PALETTE[0]),)),
        ("Tokens whose keys and values are held", memory, (("reserved", PALETTE[2]), ("what fits", PALETTE[1]))),
        ("Time between tokens", between, (("at most so long", PALETTE[0]),)),
    )
    found = []
    for number, (title, draw, legend) in enumerate(drawn):
        wide, narrow = (svg(f"serving{number}", shape, title, draw) for shape in SHAPES)
        found.append((title, Picture(wide, narrow, legend)))
    return found


def _frame(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.grid(color=LINE)
    axes.set_xlim(left=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

"""A report as one self-contained HTML page: no scripts, no requests, readable on a wide and on a narrow screen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dovetail import human, text
from dovetail.figures import OTHER, PALETTE, Picture, colours
from dovetail.files import atomic_writer
from dovetail.gantt import timeline
from dovetail.roofline import roofline

if TYPE_CHECKING:
    from dovetail.report import OperatorRow, Report


@dataclass(frozen=True)
class Part:
    """A piece of a bar: `share` of the bar's whole."""

    label: str
    share: float
    value: str
    colour: str


@dataclass(frozen=True)
class Bar:
    """A bar whose parts need not fill it; the rest is free."""

    name: str
    value: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    detail: str


BUSY = PALETTE[0]
DRAINED = "drained"
"""The stall reason of a resource whose last task has ended."""


def tiles(report: Report) -> list[Tile]:
    """The headline numbers."""
    rate = text.tokens_per_second(report)
    out = [
        Tile(
            f"Latency {text.PER.get(report.phase, 'per run')}",
            human.seconds(report.latency_s),
            f"{human.integer(report.cycles)} cycles at {human.decimal(report.clock_hz, 'Hz')}",
        )
    ]
    if rate is not None:
        out.append(Tile("Throughput", human.digits(rate), f"tokens/s at batch {report.batch}"))
    out.append(Tile("Bound", report.bound_resource, f"{human.percent(report.bound_utilization)} of its peak"))
    if report.lower_bound_fs:
        out.append(
            Tile(
                "Above the lower bound",
                human.ratio(report.latency_fs / report.lower_bound_fs),
                f"no mapping is faster than {human.seconds(report.lower_bound_fs / 10**15)}",
            )
        )
    out.append(energy_tile(report))
    for use in text.main_memories(report):
        out.append(Tile(f"Peak in {use.name}", human.capacity(use.peak), f"of {human.capacity(use.capacity)}"))
    return out


def energy_tile(report: Report) -> Tile:
    known = [value for value in report.energy_parts.values() if value is not None]
    unknown = [name for name, value in report.energy_parts.items() if value is None]
    total = report.energy_j if report.energy_j is not None else sum(known) if known else None
    if total is None:
        return Tile("Energy", "not modelled", "no part of it has a sourced energy")
    if unknown:
        return Tile("Energy", f"≥ {human.joules(total)}", f"not modelled: {', '.join(unknown)}")
    return Tile("Energy", human.joules(total), "")


def stall_bars(report: Report) -> tuple[list[Bar], list[tuple[str, str]]]:
    """A bar per resource that is busy and waiting for the whole run, and the legend of its colours."""
    reasons = sorted({reason for waits in report.stalls.values() for reason in waits} - {DRAINED})
    shade = {**dict(zip(reasons, [*PALETTE[1:], *[OTHER] * len(reasons)], strict=False)), DRAINED: "var(--line)"}
    bars = []
    for name, busy in report.utilization.items():
        waits = [(r, s) for r, s in sorted(report.stalls.get(name, {}).items(), key=lambda item: (item[0] == DRAINED, -item[1])) if s]
        parts = [Part("busy", busy, human.percent(busy), BUSY)]
        parts += [Part("done" if r == DRAINED else f"waiting for {r}", s, human.percent(s), shade[r]) for r, s in waits]
        peak = report.peak_fraction.get(name)
        bars.append(Bar(name, f"{human.percent(peak)} of peak" if peak is not None else "", tuple(p for p in parts if p.share)))
    present = {reason for waits in report.stalls.values() for reason, share in waits.items() if share}
    legend = [("busy", BUSY), *((f"waiting for {r}", shade[r]) for r in reasons if r in present)]
    if DRAINED in present:
        legend.append(("done (no task left)", shade[DRAINED]))
    return bars, legend


def memory_bars(report: Report) -> tuple[list[Bar], list[tuple[str, str]]]:
    """A bar per memory, filled with the parts of its peak."""
    shade = colours(name for use in report.memories for name in use.parts)
    bars = [
        Bar(
            use.name,
            f"{human.capacity(use.peak)} of {human.capacity(use.capacity)}; "
            f"{human.decimal(use.read, 'B')} read, {human.decimal(use.written, 'B')} written",
            tuple(Part(n, size / use.capacity, human.capacity(size), shade[n]) for n, size in use.parts.items() if size and use.capacity),
        )
        for use in report.memories
    ]
    return bars, list(shade.items())


def energy_bar(report: Report) -> tuple[Bar | None, list[tuple[str, str]]]:
    """The parts of the energy that are modelled, as shares of their sum; their legend states each part."""
    known: Mapping[str, float] = {name: value for name, value in report.energy_parts.items() if value is not None}
    total = sum(known.values())
    if not total:
        return None, []
    shade = colours(known)
    parts = tuple(Part(n, v / total, human.joules(v), shade[n]) for n, v in sorted(known.items(), key=lambda p: -p[1]) if v)
    return Bar("modelled parts", human.joules(total), parts), [(f"{n} {human.joules(v)}", shade[n]) for n, v in known.items()]


def ranked(report: Report) -> list[OperatorRow]:
    """Operators by the time that all their runs take, longest first; equals keep their order."""
    return sorted(report.operators, key=lambda row: -row.total_fs)


def breakable(name: str) -> Markup:
    """A dotted name that may wrap after its dots."""
    return Markup("<wbr>").join(part + "." for part in name.split("."))[:-1]


def render(report: Report) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("dovetail"), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    for name in ("seconds", "percent", "decimal", "capacity", "integer", "ratio", "joules"):
        environment.filters[name] = getattr(human, name)
    environment.filters["svg"] = Markup
    environment.filters["breakable"] = breakable
    rows = ranked(report)
    stalls, stall_legend = stall_bars(report)
    memories, memory_legend = memory_bars(report)
    energy, energy_legend = energy_bar(report)
    pictures: dict[str, Picture | None] = {
        "roofline": roofline(report, rows) if report.roofs and rows else None,
        "timeline": timeline(report),
    }
    return environment.get_template("report.html.j2").render(
        report=report,
        subject=text.subject(report),
        lines=text.five_lines(report),
        tiles=tiles(report),
        rows=rows,
        choices=[row for row in rows if row.candidates],
        total_fs=sum(row.total_fs for row in rows) or 1,
        stalls=stalls,
        stall_legend=stall_legend,
        memories=memories,
        memory_legend=memory_legend,
        energy=energy,
        energy_legend=energy_legend,
        unmodelled=[name for name, value in report.energy_parts.items() if value is None],
        **pictures,
    )


def write_html(report: Report, path: str | Path) -> None:
    """Writes the page to `path`. Raises `OSError` when it cannot be written; nothing half-written stays."""
    page = render(report)
    with atomic_writer(path) as file:
        file.write(page)

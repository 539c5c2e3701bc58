"""A study as one HTML page that loads nothing: its front, parallel coordinates, designs with the command that reproduces each,
and what is infeasible for which reason. The reports of the front are pages in a folder beside it."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dovetail import human
from dovetail.explore.compare import comparison
from dovetail.explore.errors import ExploreError
from dovetail.explore.picture import parallel, scatter
from dovetail.explore.sensitivity import Sensitivity, sensitivity
from dovetail.explore.study import Evaluated, Point, Study
from dovetail.explore.words import described, parameters, quantity, shortened
from dovetail.files import atomic_writer, check_writable
from dovetail.text import five_lines

if TYPE_CHECKING:
    from dovetail.report import Report

MOST_ROWS = 300
"""Designs of the table; the front comes first."""

MOST_REPORTS = 24
"""Designs of the front that get pages of their own."""

MOST_PAIRS = 3
WIDE, NARROW = 1100, 356
"""Widths in CSS pixels that pictures are drawn for."""


@dataclass(frozen=True)
class Run:
    """One workload of a row: its label, the five lines of its report, its slowest operators and the page with all of it."""

    label: str
    lines: tuple[str, ...]
    operators: tuple[tuple[str, str, str], ...]  # name, share of the time, bound
    page: str


@dataclass(frozen=True)
class Row:
    """A design of the table."""

    number: int
    point: Point
    on_front: bool
    values: tuple[str, ...]
    commands: tuple[str, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Group:
    """Designs that are infeasible for one reason."""

    reason: str
    points: tuple[str, ...]
    more: int = 0
    failed: bool = False


@dataclass
class _Files:
    """What the page refers to, in a folder beside it: pages of designs, devices and graphs."""

    folder: Path
    places: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, text: str) -> str:
        self.folder.mkdir(exist_ok=True)
        with atomic_writer(self.folder / name) as file:
            file.write(text)
        return f"{self.folder.name}/{name}"

    def commit(self, study: Study, point: Point) -> None:
        """Writes the device and the graphs of a design that a command cannot name."""
        from workloads.sources import save_graph

        if study.describe is None and point.device is not None and point.device.digest not in self.places:
            name = f"{point.device.digest[:12]}.yaml"
            self.places[point.device.digest] = self.write(name, point.device.to_yaml())
        for run in point.runs:
            if run.workload.layers is not None or not isinstance(run.workload.workload, str):
                graph = run.workload.graph()
                name = f"{graph.digest[:12]}.json.gz"
                if not (self.folder / name).exists():
                    self.folder.mkdir(exist_ok=True)
                    save_graph(graph, self.folder / name)
                self.places[run.key] = f"{self.folder.name}/{name}"


def rows(study: Study, files: _Files) -> list[Row]:
    """The front in the order of the first objective, then the other feasible designs, best first."""
    on_front = study.pareto()
    known = {id(p) for p in on_front}
    first = study.objectives[0]
    rest = sorted((p for p in study.feasible if id(p) not in known), key=lambda p: first.sign * p.objectives[first.name])
    out = []
    for number, point in enumerate([*on_front, *rest][:MOST_ROWS], 1):
        files.commit(study, point)
        out.append(
            Row(
                number,
                point,
                id(point) in known,
                tuple(quantity(point.objectives[o.name], o) for o in study.objectives),
                tuple(study.reproduce(point, files.places)),
                tuple(_run(study, point, run, files if number <= min(MOST_REPORTS, len(on_front)) else None) for run in point.runs),
            )
        )
    return out


def _run(study: Study, point: Point, run: Evaluated, files: _Files | None) -> Run:
    from dovetail.html import render as render_report

    try:
        report: Report = study.report(point, run.workload.label)
    except ExploreError:
        return Run(run.workload.label, (), (), "")
    page = files.write(f"{run.key[:12]}.html", render_report(report)) if files is not None else ""
    total = sum(o.total_fs for o in report.operators) or 1
    slowest = sorted(report.operators, key=lambda o: -o.total_fs)[:5]
    return Run(
        run.workload.label,
        tuple(five_lines(report)),
        tuple((o.name, human.percent(o.total_fs / total), o.bound) for o in slowest),
        page,
    )


def groups(study: Study, shown: int = 40) -> list[Group]:
    """Infeasible designs by reason, the commonest first."""
    found: dict[tuple[str, bool], list[Point]] = {}
    for point in study.infeasible:
        found.setdefault((point.reason, point.failed), []).append(point)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return [
        Group(shortened(r), tuple(parameters(p) for p in points[:shown]), max(0, len(points) - shown), failed)
        for (r, failed), points in ordered
    ]


def _effects(study: Study) -> list[Sensitivity]:
    return [sensitivity(study, o.name) for o in study.objectives] if len(study.feasible) > 1 else []


def render(study: Study, files: _Files, other: Study | None = None) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("dovetail.explore"), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["seconds"] = human.seconds
    table = rows(study, files)
    numbers = {id(row.point): row.number for row in table}
    for point in study.feasible:
        numbers.setdefault(id(point), 0)
    pairs = list(itertools.combinations(study.objectives, 2))[:MOST_PAIRS]
    pictures = [
        (Markup(scatter(study, x, y, numbers, WIDE)), Markup(scatter(study, x, y, numbers, NARROW))) for x, y in pairs if study.feasible
    ]
    lines = (Markup(parallel(study, numbers, WIDE)), Markup(parallel(study, numbers, NARROW, vertical=True))) if study.feasible else None
    return environment.get_template("explore.html.j2").render(
        study=study,
        subject=described(study),
        table=table,
        more=len(study.feasible) - len(table),
        pictures=pictures,
        lines=lines,
        groups=groups(study),
        effects=_effects(study),
        compared=comparison(study, other) if other is not None else [],
        best=[(o, study.best(o.name)) for o in study.objectives] if study.feasible else [],
        quantity=quantity,
        parameters=parameters,
        front_size=len(study.pareto()),
    )


def write_page(study: Study, path: str | Path, other: Study | None = None) -> None:
    """Writes the page to `path` and what it refers to into the folder `<name>-points` beside it. Raises `OSError` when it cannot
    be written; an older page stays as it was."""
    path = Path(path)
    check_writable(path)
    final = path.parent / f"{path.stem}-points"
    files = _Files(final)
    existed = final.exists()
    try:
        text = render(study, files, other)
        with atomic_writer(path) as file:
            file.write(text)
    except BaseException:
        if not existed:
            shutil.rmtree(final, ignore_errors=True)
        raise

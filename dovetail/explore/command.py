"""`dovetail sweep`: a study from a file, evaluated, summed up and written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dovetail.explore.errors import ExploreError

if TYPE_CHECKING:
    from dovetail.explore.spec import Spec
    from dovetail.explore.store import Store
    from dovetail.explore.study import Study

WIDEST = 12
"""Points of the front that the terminal shows."""


def sweep(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml|SCRIPT.py", help="The study.")],
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Processes; 0 is this one. Default: one per processor.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option("--scheduler", metavar="ADDRESS", help="Run on this Dask cluster.")] = None,
    store: Annotated[str | None, typer.Option("--store", metavar="FILE|URL", help="Default: the study's name with .sqlite.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a study that was begun; points that failed are tried again.")
    ] = False,
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE.html", help="Write the report.")] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="SPEC.yaml|SCRIPT.py", help="Another study, run and compared.")
    ] = None,
    parquet: Annotated[Path | None, typer.Option("--parquet", metavar="FILE", help="Write the table.")] = None,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="Say which parameter moves each objective most.")] = False,
    surrogate: Annotated[
        int | None, typer.Option("--surrogate", metavar="N", help="Fit a model to the points and estimate N designs that it proposes.")
    ] = None,
    load: Annotated[
        list[Path] | None, typer.Option("--load", metavar="FILE.py", help="Import a file of your own first; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Estimate every design of a study, or search it, and report the front."""
    from dovetail.explore.evaluate import load_files
    from dovetail.explore.execute import Pool
    from dovetail.explore.progress import Shown
    from dovetail.explore.sensitivity import sensitivity as effects
    from dovetail.explore.spec import read
    from dovetail.explore.store import Store as Opened
    from dovetail.explore.words import parameters, quantity
    from dovetail.files import check_writable
    from dovetail.human import seconds

    for option, path in (("--report", report), ("--parquet", parquet)):
        if path is not None:
            try:
                check_writable(path)
            except OSError as error:
                raise ExploreError(f"{option}: {error}") from None
    files = [str(path.resolve()) for path in load or ()]
    for path in load or ():
        if not path.is_file():
            raise ExploreError(f"--load: {path}: no such file")
    try:
        load_files(files)
    except Exception as error:
        raise ExploreError(f"--load: {type(error).__name__}: {error}") from error
    if surrogate is not None and surrogate < 1:
        raise ExploreError(f"--surrogate: expected a whole number of at least 1, not {surrogate}")
    pool = Pool(workers, scheduler)
    study_spec, other_spec = read(spec), read(compare) if compare is not None else None
    place = store or f"{study_spec.exploration.name}.sqlite"
    if resume and "://" not in place and not Path(place).is_file():
        raise ExploreError(f"--resume: there is no store {place!r}; leave --resume out to begin, or name the store with --store")
    with Opened(place) as opened:
        if opened.migrated:
            print(f"dovetail: {opened.migrated}", file=sys.stderr)
        if resume and study_spec.exploration.name not in opened.studies():
            known = ", ".join(opened.studies()) or "none"
            raise ExploreError(f"--resume: study {study_spec.exploration.name!r} was not begun in {place} (begun there: {known})")
        study = _run(study_spec, opened, pool, resume, Shown(study_spec.exploration.name), files)
        other = _run(other_spec, opened, pool, resume, Shown(other_spec.exploration.name), files) if other_spec is not None else None
        extra: list[str] = []
        if surrogate is not None:
            from dovetail.explore.surrogate import propose_and_check

            study, model = propose_and_check(
                study_spec.exploration, study, surrogate, opened, pool=pool, progress=Shown("proposals"), files=files
            )
            extra.append(str(model))
        found = [effects(study, o.name) for o in study.objectives] if sensitivity else []
        if parquet is not None:
            study.to_parquet(parquet)
        if report is not None:
            study.save_html(report, other)
    if as_json:
        document = study.to_json()
        if found:
            document["sensitivity"] = {s.objective.name: [vars(e) for e in s.effects] for s in found}
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    print(study.text())
    for point in study.pareto()[:WIDEST]:
        values = ", ".join(f"{o.name} {quantity(point.objectives[o.name], o)}" for o in study.objectives)
        print(f"  {parameters(point)}: {values}")
    if (more := len(study.pareto()) - WIDEST) > 0:
        print(f"  and {more} more on the front, in the report and the table")
    if other is not None:
        from dovetail.explore.compare import comparison

        print("\n".join(comparison(study, other)))
    for line in [*extra, *(line for s in found for line in s.lines())]:
        print(line)
    print(f"{study.evaluated} evaluations had to be run, in {seconds(study.elapsed_s)}; store: {place}", file=sys.stderr)
    for what, written in (("report", report), ("table", parquet)):
        if written is not None:
            print(f"{what}: {written}", file=sys.stderr)


def _run(spec: Spec, store: Store, pool: Any, resume: bool, progress: Any, files: list[str]) -> Study:
    import time

    from dovetail.explore.optimise import search

    exploration = spec.exploration
    if spec.method != "grid":
        options = {"evaluations": 100, **spec.options}
        how = {"pool": pool, "retry_failed": resume, "progress": progress, "files": files}
        return search(exploration, sampler=spec.method, store=store, **how, **options)
    start = time.perf_counter()
    store.begin(exploration.name, exploration.digest)
    points, ran = exploration.evaluate(list(exploration.space.grid()), store, pool, progress=progress, retry_failed=resume, files=files)
    return exploration.study(points, store, ran, time.perf_counter() - start)

"""The verb `verify`: units against their RTL, in simulation and by proof."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

SIMULATORS = ("icarus", "verilator", "pysim")
RANDOM_CASES = 400
"""Of a unit whose operand space cannot be listed, in a long run."""


def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[UNIT ...]", help="Units to verify. Default: all with RTL.")] = None,
    simulator: Annotated[
        str | None,
        typer.Option(metavar="|".join(SIMULATORS), help="Simulator of the Verilog; pysim runs none. Default: icarus, if there is one."),
    ] = None,
    formal: Annotated[bool, typer.Option("--formal", help="Prove arithmetic and stream protocol for every input.")] = False,
    synth: Annotated[bool, typer.Option("--synth", help="Synthesise the first configuration of each unit.")] = False,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Also RTL over whole operand spaces, or in long random runs; minutes per unit.")
    ] = False,
    waves: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the gate's waveforms (FST) there.")] = None,
    coverage: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the gate's coverage points (XML) there.")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE.xml", help="Write the outcome as JUnit XML.")] = None,
    shapes: Annotated[int, typer.Option(metavar="N", min=1, help="Shapes of work per unit whose cycles are compared.")] = 200,
    limit: Annotated[float, typer.Option(metavar="SECONDS", min=0.001, help="Time limit of one proof.")] = 300.0,
    load: Annotated[list[Path] | None, typer.Option("--load", metavar="FILE.py", help="Python file with units of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """RTL against golden arithmetic and against the cycle model, with stalls on both streams. Status 1 when a check fails."""
    from dovetail.cli import Progress, load_file
    from dovetail.files import check_writable
    from dovetail.listing import print_json
    from hw.errors import nearest
    from verif.conformance import kind_of, samples, units_with_rtl
    from verif.errors import VerificationError
    from verif.tools import missing_simulator

    if simulator is not None and simulator not in SIMULATORS:
        raise VerificationError(f"--simulator: expected one of {', '.join(SIMULATORS)}, not {simulator!r}{nearest(simulator, SIMULATORS)}")
    for path in load or []:
        load_file(path)
    for name in names or []:
        samples(name)
    if simulator is None:
        missing = missing_simulator()
        if missing:
            print(f"no gate: {missing}", file=sys.stderr)
        simulator = "pysim" if missing else "icarus"
    elif simulator != "pysim" and (missing := missing_simulator(simulator)):
        raise VerificationError(f"--simulator {simulator}: {missing}")
    for option, folder in (("--waves", waves), ("--coverage", coverage)):
        if folder is not None and simulator == "pysim":
            raise VerificationError(f"{option}: only the gate in a Verilog simulator makes these files, and --simulator is pysim")
        if folder is not None:
            make_folder(option, folder)
    if junit is not None:
        check_writable(junit)
    kinds = list(dict.fromkeys(kind_of(name) for name in names or units_with_rtl()))
    wanted = Wanted(simulator, formal, synth, exhaustive, waves, coverage, shapes, limit)
    rows = []
    with Progress() as progress:
        for number, kind in enumerate(kinds):
            rows.append(row(kind, wanted, lambda text, number=number: progress(f"[{number + 1} of {len(kinds)}] {text}")))  # type: ignore[misc]
            if not sys.stderr.isatty():
                print(f"{rows[-1]['name']}: {rows[-1]['status']} after {rows[-1]['seconds']:.1f} s", file=sys.stderr)
    if junit is not None:
        write_junit(junit, rows)
    if as_json:
        print_json({"units": [{k: v for k, v in r.items() if k in KEYS} for r in rows]})
    else:
        show(rows)
    for found in rows:
        for failure in found["failures"]:
            print(failure, file=sys.stderr)
    return int(any(found["status"] == "fail" for found in rows))


def make_folder(option: str, folder: Path) -> None:
    """Makes a folder for files before the work that fills it. Raises `VerificationError` when that cannot be."""
    from verif.errors import VerificationError

    if folder.exists() and not folder.is_dir():
        raise VerificationError(f"{option}: {folder} is a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VerificationError(f"{option}: no folder can be made at {folder} ({error.strerror}); name another one") from None
    if not os.access(folder, os.W_OK):
        raise VerificationError(f"{option}: {folder} cannot be written to; name another folder")


COUNTS = ("cases", "cycles_checked", "cycles_exact", "rtl_cycles", "model_cycles")
KEYS = ("name", *COUNTS, "combinations", "formal", "synth", "simulator", "status", "failures")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a command line asks for about each unit."""

    simulator: str
    formal: bool
    synth: bool
    exhaustive: bool
    waves: Path | None
    coverage: Path | None
    shapes: int
    limit: float


def row(kind: str, wanted: Wanted, progress: Callable[[str], None]) -> dict[str, Any]:
    """Everything asked for about one unit. `checks` has the failures of each check by its name."""
    from hw import UNITS
    from verif import conformance
    from verif.record import provenance, recorded_combinations

    start = time.perf_counter()
    title = UNITS[kind].title
    check = conformance.Check(kind)
    checks: dict[str, tuple[str, ...]] = {}
    proved: dict[str, str] = {}
    synthesis, tests, rtl = None, 0, None
    built = find_spec("amaranth") is not None
    origin = provenance(kind)
    if origin is not None:
        progress(f"{title}: recorded vectors")
        found = conformance.check_vectors(kind)
        check, checks["recorded vectors"] = check + found, found.failures
        found = conformance.check_large_sets(kind, progress)
        check, checks["large recorded sets"] = check + found, found.failures
    if built:
        progress(f"{title}: RTL against golden arithmetic and cycles")
        found = conformance.verify(kind, cycles=wanted.shapes)
        check, checks["RTL arithmetic, cycles and streams"] = check + found, found.failures
        if wanted.simulator != "pysim":
            tests, checks[f"Verilog in {wanted.simulator}"] = gate(kind, title, wanted, progress)
            if wanted.exhaustive:
                rtl, checks["RTL in long runs"] = long_runs(kind, wanted, progress)
        if wanted.formal:
            proved = proofs(kind, wanted.limit, checks, lambda text: progress(f"{title}: proving {text}"))
        if wanted.synth:
            from verif.synthesis import synthesise

            progress(f"{title}: synthesis")
            synthesis = synthesise(conformance.verilog(conformance.samples(kind)[0]))
    else:
        print(f"{title}: RTL skipped, Amaranth is not installed (pip install 'dovetail[rtl]')", file=sys.stderr)
    failures = [failure for each in checks.values() for failure in each]
    vectors = recorded_combinations(kind)
    return {
        "name": title,
        "cases": check.cases + tests,
        "cycles_checked": check.cycles_checked,
        "cycles_exact": check.cycles_exact,
        "rtl_cycles": check.rtl_cycles,
        "model_cycles": check.model_cycles,
        "combinations": {
            "vectors": vectors.distinct if vectors else None,
            "vectors_exhaustive": bool(vectors and vectors.exhaustive),
            "vectors_checked": vectors is not None,
            "cores": [{"parameters": each["parameters"], **each["combinations"]} for each in (origin["sets"] if origin else ())],
            "rtl": rtl,
        },
        "formal": proved,
        "synth": synthesis,
        "simulator": wanted.simulator,
        "status": "fail" if failures else "pass" if built else "skipped",
        "failures": failures,
        "checks": checks,
        "seconds": time.perf_counter() - start,
    }


def gate(kind: str, title: str, wanted: Wanted, progress: Callable[[str], None]) -> tuple[int, tuple[str, ...]]:
    """Tests run in the Verilog simulator, and what failed; keeps the files that were asked for, and the waveform of a failure."""
    import shutil
    import tempfile

    from verif import conformance
    from verif.errors import VerificationError
    from verif.gate import run_gate

    progress(f"{title}: Verilog in {wanted.simulator}")
    with tempfile.TemporaryDirectory(prefix="dovetail-") as builds:
        try:
            found = run_gate(conformance.samples(kind)[0], builds=Path(builds), waves=wanted.waves, simulator=wanted.simulator)
        except VerificationError as error:  # Verilog that does not compile, a simulator that breaks off
            return 0, (str(error),)
        if wanted.coverage is not None and found.coverage:
            wanted.coverage.mkdir(parents=True, exist_ok=True)
            shutil.copy(found.coverage_xml, wanted.coverage / f"{title}.xml")
        waves = found.waves
        if waves is not None and wanted.waves is None:  # of a failure
            waves = Path(shutil.copy(waves, Path(tempfile.mkdtemp(prefix="dovetail-waves-"), f"{title}.fst")))
    where = f" (waveform: {waves})" if waves else ""
    return found.tests, tuple(f"{title} in {wanted.simulator}: {failure}{where}" for failure in found.failures)


def long_runs(kind: str, wanted: Wanted, progress: Callable[[str], None]) -> tuple[int, tuple[str, ...]]:
    """Distinct operand words that RTL was given without Python in the loop, over all configurations, and what failed.

    They are the whole operand space of the arithmetic where a unit lists it, and random cases otherwise.
    """
    from verif import conformance
    from verif.harness import run_long

    distinct, failures = 0, list[str]()
    for unit in conformance.samples(kind):
        cases = list(unit.whole_space()) or conformance.draw(unit, RANDOM_CASES)
        progress(f"{conformance.describe(unit)}: long run in {wanted.simulator}")
        found = run_long(unit, cases, simulator=wanted.simulator)
        distinct += found.distinct
        failures += found.failures
    return distinct, tuple(failures)


def proofs(kind: str, limit: float, checks: dict[str, tuple[str, ...]], progress: Callable[[str], None]) -> dict[str, str]:
    """Each property with its result, the worst one of all configurations; failures go to `checks`."""
    from verif.proofs import WORST, verdicts

    proved: dict[str, str] = {}
    for configuration, verdict in verdicts(kind, limit, progress):
        proved[verdict.name] = min(verdict.result, proved.get(verdict.name, "proved"), key=WORST.index)
        failed = checks.get(f"proof: {verdict.name}", ())
        if verdict.result != "proved":
            found = ", ".join(f"{name}={value:#x}" for name, value in verdict.counterexample.items())
            within = f" within {limit:g} s" if verdict.result == "undecided" else ""
            failed += (f"{configuration}: {verdict.name} {verdict.result}{within} {found}".rstrip(),)
        checks[f"proof: {verdict.name}"] = failed
    return proved


def show(rows: list[dict[str, Any]]) -> None:
    from dovetail.human import integer
    from dovetail.listing import table

    def counted(found: dict[str, str]) -> str:
        return f"{sum(result == 'proved' for result in found.values())} of {len(found)}" if found else "not run"

    def combinations(found: dict[str, Any]) -> str:
        if found["vectors"] is None:
            return "none"
        return integer(found["vectors"]) + (" (all)" if found["vectors_exhaustive"] else "")

    cells = [
        [
            r["name"],
            integer(r["cases"]),
            f"{r['cycles_exact']} of {r['cycles_checked']}",
            integer(r["rtl_cycles"]),
            integer(r["model_cycles"]),
            combinations(r["combinations"]),
            "not run" if r["combinations"]["rtl"] is None else integer(r["combinations"]["rtl"]),
            counted(r["formal"]),
            integer(r["synth"]["cells"]) if r["synth"] else "not run",
            r["simulator"],
            r["status"],
        ]
        for r in rows
    ]
    columns = ("unit", "cases", "shapes exact", "RTL cycles", "model cycles", "recorded combinations", "RTL words", "proved", "cells")
    table("", (*columns, "simulator", "status"), cells, frozenset(columns[1:]))


def write_junit(path: Path, rows: list[dict[str, Any]]) -> None:
    """One test case per unit and check; a unit that was skipped is one skipped case."""
    import xml.etree.ElementTree as ElementTree

    from dovetail.files import atomic_writer

    suites = ElementTree.Element("testsuites", name="dovetail verify")
    for r in rows:
        cases: dict[str, tuple[str, ...]] = r["checks"]
        failed = sum(bool(failures) for failures in cases.values())
        skipped = r["status"] == "skipped"
        counts = {"tests": len(cases) + skipped, "failures": failed, "skipped": int(skipped), "errors": 0}
        attributes = {key: str(value) for key, value in counts.items()}
        suite = ElementTree.SubElement(suites, "testsuite", attributes, name=r["name"], time=f"{r['seconds']:.3f}")
        for name, failures in cases.items():
            case = ElementTree.SubElement(suite, "testcase", classname=r["name"], name=name)
            if failures:
                ElementTree.SubElement(case, "failure", message=failures[0]).text = "\n".join(failures)
        if skipped:
            case = ElementTree.SubElement(suite, "testcase", classname=r["name"], name="RTL")
            ElementTree.SubElement(case, "skipped", message="Amaranth is not installed")
    with atomic_writer(path) as file:
        file.write(ElementTree.tostring(suites, encoding="unicode", xml_declaration=True))

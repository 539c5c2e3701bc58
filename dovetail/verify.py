"""The verb `verify`: units against their RTL, in simulation and by proof."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

SIMULATORS = ("icarus", "verilator", "pysim")


def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[UNIT ...]", help="Units to verify. Default: all with RTL.")] = None,
    simulator: Annotated[
        str | None,
        typer.Option(metavar="|".join(SIMULATORS), help="Simulator of the Verilog; pysim runs none. Default: icarus, if there is one."),
    ] = None,
    formal: Annotated[bool, typer.Option("--formal", help="Prove arithmetic and stream protocol for every input.")] = False,
    synth: Annotated[bool, typer.Option("--synth", help="Synthesise the first configuration of each unit.")] = False,
    waves: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the gate's waveforms (FST) there.")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE.xml", help="Write the outcome as JUnit XML.")] = None,
    shapes: Annotated[int, typer.Option(metavar="N", min=1, help="Shapes of work per unit whose cycles are compared.")] = 200,
    limit: Annotated[float, typer.Option(metavar="SECONDS", help="Time limit of one proof.")] = 120.0,
    load: Annotated[list[Path] | None, typer.Option("--load", metavar="FILE.py", help="Python file with units of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """RTL against golden arithmetic and against the cycle model, with stalls on both streams. Status 1 when a check fails."""
    from dovetail.cli import load_file
    from dovetail.listing import print_json
    from hw.errors import nearest
    from verif.conformance import samples, units_with_rtl
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
    rows = [row(kind, simulator, formal, synth, waves, shapes, limit) for kind in names or units_with_rtl()]
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


COUNTS = ("cases", "cycles_checked", "cycles_exact", "rtl_cycles", "model_cycles")
KEYS = ("name", *COUNTS, "formal", "synth", "simulator", "status", "failures")


def row(kind: str, simulator: str, formal: bool, synth: bool, waves: Path | None, shapes: int, limit: float) -> dict[str, Any]:
    """Everything asked for about one unit."""
    from verif import conformance
    from verif.gate import run_gate
    from verif.proofs import verdicts
    from verif.record import provenance

    start = time.perf_counter()
    check = conformance.verify(kind, cycles=shapes)
    if provenance(kind):
        check += conformance.check_vectors(kind)
    failures = list(check.failures)
    tests = 0
    if simulator != "pysim":
        gate = run_gate(conformance.samples(kind)[0], waves=waves, simulator=simulator)
        tests = gate.tests
        failures += [f"{kind} in {simulator}: {failure}" for failure in gate.failures]
    proved: dict[str, str] = {}
    if formal:
        for configuration, verdict in verdicts(kind, limit):
            if proved.get(verdict.name, "proved") == "proved":
                proved[verdict.name] = verdict.result
            if verdict.result != "proved":
                found = ", ".join(f"{name}={value:#x}" for name, value in verdict.counterexample.items())
                failures.append(f"{configuration}: {verdict.name} {verdict.result} {found}".rstrip())
    synthesis = None
    if synth:
        from verif.synthesis import synthesise

        synthesis = synthesise(conformance.verilog(conformance.samples(kind)[0]))
    status = "fail" if failures else "pass"
    print(f"{kind}: {status} after {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return {
        "name": kind,
        "cases": check.cases + tests,
        "cycles_checked": check.cycles_checked,
        "cycles_exact": check.cycles_exact,
        "rtl_cycles": check.rtl_cycles,
        "model_cycles": check.model_cycles,
        "formal": proved,
        "synth": synthesis,
        "simulator": simulator,
        "status": status,
        "failures": failures,
        "seconds": time.perf_counter() - start,
    }


def show(rows: list[dict[str, Any]]) -> None:
    from dovetail.human import integer
    from dovetail.listing import table

    def proofs(found: dict[str, str]) -> str:
        return f"{sum(result == 'proved' for result in found.values())} of {len(found)}" if found else "not run"

    cells = [
        [
            r["name"],
            integer(r["cases"]),
            f"{r['cycles_exact']} of {r['cycles_checked']}",
            integer(r["rtl_cycles"]),
            integer(r["model_cycles"]),
            proofs(r["formal"]),
            integer(r["synth"]["cells"]) if r["synth"] else "not run",
            r["simulator"],
            r["status"],
        ]
        for r in rows
    ]
    columns = ("unit", "cases", "shapes exact", "RTL cycles", "model cycles", "proved", "cells", "simulator", "status")
    table("", columns, cells, frozenset(columns[1:7]))


def write_junit(path: Path, rows: list[dict[str, Any]]) -> None:
    """One test case per unit."""
    import xml.etree.ElementTree as ElementTree

    failed = sum(r["status"] == "fail" for r in rows)
    suite = ElementTree.Element("testsuite", name="dovetail verify", tests=str(len(rows)), failures=str(failed))
    for r in rows:
        case = ElementTree.SubElement(suite, "testcase", classname="verify", name=r["name"], time=f"{r['seconds']:.3f}")
        if r["failures"]:
            ElementTree.SubElement(case, "failure", message=r["failures"][0]).text = "\n".join(r["failures"])
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(suite).write(path, encoding="unicode", xml_declaration=True)

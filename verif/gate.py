"""The gate before RTL counts as verified: the unit as Verilog, in a Verilog simulator, driven by cocotb.

A unit is built once per configuration and folder of builds: its own folder is named after the hash of its Verilog.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hw import Case, Unit
from verif.conformance import SEED, batches, component_of, describe, differences, draw, verilog
from verif.errors import VerificationError
from verif.simulate import simulate
from verif.tools import missing_simulator, simulator_environment


@dataclass(frozen=True, slots=True)
class Gate:
    """One run of the gate. `coverage` gives the covered share of each point; `waves` the FST file, when there is one."""

    unit: str
    tests: int
    failures: tuple[str, ...]
    junit: Path
    coverage: Mapping[str, float]
    coverage_xml: Path
    waves: Path | None


def run_gate(
    unit: Unit,
    *,
    builds: Path,
    cases: int = 12,
    waves: Path | None = None,
    junit: Path | None = None,
    source: str | None = None,
    simulator: str = "icarus",
) -> Gate:
    """Golden results under every stall pattern, in `simulator`. `source` replaces the unit's Verilog. One run at a time uses `builds`.

    Waves are kept in the folder `waves` when it is given, and otherwise recorded by a second run when the first one fails.
    Raises `VerificationError` when the simulator or cocotb is missing or does not take the Verilog.
    """
    if reason := missing_simulator(simulator):
        raise VerificationError(reason)
    text = source or verilog(unit)
    drawn = draw(unit, cases)
    expected, wrong = _expected(unit, drawn)
    recording = waves is not None or bool(wrong)
    found = _run(unit, text, drawn, expected, builds, recording, simulator)
    if found.failures and not recording:
        found = _run(unit, text, drawn, expected, builds, True, simulator)
    if waves is not None and found.waves:
        waves.mkdir(parents=True, exist_ok=True)
        found = replace(found, waves=Path(shutil.copy(found.waves, waves / f"{unit.title}.fst")))
    if junit is not None:
        junit.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(found.junit, junit)
    return replace(found, failures=(*wrong, *found.failures))


def _expected(unit: Unit, cases: list[Case]) -> tuple[list[int], tuple[str, ...]]:
    """The result words of cases, from an Amaranth simulation that is held against the golden, and where it differs from that."""
    groups = batches(unit, cases)
    try:
        run = simulate(component_of(unit), groups, rng=np.random.default_rng(SEED))
    except VerificationError as error:  # the unit is stuck, which a waveform is to show
        return [0] * sum(group.results for group in groups), (f"{describe(unit)}: {error}",)
    return [word for words in run.results for word in words], tuple(differences(unit, cases, run.results)[:1])


def _run(unit: Unit, text: str, cases: list[Case], expected: list[int], builds: Path, waves: bool, simulator: str) -> Gate:
    from cocotb_tools.runner import get_runner

    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = (builds / f"{unit.kind}-{digest}{'-waves' if waves else ''}-{simulator}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    verilog_file = folder / "dut.v"
    if not verilog_file.is_file():
        verilog_file.write_text("`timescale 1ns/1ps\n" + text, encoding="utf-8")
    task, results, coverage = folder / "task.json", folder / "results.xml", folder / "coverage.xml"
    words = [word for batch in batches(unit, cases) for word in batch.words]
    told = {"words": [f"{word:x}" for word in words], "expected": [f"{word:x}" for word in expected]}
    task.write_text(json.dumps({"unit": unit.kind, "seed": SEED, "coverage": str(coverage), **told}), encoding="utf-8")
    runner = get_runner(simulator)
    said = io.StringIO()
    try:
        with simulator_environment(simulator), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runner.build(
                sources=[verilog_file],
                hdl_toplevel="dut",
                build_dir=folder,
                waves=waves,
                # Amaranth's Verilog widens without saying so; the trace is FST as that of Icarus
                build_args=["-Wno-fatal", *(["--trace-fst"] if waves else [])] if simulator == "verilator" else [],
                log_file=folder / "build.log",
            )
    except Exception as error:
        log = (folder / "build.log").read_text(encoding="utf-8") if (folder / "build.log").is_file() else ""
        raise VerificationError(f"{describe(unit)}: {simulator} does not take the Verilog ({error}):\n{log.strip()[-500:]}") from None
    results.unlink(missing_ok=True)
    # the runner exits when no result file appears; the log then says why
    quiet = contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit)
    with simulator_environment(simulator), quiet[0], quiet[1], quiet[2]:
        runner.test(
            hdl_toplevel="dut",
            test_module="verif.bench.unit_bench",
            build_dir=folder,
            test_dir=folder,
            results_xml=str(results),
            waves=waves,
            extra_env={"DOVETAIL_BENCH": str(task), "COCOTB_LOG_LEVEL": "WARNING", "COCOTB_ANSI_OUTPUT": "0", "PYTHONPATH": _python_path()},
            log_file=folder / "test.log",
        )
    if not results.is_file():
        log = (folder / "test.log").read_text(encoding="utf-8") if (folder / "test.log").is_file() else said.getvalue()
        raise VerificationError(f"{describe(unit)}: the simulation ended without results:\n{log.strip()[-800:]}")
    tests, failures = _junit(results)
    dump = next(iter(sorted(folder.glob("*.fst"))), None) if waves else None
    return Gate(unit.kind, tests, failures, results, _coverage(coverage), coverage, dump)


def _python_path() -> str:
    import os
    import sys

    here = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(dict.fromkeys([here, *filter(None, sys.path)]))


def _junit(path: Path) -> tuple[int, tuple[str, ...]]:
    tests, failures = 0, []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        tests += 1
        for kind in ("failure", "error"):
            for item in case.findall(kind):
                message = item.get("message") or item.get("error_msg") or (item.text or "").strip().splitlines()[-1:]
                failures.append(f"{case.get('name')}: {message}")
    return tests, tuple(failures)


def _coverage(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    root = ElementTree.parse(path).getroot()
    return {
        str(item.get("abs_name")).removeprefix("top."): float(item.get("cover_percentage", 0))
        for item in root.iter()
        if item.get("abs_name", "").count(".") == 2
    }

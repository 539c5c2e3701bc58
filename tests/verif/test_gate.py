"""Every unit through the gate: as Verilog, in Icarus Verilog, driven by cocotb."""

from __future__ import annotations

from pathlib import Path

import pytest

from verif.conformance import samples, units_with_rtl
from verif.tools import missing_simulator

too_old = missing_simulator("verilator")
reason = missing_simulator()  # None where Icarus Verilog and cocotb are both installed


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the builds of a session: a configuration is compiled once."""
    return tmp_path_factory.mktemp("builds")


@pytest.mark.rtl
@pytest.mark.skipif(bool(reason), reason=str(reason))
@pytest.mark.parametrize("kind", units_with_rtl())
def test_the_verilog_of_a_unit_gives_golden_results_under_every_stall_pattern(kind: str, builds: Path):
    from verif.gate import run_gate

    gate = run_gate(samples(kind)[0], cases=6, builds=builds)
    assert gate.failures == ()
    assert gate.tests == 3
    assert gate.coverage[f"{kind}.stalls"] == 100
    assert gate.coverage[f"{kind}.result"] == 100


@pytest.mark.rtl
@pytest.mark.skipif(bool(reason), reason=str(reason))
@pytest.mark.parametrize("stuck", [False, True])
def test_rtl_that_is_not_golden_leaves_a_waveform(builds: Path, stuck: bool, monkeypatch: pytest.MonkeyPatch):
    """Also where the Amaranth simulation, which the expected words come from, has the same bug or never ends."""
    from hw.rtl import ternary_row as rtl
    from hw.rtl.stream import Pipeline
    from verif.gate import run_gate

    if stuck:
        monkeypatch.setattr(Pipeline, "emit", lambda flow, *given: None)
        monkeypatch.setattr("verif.simulate.PATIENCE", 50)
    else:
        monkeypatch.setattr(rtl, "chosen", lambda activation, code: activation)
    gate = run_gate(samples("ternary_row")[0], cases=2, builds=builds)
    assert ("stuck" if stuck else "golden is") in gate.failures[0]
    assert gate.waves is not None
    assert gate.waves.stat().st_size > 0


@pytest.mark.rtl
@pytest.mark.slow
@pytest.mark.skipif(bool(too_old), reason=str(too_old))
@pytest.mark.parametrize("kind", units_with_rtl())
def test_the_verilog_of_a_unit_gives_golden_results_in_verilator(kind: str, builds: Path):
    from verif.gate import run_gate

    gate = run_gate(samples(kind)[0], cases=6, builds=builds, simulator="verilator")
    assert (gate.failures, gate.tests) == ((), 3)


@pytest.mark.rtl
@pytest.mark.slow
@pytest.mark.skipif(bool(too_old), reason=str(too_old))
def test_a_long_run_and_a_waveform_in_verilator(builds: Path, tmp_path: Path):
    from verif.conformance import draw
    from verif.gate import run_gate
    from verif.harness import run_long

    unit = samples("ternary_row")[0]
    assert run_long(unit, draw(unit, 100), simulator="verilator").failures == ()
    gate = run_gate(unit, cases=2, builds=builds, waves=tmp_path, simulator="verilator")
    assert gate.waves is not None
    assert gate.waves.stat().st_size > 0

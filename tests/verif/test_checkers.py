"""The checkers themselves: each is given RTL with a planted bug and must find it."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hw import Case, Gemm
from hw.units import Systolic, TernaryRow
from verif.conformance import SEED, check_cycles, check_results, check_yaml, differences, draw, samples, verilog
from verif.errors import VerificationError
from verif.harness import run_long
from verif.stalls import STALLS, every_third, never, random_half
from verif.tools import missing_simulator

pytest.importorskip("amaranth", reason="RTL needs the extra `rtl`")
no_gate = missing_simulator()
needs_solver = pytest.mark.skipif(find_spec("bitwuzla") is None, reason="proofs need the extra `rtl`: pip install 'dovetail[rtl]'")
needs_gate = pytest.mark.skipif(bool(no_gate), reason=str(no_gate))

from amaranth.hdl import Module, Signal  # noqa: E402

from hw.rtl import ternary_row as rtl  # noqa: E402
from hw.rtl.stream import Pipeline, StreamUnit, total  # noqa: E402

UNIT = TernaryRow(lanes=4)


class Mutant(rtl.TernaryRowRtl):
    """The ternary unit with one bug, chosen by name."""

    def __init__(self, bug: str) -> None:
        super().__init__(UNIT.lanes, UNIT.accumulator_bits)
        self.bug = bug

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        accept = Signal(init=1)
        flow = Pipeline(m, self, accept=0 if self.bug == "deaf" else accept)
        word = self.operands.payload
        codes = [word.codes[i] & 1 if self.bug == "wrong sign" and i == 0 else word.codes[i] for i in range(self.lanes)]
        closes, step = flow.register(word.closes, total(rtl.chosen(word.activations[i], codes[i]) for i in range(self.lanes)))
        if self.bug == "a stage too many":
            closes, step = flow.register(closes, step)
        flow.accumulate([step], closes)
        if self.bug == "vanishes while it waits":
            with m.If(self.result.valid & ~self.result.ready):
                m.d.sync += self.result.valid.eq(0)
        if self.bug == "ignores back-pressure":
            m.d.comb += flow.moves.eq(1)
        if self.bug == "a bubble now and then":
            m.d.sync += accept.eq(~accept)
        return m


def test_the_unit_without_a_bug_passes():
    assert check_results(UNIT, 10, offer=random_half, take=random_half, component=Mutant("none")).failures == ()
    assert check_cycles(UNIT, 10, component=Mutant("none")).failures == ()


def test_wrong_arithmetic_is_found_and_placed():
    failures = check_results(UNIT, 10, component=Mutant("wrong sign")).failures
    assert failures
    assert "golden is" in failures[0]
    assert "RTL" in failures[0]


@pytest.mark.parametrize("bug", ["a stage too many", "a bubble now and then"])
def test_wrong_timing_is_found_although_every_result_is_right(bug: str):
    check = check_cycles(UNIT, 10, component=Mutant(bug))
    assert check_results(UNIT, 10, component=Mutant(bug)).failures == ()
    assert check.cycles_exact < check.cycles_checked == 10
    assert "the model says" in check.failures[0]


@pytest.mark.parametrize("bug", ["vanishes while it waits", "ignores back-pressure"])
def test_a_breach_of_the_stream_protocol_is_found(bug: str):
    failures = check_results(UNIT, 10, take=every_third, component=Mutant(bug)).failures
    assert any("while it waited" in failure or "stuck" in failure for failure in failures)
    assert check_results(UNIT, 10, take=never, component=Mutant(bug)).failures == (), "without stalls the bug does not show"


def test_a_unit_that_takes_nothing_is_called_stuck():
    assert "stuck: no word moved" in check_results(UNIT, 2, component=Mutant("deaf")).failures[0]


def test_a_cost_that_differs_by_one_cycle_is_found():
    class Optimist(TernaryRow):
        def cycles(self, work: Any) -> int:
            return super().cycles(work) - 1

    check = check_cycles(Optimist(lanes=4), 10)
    assert (check.cycles_exact, check.rtl_cycles) == (0, check.model_cycles + 10)


def test_a_golden_that_differs_in_one_element_is_found():
    case = Case(Gemm(1, 2, 1, "ternary"), (np.array([[3]]), np.array([[1, 3]])))
    right = UNIT.golden(*case.operands)
    assert right.tolist() == [[3, -3]]
    assert differences(UNIT, [case], [[3, (1 << 32) - 3]]) == []
    assert "at (0, 1) golden is -3, RTL -4" in differences(UNIT, [case], [[3, (1 << 32) - 4]])[0]


def test_cases_are_the_same_each_time():
    first, second = (draw(UNIT, 5, SEED) for _ in range(2))
    assert all(np.array_equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x.operands, y.operands, strict=True))


def test_a_unit_that_does_not_survive_yaml_is_found(monkeypatch: pytest.MonkeyPatch):
    from hw import Device

    original = Device.to_yaml
    monkeypatch.setattr(Device, "to_yaml", lambda device: original(device).replace("lanes: 4", "lanes: 3"))
    assert "comes back from YAML" in check_yaml(UNIT).failures[0]


def test_unknown_units_and_units_without_rtl_are_refused():
    with pytest.raises(VerificationError, match=r"unknown unit 'ternary_rwo'.*did you mean `ternary_row`"):
        samples("ternary_rwo")
    with pytest.raises(VerificationError, match="'tensor_core' has no RTL to verify"):
        samples("tensor_core")


@pytest.mark.parametrize("name", STALLS)
def test_stall_patterns_are_what_their_names_say(name: str):
    pattern = STALLS[name](np.random.default_rng(0))
    stalled = [next(pattern) for _ in range(3000)]
    share = {"never": 0, "every_third": 1 / 3, "random_half": 1 / 2}[name]
    assert sum(stalled) / 3000 == pytest.approx(share, abs=0.05)


# Proofs ---------------------------------------------------------------------------------------------------------------------
@needs_solver
def test_a_proof_finds_the_input_that_refutes_a_wrong_claim(monkeypatch: pytest.MonkeyPatch):
    from verif.formal import prove

    theorem = rtl.tree_theorem(2)
    assert prove("tree", theorem).result == "proved"
    monkeypatch.setattr(rtl, "chosen", lambda activation, code: activation if code is None else activation & 0x7F)
    verdict = prove("tree", rtl.tree_theorem(2))
    assert verdict.result == "refuted"
    assert set(verdict.counterexample) == {"activations", "codes", "result"}


@needs_solver
def test_a_claim_about_an_unknown_port_is_refused():
    from hw.rtl.proof import Theorem
    from verif.formal import prove

    theorem = rtl.tree_theorem(2)
    with pytest.raises(VerificationError, match="the claim names port 'sum', the theorem has activations, codes, result"):
        prove("tree", Theorem(theorem.design, theorem.ports, "(= {result} {sum})"))


@needs_solver
@pytest.mark.parametrize("bug", ["vanishes while it waits", "ignores back-pressure"])
def test_the_stream_proof_refutes_a_unit_that_breaks_the_protocol(bug: str):
    from verif.protocol import prove_protocol

    class Broken(TernaryRow):
        def rtl(self) -> StreamUnit:
            return Mutant(bug)

    assert {v.name: v.result for v in prove_protocol(UNIT)} == {"stable_while_stalled": "proved", "stalled_units_stand_still": "proved"}
    assert {v.name: v.result for v in prove_protocol(Broken(lanes=4))}["stable_while_stalled"] == "refuted"


@needs_solver
def test_floating_point_addition_that_truncates_is_refuted(monkeypatch: pytest.MonkeyPatch):
    """The IEEE theorem is not vacuous: without rounding up it has a counterexample."""
    from hw.number import FLOATS
    from hw.rtl import float as ieee
    from verif.formal import prove

    original = ieee.shift_right_sticky
    assert prove("sum", ieee.sum_theorem(FLOATS["fp16"])).result == "proved"
    monkeypatch.setattr(ieee, "shift_right_sticky", lambda m, value, amount: ieee.signal(m, (value >> amount)[: len(value)]))
    assert original is not ieee.shift_right_sticky
    assert prove("sum", ieee.sum_theorem(FLOATS["fp16"])).result == "refuted"


# The gate ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.rtl
@needs_gate
def test_the_gate_finds_a_mutated_operator_in_the_verilog(tmp_path: Path):
    from verif.gate import run_gate

    good = run_gate(UNIT, cases=4, builds=tmp_path)
    assert (good.tests, good.failures) == (3, ())
    text = verilog(UNIT)
    assert " + " in text
    bad = run_gate(UNIT, cases=4, builds=tmp_path, source=text.replace(" + ", " - ", 1))
    assert bad.failures
    assert bad.waves is not None, "a failure leaves its waveform"
    assert bad.waves.stat().st_size > 0


@pytest.mark.rtl
@needs_gate
def test_the_gate_reports_coverage_results_and_waves(tmp_path: Path):
    from verif.gate import run_gate

    gate = run_gate(UNIT, cases=6, builds=tmp_path / "builds", waves=tmp_path / "waves", junit=tmp_path / "results.xml")
    assert (tmp_path / "waves" / "ternary_row.fst").stat().st_size > 0
    assert "<testcase" in (tmp_path / "results.xml").read_text()
    for point in ("operands", "result", "stalls"):
        assert gate.coverage[f"ternary_row.{point}"] == 100, gate.coverage


@pytest.mark.rtl
@needs_gate
def test_verilog_that_does_not_compile_is_reported_with_the_compilers_words(tmp_path: Path):
    from verif.gate import run_gate

    with pytest.raises(VerificationError, match="does not take the Verilog"):
        run_gate(UNIT, cases=1, builds=tmp_path, source="module dut(; endmodule")


def test_a_missing_simulator_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from verif.gate import run_gate

    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("verif.tools.verilator", lambda: None)
    with pytest.raises(VerificationError, match="Icarus Verilog is not installed"):
        run_gate(UNIT, builds=tmp_path)
    with pytest.raises(VerificationError, match="Verilator is not installed"):
        run_gate(UNIT, builds=tmp_path, simulator="verilator")
    with pytest.raises(VerificationError, match="Icarus Verilog is not installed"):
        run_long(UNIT, draw(UNIT, 1))


@pytest.mark.rtl
@needs_gate
@pytest.mark.parametrize("stalls", [False, True])
def test_a_long_run_finds_wrong_arithmetic_and_breaches_of_the_protocol(stalls: bool):
    from amaranth.back import verilog as backend

    cases = draw(UNIT, 40)
    good = run_long(UNIT, cases, stalls=stalls)
    assert (good.failures, good.words) == ((), sum(len(UNIT.encode(*case.operands)) for case in cases))
    wrong = run_long(UNIT, cases, stalls=stalls, source=backend.convert(Mutant("wrong sign"), name="dut", emit_src=False))
    assert "golden is" in wrong.failures[0]
    vanishing = run_long(UNIT, cases, stalls=stalls, source=backend.convert(Mutant("vanishes while it waits"), name="dut", emit_src=False))
    assert bool(vanishing.failures) == stalls
    deaf = run_long(UNIT, cases, stalls=stalls, source=backend.convert(Mutant("deaf"), name="dut", emit_src=False))
    assert "0 of" in deaf.failures[0]


BABBLER = """module dut(input clk, input rst, input [{word}:0] operands__payload, input operands__valid, output operands__ready,
  output [{result}:0] result__payload, output result__valid, input result__ready);
  assign operands__ready = 0;
  assign result__valid = 1;
  assign result__payload = 0;
endmodule
"""


@pytest.mark.rtl
@needs_gate
def test_a_unit_that_offers_results_for_ever_is_stopped_at_the_first_one_too_many():
    from amaranth.back import verilog as backend

    text = backend.convert(Mutant("none"), name="dut", emit_src=False)
    tops = {port: re.search(rf"\[(\d+):0\] {port}\b", text)[1] for port in ("operands__payload", "result__payload")}
    cases = draw(UNIT, 5)
    run = run_long(UNIT, cases, source=BABBLER.format(word=tops["operands__payload"], result=tops["result__payload"]))
    expected = sum(UNIT.results(case.work) for case in cases)
    assert run.failures == (f"ternary_row(lanes=4): 0 of {run.words} words went in and {expected + 1} of {expected} results came out",)


@pytest.mark.rtl
@needs_gate
def test_a_long_run_without_stalls_takes_the_cycles_of_its_words():
    """One stream of all cases: a word per cycle, and the two stages after the last."""
    run = run_long(UNIT, draw(UNIT, 20), stalls=False)
    assert run.cycles == run.words - 1 + 2


@needs_solver
def test_the_proof_of_the_array_is_not_vacuous():
    from hw.rtl.proof import Theorem
    from hw.rtl.systolic import product_theorem
    from verif.formal import prove

    theorem = product_theorem(stationary_weights=False, hidden=False, overlap=False)
    assert prove("array", theorem).result == "proved"
    wrong = Theorem(theorem.design, theorem.ports, theorem.claim.replace("bvadd", "bvsub"), theorem.cycles)
    assert prove("array", wrong).result == "refuted"
    late = theorem.claim.replace(f"(= {{offers_{theorem.cycles - 2}}} #b1)", f"(= {{offers_{theorem.cycles - 2}}} #b0)")
    assert prove("array", Theorem(theorem.design, theorem.ports, late, theorem.cycles)).result == "refuted"


def test_a_systolic_array_of_a_format_without_rtl_is_refused():
    with pytest.raises(VerificationError, match="rtl\\(\\) returned nothing"):
        check_results(Systolic(rows=2, columns=2, dtypes=("bf16",)), 1)

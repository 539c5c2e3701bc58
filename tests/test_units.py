"""Conformance: every registered unit with RTL computes what its golden says, when its cost says, on well-behaved streams."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from hw import UNITS, Unit
from verif.conformance import (
    PATTERNS,
    check_cycles,
    check_large_sets,
    check_results,
    check_vectors,
    check_yaml,
    describe,
    draw,
    kind_of,
    samples,
    units_with_rtl,
    verilog,
)
from verif.record import load, provenance, recorded_combinations
from verif.stalls import STALLS
from verif.tools import missing_simulator

needs_amaranth = pytest.mark.skipif(find_spec("amaranth") is None, reason="RTL needs the extra `rtl`: pip install 'dovetail[rtl]'")
needs_solver = pytest.mark.skipif(find_spec("bitwuzla") is None, reason="proofs need the extra `rtl`: pip install 'dovetail[rtl]'")

KINDS = units_with_rtl()
FIRST_UNITS = {
    "systolic_array",
    "lut_tensor_core",
    "csd_chain",
    "bitmod_pe",
    "lmul",
    "lmul_dot8",
    "bank_mac",
    "olive_mac",
    "ternary_row",
    "mx_dot",
    "bfp_dot",
    "dequant_stream",
    "wht128",
    "huffman_decode",
    "softmax_stream",
    "sram_pim_slice",
}
SAMPLES = [unit for kind in KINDS for unit in samples(kind)]


def named(unit: Unit) -> str:
    return describe(unit)


def test_the_suite_finds_the_units():
    assert {UNITS[kind].title for kind in KINDS} >= FIRST_UNITS


def test_a_unit_is_found_by_its_kind_and_by_the_name_in_lists():
    assert kind_of("systolic_array") == kind_of("systolic") == "systolic"
    assert {kind_of(name) for name in FIRST_UNITS} <= set(KINDS)


def test_a_unit_kind_without_samples_has_no_rtl():
    for kind, cls in UNITS.items():
        if kind not in KINDS:
            assert cls.rtl is Unit.rtl, f"{kind} has RTL that the suite cannot build: give it samples()"


@needs_amaranth
@pytest.mark.parametrize("unit", SAMPLES, ids=named)
@pytest.mark.parametrize(("offer", "take"), PATTERNS)
def test_rtl_is_golden_whatever_stalls(unit: Unit, offer: str, take: str):
    assert check_results(unit, 8, offer=STALLS[offer], take=STALLS[take]).failures == ()


@needs_amaranth
@pytest.mark.parametrize("kind", KINDS)
def test_rtl_takes_the_cycles_of_the_model_for_200_shapes(kind: str):
    units = samples(kind)
    checks = [check_cycles(unit, -(-200 // len(units))) for unit in units]
    assert [failure for check in checks for failure in check.failures] == []
    assert sum(check.cycles_exact for check in checks) == sum(check.cycles_checked for check in checks) >= 200


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_include_one_and_sizes_that_are_no_multiples(kind: str):
    """The first shape of every unit is the smallest; among the others some are a step, one more than a step, and odd."""
    works = [case.work for unit in samples(kind) for case, _ in zip(unit.cases(np.random.default_rng(1)), range(60), strict=False)]
    sizes = {value for work in works for value in ((work.m, work.n, work.k) if hasattr(work, "macs") else (work.elements,))}
    assert min(sizes) in (1, 2)
    assert len(sizes) > 5
    assert any(size % 2 for size in sizes) or kind in ("wht128", "olive_mac")


@needs_amaranth
@pytest.mark.parametrize("unit", SAMPLES, ids=named)
def test_rtl_converts_to_verilog_with_both_streams(unit: Unit):
    text = verilog(unit)
    assert text.count("module dut(") == 1
    for stream in ("operands", "result"):
        assert all(f"{stream}__{part}" in text for part in ("valid", "ready", "payload"))


@pytest.mark.parametrize("unit", SAMPLES, ids=named)
def test_a_unit_comes_back_equal_from_yaml(unit: Unit):
    assert check_yaml(unit).failures == ()


@pytest.mark.parametrize("unit", SAMPLES, ids=named)
def test_work_never_takes_fewer_cycles_than_its_operations(unit: Unit):
    """The roofline of a unit: macs per cycle at most."""
    for case, _ in zip(unit.cases(np.random.default_rng(2)), range(40), strict=False):
        if hasattr(case.work, "macs") and (rate := unit.macs_per_cycle(case.work.format)):
            assert unit.cycles(case.work) * rate >= case.work.macs


@pytest.mark.parametrize("kind", KINDS)
def test_golden_equals_the_recorded_vectors(kind: str):
    origin = provenance(kind)
    assert origin is not None, f"no vectors of {kind}; record them with: dovetail record vectors --out verif/vectors"
    assert origin["device"] in ("cpu", "gpu")
    assert len(load(kind)) >= 3
    assert check_vectors(kind).failures == ()


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_vectors_have_ten_million_combinations_or_all_there_are(kind: str):
    """Distinct ones, of each configuration: those of 8-bit floats, bytes of pairs and scaled codes are all there are."""
    found, origin = recorded_combinations(kind), provenance(kind)
    assert found is not None
    assert origin is not None
    for group in origin["sets"]:
        counted = group["combinations"]
        least = counted["space"] or 10_000_000
        assert counted["distinct"] >= least, group["parameters"]
    assert found.distinct == sum(group["combinations"]["distinct"] for group in origin["sets"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_golden_equals_the_kernel_on_the_large_sets(kind: str):
    """Only the hash of their results was recorded."""
    check = check_large_sets(kind)
    assert check.cases >= 1
    assert check.failures == ()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_combinations_of_the_large_sets_are_those_recorded(kind: str):
    from verif.kernels import kernels
    from verif.record import combinations

    origin = provenance(kind)
    assert origin is not None
    for number, group in enumerate(origin["sets"]):
        found = combinations(kind, kernels()[kind], number)
        assert {"distinct": found.distinct, "space": found.space} == group["combinations"]


@needs_amaranth
@pytest.mark.slow
@pytest.mark.rtl
@pytest.mark.skipif(bool(missing_simulator()), reason=str(missing_simulator()))
@pytest.mark.parametrize("unit", SAMPLES, ids=named)
def test_rtl_is_golden_over_whole_operand_spaces_and_long_streams(unit: Unit):
    """Where the operands of the arithmetic can be listed all of them, in each lane; otherwise four hundred random cases."""
    from verif.harness import run_long

    run = run_long(unit, list(unit.whole_space()) or draw(unit, 400))
    assert run.failures == ()
    # the narrowest sample, an SRAM slice of two columns, has 38 commands: zero, 6 x 4 writes, build, 4 x 2 look-ups, 4 reads
    narrow = unit.kind == "sram_pim_slice" and getattr(unit, "accumulator_bits", 0) == 4
    assert run.words >= run.distinct >= (38 if narrow else 51)


@needs_amaranth
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bank_mac", "bfp_dot", "csd_chain", "lut_tensor_core", "mx_dot", "olive_mac", "wht128"])
def test_rtl_of_full_size_is_golden_and_takes_the_cycles_of_the_model(kind: str):
    unit = UNITS[kind]()
    assert check_cycles(unit, 6).failures == ()
    assert check_results(unit, 3, offer=STALLS["random_half"], take=STALLS["every_third"]).failures == ()


@needs_solver
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_arithmetic_and_streams_are_proved(kind: str):
    from verif.proofs import prove_unit

    results = prove_unit(kind)
    assert len(results) >= 2
    assert set(results.values()) == {"proved"}, results

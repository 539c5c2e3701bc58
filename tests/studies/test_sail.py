"""The study of SAIL: its patterns are exact, its gains follow the laws of the abstract."""

from __future__ import annotations

import numpy as np
import pytest

from dovetail import estimate
from hw.devices import load
from hw.units.sail import SailSlices
from studies import sail


@pytest.mark.parametrize("group", [2, 3, 4])
def test_merged_look_ups_give_the_exact_product(group: int) -> None:
    rng = np.random.default_rng(group)
    inputs, outputs = 24 * group, 5
    left, right = rng.integers(-128, 128, inputs), rng.integers(-8, 8, (inputs, outputs))
    tables = np.array([[[(p >> k & 1) for k in range(group)] for p in range(1 << group)]] * (inputs // group)) @ right.reshape(
        -1, group, outputs
    )
    total = np.zeros(outputs, np.int64)
    for number, looks in enumerate(sail.merged(sail.patterns(left, group, 8))):
        for pattern, plane, sign in looks:
            total += sign * tables[number, pattern] << plane
    assert (total == left @ right).all()


def test_small_activations_repeat_their_sign_and_large_ones_do_not() -> None:
    small = sail.merged(sail.patterns(np.array([1, -1, 0, 1]), 4, 8))
    assert [len(looks) for looks in small] == [2]  # planes 7 to 1 are alike
    large = sail.merged(sail.patterns(np.array([127, -128, 64, -65]), 4, 8))
    assert [len(looks) for looks in large] == [8]


def test_the_device_uses_the_share_that_is_computed() -> None:
    unit = load("sail-neoverse").units["sram"]
    assert isinstance(unit, SailSlices)
    assert float(unit.reuse) == pytest.approx(sail.saved(), abs=5e-5)
    assert sail.cycles_cut() < sail.saved()  # tables and conversion are not saved


def test_gains_grow_with_the_batch_until_tables_are_paid_for_and_with_fewer_bits() -> None:
    gains = [sail.rate(batch, "int4-g128", True) / sail.rate(batch, "int4-g128", False) for batch in (1, 4, 8)]
    assert gains == sorted(gains)
    assert sail.rate(4, "int2-g128", True) > sail.rate(4, "int4-g128", True) > sail.rate(4, "int8-g128", True)


def test_one_sequence_is_bound_by_reading_the_weights() -> None:
    report = estimate("opt-1.3b", device="sail-neoverse", phase="decode", batch=1, context=64, weights="int4-g128", acts="int8")
    assert report.bound_resource == "dram"
    assert report.latency_s >= report.lower_bound_fs * 1e-15
    memory = next(use for use in report.memories if use.name == "dram")
    assert report.latency_s > memory.read / 204.8e9


def test_both_engines_agree() -> None:
    times = [
        estimate(
            "opt-1.3b", device="sail-neoverse", phase="decode", batch=3, context=64, weights="int4-g128", acts="int8", engine=engine
        ).latency_fs
        for engine in ("fast", "simpy")
    ]
    assert times[0] == times[1]


@pytest.mark.slow
def test_rows_are_reported_and_say_what_is_unknown() -> None:
    for row in sail.rows():
        assert row.status == "reported"
        assert "not" in row.note

"""The systolic array's RTL where its cost is more than a sum of folds."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="RTL needs the extra `rtl`")

from hw import Case, Gemm, Systolic
from verif.conformance import batches, differences
from verif.simulate import Run, simulate


def run(unit: Systolic, m: int, n: int, k: int) -> tuple[Run, list[str]]:
    rng = np.random.default_rng(0)
    case = Case(Gemm(m, n, k, "int8"), (rng.integers(-128, 128, (m, k)), rng.integers(-128, 128, (k, n))))
    found = simulate(unit.rtl(), batches(unit, [case]), apart=True)
    return found, differences(unit, [case], found.results)


@pytest.mark.parametrize(("m", "n", "k"), [(4, 3, 1), (8, 3, 1), (9, 7, 2), (5, 4, 3), (12, 9, 4), (12, 9, 5)])
def test_overlapped_output_stationary_folds_close_no_faster_than_their_rows_leave(m: int, n: int, k: int):
    """One row of results leaves per cycle, so R cycles lie between the ends of two folds even if K is less:
    (folds - 1) max(K, R) + K + R + C - 2."""
    r, c = 4, 3
    unit = Systolic(rows=r, columns=c, fold_overlap="full")
    found, wrong = run(unit, m, n, k)
    folds = ceil(m / r) * ceil(n / c)
    assert wrong == []
    assert found.cycles == ((folds - 1) * max(k, r) + k + r + c - 2,)
    assert found.cycles == (unit.cycles(Gemm(m, n, k, "int8")),)


@pytest.mark.parametrize("m", [1, 2, 5])
def test_hidden_weights_bound_every_fold_but_the_last(m: int):
    """Rows stream for M cycles, weights load for R: each fold but the last takes the longer of the two."""
    r, c, folds = 3, 2, 4
    unit = Systolic.model_validate({"rows": r, "columns": c, "dataflow": "weight_stationary", "preload": "hidden", "fold_overlap": "full"})
    found, wrong = run(unit, m, 2 * c, 2 * r)
    assert wrong == []
    assert found.cycles == (r + (folds - 1) * max(m, r) + m + r + c - 2,)
    assert found.cycles == (unit.cycles(Gemm(m, 2 * c, 2 * r, "int8")),)


def test_sums_wrap_at_the_width_of_the_accumulator():
    unit = Systolic(rows=2, columns=2, accumulator_bits=16)
    operands = np.full((2, 4), -128), np.full((4, 2), -128)  # 4 x 16384 = 65536 = 0 modulo 2^16
    case = Case(Gemm(2, 2, 4, "int8"), operands)
    assert unit.golden(*operands).tolist() == [[0, 0], [0, 0]]
    assert differences(unit, [case], simulate(unit.rtl(), batches(unit, [case])).results) == []


def test_only_int8_has_rtl():
    assert Systolic(rows=2, columns=2, dtypes=("bf16",)).rtl() is None

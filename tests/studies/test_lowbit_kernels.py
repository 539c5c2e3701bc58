"""L-Mul, T-MAC and LUT-GEMM, ShiftAddLLM, MatMul-free models: what the studies claim, and why what they do not claim is missed."""

from __future__ import annotations

import numpy as np
import pytest

from hw.lowbit.lmul import adder, fraction_format
from hw.units.lmul import offset_bits
from studies import lmul, matmul_free, shiftadd, tmac_lutgemm
from studies.row import StudyRow

LMUL, SHIFTADD = lmul.rows(), shiftadd.rows()


def by(rows: list[StudyRow], text: str) -> list[StudyRow]:
    return [row for row in rows if text in row.experiment]


def every_row_is_complete(rows: list[StudyRow]) -> bool:
    return all(row.source and row.note and row.published for row in rows)


# L-Mul ----------------------------------------------------------------------------------------------------------------------
def test_lmul_saves_what_the_table_says():
    products, dots = by(LMUL, "energy saved by")
    # fp32: 3.7 pJ becomes 0.1; with the sum 4.6 becomes 1.0
    assert products.ours == pytest.approx(100 * (1 - 0.1 / 3.7))
    assert dots.ours == pytest.approx(100 * (1 - 1.0 / 4.6))
    assert [row.status for row in (products, dots)] == ["reproduced"] * 2
    assert every_row_is_complete(LMUL)


def test_no_claimed_row_of_lmul_is_missed():
    assert [row.experiment for row in LMUL if row.status == "not reproduced"] == []


@pytest.mark.parametrize("bits", range(2, 9))
def test_errors_are_means_over_all_pairs_of_fractions(bits: int):
    # 2^18 random pairs against every one: within five standard errors of a spread below 16 %
    form = fraction_format(bits)
    x, y = ((127 << bits) + v.ravel() for v in np.meshgrid(np.arange(1 << bits), np.arange(1 << bits)))
    exact = form.decode(x) * form.decode(y)
    found = lmul.product_error(bits)
    assert found.adder_mean == pytest.approx(100 * (adder(form, x, y) / exact - 1).mean(), abs=5 * 16 / 2**9)
    assert found.mitchell_mean == pytest.approx(100 * (adder(form, x, y, "none") / exact - 1).mean(), abs=5 * 5 / 2**9)


def test_the_constant_corrects_the_mean_for_fractions_of_five_bits_and_more():
    for bits in lmul.FRACTIONS:
        error = lmul.product_error(bits)
        assert (abs(error.adder_mean) < abs(error.mitchell_mean)) == (bits >= 5), bits  # 2^-l(m) is 2^-3 or more below, 2^-4 from here
        assert offset_bits(bits) == (4 if bits >= 5 else min(bits, 3))


def test_three_bits_of_lmul_beat_e5m2_and_four_come_near_e4m3():
    assert lmul.lmul_mse(3) < lmul.float_mse("fp8-e5m2")
    assert 1 < lmul.lmul_mse(4) / lmul.float_mse("fp8-e4m3") < 2.5


def test_areas_are_those_of_one_synthesis():
    (own,) = by(LMUL, "cells of a flushing bf16")
    assert own.status == "reproduced"
    assert own.ours == pytest.approx(594 / 226, rel=0.05)


# T-MAC and LUT-GEMM -----------------------------------------------------------------------------------------------------------
def test_the_line_through_two_and_four_bits_is_fitted_on_neither_of_the_others():
    machine = tmac_lutgemm.MACHINES[1]
    # AGX Orin: 1/4.36 at two bits, scaled by 3.324/6.738 of the values
    assert tmac_lutgemm.line(machine) == pytest.approx(4.36 * 6_738_415_616 / 3_324_387_840)


def test_ports_and_instructions_predict_one_thread():
    # M2 Ultra at 3.49 GHz: 6.6e9 weights / 4 x 2 planes / 16 lanes = 206e6 lookups of 4.25 instructions on four ports
    ours = tmac_lutgemm.tokens_per_s("t-mac-m2-ultra", "Llama-2-7B W2", 1)
    assert ours == pytest.approx(3.49e9 / (206.5e6 * 4.25 / 4), rel=0.02)
    assert ours == pytest.approx(16.68, rel=tmac_lutgemm.TOLERANCE)


@pytest.mark.slow
def test_every_miss_of_tmac_has_its_reason():
    rows = tmac_lutgemm.rows()
    assert every_row_is_complete(rows)
    claimed = [row for row in rows if row.tolerance is not None]
    assert sum(row.status == "reproduced" for row in claimed) >= 6
    assert all("not modelled" in row.note or "not in" in row.note for row in claimed if row.status == "not reproduced")


def test_the_dense_product_of_opt_is_reproduced():
    (dense,) = by(tmac_lutgemm._kernels(), "cuBLAS")
    assert dense.status == "reproduced"


# ShiftAddLLM ------------------------------------------------------------------------------------------------------------------
def test_shiftadd_saves_more_than_four_fifths_with_scales_per_channel():
    claimed = [row for row in SHIFTADD if row.tolerance is not None]
    assert len(claimed) == 4
    assert all(row.status == "reproduced" and row.ours > 80 for row in claimed)
    assert every_row_is_complete(SHIFTADD)


def test_arithmetic_is_an_eighth_of_the_operations_of_a_lookup():
    (three,) = by(SHIFTADD, "3 bits, every lookup")
    # tables: (8 x 1.1 + 263 x 0.4) pJ for eight inputs and all outputs, below 0.006 pJ a weight where there are 4096 or more
    least = 3 * (0.37 + 0.15 + 0.4) / 8
    assert least < three.ours < least + (8 * 1.1 + 263 * 0.4) / 8 / 4096


# MatMul-free --------------------------------------------------------------------------------------------------------------------
def test_the_projection_leaves_less_than_a_ternary_value_has():
    # 3.84 GB/s / 23.8 tokens/s over 1.233e9 weights
    assert matmul_free.bits_per_weight(23.8, 3.84e9) == pytest.approx(8 * 3.84e9 / 23.8 / 1_233_125_376)
    assert matmul_free.bits_per_weight(23.8, 3.84e9) < 1.58


@pytest.mark.slow
def test_the_projection_is_missed_and_tereffic_is_not():
    rows = matmul_free.rows()
    assert every_row_is_complete(rows)
    missed = [row for row in rows if row.status == "not reproduced"]
    assert [row.experiment for row in missed] == ["1.3B on D5005, one 512-bit port, two-bit codes"]
    assert "fewer than the 1.58 of a ternary value" in missed[0].note
    (hbm,) = [row for row in rows if row.experiment == "2.7B on HBM at 460 GB/s"]
    assert hbm.status == "reproduced"

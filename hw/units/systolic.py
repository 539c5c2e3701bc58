"""A systolic array of multiply-accumulate cells, output- or weight-stationary."""

from __future__ import annotations

from math import ceil
from typing import Literal

from hw.quantity import Count
from hw.unit import Unit
from hw.work import Gemm, Work


class Systolic(Unit, kind="systolic", executes={"gemm"}):
    """R x C cells, one multiply-accumulate per cell and cycle; operands enter skewed from two edges.

    A product of [M, K] by [K, N] runs as folds. The skew, R + C - 2 cycles, is the time from the first operand at the
    corner cell to the first at the opposite one; counting starts with the first operand (or weight row) accepted and ends
    with the last partial sum complete.

    `output_stationary`: one fold per R x C block of the result; it takes K + R + C - 2 cycles.
    `weight_stationary`: one fold per R x C block of the weights; R cycles to load the weights, then M rows stream:
    M + 2R + C - 2 cycles. `preload="hidden"` gives each cell a second weight register, so that only the first fold of an
    operator waits for its weights and a fold lasts at least R cycles.
    `fold_overlap="full"` starts a fold while the one before still drains: the skew is then paid once per operator.

    These are the stall-free formulas of the published array models (SCALE-Sim, Samajdar et al., ISPASS 2020), which print one
    cycle less because they number the first cycle 0.

    `dtypes` are the formats a cell multiplies in one cycle; accumulation is `accumulator_bits` wide.
    """

    rows: Count
    columns: Count
    dtypes: tuple[str, ...] = ("int8",)
    accumulator_bits: Count = 32
    dataflow: Literal["output_stationary", "weight_stationary"] = "output_stationary"
    preload: Literal["serial", "hidden"] = "serial"
    fold_overlap: Literal["none", "full"] = "none"

    def cycles(self, work: Work) -> int:
        """Cycles of one copy for a tile; see the class for the formulas.

        >>> Systolic(rows=32, columns=32).cycles(Gemm(100, 77, 300, "int8"))
        4344
        """
        if not isinstance(work, Gemm):
            return super().cycles(work)
        r, c = self.rows, self.columns
        skew = r + c - 2
        overlap = self.fold_overlap == "full"
        drain = (work.final if overlap else work.closes) * skew
        if self.dataflow == "output_stationary":
            folds = ceil(work.m / r) * ceil(work.n / c)
            return folds * work.k + (drain if overlap else folds * drain)
        folds = ceil(work.k / r) * ceil(work.n / c)
        if self.preload == "serial":
            load = r * work.opens
            return folds * (load + work.m) + (drain if overlap else folds * drain)
        load = r * work.cold
        if overlap:
            return load + folds * max(work.m, r * work.opens) + drain
        return load + folds * max(work.m + drain, r * work.opens)

    def formats(self) -> frozenset[str]:
        return frozenset(self.dtypes)

    def macs_per_cycle(self, number_format: str) -> int:
        return self.rows * self.columns if number_format in self.dtypes else 0

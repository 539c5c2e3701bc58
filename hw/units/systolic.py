"""A systolic array of multiply-accumulate cells, output- or weight-stationary."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from hw.bits import Array, pack, unpack
from hw.gemm import INT8, every_pair, gemm_cases, matrices, wrap
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Case, Gemm, Work


class Systolic(Unit, kind="systolic", executes={"gemm"}, known_as="systolic_array"):
    """R x C cells, one multiply-accumulate per cell and cycle; operands enter skewed from two edges.

    A product of [M, K] by [K, N] runs as folds. The skew, R + C - 2 cycles, is the time from the first operand at the
    corner cell to the first at the opposite one; counting starts with the first operand (or weight row) accepted and ends
    with the last partial sum complete.

    `output_stationary`: one fold per R x C block of the result; it takes K + R + C - 2 cycles.
    `weight_stationary`: one fold per R x C block of the weights; R cycles to load the weights, then M rows stream:
    M + 2R + C - 2 cycles. `preload="hidden"` gives each cell a second weight register, so that only the first fold of an
    operator waits for its weights and a fold lasts at least R cycles.
    `fold_overlap="full"` starts a fold while the one before still drains: the skew is then paid once per operator. One row of
    results leaves per cycle, so that output-stationary folds end at least R cycles apart even where K is less.

    These are the stall-free formulas of the published array models (SCALE-Sim, Samajdar et al., ISPASS 2020), which print one
    cycle less because they number the first cycle 0.

    `dtypes` are the formats a cell multiplies in one cycle; accumulation is `accumulator_bits` wide. The RTL is that of
    8-bit integers. With stationary weights it ends at the bottom edge of the array: partial sums of several folds along K
    are added in the memory behind it.
    """

    rows: Count
    columns: Count
    dtypes: tuple[str, ...] = ("int8",)
    accumulator_bits: Annotated[int, Field(ge=2, le=62)] = 32
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
            if not overlap:
                return folds * (work.k + drain)
            # a fold ends when the rows of the one before have left; nothing follows the last fold of an operator
            fold = max(work.k, r - work.accumulated) if work.closes else work.k
            return (folds - 1) * fold + (work.k if work.final else fold) + drain
        folds = ceil(work.k / r) * ceil(work.n / c)
        if self.preload == "serial":
            load = r * work.opens
            return folds * (load + work.m) + (drain if overlap else folds * drain)
        # a fold lasts until the weights of the next one are in place; nothing follows the last fold of an operator
        rows = work.m if overlap else work.m + drain
        fold = max(rows, r * work.opens)
        return r * work.cold + (folds - 1) * fold + (rows if work.final else fold) + (drain if overlap else 0)

    def formats(self) -> frozenset[str]:
        return frozenset(self.dtypes)

    def macs_per_cycle(self, number_format: str) -> int:
        return self.rows * self.columns if number_format in self.dtypes else 0

    def granularity(self) -> tuple[int, int, int]:
        return (self.rows, self.columns, 1) if self.dataflow == "output_stationary" else (1, self.columns, self.rows)

    def stationary(self) -> str:
        return "outputs" if self.dataflow == "output_stationary" else "weights"

    def accumulator_bytes(self) -> int:
        return ceil(self.accumulator_bits / 8)

    def operand_elements(self, work: Gemm) -> tuple[int, int, int]:
        """Each fold reads its moving operands once; weights that stay are read once, and their folds add up the sums outside."""
        row_folds, column_folds = ceil(work.m / self.rows), ceil(work.n / self.columns)
        left, right, sums = work.m * work.k, work.k * work.n, work.m * work.n
        if self.dataflow == "output_stationary":
            return left * column_folds, right * row_folds, sums
        return left * column_folds, right, sums * (2 * ceil(work.k / self.rows) - 1)

    # Arithmetic and RTL ---------------------------------------------------------------------------------------------------
    def golden(self, *operands: Any) -> Array:
        """[M, N] sums, modulo 2^accumulator_bits, of int8 operands [M, K] and [K, N]."""
        left, right = matrices(operands[0], INT8, operands[1], INT8)
        return wrap(left @ right, self.accumulator_bits)

    def cases(self, rng: Any) -> Iterator[Case]:
        yield from gemm_cases(rng, "int8", (-128, 127), (-128, 127), steps=(self.rows, self.columns, max(self.rows, 2)))

    def whole_space(self) -> Iterator[Case]:
        """Every pair of operands, in each cell: blocks of the result in all rotations of the array's rows and columns."""
        for i in range(self.rows if self.dataflow == "output_stationary" else 1):
            left, right = np.roll(np.arange(-128, 128), i), np.arange(-128, 128)
            if self.dataflow == "output_stationary":
                yield from (Case(Gemm(256, 256, 1, "int8"), (left[:, None], np.roll(right, j)[None])) for j in range(self.columns))
            else:  # each row of the array keeps another weight; all activations pass it
                a, b = every_pair(256, 256, self.rows)
                yield from (Case(Gemm(256, 256, self.rows, "int8"), (a - 128, np.roll(b, j, axis=1) - 128)) for j in range(self.columns))

    @classmethod
    def samples(cls) -> tuple[Systolic, ...]:
        sizes = ((3, 4), (2, 5), (4, 3), (3, 3), (1, 2), (4, 2))
        flows = [("output_stationary", "serial", "none"), ("output_stationary", "serial", "full")]
        flows += [("weight_stationary", preload, overlap) for preload in ("serial", "hidden") for overlap in ("none", "full")]
        return tuple(
            cls.model_validate({"rows": r, "columns": c, "dataflow": flow, "preload": preload, "fold_overlap": overlap})
            for (r, c), (flow, preload, overlap) in zip(sizes, flows, strict=True)
        )

    def rtl(self) -> Any | None:
        if "int8" not in self.dtypes:
            return None
        from hw.rtl.systolic import SystolicRtl

        return SystolicRtl(
            self.rows,
            self.columns,
            self.accumulator_bits,
            stationary_weights=self.dataflow == "weight_stationary",
            hidden=self.preload == "hidden",
            overlap=self.fold_overlap == "full",
        )

    def results(self, work: Work) -> int:
        if not isinstance(work, Gemm):
            return super().results(work)
        blocks = ceil(work.n / self.columns)
        if self.dataflow == "output_stationary":
            return ceil(work.m / self.rows) * blocks * self.rows
        return ceil(work.k / self.rows) * blocks * work.m

    def encode(self, *operands: Any) -> list[int]:
        left, right = (np.asarray(x, np.int64) for x in operands)
        (m, k), n = left.shape, right.shape[1]
        r, c = self.rows, self.columns
        columns = [_padded(right[:, j : j + c], 1, c) for j in range(0, n, c)]
        if self.dataflow == "output_stationary":
            folds = [(_padded(left[i : i + r], 0, r).T, block) for i in range(0, m, r) for block in columns]
            return [word for rows, block in folds for word in self._words(k, rows, block)]
        tiles = [
            (_padded(left[:, i : i + r], 1, r), _padded(block[i : i + r], 0, r)) for block in columns for i in range(0, k, r)
        ]
        if self.preload == "serial":
            empty = left[:0, :0]
            loads = [self._words(r, empty, weights, opens=True) for _, weights in tiles]
            streams = [self._words(m, rows, empty) for rows, _ in tiles]
            return [word for load, stream in zip(loads, streams, strict=True) for word in load + stream]
        words = self._words(r, left[:0, :0], tiles[0][1])
        for number, (rows, _) in enumerate(tiles):
            following = tiles[number + 1][1] if number + 1 < len(tiles) else left[:0, :0]
            words += self._words(max(m, len(following)), rows, following, opens=True)
        return words

    def _words(self, count: int, rows: Array, block: Array, *, opens: bool = False) -> list[int]:
        """`count` words in which `rows` enter at the left and those of `block` at the top, as long as there are any."""
        left, top = np.zeros((count, self.rows), np.int64), np.zeros((count, self.columns), np.int64)
        left[: len(rows), : rows.shape[1]], top[: len(block), : block.shape[1]] = rows, block
        step = np.arange(count)
        if self.dataflow == "output_stationary":
            opens, closes = True, step == count - 1
        else:
            closes = step == len(rows) - 1
        fields = (step < len(rows), step < len(block), (step == 0) & opens, closes)
        return pack((left, 8), (top, 8), *((field, 1) for field in fields))

    def decode(self, words: list[int], work: Work) -> Array:
        if not isinstance(work, Gemm):
            raise TypeError(f"a systolic array runs Gemm work, not {type(work).__name__}")
        (values,) = unpack(words, (self.columns, self.accumulator_bits, True))
        across, c = ceil(work.n / self.columns), self.columns
        if self.dataflow == "output_stationary":
            down = ceil(work.m / self.rows)
            blocks = values.reshape(down, across, self.rows, c).transpose(0, 2, 1, 3)
            return blocks.reshape(down * self.rows, across * c)[: work.m, : work.n]
        folds = values.reshape(across, ceil(work.k / self.rows), work.m, c).sum(axis=1)
        return wrap(folds.transpose(1, 0, 2).reshape(work.m, across * c)[:, : work.n], self.accumulator_bits)

    def proofs(self) -> dict[str, Any]:
        """Of an array of two by two with this unit's data flow."""
        from hw.rtl.systolic import product_theorem

        flow = {"stationary_weights": self.dataflow == "weight_stationary", "hidden": self.preload == "hidden"}
        return {"array_gives_the_matrix_product_on_time": product_theorem(**flow, overlap=self.fold_overlap == "full")}


def _padded(block: Array, axis: int, size: int) -> Array:
    """`block` with zeros appended along `axis` up to `size`."""
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, size - block.shape[axis])
    return np.pad(block, widths)

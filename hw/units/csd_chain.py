"""A configurable sparse chain of multipliers that packs two 8-bit products into each DSP block.

Zeng et al., "FlightLLM: Efficient Large Language Model Inference with a Complete Mapping Flow on FPGAs", FPGA 2024,
arXiv:2401.03868.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from hw.bits import Array, pack, unpack
from hw.errors import HardwareError
from hw.gemm import INT8, gemm, matrices, shapes, wrap
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Case, Gemm, Work

WINDOW = 16
"""M of N:M sparsity: activations among which each multiplier chooses."""


class CsdChain(Unit, kind="csd_chain", executes={"gemm"}):
    """`groups` pairs of DSP blocks in a chain; each block multiplies one kept weight by two rows' activations.

    Weights are `kept`:16 sparse along K: of each 16, at most `kept` are not zero and only those are fed, with a 4-bit index
    each that selects the activation. The chain is cut after every `kept` multipliers, so that a cycle yields the partial sums
    of 2 x groups / kept columns for two rows. A packed product is w (a 2^18 + b); the reduction node after each pair splits it
    again, so that the low field never holds more than two products and cannot overflow. Sums have 32 bits.
    """

    groups: Count = 8
    kept: Literal[2, 4, 8, 16] = 16

    @model_validator(mode="after")
    def _fits(self) -> CsdChain:
        if 2 * self.groups % self.kept:
            raise HardwareError(
                f"kept: {self.kept} of 16 needs a chain that is a whole number of {self.kept} multipliers long, "
                f"found {2 * self.groups} (groups={self.groups}); take a multiple of {self.kept // 2} groups"
            )
        return self

    @property
    def columns(self) -> int:
        """Columns of the result that one cycle contributes to."""
        return 2 * self.groups // self.kept

    def cycles(self, work: Work) -> int:
        """A window of 16 along K per cycle, for two rows and `columns` columns; the chain's depth comes on top.

        >>> CsdChain(groups=8, kept=4).cycles(Gemm(2, 8, 64, "int8"))
        19
        """
        work = gemm(work)
        steps = ceil(work.m / 2) * ceil(work.n / self.columns) * ceil(work.k / WINDOW)
        return steps - 1 + self.groups + 4

    def formats(self) -> frozenset[str]:
        return frozenset({"int8"})

    def macs_per_cycle(self, number_format: str) -> int:
        """Of the dense product: skipped zeros count."""
        return 2 * self.columns * WINDOW if number_format == "int8" else 0

    def golden(self, *operands: Any) -> Array:
        """[M, N] sums modulo 2^32 of int8 [M, K] and sparse int8 [K, N]."""
        left, right = matrices(operands[0], INT8, operands[1], INT8)
        self._check_sparsity(right)
        return wrap(left @ right, 32)

    def _check_sparsity(self, right: Array) -> None:
        """Raises `HardwareError` when a window of weights along K holds more than the chain takes."""
        windows = np.pad(right, ((0, -len(right) % WINDOW), (0, 0))).reshape(-1, WINDOW, right.shape[1])
        count = int((windows != 0).sum(axis=1).max(initial=0))
        if count > self.kept:
            found = f"expected at most {self.kept} weights of {WINDOW} along K that are not zero, found {count}"
            raise HardwareError(f"{found}; prune the weights to {self.kept}:{WINDOW}")

    def cases(self, rng: Any) -> Iterator[Case]:
        for number, (m, n, k) in enumerate(shapes(rng, (2, self.columns, 2 * WINDOW))):
            left, right = (
                rng.choice([-128, 127], shape) if number % 4 == 1 else rng.integers(-128, 128, shape) for shape in ((m, k), (k, n))
            )
            order = rng.random((ceil(k / WINDOW), WINDOW, n)).argsort(axis=1).argsort(axis=1) < self.kept
            yield Case(Gemm(m, n, k, "int8"), (left, right * order.reshape(-1, n)[:k]))

    @classmethod
    def samples(cls) -> tuple[CsdChain, ...]:
        return (cls(groups=2, kept=2), cls(groups=4, kept=4), cls(groups=4, kept=8), cls())

    def rtl(self) -> Any:
        from hw.rtl.csd_chain import CsdChainRtl

        return CsdChainRtl(self.groups)

    def results(self, work: Work) -> int:
        return ceil(gemm(work).m / 2) * ceil(gemm(work).n / self.columns)

    def encode(self, *operands: Any) -> list[int]:
        left, right = matrices(operands[0], INT8, operands[1], INT8)
        self._check_sparsity(right)
        (m, k), n = left.shape, right.shape[1]
        down, across, steps = ceil(m / 2), ceil(n / self.columns), ceil(k / WINDOW)
        acts = np.pad(left, ((0, 2 * down - m), (0, steps * WINDOW - k))).reshape(down, 2, steps, WINDOW).transpose(0, 2, 1, 3)
        weights = np.pad(right, ((0, steps * WINDOW - k), (0, across * self.columns - n)))
        weights = weights.reshape(steps, WINDOW, across, self.columns).transpose(2, 0, 3, 1)
        index = np.argsort(weights == 0, axis=-1, kind="stable")[..., : self.kept]
        value = np.take_along_axis(weights, index, axis=-1)
        shape = (down, across, steps)

        def words(values: Array) -> Array:
            flat = values.reshape(*values.shape[:3], -1)
            return np.broadcast_to(flat, shape + flat.shape[3:]).reshape(-1, flat.shape[3])

        cuts = (np.arange(self.groups) + 1) * 2 % self.kept == 0
        return pack(
            (words(value[None]), 8),
            (words(index[None]), 4),
            (words(acts[:, None]), 8),
            (np.broadcast_to(cuts, (down * across * steps, self.groups)), 1),
            (words((np.arange(steps) == steps - 1)[None, None, :, None]), 1),
        )

    def decode(self, words: list[int], work: Work) -> Array:
        work = gemm(work)
        (values,) = unpack(words, (2 * self.groups, 32, True))
        down, across = ceil(work.m / 2), ceil(work.n / self.columns)
        ends = np.arange(1, self.columns + 1) * self.kept // 2 - 1
        sums = values.reshape(down, across, self.groups, 2)[:, :, ends].transpose(0, 3, 1, 2)
        return sums.reshape(2 * down, across * self.columns)[: work.m, : work.n]

    def proofs(self) -> dict[str, Any]:
        from hw.rtl.csd_chain import split_theorem

        return {"packed_pair_splits_exactly": split_theorem(4)}

"""Binary-coded weights: sums of scaled signs (LUT-GEMM), with scales that are powers of two (ShiftAddLLM).

Park et al., "LUT-GEMM", ICLR 2024, arXiv:2206.09557; You et al., "ShiftAddLLM", NeurIPS 2024, arXiv:2406.05981. w ~ sum of alpha_i
b_i with b_i in {-1, +1}. Scales start greedily, alpha_i = mean |residual|, and are refined: least squares for the scales, then
the nearest of the 2^q sums for every weight, up to 15 rounds or until the scales settle.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from workloads.format import Format
from workloads.quantisers.base import Array, Field, Fields, Quantiser, Shape, blocks, float_field, floats, grouped, half_scale

ROUNDS = 15
"""Rounds of refinement, the default of ShiftAddLLM."""
SETTLED = 2e-2
"""Refinement of a group stops when its scales move less than this share of the largest one."""
RIDGE = 1e-9
"""Added to the diagonal of the least squares, relative to the group, so that groups that do not use all signs have a solution."""
LEAST_EXPONENT = -120
"""Exponents are stored with this offset in a byte."""


def signs_of(bits: int) -> Array:
    """[2^q, q] signs of every code: bit i of a code set means +alpha_i."""
    return np.where(np.arange(1 << bits)[:, None] >> np.arange(bits) & 1, 1, -1).astype(np.float32)


def greedy(rows: Array, bits: int) -> Array:
    """[groups, q] scales: each the mean magnitude of what those before leave."""
    rest, scales = rows.copy(), np.empty((len(rows), bits), np.float32)
    for i in range(bits):
        scales[:, i] = np.abs(rest).mean(axis=1)
        rest -= np.copysign(scales[:, i : i + 1], rest)
    return scales


def refine(rows: Array, scales: Array, rounds: int = ROUNDS) -> Array:
    """[groups, q] scales after alternating refinement; a group rests once no scale moves by more than `SETTLED` of its largest.

    Sums come in pairs of one magnitude, so that magnitudes of weights are compared with those of half the sums: a weight and its
    mirror image ask the same of the scales.
    """
    bits, size = scales.shape[1], rows.shape[1]
    ordered = np.sort(np.abs(rows), axis=1)
    sums = np.zeros((len(rows), size + 1))
    np.cumsum(ordered, axis=1, dtype=np.float64, out=sums[:, 1:])
    width = 1 << size.bit_length()  # a power of two above the size, so that a search never leaves its row
    ordered = np.pad(ordered, ((0, 0), (0, width - size)), constant_values=np.inf)
    signs = signs_of(bits)[1 << (bits - 1) :].astype(np.float64)  # one of each pair: the last scale added
    scales = np.ascontiguousarray(scales.T, np.float64)  # [q, groups], as all that follows: long rows
    active = np.arange(len(rows))
    for _ in range(rounds):
        old = scales[:, active]
        levels = _sums(old)
        order = np.argsort(np.abs(levels).T, axis=1, kind="stable").T
        levels = np.take_along_axis(levels, order, axis=0)
        magnitudes = np.abs(levels)
        cuts = _count_below(ordered, active, ((magnitudes[1:] + magnitudes[:-1]) / 2).astype(np.float32))
        edges = np.concatenate([np.zeros((1, len(active)), np.int64), cuts, np.full((1, len(active)), size)])
        totals = np.diff(sums.ravel().take(active * (size + 1) + edges), axis=0)
        counted, totalled = np.empty(order.shape), np.empty(order.shape)
        np.put_along_axis(counted, order, np.diff(edges, axis=0), axis=0)
        np.put_along_axis(totalled, order, np.where(levels < 0, -totals, totals), axis=0)
        gram = {(i, j): _signed(counted, signs[:, i] * signs[:, j]) for i in range(bits) for j in range(i)}
        gram |= {(i, i): np.full(len(active), (1 + RIDGE) * size) for i in range(bits)}
        found = _solved(gram, [_signed(totalled, signs[:, i]) for i in range(bits)])
        moved = np.abs(found - old).max(axis=0) > SETTLED * np.abs(found).max(axis=0)
        scales[:, active] = found
        active = active[moved]
        if not len(active):
            break
    return np.ascontiguousarray(scales.T, np.float32)


def _sums(scales: Array) -> Array:
    """[2^(q - 1), groups] sums of scales [q, groups] with the signs of the upper half of the codes."""
    levels = scales[-1:]
    for own in scales[-2::-1]:  # codes count the first scale fastest
        levels = np.stack([levels - own, levels + own], axis=1).reshape(-1, scales.shape[1])
    return levels


def _signed(values: Array, signs: Array) -> Array:
    """Rows added or subtracted, as their signs say."""
    out = values[0] * signs[0]
    for row, sign in zip(values[1:], signs[1:], strict=True):
        (np.add if sign > 0 else np.subtract)(out, row, out=out)
    return np.asarray(out)


def _solved(gram: dict[tuple[int, int], Array], right: list[Array]) -> Array:
    """[q, groups] solutions of positive definite systems whose lower triangles are vectors over the groups, by Cholesky's method."""
    size, root = len(right), dict(gram)
    answer = list(right)
    for j in range(size):
        for k in range(j):
            root[j, j] = root[j, j] - root[j, k] ** 2
            answer[j] = answer[j] - root[j, k] * answer[k]
        root[j, j] = np.sqrt(np.maximum(root[j, j], np.finfo(np.float64).tiny))
        answer[j] = answer[j] / root[j, j]
        for i in range(j + 1, size):
            for k in range(j):
                root[i, j] = root[i, j] - root[i, k] * root[j, k]
            root[i, j] = root[i, j] / root[j, j]
    for j in reversed(range(size)):
        for i in range(j + 1, size):
            answer[j] = answer[j] - root[i, j] * answer[i]
        answer[j] = answer[j] / root[j, j]
    return np.stack(answer)


def _product(left: Array, right: Array) -> Array:
    """A product of many rows by a small matrix, in one thread: libraries wake all cores for it, which costs more than it gains."""
    return np.asarray(np.einsum("nc,cq->nq", left, right))


def _count_below(ordered: Array, rows: Array, cuts: Array) -> Array:
    """How many of the ascending values of some rows lie below each of their cuts [cuts, rows]; rows end in infinities and are a power
    of two long."""
    width = ordered.shape[1]
    flat, base = ordered.ravel(), rows * width - 1
    position = np.zeros(cuts.shape, np.int64) + base
    step = width >> 1
    while step:
        position += step * (flat.take(position + step) < cuts)
        step >>= 1
    return np.asarray(position - base)


def assign(rows: Array, scales: Array) -> Array:
    """Codes of the nearest sums; half-way weights go to the higher one."""
    half = 1 << (scales.shape[1] - 1)
    levels = _sums(np.ascontiguousarray(scales.T)).T
    order = np.argsort(np.abs(levels), axis=1, kind="stable")
    levels = np.take_along_axis(levels, order, axis=1)
    codes = np.where(levels < 0, half - 1 - order, half + order).astype(np.uint8)  # of sums above zero, in their order
    magnitudes = np.abs(levels)
    middles = (magnitudes[:, 1:] + magnitudes[:, :-1]) * np.float32(0.5)
    negative = rows < 0
    own = np.abs(rows, dtype=np.float32)
    own.view(np.int32)[...] -= negative  # the next smaller number: half-way below zero the higher sum is that of less magnitude
    cell = np.zeros(rows.shape, np.uint8)
    for i in range(middles.shape[1]):
        cell += own >= middles[:, i : i + 1]
    flat = cell + (np.arange(len(rows), dtype=np.int32) * half)[:, None]
    found = codes.ravel().take(flat)
    return np.asarray(found ^ (negative * np.uint8(2 * half - 1)))


def power_of_two(values: Array, terms: int = 1) -> Array:
    """Numbers as sums of `terms` signed powers of two, each the nearest (in the logarithm) to what is left; zero stays zero.

    >>> power_of_two(np.array([3.0, -0.7]), 2).tolist()
    [3.0, -0.75]
    """
    out, rest = np.zeros_like(values, np.float64), np.asarray(values, np.float64)
    for _ in range(terms):
        safe = np.where(rest != 0, np.abs(rest), 1)
        out = out + np.where(rest != 0, np.sign(rest) * 2.0 ** np.rint(np.log2(safe)), 0)
        rest = values - out
    return out


class BinaryCoding(Quantiser):
    """q signs per weight and q scales per group (fp16) or channel (fp32)."""

    shifts = False

    def __init__(self, format: Format, rounds: int = ROUNDS) -> None:
        super().__init__(format)
        self.rounds = rounds

    def encode(self, values: Array) -> Fields:
        rows, bits = grouped(values, self.format), self.format.element_bits
        codes, scales = np.empty(rows.shape, np.uint8), np.empty((len(rows), bits), np.float32)
        start = 0
        for part in blocks(rows):
            here = slice(start, start + len(part))
            scales[here] = self.stored(np.abs(refine(part, greedy(part, bits), self.rounds)))
            codes[here] = assign(part, scales[here])
            start += len(part)
        return {"code": Field(codes.reshape(values.shape), bits, "value"), "scale": self.field(scales)}

    def stored(self, scales: Array) -> Array:
        """Scales as they are stored. Their signs are those of the binary matrices."""
        return half_scale(scales) if self.format.group else scales

    def field(self, scales: Array) -> Field:
        return float_field(scales, 16, "group") if self.format.group else float_field(scales, 32, "channel")

    def scales(self, field: Field) -> Array:
        return floats(field)

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        rows, bits = grouped(fields["code"].values.reshape(shape), self.format), self.format.element_bits
        levels = _product(self.scales(fields["scale"]).reshape(-1, bits), signs_of(bits).T)
        out, start = np.empty(rows.shape, np.float32), 0
        for part in blocks(rows):
            own = levels[start : start + len(part)]
            flat = part + (np.arange(len(part), dtype=np.int32) * own.shape[1])[:, None]
            out[start : start + len(part)] = own.ravel().take(flat)
            start += len(part)
        return out.reshape(shape)


class ShiftAdd(BinaryCoding):
    """Scales rounded to powers of two, 2^round(log2 alpha), a byte each; the signs are chosen again for them."""

    def stored(self, scales: Array) -> Array:
        return power_of_two(np.maximum(scales, 2.0**LEAST_EXPONENT)).astype(np.float32)

    def field(self, scales: Array) -> Field:
        exponents = np.clip(np.rint(np.log2(scales)), LEAST_EXPONENT, 120) - LEAST_EXPONENT
        return Field(exponents.astype(np.uint8), 8, "group" if self.format.group else "channel")

    def scales(self, field: Field) -> Array:
        return np.ldexp(np.float32(1), field.values.astype(np.int32) + LEAST_EXPONENT)

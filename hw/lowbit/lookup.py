"""Products by table lookup, bit for bit: T-MAC (tables of four activations on CPUs) and LUT-GEMM (of eight on GPUs).

Wei et al., "T-MAC: CPU Renaissance via Table Lookup for Low-Bit LLM Deployment on Edge", EuroSys 2025, arXiv:2407.00088;
Park et al., "LUT-GEMM", ICLR 2024, arXiv:2206.09557.

Weights are planes of bits that stand for +1 and -1; a table has the sums of a few activations with all signs, bit j of its index being the
sign of activation j. A product is then one lookup per plane and group of activations.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hw.bits import Array
from hw.errors import HardwareError

GROUP = 4
"""Activations per table of T-MAC."""
ACT_GROUP = 64
"""Activations whose int8 tables share a scale, as T-MAC is built for BitNet."""
MU = 8
"""Activations per table of LUT-GEMM."""


# Planes and tables ---------------------------------------------------------------------------------------------------------
def indices(codes: Any, bits: int, group: int = GROUP) -> Array:
    """Table indices [bits, outputs, inputs / group] of unsigned weight codes [outputs, inputs]: bit j is that of input j of a group.

    Raises `HardwareError` for codes that have more than `bits` bits and for inputs that `group` does not divide.

    >>> indices(np.array([[0, 1, 2, 3]]), 2).ravel().tolist()
    [10, 12]
    """
    codes = np.asarray(codes, np.int64)
    if not 1 <= bits <= 8:
        raise HardwareError(f"weights of {bits} bits: table lookup takes 1 to 8 planes")
    if codes.ndim != 2:
        raise HardwareError(f"weight codes have the shape [outputs, inputs], found {list(codes.shape)}")
    if codes.size and not 0 <= codes.min() <= codes.max() < 1 << bits:
        raise HardwareError(f"weight codes of {bits} bits lie between 0 and {(1 << bits) - 1}, found {codes.min()} to {codes.max()}")
    if codes.shape[1] % group:
        raise HardwareError(f"{codes.shape[1]} inputs are not whole groups of {group}; pad activations and weights with zeros")
    planes = codes[None] >> np.arange(bits)[:, None, None] & 1
    return np.asarray((planes.reshape(bits, len(codes), -1, group) << np.arange(group)).sum(axis=-1))


def tables(acts: Any) -> Array:
    """[inputs / 4, 16] sums of four activations each, in the type of `acts` (integers exactly; fp32 as ((a0 + a1) + a2) + a3)."""
    acts = _groups(acts, GROUP)
    signs = np.where(np.arange(16)[:, None] >> np.arange(GROUP) & 1, 1, -1).astype(acts.dtype)
    terms = acts[:, None, :] * signs
    return np.asarray(((terms[..., 0] + terms[..., 1]) + terms[..., 2]) + terms[..., 3])


def quantised_tables(acts: Any, act_group: int = ACT_GROUP) -> tuple[Array, Array]:
    """int8 tables [inputs / 4, 16] and fp32 scales [inputs / act_group].

    A scale is the largest sum of magnitudes of four activations among its group, over 127; entries round to nearest even. A group of zeros
    has the scale 1.
    """
    acts = np.asarray(acts, np.float32)
    if act_group % GROUP or act_group < GROUP:
        raise HardwareError(f"activation groups of {act_group}: expected a multiple of {GROUP}, the activations of a table")
    _groups(acts, act_group)
    size = np.abs(tables_abs(acts)).reshape(-1, act_group // GROUP).max(axis=1)
    scales = np.where(size > 0, size / np.float32(127), np.float32(1)).astype(np.float32)
    ratio = tables(acts).reshape(-1, act_group // GROUP, 16) / scales[:, None, None]
    return np.clip(np.rint(ratio), -127, 127).astype(np.int8).reshape(-1, 16), scales


def tables_abs(acts: Any) -> Array:
    """[inputs / 4] sums of the magnitudes of four activations: the largest entry of each table."""
    return np.asarray(tables(np.abs(np.asarray(acts)))[:, 15])


def _groups(acts: Any, group: int) -> Array:
    acts = np.asarray(acts)
    if acts.ndim != 1 or acts.size % group or not acts.size:
        raise HardwareError(f"activations are one vector of whole groups of {group}, found the shape {list(acts.shape)}; pad it with zeros")
    if acts.dtype.kind == "f" and not np.isfinite(acts).all():
        wrong = int(np.count_nonzero(~np.isfinite(acts)))
        raise HardwareError(f"{wrong} of {acts.size} activations are NaN or infinite: their tables have no scale; replace them first")
    return np.asarray(acts.reshape(-1, group))


# T-MAC ---------------------------------------------------------------------------------------------------------------------
def signed_product(codes: Any, bits: int, acts: Any) -> Array:
    """Exact integers [outputs]: weights `codes` - 2^(bits-1) times integer activations, by lookup.

    With u' = +-1 for a bit, a weight is the sum of 2^(i-1) u'_i, less 1/2: twice the product is the sum of 2^i C_i, C_i the lookups of
    plane i, and of all first entries, which is minus the sum of the activations. It is always even.
    """
    acts = np.asarray(acts)
    if acts.dtype.kind not in "iu":
        raise HardwareError(f"the exact product takes integer activations, found {acts.dtype}; see `tmac`")
    index, table = indices(codes, bits), tables(acts.astype(np.int64))
    if index.shape[2] != len(table):
        raise HardwareError(f"weights have {GROUP * index.shape[2]} inputs, activations {acts.size}")
    looked_up = np.take_along_axis(table[None, None], index[..., None], axis=3)[..., 0].sum(axis=2)
    twice = (looked_up << np.arange(bits)[:, None]).sum(axis=0) + table[:, 0].sum()
    return np.asarray(twice >> 1)


def tmac(codes: Any, bits: int, scales: Any, acts: Any, act_group: int = ACT_GROUP, zeros: Any = None) -> Array:
    """fp32 [outputs] of T-MAC: int8 tables, integer sums per plane and activation group, the rest in fp32.

    `codes` [outputs, inputs] stand for s (u - z) with fp32 `scales` [outputs, weight groups] and `zeros` of that shape, which are
    2^(bits-1) where None. A weight group holds whole activation groups. Within one, activation groups are added in order; so are
    weight groups. The sum of an activation group is taken in fp64 and rounded once. Raises `HardwareError` for groups that do not
    fit, and for scales or activations that are not finite.
    """
    index = indices(codes, bits)
    table, size = quantised_tables(acts, act_group)
    acts, scales = np.asarray(acts, np.float32), np.asarray(scales, np.float32)
    outputs, inputs = index.shape[1], GROUP * index.shape[2]
    if inputs != acts.size:
        raise HardwareError(f"weights have {inputs} inputs, activations {acts.size}")
    _check_scales(scales, outputs, inputs, act_group)
    looked_up = np.take_along_axis(table.astype(np.int64)[None, None], index[..., None], axis=3)[..., 0]
    sums = looked_up.reshape(bits, outputs, len(size), -1).sum(axis=3)
    twice = (sums << np.arange(bits)[:, None, None]).sum(axis=0).astype(np.float32)
    first = np.add.reduce(tables(acts)[:, 0].reshape(len(size), -1).astype(np.float64), axis=1).astype(np.float32)
    part = np.float32(0.5) * (size * twice + first)  # [outputs, activation groups]
    each = scales.shape[1]
    part = part.reshape(outputs, each, -1)
    offset = first.reshape(each, -1)
    if zeros is not None:
        shift = np.asarray(zeros, np.float32) - np.float32(1 << (bits - 1))
        if shift.shape != scales.shape:
            raise HardwareError(f"zero points have the shape of the scales, {list(scales.shape)}, found {list(shift.shape)}")
        part = part + shift[:, :, None] * offset  # less z - 2^(bits-1) times the sum of the activations, which is minus `first`
    result = np.zeros(outputs, np.float32)
    for group in range(each):
        inner = np.zeros(outputs, np.float32)
        for step in range(part.shape[2]):
            inner = inner + part[:, group, step]
        result = result + scales[:, group] * inner
    return result


def _check_scales(scales: Array, outputs: int, inputs: int, unit: int) -> None:
    if scales.ndim < 2 or scales.shape[0] != outputs or not scales.shape[1] or inputs % (unit * scales.shape[1]):
        raise HardwareError(
            f"scales {list(scales.shape)} do not fit weights [{outputs}, {inputs}]: expected one row per output and groups that hold whole "
            f"multiples of {unit} inputs"
        )
    if not np.isfinite(scales).all():
        raise HardwareError(f"{int(np.count_nonzero(~np.isfinite(scales)))} of {scales.size} scales are NaN or infinite")


# LUT-GEMM ------------------------------------------------------------------------------------------------------------------
def doubled_tables(acts: Any) -> Array:
    """[inputs / 8, 256] sums of eight activations, built as the kernel does: entry 0 is -x0 - x1 ... - x7; then entry p + 2^s is entry p
    plus 2 x_s, for s from 0 to 7. fp16 activations round at every addition; integers are exact.
    """
    x = _groups(acts, MU)
    if x.dtype.kind == "f":
        x = x.astype(np.float16)
    table = np.empty((len(x), 1 << MU), x.dtype)
    with np.errstate(over="ignore"):
        first = -x[:, 0]
        for s in range(1, MU):
            first = first - x[:, s]
        table[:, 0] = first
        for s in range(MU):
            table[:, 1 << s : 2 << s] = table[:, : 1 << s] + (x[:, s : s + 1] + x[:, s : s + 1])
    return table


def lut_gemm(codes: Any, bits: int, scales: Any, acts: Any, offsets: Any = None) -> Array:
    """fp32 [outputs] of binary-coded weights: sum over groups of alpha_i times the lookups of plane i, and z times the activations.

    Bit i of a code is +1 or -1 times `scales` [outputs, groups, bits]; `offsets` [outputs, groups] are z. Tables are fp16; lookups of a
    plane are added in fp32 along a group, then planes, then groups, each in order; the sum of a group's activations is that of the last
    entries of its tables. Raises `HardwareError` for groups that are not whole multiples of eight, and numbers that are not finite.
    """
    index, table = indices(codes, bits, MU), doubled_tables(np.asarray(acts, np.float16)).astype(np.float32)
    scales = np.asarray(scales, np.float32)
    outputs, steps = index.shape[1:]
    if steps != len(table):
        raise HardwareError(f"weights have {MU * steps} inputs, activations {np.asarray(acts).size}")
    _check_scales(scales, outputs, MU * steps, MU)
    if scales.ndim != 3 or scales.shape[2] != bits:
        raise HardwareError(f"scales of {bits} planes have the shape [outputs, groups, {bits}], found {list(scales.shape)}")
    groups = scales.shape[1]
    looked_up = np.take_along_axis(table[None, None], index[..., None], axis=3)[..., 0].reshape(bits, outputs, groups, -1)
    whole = table[:, -1].reshape(groups, -1)
    z = None if offsets is None else np.asarray(offsets, np.float32).reshape(outputs, groups)
    result = np.zeros(outputs, np.float32)
    for group in range(groups):
        for plane in range(bits):
            inner = np.zeros(outputs, np.float32)
            for step in range(looked_up.shape[3]):
                inner = inner + looked_up[plane, :, group, step]
            result = result + scales[:, group, plane] * inner
        if z is not None:
            sum_ = np.float32(0)
            for step in range(whole.shape[1]):
                sum_ = np.float32(sum_ + whole[group, step])
            result = result + z[:, group] * sum_
    return result


def uniform_as_binary(bits: int, scales: Any, zeros: Any) -> tuple[Array, Array]:
    """Scales [outputs, groups, bits] and offsets of uniform weights s (u - z): alpha_i = 2^(i-1) s, offset (2^bits - 1) s / 2 - s z.

    >>> alpha, offset = uniform_as_binary(2, np.array([[1.0]]), np.array([[2.0]]))
    >>> alpha.ravel().tolist(), offset.tolist()
    ([0.5, 1.0], [[-0.5]])
    """
    s, z = (np.asarray(v, np.float32) for v in (scales, zeros))
    alpha = s[..., None] * np.ldexp(np.float32(1), np.arange(bits) - 1)
    return alpha, s * (np.float32(((1 << bits) - 1) / 2) - z)

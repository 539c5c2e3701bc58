"""ShiftAddLLM: signs looked up, scales that are powers of two added to exponents, bit for bit.

You et al., "ShiftAddLLM: Accelerating Pretrained LLMs via Post-Training Multiplication-Less Reparameterization", NeurIPS 2024,
arXiv:2406.05981. A weight is the sum of +-2^e over its bits; a table has the signed sums of eight activations.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from hw.bits import Array
from hw.errors import HardwareError
from hw.lowbit.lookup import MU, doubled_tables, indices
from hw.number import FLOATS

HALF = FLOATS["fp16"]
LEAST, GREATEST = -32, 31
"""Exponents that the shifter takes: six bits."""


def exponent_shift(codes: Any, exponents: Any, subnormals: Literal["gradual", "flush"] = "gradual") -> Array:
    """fp16 codes times 2^e, by an addition to the exponent field.

    Beyond the largest number infinity. Below the smallest normal one the significand moves right, rounding to nearest even, or with
    `flush` the result is zero, as is any subnormal input; signs stay. Infinities stay, NaNs become the quiet NaN. Raises
    `HardwareError` for exponents outside -32 to 31.

    >>> exponent_shift([0x3C00, 0x3C01], [-3, -24]).tolist()
    [12288, 1]
    """
    codes, exponents = np.broadcast_arrays(np.asarray(codes, np.int64), np.asarray(exponents, np.int64))
    if subnormals not in ("gradual", "flush"):
        raise HardwareError(f"subnormals {subnormals!r}: expected `gradual` or `flush`")
    if exponents.size and not LEAST <= exponents.min() <= exponents.max() <= GREATEST:
        raise HardwareError(f"shifts lie between {LEAST} and {GREATEST}, found {exponents.min()} to {exponents.max()}")
    magnitude, sign = codes & 0x7FFF, codes & 0x8000
    field, fraction = magnitude >> 10, magnitude & 1023
    infinity = HALF.largest + 1
    significand, base = fraction + np.where(field > 0, 1024, 0), np.maximum(field, 1)
    up = np.where(field > 0, 0, 11 - np.frexp(np.maximum(fraction, 1).astype(float))[1])  # to a leading one, as a normaliser would
    normal, target = significand << up, base - up + exponents
    right = np.clip(1 - target, 0, 12)
    kept, rest = normal >> right, normal & ((1 << right) - 1)
    half = np.where(right > 0, 1 << np.maximum(right - 1, 0), 1)
    rounded = kept + ((right > 0) & ((rest > half) | ((rest == half) & (kept & 1 == 1))))
    code = np.where(target >= 1, normal + ((target - 1) << 10), rounded)
    if subnormals == "flush":
        code = np.where((field == 0) | (target < 1), 0, code)
    code = np.where(significand == 0, 0, np.minimum(code, infinity))
    code = np.where(magnitude >= infinity, magnitude, code) | sign
    return np.where(magnitude > infinity, HALF.nan, code)


def shift_add(codes: Any, bits: int, exponents: Any, acts: Any, order: Literal["accuracy", "latency"] = "accuracy") -> Array:
    """fp32 [outputs] of weights that are sums over bits of +-2^e: `codes` [outputs, inputs], `exponents` [outputs, groups, bits].

    `accuracy` shifts every table entry (fp16, gradual) and adds it in fp32: group by group, table by table, plane by plane.
    `latency` adds the entries of a plane and group first and shifts the fp32 sum once, planes in order: the kernel for scales
    that many weights share. Raises `HardwareError` for shapes that do not fit and activations that are not finite.
    """
    if order not in ("accuracy", "latency"):
        raise HardwareError(f"order {order!r}: expected `accuracy` or `latency`")
    index, table = indices(codes, bits, MU), doubled_tables(np.asarray(acts, np.float16))
    e = _exponents(exponents, bits, index, table)
    looked_up = np.take_along_axis(table[None, None], index[..., None], axis=3)[..., 0]
    outputs, groups = e.shape[:2]
    entries = looked_up.reshape(bits, outputs, groups, -1)
    result = np.zeros(outputs, np.float32)
    for group in range(groups):
        shifts = e[:, group].T[:, :, None]
        if order == "accuracy":
            moved = exponent_shift(entries[:, :, group].view(np.uint16), shifts).astype(np.uint16).view(np.float16).astype(np.float32)
            for step in range(moved.shape[2]):
                for plane in range(bits):
                    result = result + moved[plane, :, step]
            continue
        for plane in range(bits):
            inner = np.zeros(outputs, np.float32)
            for step in range(entries.shape[3]):
                inner = inner + entries[plane, :, group, step].astype(np.float32)
            result = result + np.ldexp(inner, shifts[plane, :, 0])
    return result


def integer_shift_add(codes: Any, bits: int, exponents: Any, acts: Any) -> Array:
    """Exact integers [outputs] of integer activations; every exponent is 0 or more, as after a common offset."""
    acts = np.asarray(acts)
    if acts.dtype.kind not in "iu":
        raise HardwareError(f"the exact sum takes integer activations, found {acts.dtype}; see `shift_add`")
    index, table = indices(codes, bits, MU), doubled_tables(acts.astype(np.int64))
    e = _exponents(exponents, bits, index, table)
    if e.min() < 0:
        raise HardwareError(f"exponents of integer sums are 0 or more, found {e.min()}; give all of them a common offset")
    looked_up = np.take_along_axis(table[None, None], index[..., None], axis=3)[..., 0]
    sums = looked_up.reshape(bits, *e.shape[:2], -1).sum(axis=3)
    return np.asarray((sums << e.transpose(2, 0, 1)).sum(axis=(0, 2)))


def _exponents(exponents: Any, bits: int, index: Array, table: Array) -> Array:
    e = np.asarray(exponents)
    outputs, steps = index.shape[1:]
    if steps != len(table):
        raise HardwareError(f"weights have {MU * steps} inputs, activations {MU * len(table)}")
    if e.ndim != 3 or e.shape[0] != outputs or e.shape[2] != bits or not e.shape[1] or steps % e.shape[1]:
        raise HardwareError(
            f"exponents {list(e.shape)} do not fit weights [{outputs}, {MU * steps}] of {bits} bits: expected [outputs, groups, bits] and "
            f"groups of whole multiples of {MU} inputs"
        )
    if e.dtype.kind not in "iu":
        raise HardwareError(f"exponents are integers, found {e.dtype}: scales that are powers of two, by their logarithm")
    return e.astype(np.int64)

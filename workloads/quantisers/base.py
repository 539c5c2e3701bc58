"""What all quantisers share: codes with their metadata, and the bytes that they are packed into.

A quantiser turns real numbers into fields of unsigned codes: one per value, per group, per output channel or per tensor. Values
are arrays whose last axis is the reduction (input channels) and whose other axes count output channels; groups lie along the last axis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from workloads.errors import WorkloadError
from workloads.format import Format

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]
Per = Literal["value", "group", "channel", "tensor"]

LEAST_SCALE = 1e-5
"""Scales below this are replaced by it, so that a group of zeros has one; the bound that the authors of BitMoD use."""
LARGEST_HALF = 65504.0
BLOCK = 1 << 18
"""Values worked on at a time: they and their intermediate results stay in a processor's cache."""


@dataclass(frozen=True, eq=False)
class Field:
    """Unsigned integer codes of `bits` each, stored once per value, group, channel or tensor."""

    values: Array
    bits: int
    per: Per


Fields = dict[str, Field]


@dataclass(frozen=True, eq=False)
class Quantised:
    """A tensor of `shape` in `format`, as codes."""

    format: Format
    shape: Shape
    fields: Mapping[str, Field]


@dataclass(frozen=True, eq=False)
class Part:
    """A packed field: its bytes, and what is needed to unpack them."""

    data: Array
    shape: Shape
    bits: int
    per: Per


@dataclass(frozen=True, eq=False)
class Packed:
    """A tensor of `shape` in `format`, as it lies in memory."""

    format: Format
    shape: Shape
    parts: Mapping[str, Part]

    @property
    def size_bytes(self) -> int:
        """Bytes that grow with the number of values: codes and group metadata, what `Format.bits` charges."""
        return sum(part.data.size for part in self.parts.values() if part.per in ("value", "group"))

    @property
    def once_bytes(self) -> int:
        """Bytes stored once per output channel or tensor, which `Format.bits` leaves out."""
        return sum(part.data.size for part in self.parts.values() if part.per in ("channel", "tensor"))

    @property
    def bits_per_value(self) -> float:
        return 8 * self.size_bytes / prod(self.shape)


# Bits -----------------------------------------------------------------------------------------------------------------------
def pack_bits(codes: Array, bits: int) -> Array:
    """Bytes of unsigned codes.

    A width that divides 32 is dense and little-endian: code j lies in bits [bits j, bits (j + 1)) of the stream of words. Other widths
    are stored as bit planes: plane i holds bit i of every code, code j in bit j, padded to whole bytes.

    >>> pack_bits(np.array([1, 2, 3, 15]), 4).tolist()
    [33, 243]
    >>> pack_bits(np.array([1, 3, 6]), 3).tolist()
    [3, 6, 4]
    """
    codes = codes.ravel()
    if bits in (8, 16, 32):
        return codes.astype(f"<u{bits // 8}", copy=False).view(np.uint8)
    if 32 % bits:
        narrow: Array = codes.astype(np.uint8 if bits <= 8 else np.uint32, copy=False)
        planes = [np.packbits((narrow >> i) & 1, bitorder="little") for i in range(bits)]
        return np.concatenate(planes)
    if bits == 1:
        return np.packbits(codes.astype(bool), bitorder="little")
    per_byte = 8 // bits
    padded = codes.astype(np.uint8, copy=False)
    if padded.size % per_byte:
        padded = np.pad(padded, (0, -padded.size % per_byte))
    out = padded[0::per_byte].copy()
    for i in range(1, per_byte):
        out |= padded[i::per_byte] << np.uint8(bits * i)
    return out


def unpack_bits(data: Array, count: int, bits: int) -> Array:
    """`count` codes from the bytes of `pack_bits`."""
    if bits in (8, 16, 32):
        return data.view(f"<u{bits // 8}")[:count]
    if 32 % bits:
        wide: Any = np.uint8 if bits <= 8 else np.uint32
        planes = data.reshape(bits, -1)
        codes: Array = np.zeros(count, wide)
        for i in range(bits):
            codes |= np.unpackbits(planes[i], count=count, bitorder="little").astype(wide, copy=False) << wide(i)
        return codes
    if bits == 1:
        return np.unpackbits(data, count=count, bitorder="little")
    per_byte = 8 // bits
    codes = np.empty(data.size * per_byte, np.uint8)
    for i in range(per_byte):
        codes[i::per_byte] = (data >> np.uint8(bits * i)) & np.uint8((1 << bits) - 1)
    return codes[:count]


def float_field(values: Array, bits: int, per: Per) -> Field:
    """Floats as codes: fp16 (16 bits) or fp32 (32 bits)."""
    kind = {16: (np.float16, np.uint16), 32: (np.float32, np.uint32)}[bits]
    return Field(np.ascontiguousarray(values, kind[0]).view(kind[1]), bits, per)


def floats(field: Field) -> Array:
    """The fp32 values of a field made by `float_field`."""
    kind = {16: (np.uint16, np.float16), 32: (np.uint32, np.float32)}[field.bits]
    return np.ascontiguousarray(field.values, kind[0]).view(kind[1]).astype(np.float32)


# Quantisers -------------------------------------------------------------------------------------------------------------------
class Quantiser(ABC):
    """Quantises tensors to one format and back."""

    lossless = False

    def __init__(self, format: Format) -> None:
        self.format = format

    @abstractmethod
    def encode(self, values: Array) -> Fields:
        """Fields of finite fp32 values [..., K]."""

    @abstractmethod
    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        """fp32 values of fields."""

    def quantise(self, values: Any) -> Quantised:
        """A tensor of real numbers as codes.

        Raises `WorkloadError` for values that are not finite, and for shapes that the format cannot hold.
        """
        checked = self.prepared(values)
        return Quantised(self.format, checked.shape, self.encode(checked))

    def prepared(self, values: Any) -> Array:
        """The checked input of `encode`."""
        return real(values, self.format)

    def dequantise(self, quantised: Quantised) -> Array:
        """The values that codes stand for."""
        return self.decode(quantised.fields, quantised.shape)

    def round_trip(self, values: Any) -> Array:
        """What becomes of a tensor that is stored in this format."""
        return self.dequantise(self.quantise(values))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.format.name})"


def pack(quantised: Quantised) -> Packed:
    """The bytes of a quantised tensor."""
    parts = {n: Part(pack_bits(f.values, f.bits), f.values.shape, f.bits, f.per) for n, f in quantised.fields.items()}
    return Packed(quantised.format, quantised.shape, parts)


def unpack(packed: Packed) -> Quantised:
    """The codes of a packed tensor."""
    fields = {n: Field(unpack_bits(p.data, prod(p.shape), p.bits).reshape(p.shape), p.bits, p.per) for n, p in packed.parts.items()}
    return Quantised(packed.format, packed.shape, fields)


# Input ------------------------------------------------------------------------------------------------------------------------
def real(values: Any, format: Format) -> Array:
    """Finite values as a contiguous fp32 array. Raises `WorkloadError` naming how many are not finite, or what they are instead."""
    array = np.asarray(values)
    if not array.ndim or not array.size:
        raise WorkloadError(f"format {format}: expected one value and one dimension at least, found an array of shape {array.shape}")
    try:
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, np.float32)
    except (TypeError, ValueError):
        raise WorkloadError(f"format {format}: expected an array of real numbers, found {type(values).__name__} of {array.dtype}") from None
    if wrong := sum(int(np.count_nonzero(~np.isfinite(part))) for part in blocks(array.ravel())):
        raise WorkloadError(
            f"format {format}: {wrong} of {array.size} values are NaN or infinite (in fp32); no format here stores them: replace them first"
        )
    return array


def blocks(values: Array) -> Iterator[Array]:
    """A long vector (or the rows of a matrix) in pieces that fit into a cache."""
    rows = max(1, BLOCK // max(1, prod(values.shape[1:])))
    for start in range(0, len(values), rows):
        yield values[start : start + rows]


def grouped(values: Array, format: Format) -> Array:
    """Values [groups, group]: groups along the last axis. Raises `WorkloadError` where the group does not divide it."""
    size = values.shape[-1]
    group = format.group or size
    if size % group:
        divisors = [d for d in (256, 128, 96, 80, 64, 48, 32, 16, 8) if size % d == 0]
        free = f"-g{group}" in format.name or f"-b{group}" in format.name
        fix = f"use a group that does, such as {', '.join(map(str, divisors))}" if divisors and free else "pad the tensor with zeros"
        raise WorkloadError(f"format {format}: groups of {group} do not divide the last dimension, {size} of {values.shape}; {fix}")
    return values.reshape(-1, group)


def channels(values: Array) -> Array:
    """Values [output channels, K]."""
    return values.reshape(-1, values.shape[-1])


def largest(values: Array) -> Array:
    """Largest magnitude of each row, [rows, 1]."""
    return np.concatenate([np.maximum(part.max(axis=1), -part.min(axis=1)) for part in blocks(values)])[:, None]


def half_scale(values: Array) -> Array:
    """Scales as fp16 holds them, at least `LEAST_SCALE`."""
    return np.clip(values, LEAST_SCALE, LARGEST_HALF).astype(np.float16).astype(np.float32)

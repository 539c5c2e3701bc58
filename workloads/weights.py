"""Tensors from safetensors files, read as they are needed.

The format is an 8-byte length, a JSON header of that length with the type, shape and place of each tensor, and the data. The released
readers for numpy have no bf16 and fp8, in which weights mostly come, so the few lines are here; every rule of the format is checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from workloads.errors import WorkloadError, nearest

LARGEST_HEADER = 100_000_000
"""Bytes; the limit that the format's own reader sets."""
TYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its type as the header spells it, its shape, and the bytes [begin, end) of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def is_weight(self) -> bool:
        """Real numbers with at least two dimensions: what quantisation schemes convert."""
        return self.dtype in FLOATS and len(self.shape) > 1 and 0 not in self.shape


@dataclass(frozen=True)
class WeightFile:
    """A safetensors file. Raises `WorkloadError` when it is opened, naming the file and what is wrong with it."""

    path: Path

    @cached_property
    def _content(self) -> tuple[int, dict[str, Stored]]:
        """(start of the data, tensors by name)."""
        where = str(self.path)
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as file:
                prefix = file.read(8)
                if len(prefix) < 8:
                    raise WorkloadError(f"{where}: {size} bytes are too few for a safetensors file, which begins with an 8-byte length")
                length = int.from_bytes(prefix, "little")
                if length > min(LARGEST_HEADER, size - 8):
                    raise WorkloadError(f"{where}: not a safetensors file, or cut off: a header of {length} bytes in a file of {size}")
                raw = file.read(length)
        except OSError as error:
            raise WorkloadError(f"{where}: cannot be read ({error.strerror or error})") from None
        try:
            header = json.loads(raw.decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise WorkloadError(f"{where}: the header is not valid JSON: {error}") from None
        if not isinstance(header, dict):
            raise WorkloadError(f"{where}: the header is {type(header).__name__}, expected an object of tensors")
        tensors = [_stored(name, entry, where) for name, entry in header.items() if name != "__metadata__"]
        place = 0
        for tensor in sorted(tensors, key=lambda t: (t.begin, t.end)):
            if tensor.begin != place:
                what = "overlaps the one before" if tensor.begin < place else f"leaves {tensor.begin - place} bytes before it unused"
                raise WorkloadError(f"{where}: tensor {tensor.name!r} begins at byte {tensor.begin} and {what}")
            place = tensor.end
        if place != size - 8 - length:
            raise WorkloadError(f"{where}: the tensors take {place} bytes, the file has {size - 8 - length}: it is damaged or cut off")
        return 8 + length, {tensor.name: tensor for tensor in tensors}

    @property
    def tensors(self) -> dict[str, Stored]:
        """The tensors by name, in the order of the header."""
        return self._content[1]

    def load(self, name: str) -> Any:
        """A tensor as a numpy array, mapped from the file. Raises `WorkloadError` with the nearest name."""
        if name not in self.tensors:
            raise WorkloadError(f"{self.path}: no tensor {name!r}{nearest(name, self.tensors)}")
        tensor = self.tensors[name]
        if tensor.begin == tensor.end:
            return np.empty(tensor.shape, TYPES[tensor.dtype])
        count = prod(tensor.shape)
        kind = np.dtype(TYPES[tensor.dtype])
        raw = np.memmap(self.path, np.uint8, "r", offset=self._content[0] + tensor.begin, shape=(count * kind.itemsize,))
        return np.frombuffer(raw, kind).reshape(tensor.shape)

    def matching(self, patterns: tuple[str, ...]) -> Iterator[Stored]:
        """Weights whose names match one of the shell-like patterns; all weights without one. Raises `WorkloadError` for a pattern
        that matches no weight."""
        weights = [tensor for tensor in self.tensors.values() if tensor.is_weight]
        for pattern in patterns:
            if not any(fnmatchcase(tensor.name, pattern) for tensor in weights):
                near = nearest(pattern, [tensor.name for tensor in weights])
                raise WorkloadError(f"{self.path}: no weight (real numbers of two or more dimensions) matches {pattern!r}{near}")
        for tensor in weights:
            if not patterns or any(fnmatchcase(tensor.name, pattern) for pattern in patterns):
                yield tensor


def _stored(name: str, entry: Any, where: str) -> Stored:
    try:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        begin, end = offsets
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        found = json.dumps(entry)[:100]
        raise WorkloadError(f"{where}: tensor {name!r}: expected dtype, shape and two data_offsets, found {found}") from None
    if not whole:
        raise WorkloadError(f"{where}: tensor {name!r}: shape and data_offsets must be whole numbers of at least 0")
    if dtype not in TYPES:
        raise WorkloadError(f"{where}: tensor {name!r}: unknown type {dtype!r}, expected one of {', '.join(TYPES)}")
    need = prod(shape) * np.dtype(TYPES[dtype]).itemsize
    if end - begin != need:
        raise WorkloadError(f"{where}: tensor {name!r}: {dtype} {list(shape)} needs {need} bytes, has {end - begin}")
    return Stored(name, dtype, tuple(shape), begin, end)

"""Arrays to stream words and back: fields of fixed width, first field in the lowest bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def pack(*fields: tuple[Any, int]) -> list[int]:
    """One word per row from (integers of shape [words, ...], width in bits) fields; negative values in two's complement.

    >>> pack((np.array([[1, -1], [2, 3]]), 4), (np.array([1, 0]), 1))
    [497, 50]
    """
    columns = []
    for values, width in fields:
        table = np.asarray(values)
        table = table.reshape(table.shape[0], -1).astype(np.int64 if table.dtype.kind != "u" else np.uint64)
        planes = (table[:, :, None] >> np.arange(width, dtype=table.dtype)) & table.dtype.type(1)
        columns.append(planes.reshape(table.shape[0], table.shape[1] * width).astype(np.uint8))
    rows = np.packbits(np.concatenate(columns, axis=1), axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in rows]


def unpack(words: Sequence[int], *fields: tuple[int, int, bool]) -> list[Array]:
    """The fields (count, width in bits up to 64, signed) of each word, as int64 arrays of shape [words, count].

    >>> unpack([497, 50], (2, 4, True), (1, 1, False))[0].tolist()
    [[1, -1], [2, 3]]
    """
    size = -(-sum(count * width for count, width, _ in fields) // 8)
    raw = np.frombuffer(b"".join(word.to_bytes(size, "little") for word in words), dtype=np.uint8)
    bits = np.unpackbits(raw.reshape(len(words), size), axis=1, bitorder="little").astype(np.int64)
    found, start = [], 0
    for count, width, signed in fields:
        planes = bits[:, start : start + count * width].reshape(len(words), count, width)
        weights = np.left_shift(np.int64(1), np.arange(width, dtype=np.int64))
        if signed:
            weights[-1] = -weights[-1]
        found.append((planes * weights).sum(axis=2))
        start += count * width
    return found

"""Table look-up arithmetic in numpy: signed sums of activations, their quantisation, and products by bit planes of weights.

Weights of b bits are the odd integers 2q - (2^b - 1) of their codes q, bit planes of digits +1 and -1. A table holds the sums of
`depth` activations under every pattern of digits; with mirrored tables only those whose first digit is -1, from which the others
follow by negation (Mo et al., ISCA 2025, arXiv:2408.06003).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hw.bits import Array
from hw.errors import HardwareError


def build(activations: Any, depth: int = 4, symmetric: bool = True) -> Array:
    """Tables [..., K / depth, entries] of activations [..., K]; bit j of an entry's number is the digit of activation j (of
    activation j + 1 where the first is always -1).

    Raises `HardwareError` where `depth` does not divide K.

    >>> build([1, 2], depth=2).tolist(), build([1, 2], depth=2, symmetric=False).tolist()
    ([[-3, 1]], [[-3, -1, 1, 3]])
    """
    values = np.asarray(activations)
    if values.shape[-1] % depth:
        raise HardwareError(f"tables: groups of {depth} do not divide {values.shape[-1]} activations; pad them with zeros")
    groups = values.reshape(*values.shape[:-1], -1, depth)
    first = int(symmetric)
    numbers = np.arange(1 << (depth - first))[:, None]
    signs = 2 * (numbers >> np.arange(depth - first) & 1) - 1
    sums: Array = groups[..., first:] @ signs.T
    return sums - groups[..., :1] if symmetric else sums


def quantise(tables: Any, bits: int = 8, groups: int = 16) -> tuple[Array, Array]:
    """Entries as whole numbers of `bits`, and the scales that `groups` neighbouring tables share; ties go to even. Tables of zeros
    have scale 1.

    Raises `HardwareError` for entries that are not finite.
    """
    entries = np.asarray(tables, np.float64)
    if not np.isfinite(entries).all():
        raise HardwareError("tables: entries must be finite to be quantised; found NaN or infinity")
    most = (1 << (bits - 1)) - 1
    count = entries.shape[-2]
    starts = np.arange(0, count, groups)
    largest = np.maximum.reduceat(np.abs(entries).max(axis=-1), starts, axis=-1) / most
    scales = np.repeat(np.where(largest > 0, largest, 1.0), groups, axis=-1)[..., :count]
    return np.rint(entries / scales[..., None]).astype(np.int64), scales


def look_up(tables: Any, codes: Any, bits: int, depth: int = 4, symmetric: bool = True) -> Array:
    """Products [M, N] of activations, as `tables` [M, K / depth, entries] of them, by unsigned weight codes [K, N] of `bits`.

    >>> look_up(build([[1, 2, 3, 4]]), [[0], [1], [2], [3]], 2).tolist() == [[1 * -3 + 2 * -1 + 3 * 1 + 4 * 3]]
    True
    """
    entries = np.asarray(tables)
    digits = np.asarray(codes, np.int64)[None] >> np.arange(bits)[:, None, None] & 1  # [bits, K, N]
    digits = digits.reshape(bits, -1, depth, digits.shape[-1])
    first = int(symmetric)
    negative = digits[:, :, 0] if symmetric else np.zeros_like(digits[:, :, 0])
    index = ((digits[:, :, first:] ^ negative[:, :, None]) << np.arange(depth - first)[:, None]).sum(axis=2)  # [bits, groups, N]
    found = np.stack([entries[:, np.arange(index.shape[1])[:, None], plane] for plane in index])  # [bits, M, groups, N]
    signed = np.where(negative[:, None] == 1, -found, found)
    total: Array = (signed * (1 << np.arange(bits))[:, None, None, None]).sum(axis=(0, 2))
    return total

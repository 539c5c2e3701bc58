"""What a set of operands exercises: the identity of each combination that an arithmetic core is given, so that they can be counted.

A combination is what enters the core in one step: the lanes of a dot product together, the running sum with them where the core
is a single multiply-accumulate, a pair of codes for a multiplier. Identities are 64-bit hashes: two combinations that fall
together are counted once, so that a count is never too large.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Codes = np.ndarray[Any, np.dtype[Any]]
Identities = np.ndarray[Any, np.dtype[np.uint64]]


def mixed(values: Any) -> Identities:
    """A bijection of 64-bit integers that leaves no structure (the finaliser of SplitMix64, Steele et al., OOPSLA 2014)."""
    x = np.array(values, np.uint64, ndmin=1)  # of an array of no dimensions numpy would warn that it overflows
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def joined(*parts: Any) -> Identities:
    """Identities of tuples, element by element of arrays that broadcast."""
    found = np.zeros(1, np.uint64)
    for part in parts:
        found = mixed(found * np.uint64(0x9E3779B97F4A7C15) + np.asarray(part).astype(np.int64).astype(np.uint64) + np.uint64(1))
    return found


def lanes_of(codes: Codes, lanes: int) -> Identities:
    """[rows, K] to [rows, steps]: the codes that enter together."""
    padded = np.pad(np.asarray(codes, np.int64), ((0, 0), (0, -codes.shape[1] % lanes)))
    return joined(*np.moveaxis(padded.reshape(len(padded), -1, lanes), -1, 0))


def dot_steps(left: Codes, right: Codes, lanes: int) -> Identities:
    """A step of `lanes` along K for each of M x N results."""
    return joined(lanes_of(left, lanes)[:, None], lanes_of(right.T, lanes)[None]).ravel()


def pairs(left: Codes, right: Codes) -> Identities:
    """Every product of [M, K] by [K, N], not hashed: the two codes of up to 16 bits side by side."""
    a, b = (np.asarray(codes, np.int64) & 0xFFFF for codes in (left, right))
    return np.asarray((a[:, None] << 16 | b.T[None]).astype(np.uint64)).ravel()


def sums_and_pairs(left: Codes, right: Codes, bits: int) -> Identities:
    """A multiply-accumulate's two operands and the running sum, modulo 2^`bits`, along K for each of M x N results."""
    found = []
    total = np.zeros((len(left), right.shape[1]), np.int64)
    for k in range(left.shape[1]):
        a, b = left[:, k, None], right[None, k]
        found.append(joined(a, b, total & ((1 << bits) - 1)).ravel())
        total = total + a * b
    return np.concatenate(found)


def count(identities: list[Identities]) -> int:
    """Distinct ones among all. Sorting is several times faster here than numpy's `unique`, which hashes."""
    found = np.concatenate(identities)
    found.sort()
    return int(np.count_nonzero(found[1:] != found[:-1])) + min(len(found), 1)

"""Operands for units that multiply matrices, and arithmetic modulo a register's width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hw.bits import Array
from hw.errors import HardwareError
from hw.work import Case, Gemm, Vector


def wrap(values: Any, bits: int) -> Array:
    """Integers as a signed register of `bits` keeps them.

    >>> wrap(np.array([127, 128]), 8).tolist()
    [127, -128]
    """
    half = 1 << (bits - 1)
    return np.asarray((np.asarray(values, np.int64) + half) & ((1 << bits) - 1)) - half


def shapes(rng: Any, steps: tuple[int, int, int], largest: int = 2) -> Iterator[tuple[int, int, int]]:
    """(M, N, K): one, whole steps, one beyond and one below them, odd and random sizes up to `largest` steps and one; endless."""
    m, n, k = steps
    yield from ((1, 1, 1), (m, n, k), (m + 1, n, k), (m, n + 1, k), (m, n, k + 1), (1, n, 2 * k), (3, 5, 7))
    while True:
        a, b, c = (int(rng.integers(1, largest * step + 2)) for step in steps)
        yield a, b, c


def gemm_cases(
    rng: Any, number_format: str, left: tuple[int, int], right: tuple[int, int], steps: tuple[int, int, int], largest: int = 2
) -> Iterator[Case]:
    """Products of integers in the inclusive ranges `left` and `right`; some at the ends of the ranges only. Right is [K, N]."""

    def draw(limits: tuple[int, int], shape: tuple[int, int], ends: bool) -> Array:
        low, high = limits
        return np.asarray(rng.choice(limits, shape) if ends else rng.integers(low, high + 1, shape))

    for number, (m, n, k) in enumerate(shapes(rng, steps, largest)):
        ends = number % 4 == 1
        yield Case(Gemm(m, n, k, number_format), (draw(left, (m, k), ends), draw(right, (k, n), ends)))


def every_pair(left: int, right: int, lanes: int) -> tuple[Array, Array]:
    """Codes [`left`, lanes] and [lanes, `right`] of a product in which each lane meets every pair of codes.

    >>> a, b = every_pair(4, 8, 3)
    >>> len({(int(x), int(y)) for x in a[:, 2] for y in b[2]})
    32
    """
    lane = np.arange(lanes)
    return (np.arange(left)[:, None] + lane) % left, (np.arange(right) + 3 * lane[:, None]) % right


INT8 = (-128, 127)


def codes_of(bits: int) -> tuple[int, int]:
    """The least and the greatest code of `bits`."""
    return 0, (1 << bits) - 1


def integers(name: str, values: Any, limits: tuple[int, int]) -> Array:
    """`values` as int64. Raises `HardwareError` for anything but integers within the inclusive limits.

    >>> integers("weights", [[1, 300]], INT8)
    Traceback (most recent call last):
    hw.errors.HardwareError: weights: expected integers from -128 to 127, found 300
    """
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise HardwareError(f"{name}: expected integers, found an array of {array.dtype}")
    if array.dtype.kind == "f" and not (whole := np.rint(array) == array).all():
        raise HardwareError(f"{name}: expected integers, found {array[~whole].flat[0]:g}")
    low, high = limits
    lowest, highest = int(array.min(initial=low)), int(array.max(initial=high))
    if lowest < low or highest > high:
        raise HardwareError(f"{name}: expected integers from {low} to {high}, found {highest if highest > high else lowest}")
    return array.astype(np.int64)


def matrices(left: Any, left_limits: tuple[int, int], right: Any, right_limits: tuple[int, int]) -> tuple[Array, Array]:
    """The operands [M, K] and [K, N] of a product as int64. Raises `HardwareError` for values or shapes that do not fit."""
    a, b = integers("left operand", left, left_limits), integers("right operand", right, right_limits)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise HardwareError(f"expected a product of [M, K] by [K, N], found {list(a.shape)} by {list(b.shape)}")
    return a, b


def dot_words(left: Any, right: Any, lanes: int) -> tuple[Array, Array, Array]:
    """The operands of [M, K] x [K, N] as dot products of `lanes`, padded with zeros along K: one result after the other.

    Returns the left and the right lanes, [words, lanes] each, and [words] where a result is complete.
    """
    left, right = np.asarray(left, np.int64), np.asarray(right, np.int64)
    (m, k), n = left.shape, right.shape[1]
    steps = -(-k // lanes)
    rows = np.zeros((2, max(m, n), steps * lanes), np.int64)
    rows[0, :m, :k], rows[1, :n, :k] = left, right.T
    a = np.broadcast_to(rows[0, :m, None], (m, n, steps * lanes)).reshape(-1, lanes)
    b = np.broadcast_to(rows[1, None, :n], (m, n, steps * lanes)).reshape(-1, lanes)
    return a, b, np.arange(len(a)) % steps == steps - 1


def gemm(work: Any) -> Gemm:
    """`work` as a matrix product. Raises `HardwareError` for any other kind of work, and for an empty one."""
    if not isinstance(work, Gemm):
        raise HardwareError(f"this unit multiplies matrices; it has no cost for {type(work).__name__} work")
    if min(work.m, work.n, work.k) < 1:
        raise HardwareError(f"expected a product of sizes of at least 1, found {work.m}x{work.n}x{work.k} (M x N x K)")
    return work


def vector(work: Any) -> Vector:
    """`work` as a vector of elements. Raises `HardwareError` for any other kind of work, and for an empty one."""
    if not isinstance(work, Vector):
        raise HardwareError(f"this unit works on streams of elements; it has no cost for {type(work).__name__} work")
    if work.elements < 1:
        raise HardwareError(f"expected a vector of at least one element, found {work.elements}")
    return work

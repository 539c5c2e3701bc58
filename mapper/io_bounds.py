"""How few words any schedule moves between main memory and a chip of limited capacity: oracles for the mapper's traffic.

All sizes are in words (elements). `capacity` is everything that is kept on the chip: scratchpads and the sums inside a unit.
"""

from __future__ import annotations

from math import ceil, sqrt


def gemm_compulsory(m: int, n: int, k: int) -> int:
    """Words of both operands and of the result, each once."""
    return m * k + k * n + m * n


def gemm_words(m: int, n: int, k: int, capacity: int) -> int:
    """Words that a classical product of [m, k] by [k, n] moves at least: each operand once, and 2 m n k / sqrt(S) - 2 S for a
    capacity of S words (Smith, Lowery, Langou and van de Geijn, "A tight I/O lower bound for matrix multiplication", 2019).

    >>> gemm_words(64, 64, 64, 10**6)
    12288
    """
    streamed = 2 * m * n * k / sqrt(max(1, capacity)) - 2 * capacity
    return max(gemm_compulsory(m, n, k), ceil(streamed))


def attention_words(pairs: int, queries: int, keys: int, head_dim: int, value_dim: int, capacity: int) -> int:
    """Words that attention of one head moves at least, by any algorithm of multiplications and additions, whether scores are stored
    or not. `pairs` are those of a query and a key: queries x keys, fewer with a causal mask.

    Cut a schedule into segments of S transfers each. A segment sees at most 2 S words of queries and 2 S of keys. Scores that are
    begun and ended inside it need whole rows of both, so that there are at most (2 S / d)^2 of them, of d products each; of other
    scores at most 2 S have a partial sum at its start or end, and by Loomis and Whitney at most sqrt(2S x 2S x 2S) products go into
    those. So a segment does at most 4 S^2 / d + (2 S)^1.5 of the `pairs` x d products. That is d^2 pairs / (c S) for S >= d^2, and
    d pairs / (c sqrt(S)) below, each with c of at most 4 + 2 sqrt(2) = 6.83: the orders of Saha and Ye, "The I/O complexity of
    attention" (2024), of which the second holds for algorithms that do not multiply matrices faster than classically.
    """
    s, d = max(1, capacity), head_dim
    segment = 4 * s * s / d + (2 * s) ** 1.5
    segments = int(pairs * d / segment)
    once = queries * (head_dim + value_dim) + keys * (head_dim + value_dim)
    return max(once, s * segments)

"""N:M pruning: of every M weights along K at most N are kept, with N chosen per block of M x M weights.

A pruned weight's format says how much is kept on average: `int4-8of16`, or `int4-11.2of16` for a mixture of blocks. It counts
the kept values, a log2(M)-bit index for each, and one byte per block for its N.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from workloads.errors import WorkloadError
from workloads.format import Format, kept_of, parse_format
from workloads.graph import Graph

WINDOW = 16
KEPT = (0, 2, 4, 8, 16)
"""N that hardware with a chain of 16 multipliers supports (Zeng et al., FlightLLM, FPGA 2024); 16 is dense."""


def check_kept(kept: Fraction | int, window: int = WINDOW) -> Fraction:
    """`kept` as the mean N of blocks. Raises `WorkloadError` for an unsupported N or M."""
    if window != WINDOW:
        raise WorkloadError(f"N:M sparsity: M = {window} is not supported, expected {WINDOW}")
    kept = Fraction(kept)
    if not KEPT[0] < kept <= KEPT[-1]:
        raise WorkloadError(f"N:M sparsity: keeping {float(kept):g} of {WINDOW} is not possible, expected above 0 and up to {WINDOW}")
    return kept


def prune(graph: Graph, kept: Fraction | int | float | str, layers: Sequence[str] = ("",), window: int = WINDOW) -> Graph:
    """`graph` with the weights of its linear layers pruned to `kept` of `window`, where a layer's name matches one of `layers`.

    `layers` are regular expressions searched in the names of operators. A whole `kept` must be one of `KEPT`; another mean is a
    mixture of blocks. Raises `WorkloadError` for an unsupported N:M, a layer pattern that matches nothing, or weights pruned before.
    """
    mean = check_kept(Fraction(str(kept)), window)
    if mean.denominator == 1 and int(mean) not in KEPT:
        raise WorkloadError(
            f"N:M sparsity: {mean}:{window} is not supported, expected N of {', '.join(map(str, KEPT[1:]))}, or a mean that mixes them"
        )
    tensors = dict(graph.tensors)
    matched: set[str] = set()
    for operator, _ in graph.operators():
        patterns = [pattern for pattern in layers if re.search(pattern, operator.name)]
        if operator.kind != "matmul" or graph.tensors[operator.inputs[1]].role != "weight" or not patterns:
            continue
        matched.update(patterns)
        weight = graph.tensors[operator.inputs[1]]
        if kept_of(weight.format) is not None:
            raise WorkloadError(f"weight {weight.name!r} is pruned already ({weight.format})")
        tensors[weight.name] = replace(weight, format=sparse_format(weight.format, mean))
    if unmatched := [pattern for pattern in layers if pattern not in matched]:
        raise WorkloadError(f"prune: no linear layer matches {unmatched[0]!r}")
    return graph.with_tensors(
        tensors, (f"linear layers {', '.join(layers) if any(layers) else '(all)'} keep {float(mean):g} of {window} weights",)
    )


def sparse_format(base: Format, kept: Fraction) -> Format:
    """The format of weights of which `kept` of 16 are stored; dense formats stay what they are."""
    return base if kept == WINDOW else parse_format(f"{base.name}-{_decimal(kept)}of{WINDOW}")


def _decimal(value: Fraction) -> str:
    text = f"{float(value):.6f}".rstrip("0").rstrip(".")
    if Fraction(text) != value:
        raise WorkloadError(f"N:M sparsity: a mean of {value} has no short decimal; use one with up to six places")
    return text


def spread(kept: Fraction, rows: int, columns: int) -> NDArray[np.int64]:
    """N per block, [rows, columns], with the mean `kept`: the two nearest supported N, as evenly mixed as possible.

    >>> spread(Fraction(12), 4, 1)[:, 0].tolist()
    [8, 16, 8, 16]
    """
    low = max(n for n in KEPT if n <= kept)
    if low == kept:
        return np.full((rows, columns), low)
    high = min(n for n in KEPT if n > kept)
    share = (kept - low) / (high - low)
    index = np.arange(1, rows * columns + 1, dtype=np.int64)
    upper = index * share.numerator // share.denominator
    steps = np.diff(upper, prepend=0)
    return (low + steps * (high - low)).reshape(columns, rows).T


def prune_matrix(weights: NDArray[np.int64], kept: int | NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[K, N] weights with only the `kept` largest of each 16 along K, and N per block as an array [K / 16, N / 16].

    `kept` is one N or an array of them. Ties keep the weight of the lower index. Raises `WorkloadError` for an N that is not
    supported or a shape that is not whole blocks.
    """
    k, n = weights.shape
    if k % WINDOW or n % WINDOW:
        raise WorkloadError(f"N:M sparsity: a matrix of {k} x {n} is not whole blocks of {WINDOW} x {WINDOW}")
    counts = np.broadcast_to(np.asarray(kept, np.int64), (k // WINDOW, n // WINDOW)).copy()
    if bad := sorted(set(counts.reshape(-1).tolist()) - set(KEPT)):
        raise WorkloadError(f"N:M sparsity: {bad[0]}:{WINDOW} is not supported, expected N of {', '.join(map(str, KEPT))}")
    windows = weights.reshape(k // WINDOW, WINDOW, n)
    rank = np.argsort(np.argsort(-np.abs(windows), axis=1, kind="stable"), axis=1, kind="stable")
    chosen = rank < np.repeat(counts, WINDOW, axis=1)[:, None, :]
    return (windows * chosen).reshape(k, n), counts

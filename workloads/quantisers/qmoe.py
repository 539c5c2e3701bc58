"""QMoE: ternary weights below one bit, runs of them in 16-bit codewords.

Frantar and Alistarh, "QMoE: Practical Sub-1-Bit Compression of Trillion-Parameter Models", 2023, arXiv:2310.16795. A dictionary of 2^16
sequences of pairs of ternary values, the most probable ones given the share of zeros, is found by splitting the most probable sequence
until it is full (a Tunstall code), so that every stream is a concatenation of entries. Sequences have at most 16 pairs: an entry
fits into 64 bits. Rows are coded by themselves; the end of a row is filled up with zeros.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from workloads.errors import WorkloadError
from workloads.quantisers.base import Array, Field, Fields, Quantiser, Shape, blocks, channels, float_field, floats

ENTRIES = 1 << 16
LONGEST = 16
"""Pairs of values per entry, at most."""


@lru_cache(maxsize=8)
def dictionary(zeros_percent: int) -> tuple[Array, Array, Array]:
    """(children, digits, lengths) for a share of zeros: the node or, negative, entry (-1 - entry) that follows a node and a pair; the
    digits (value + 1) of each entry; and how many values it has."""
    zero = min(max(zeros_percent, 34), 99) / 100
    single = ((1 - zero) / 2, zero, (1 - zero) / 2)  # of -1, 0, +1
    pairs = [single[a] * single[b] for a in range(3) for b in range(3)]
    # leaves as (-probability, sequence); each split replaces one leaf by nine
    heap: list[tuple[float, tuple[int, ...]]] = [(-1.0, ())]
    leaves, done = 1, []
    while heap and leaves + 8 <= ENTRIES:
        probability, sequence = heapq.heappop(heap)
        if len(sequence) == LONGEST:
            done.append(sequence)
            continue
        leaves += 8
        for pair in range(9):
            heapq.heappush(heap, (probability * pairs[pair], (*sequence, pair)))
    entries = sorted([*done, *(sequence for _, sequence in heap)])
    nodes: dict[tuple[int, ...], int] = {(): 0}
    for sequence in entries:
        for depth in range(1, len(sequence)):
            nodes.setdefault(sequence[:depth], len(nodes))
    children = np.zeros((len(nodes), 9), np.int32)
    digits = np.ones((len(entries), 2 * LONGEST), np.uint8)
    lengths = np.zeros(len(entries), np.int64)
    for number, sequence in enumerate(entries):
        for depth, pair in enumerate(sequence):
            parent = nodes[sequence[:depth]]
            children[parent, pair] = nodes[sequence[: depth + 1]] if depth + 1 < len(sequence) else -1 - number
            digits[number, 2 * depth : 2 * depth + 2] = divmod(pair, 3)
        lengths[number] = 2 * len(sequence)
    return children, digits, lengths


def encode_rows(digits: Array, zeros_percent: int) -> tuple[Array, Array]:
    """(codewords, number of them per row) of digits [rows, K], K even; all rows advance together."""
    children = dictionary(zeros_percent)[0].ravel()
    pairs = np.ascontiguousarray((3 * digits[:, 0::2] + digits[:, 1::2]).T.astype(np.int32))
    rows = digits.shape[0]
    state = np.zeros(rows, np.int32)
    steps: list[Array] = []

    def advance(pair: Array) -> None:
        nonlocal state
        following = children.take(state * 9 + pair)
        steps.append(following)
        state = np.maximum(following, 0)

    for pair in pairs:
        advance(pair)
    while (state > 0).any():  # zeros (pair 4) complete the last entry of a row; rows that are complete stand still
        following = np.where(state > 0, children.take(state * 9 + 4), 0)
        steps.append(following)
        state = np.maximum(following, 0)
    table = np.stack(steps, axis=1)
    written = table < 0
    return (-1 - table[written]).astype(np.uint16), written.sum(axis=1)


def decode_rows(codewords: Array, counts: Array, size: int, zeros_percent: int) -> Array:
    """Digits [rows, size]. Raises `WorkloadError` where a row's codewords do not make up a row."""
    _, digits, lengths = dictionary(zeros_percent)
    if int(counts.sum()) != codewords.size or (codewords.size and int(codewords.max()) >= len(lengths)):
        raise WorkloadError("format qmoe: the codewords do not match their table: the stream is damaged")
    length = lengths.take(codewords)
    ends = np.cumsum(counts)
    before = np.concatenate([[0], np.cumsum(length)])
    row_sizes = before[ends] - before[ends - counts]
    if (row_sizes < size).any():
        raise WorkloadError("format qmoe: a row ends early: the stream is damaged")
    length[ends - 1] -= row_sizes - size  # the zeros that complete a row are no values
    if (length < 0).any():
        raise WorkloadError("format qmoe: a row is too long: the stream is damaged")
    starts = np.cumsum(length) - length
    out = np.empty(int(length.sum()), np.uint8)
    at = 0
    for first in range(0, codewords.size, 1 << 16):
        here = slice(first, first + (1 << 16))
        own = length[here]
        within = np.arange(own.sum()) - np.repeat(starts[here] - at, own)
        out[at : at + within.size] = digits.ravel().take(np.repeat(codewords[here].astype(np.int64) * 2 * LONGEST, own) + within)
        at += within.size
    return out.reshape(-1, size)


class QMoe(Quantiser):
    """Each row rounds to its smallest value, zero or its largest value (fp16 each), whichever is nearest; half-way values go to zero."""

    def encode(self, values: Array) -> Fields:
        rows = channels(values)
        if rows.shape[1] % 2:
            raise WorkloadError(f"format {self.format}: pairs need an even last dimension, found {values.shape}; pad the tensor")
        low = np.minimum(rows.min(axis=1), 0).clip(-65504).astype(np.float16)
        high = np.maximum(rows.max(axis=1), 0).clip(None, 65504).astype(np.float16)
        digits = np.ones(rows.shape, np.uint8)
        start = 0
        for part in blocks(rows):
            here = slice(start, start + len(part))
            below, above = (x[here].astype(np.float32)[:, None] / 2 for x in (low, high))
            digits[here] += part > above
            digits[here] -= part < below
            start += len(part)
        zeros = int(np.clip(np.rint(100 * np.count_nonzero(digits == 1) / digits.size), 34, 99))
        words = [encode_rows(digits[i : i + 1024], zeros) for i in range(0, len(digits), 1024)]
        return {
            "code": Field(np.concatenate([w for w, _ in words]), 16, "value"),
            "count": Field(np.concatenate([c for _, c in words]).astype(np.uint32), 32, "channel"),
            "low": float_field(low, 16, "channel"),
            "high": float_field(high, 16, "channel"),
            "zeros": Field(np.array([zeros], np.uint8), 8, "tensor"),
        }

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        counts = fields["count"].values.astype(np.int64)
        digits = decode_rows(fields["code"].values, counts, shape[-1], int(fields["zeros"].values[0]))
        levels = np.stack([floats(fields["low"]), np.zeros(len(counts), np.float32), floats(fields["high"])], axis=1)
        flat = digits + (3 * np.arange(len(counts), dtype=np.int32))[:, None]
        return levels.ravel().take(flat).reshape(shape)

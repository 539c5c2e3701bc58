"""DFloat11: bf16 weights without loss, their exponents in Huffman code.

Zhang et al., "70% Size, 100% Accuracy: Lossless LLM Compression for Efficient GPU Inference via Dynamic-Length Float (DFloat11)",
arXiv:2504.11651. Sign and mantissa are a plain byte; the codes of the exponents are one bit stream, first bit on top. Each
piece of 8 bytes of it has a 5-bit gap, the offset of the first code that begins in it, and each block of 512 pieces the number of
values before it, so that pieces decode independently. Codes are canonical, so that their lengths suffice to rebuild them.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import count
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from workloads.errors import WorkloadError
from workloads.quantisers.base import Array, Field, Fields, Quantiser, Shape

LONGEST = 32
PIECE = 64
"""Bits of the code stream that one thread decodes."""
PIECES = 512
"""Pieces per block."""
DIRECT = 16
"""Codes up to this long are looked up at once."""
_SYMBOLS = 1 << 18


def code_lengths(counts: Array, longest: int = LONGEST) -> Array:
    """Length of each symbol's Huffman code, 0 for one that does not occur, at most `longest`: where one would be longer, the rarest
    counts are raised to the next until none is.

    >>> code_lengths(np.array([5, 1, 1, 0])).tolist()
    [1, 2, 2, 0]
    """
    counts = np.asarray(counts, np.int64)
    while True:
        lengths, order = np.zeros(len(counts), np.int64), count()
        heap: list[tuple[int, int, list[int]]] = [(int(c), next(order), [s]) for s, c in enumerate(counts) if c]
        if len(heap) == 1:
            lengths[heap[0][2]] = 1
        heapq.heapify(heap)
        while len(heap) > 1:
            (a, _, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
            lengths[left + right] += 1
            heapq.heappush(heap, (a + b, next(order), left + right))
        if lengths.max(initial=0) <= longest:
            return lengths
        least, following = np.unique(counts[counts > 0])[:2]
        counts = np.where(counts == least, following, counts)


def canonical(lengths: Array) -> Array:
    """The code of each symbol: shorter ones first, among equals in the order of the symbols."""
    codes, code, previous = np.zeros(len(lengths), np.uint64), 0, 0
    for length, symbol in sorted((int(n), s) for s, n in enumerate(lengths) if n):
        code <<= length - previous
        codes[symbol] = code
        code, previous = code + 1, length
    return codes


def compress(bits: Array) -> Fields:
    """Fields of bf16 values given as uint16 codes, whatever they are: NaNs, infinities and zeros too."""
    bits = np.ascontiguousarray(bits, np.uint16).ravel()
    exponents = (bits >> np.uint16(7)).astype(np.uint8)
    plain = (bits & np.uint16(0x7F)).astype(np.uint8) | ((bits >> np.uint16(8)) & np.uint16(0x80)).astype(np.uint8)
    lengths = code_lengths(np.bincount(exponents, minlength=256))
    codes, sizes = canonical(lengths), lengths.astype(np.uint8)
    total = int(np.bincount(exponents, minlength=256) @ lengths)
    words = np.zeros(-(-total // PIECE) + 1, np.uint64)
    first_bit = np.full(len(words), total, np.int64)
    first_value = np.full(len(words), bits.size, np.int64)
    offset = 0
    for start in range(0, bits.size, _SYMBOLS):
        part = exponents[start : start + _SYMBOLS]
        size = sizes.take(part).astype(np.int64)
        ends = np.cumsum(size) + offset
        begin = ends - size
        word, shift = begin >> 6, PIECE - (begin & 63) - size
        code = codes.take(part)
        whole = np.where(shift >= 0, code << np.maximum(shift, 0).astype(np.uint64), code >> np.maximum(-shift, 0).astype(np.uint64))
        heads = np.flatnonzero(np.diff(word, prepend=word[0] - 1))
        words[word[heads]] |= np.bitwise_or.reduceat(whole, heads)
        over = np.flatnonzero(shift < 0)
        words[word[over] + 1] |= code[over] << (PIECE + shift[over]).astype(np.uint64)
        new = heads[first_bit[word[heads]] == total]
        first_bit[word[new]], first_value[word[new]] = begin[new], start + new
        offset = int(ends[-1])
    pieces = -(-total // PIECE)
    gaps = np.minimum(first_bit[:pieces] - PIECE * np.arange(pieces), LONGEST - 1)
    return {
        "plain": Field(plain, 8, "value"),
        "stream": Field(words[:pieces].astype(">u8").view(np.uint8), 8, "value"),
        "gap": Field(gaps.astype(np.uint8), 5, "group"),
        "position": Field(first_value[:pieces:PIECES].astype(np.uint32), 32, "group"),
        "length": Field(sizes, 6, "tensor"),
    }


def decompress(fields: Mapping[str, Field]) -> Array:
    """The uint16 codes that were compressed. Raises `WorkloadError` for a stream that does not decode."""
    plain = fields["plain"].values.ravel()
    exponents = _decode(fields, plain.size)
    low = plain.astype(np.uint16)
    signed = (low & np.uint16(0x7F)) | ((low & np.uint16(0x80)) << np.uint16(8))
    return np.asarray((exponents.astype(np.uint16) << np.uint16(7)) | signed)


def _decode(fields: Mapping[str, Field], total: int) -> Array:
    lengths = fields["length"].values.astype(np.int64)
    codes = canonical(lengths)
    words = np.concatenate([np.ascontiguousarray(fields["stream"].values).view(">u8").astype(np.uint64), np.zeros(2, np.uint64)])
    order = np.array(sorted(np.flatnonzero(lengths), key=lambda s: (lengths[s], s)), np.int64)
    # codes, left-aligned in 32 bits, ascend with their length: the right one is the last that is not greater
    limits = (codes[order] << (LONGEST - lengths[order]).astype(np.uint64)).astype(np.int64)
    probe = np.arange(1 << DIRECT, dtype=np.int64) << (LONGEST - DIRECT)
    table = order[np.searchsorted(limits, probe, "right") - 1]
    symbol_of = np.where(lengths[table] <= DIRECT, table, -1).astype(np.int16)
    long_codes = bool((lengths > DIRECT).any())
    sizes, gaps = lengths.astype(np.uint8), fields["gap"].values.astype(np.int64)
    pieces = len(words) - 2
    found = []
    batch = 1 << 14
    for start in range(0, pieces, batch):
        word = np.arange(start, min(pieces, start + batch))
        at = gaps[word]  # bits into each piece
        high, low = words[word], words[word + 1]
        rows = np.empty((PIECE, len(word)), np.uint8)
        steps = np.zeros(len(word), np.int64)
        step = 0
        while (live := at < PIECE).any():
            shift = np.minimum(at, PIECE - 1).astype(np.uint64)
            window = (high << shift) | ((low >> np.uint64(1)) >> (np.uint64(63) - shift))
            symbol = symbol_of.take((window >> np.uint64(64 - DIRECT)).astype(np.int64))
            if long_codes and (rare := np.flatnonzero(symbol < 0)).size:
                exact = (window[rare] >> np.uint64(PIECE - LONGEST)).astype(np.int64)
                symbol[rare] = order[np.searchsorted(limits, exact, "right") - 1]
            rows[step] = symbol
            steps += live
            at += np.where(live, sizes.take(symbol), 0)
            step += 1
        found.append(rows[:step].T[np.arange(step) < steps[:, None]])
    exponents = np.concatenate(found) if found else np.empty(0, np.uint8)
    if exponents.size < total:
        raise WorkloadError(f"format dfloat11: the code stream ends after {exponents.size} of {total} values: it is damaged")
    return exponents[:total]


class DFloat11(Quantiser):
    """Lossless for bf16; other floats are first rounded to bf16."""

    lossless = True

    def prepared(self, values: Any) -> Array:
        super().prepared(values)
        return np.asarray(values, ml_dtypes.bfloat16)

    def encode(self, values: Array) -> Fields:
        return compress(np.asarray(values, ml_dtypes.bfloat16).view(np.uint16))

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        bits = decompress(fields)
        if bits.size != prod(shape):
            raise WorkloadError(f"format {self.format}: {bits.size} values do not make a tensor of shape {shape}")
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(shape)

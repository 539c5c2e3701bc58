"""Canonical Huffman codes decoded at one symbol per cycle, as for the exponents of losslessly compressed bf16 weights.

Zhang et al., "70% Size, 100% Accuracy: Lossless LLM Compression ... via Dynamic-Length Float (DFloat11)", arXiv:2504.11651.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count as counter
from math import ceil
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator

from hw.bits import Array, pack, unpack
from hw.errors import HardwareError
from hw.gemm import integers, shapes, vector
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Case, Vector, Work

WORD = 32
"""Bits of the code stream per operand word, first bit on top."""
LIMIT, OFFSET, SYMBOL, COUNT, CODE = range(5)
"""Kinds of operand words."""


def code_lengths(counts: Any, longest: int) -> Array:
    """Length in bits of each symbol's Huffman code, 0 for one that does not occur, at most `longest`.

    Where a code would be too long, the rarest counts are raised until it is not.

    >>> code_lengths([5, 1, 1, 0], 8).tolist()
    [1, 2, 2, 0]
    """
    counts = np.asarray(counts, np.int64)
    while True:
        order = counter()
        heap: list[tuple[int, int, tuple[int, ...]]] = [(int(c), next(order), (s,)) for s, c in enumerate(counts) if c]
        lengths = np.zeros(len(counts), np.int64)
        lengths[[symbols[0] for _, _, symbols in heap]] = len(heap) == 1
        heapq.heapify(heap)
        while len(heap) > 1:
            a, _, left = heapq.heappop(heap)
            b, _, right = heapq.heappop(heap)
            lengths[list(left + right)] += 1
            heapq.heappush(heap, (a + b, next(order), left + right))
        if lengths.max(initial=0) <= longest:
            return lengths
        counts = np.where(counts > 0, np.maximum(counts, np.unique(counts[counts > 0])[1]), 0)


def canonical_codes(lengths: Any) -> dict[int, tuple[int, int]]:
    """(code, length) of each symbol: shorter codes first, among equals in the order of the symbols."""
    codes, code, previous = {}, 0, 0
    for length, symbol in sorted((int(n), s) for s, n in enumerate(lengths) if n):
        code <<= length - previous
        codes[symbol] = (code, length)
        code, previous = code + 1, length
    return codes


def compress(symbols: Any, lengths: Any) -> Array:
    """The bits of the symbols' codes, one after the other."""
    codes = canonical_codes(lengths)
    text = "".join(format(code, f"0{length}b") for code, length in (codes[int(s)] for s in symbols))
    return np.frombuffer(text.encode(), np.uint8).astype(np.int64) - ord("0")


class HuffmanDecode(Unit, kind="huffman_decode"):
    """A 96-bit window, all code lengths compared at once, one symbol per cycle.

    A piece of work begins with its tables: a limit and an offset for each length, all `symbols` entries of the alphabet, and
    how many symbols to decode. Bits that are no code (of an incomplete set) yield symbol 0 and use up `longest` bits.
    """

    symbols: Count = 256
    longest: Annotated[int, Field(ge=1, le=WORD)] = 32

    @field_validator("symbols")
    @classmethod
    def _bytes(cls, symbols: int) -> int:
        if not 2 <= symbols <= 256:
            raise HardwareError(f"expected an alphabet of 2 to 256 symbols, found {symbols}")
        return symbols

    @property
    def _header(self) -> int:
        return 2 * self.longest + self.symbols + 1

    def cycles(self, work: Work) -> int:
        """The tables, three cycles from the first code word to the first symbol, then one per symbol.

        >>> HuffmanDecode(symbols=256, longest=32).cycles(Vector(elements=1000))
        1323
        """
        return self._header + 3 + vector(work).elements - 1

    def golden(self, *operands: Any) -> Array:
        """The symbols in a bit stream: (bits, code lengths by symbol, number of symbols). Bits beyond the end are zeros."""
        bits, lengths, number = integers("bits", operands[0], (0, 1)), self._lengths(operands[1]), operands[2]
        text = "".join(map(str, np.asarray(bits, np.int64).tolist()))
        names = {format(code, f"0{length}b"): symbol for symbol, (code, length) in canonical_codes(lengths).items()}
        found, position = [], 0
        for _ in range(int(number)):
            for length in range(1, self.longest + 1):
                prefix = text[position : position + length].ljust(length, "0")
                if prefix in names:
                    found.append(names[prefix])
                    position += length
                    break
            else:
                found.append(0)
                position += self.longest
        return np.array(found, np.int64)

    def _lengths(self, given: Any) -> Array:
        """Code lengths of all symbols. Raises `HardwareError` where no code has them."""
        lengths = integers("code lengths", given, (0, self.longest))
        if lengths.shape != (self.symbols,):
            raise HardwareError(f"expected {self.symbols} code lengths, one for each symbol, found an array of shape {list(lengths.shape)}")
        share = sum(1 << (self.longest - int(length)) for length in lengths[lengths > 0])
        if share > 1 << self.longest:
            raise HardwareError(f"code lengths: expected shares 2^-length that add up to at most 1, found {share / 2**self.longest:g}")
        return lengths

    def cases(self, rng: Any) -> Iterator[Case]:
        for number, (size, _, _) in enumerate(shapes(rng, (20, 1, 1))):
            spread = rng.random() * 8 + 0.1
            weights = np.exp(-np.arange(self.symbols) * spread / self.symbols * (1 + number % 5))
            drawn = rng.permutation(self.symbols)[rng.choice(self.symbols, size, p=weights / weights.sum())]
            lengths = code_lengths(np.bincount(drawn, minlength=self.symbols), self.longest)
            bits = rng.integers(0, 2, 3 * size) if number % 7 == 6 else compress(drawn, lengths)
            yield Case(Vector(size), (bits, lengths, size))

    @classmethod
    def samples(cls) -> tuple[HuffmanDecode, ...]:
        return (cls(symbols=16, longest=8), cls(symbols=5, longest=4), cls(symbols=40, longest=32))

    def rtl(self) -> Any:
        from hw.rtl.huffman_decode import HuffmanDecodeRtl

        return HuffmanDecodeRtl(self.symbols, self.longest)

    def results(self, work: Work) -> int:
        return vector(work).elements

    def encode(self, *operands: Any) -> list[int]:
        bits, lengths, number = operands
        rows = [*self._tables(np.asarray(lengths)), (COUNT, 0, int(number))]
        padded = np.pad(np.asarray(bits, np.int64), (0, -len(bits) % WORD + WORD * (2 + ceil(self.longest * int(number) / WORD))))
        # the window asks for a whole word beyond the last code; undefined bits may use up more than the stream has
        used = self._bits_used(bits, lengths, int(number))
        words = padded.reshape(-1, WORD)[: ceil(used / WORD) + 1] @ (1 << np.arange(WORD - 1, -1, -1, dtype=np.int64))
        rows += [(CODE, 0, int(word)) for word in words]
        kind, address, value = (np.array(column) for column in zip(*rows, strict=True))
        return pack((kind, 3), (address, 8), (value, WORD + 1))

    def _bits_used(self, bits: Any, lengths: Any, number: int) -> int:
        codes = canonical_codes(lengths)
        found = self.golden(bits, lengths, number)
        sizes = {symbol: length for symbol, (_, length) in codes.items()}
        if 0 not in sizes or len(sizes) == 1:  # an undefined pattern looks like symbol 0: assume the longest
            sizes[0] = self.longest
        return sum(sizes[int(symbol)] for symbol in found)

    def _tables(self, lengths: Array) -> list[tuple[int, int, int]]:
        codes = canonical_codes(lengths)
        order = list(codes)
        rows, first = [], 0
        for length in range(1, self.longest + 1):
            own = [codes[s][0] for s in order if codes[s][1] == length]
            begin = own[0] if own else first << 1
            first = begin + len(own)
            index = next((i for i, s in enumerate(order) if codes[s][1] == length), 0)
            rows.append((LIMIT, length - 1, first << (self.longest - length)))
            rows.append((OFFSET, length - 1, (index - begin) % 256))
        names = [*order, *[0] * (self.symbols - len(order))]
        return [*rows, *((SYMBOL, i, s) for i, s in enumerate(names))]

    def decode(self, words: list[int], work: Work) -> Array:
        return unpack(words, (1, 8, False))[0].reshape(-1)

    def proofs(self) -> dict[str, Any]:
        from hw.rtl.huffman_decode import match_theorem

        return {"shortest_matching_length": match_theorem(min(self.longest, 8))}

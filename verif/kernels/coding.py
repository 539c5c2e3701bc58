"""Huffman decoding the way a GPU does it: the code at every bit position at once, then a walk from code to code."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from verif.kernels import Kernel, Operands, Parameters
from verif.kernels.combinations import Identities, joined, lanes_of


def huffman_decode(parameters: Parameters, bits: Tensor, lengths: Tensor, number: Tensor) -> Tensor:
    """Symbols of a stream of canonical codes; bits beyond its end are zeros, and no code at all is symbol 0."""
    longest, count = int(parameters["longest"]), int(number)
    padded = torch.nn.functional.pad(bits, (0, longest * (count + 1)))
    window = torch.zeros(len(padded) - longest, dtype=torch.int64, device=bits.device)
    symbol, size = torch.zeros_like(window), torch.full_like(window, longest)
    open_ = torch.ones_like(window, dtype=torch.bool)
    order = sorted((length, s) for s, length in enumerate(lengths.tolist()) if length)
    code, previous = 0, 0
    members = {length: [s for _, s in group] for length, group in groupby(order, key=lambda pair: pair[0])}
    for length in range(1, longest + 1):
        window = window * 2 + padded[length - 1 : length - 1 + len(window)]
        names = members.get(length, [])
        code <<= length - previous
        previous = length
        if names:
            table = torch.tensor(names, device=bits.device)
            here = open_ & (window >= code) & (window < code + len(names))
            symbol = torch.where(here, table[(window - code).clamp(0, len(names) - 1)], symbol)
            size = torch.where(here, torch.full_like(size, length), size)
            open_ = open_ & ~here
        code += len(names)
    steps, found, position = size.tolist(), [], 0
    for _ in range(count):
        found.append(position)
        position += steps[position]
    return symbol[torch.tensor(found, dtype=torch.int64, device=bits.device)]


def draw_stream(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """A complete set of code lengths from random splits, and codes drawn with their own probabilities."""
    symbols, longest = int(parameters["symbols"]), int(parameters["longest"])
    depths = [0]
    while len(depths) < symbols:
        splittable = [i for i, d in enumerate(depths) if d < longest]
        if not splittable:
            break
        chosen = splittable[int(rng.integers(len(splittable)) * rng.random())]
        depth = depths.pop(chosen)
        depths += [depth + 1, depth + 1]
    lengths = np.zeros(symbols, np.int64)
    lengths[rng.permutation(symbols)[: len(depths)]] = depths
    # a random bit stream holds a code of n bits with probability 2^-n; what a long one lacks at its end are zeros
    mean = float((lengths[lengths > 0] * 2.0 ** -lengths[lengths > 0]).sum())
    return rng.integers(0, 2, int(m * mean) + longest), lengths, np.array(m, np.int64)


def _windows(parameters: Parameters, bits: np.ndarray, lengths: np.ndarray, number: np.ndarray) -> Identities:
    """The table of code lengths and the bits in the window, for every place in the stream at which a window can begin."""
    longest = int(parameters["longest"])
    weights = 1 << np.arange(longest)[::-1]
    windows = np.convolve(bits, weights[::-1])[longest - 1 : len(bits)]
    return joined(lanes_of(lengths[None], len(lengths))[0, 0], windows)


KERNELS = {
    "huffman_decode": Kernel(
        huffman_decode,
        draw_stream,
        ({"symbols": 40, "longest": 32}, {"symbols": 256, "longest": 32}),
        (2_100_000, 1, 1),
        _windows,
        rounds=(1, 1),
    )
}

"""Integer arithmetic by way of exact float64 matrix products, signs and bit planes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from verif.kernels import Kernel, Operands, Parameters
from verif.kernels.combinations import Identities, dot_steps, joined, lanes_of, pairs, sums_and_pairs


def wrapped(values: Tensor, bits: int) -> Tensor:
    """Two's complement of `bits`."""
    modulus = 1 << bits
    values = values.to(torch.int64) % modulus
    return torch.where(values >= modulus // 2, values - modulus, values)


def exact_product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product in float64: exact below 2^53."""
    return torch.matmul(left.to(torch.float64), right.to(torch.float64)).round().to(torch.int64)


def _between(low: int, high: int, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    return rng.integers(low, high + 1, shape)


def systolic(parameters: Parameters, left: Tensor, right: Tensor) -> Tensor:
    return wrapped(exact_product(left, right), int(parameters.get("accumulator_bits", 32)))


def draw_int8(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    return _between(-128, 127, (m, k), rng), _between(-128, 127, (k, n), rng)


def ternary_row(parameters: Parameters, left: Tensor, codes: Tensor) -> Tensor:
    """What is added less what is subtracted."""
    found = exact_product(left, codes == 1) - exact_product(left, codes == 3)
    return wrapped(found, int(parameters.get("accumulator_bits", 32)))


def draw_ternary(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    return _between(-128, 127, (m, k), rng), _between(0, 3, (k, n), rng)


def lut_tensor_core(parameters: Parameters, left: Tensor, codes: Tensor) -> Tensor:
    """A product with +-1 per bit plane, planes weighted with powers of two."""
    planes = [exact_product(left, ((codes >> bit) & 1) * 2 - 1) << bit for bit in range(int(parameters["weight_bits"]))]
    return wrapped(torch.stack(planes).sum(dim=0), 32)


def draw_lut(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    return _between(-128, 127, (m, k), rng), _between(0, (1 << int(parameters["weight_bits"])) - 1, (k, n), rng)


ABFLOAT = {"int4": (12, 16, 24, 32, 48, 64, 96), "flint4": (24, 32, 48, 64, 96, 128, 192)}
"""Magnitudes of outliers, codes 1 to 7."""
NORMAL = {
    "int4": (0, 1, 2, 3, 4, 5, 6, 7, 0, -7, -6, -5, -4, -3, -2, -1),
    "flint4": (0, 1, 2, 3, 16, 8, 4, 6, 0, -1, -2, -3, -16, -8, -4, -6),
}


def pair_values(form: str, device: Any) -> Tensor:
    """[256, 2] integers that the bytes of outlier-victim pairs stand for, written out from the format's tables."""
    rows = []
    for byte in range(256):
        halves = (byte % 16, byte // 16)
        row = []
        for own, other in (halves, halves[::-1]):
            if own == 8:
                row.append(0)
            elif other == 8:
                magnitude = (0, *ABFLOAT[form])[own % 8]
                row.append(-magnitude if own > 8 else magnitude)
            else:
                row.append(NORMAL[form][own])
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int64, device=device)


def olive_mac(parameters: Parameters, left: Tensor, right: Tensor) -> Tensor:
    a = pair_values(str(parameters.get("activations", "int4")), left.device)[left].flatten(1)
    b = pair_values(str(parameters.get("weights", "int4")), right.device)[right.T.contiguous()].flatten(1)
    return wrapped(exact_product(a, b.T), 32)


def draw_pairs(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    return _between(0, 255, (m, k), rng), _between(0, 255, (k, n), rng)


def sram_pim_slice(parameters: Parameters, left: Tensor, right: Tensor) -> Tensor:
    """By gathering: the sums of every subset of a group's weights, one per bit plane of its activations, planes weighted."""
    group, bits = int(parameters.get("group", 4)), int(parameters.get("activation_bits", 8))
    padding = -left.shape[1] % group
    left, right = torch.nn.functional.pad(left, (0, padding)), torch.nn.functional.pad(right, (0, 0, 0, padding))
    subsets = (torch.arange(1 << group, device=left.device)[:, None] >> torch.arange(group, device=left.device)) & 1
    powers = 1 << torch.arange(group, device=left.device)
    total = torch.zeros(len(left), right.shape[1], dtype=torch.int64, device=left.device)
    for start in range(0, left.shape[1], group):
        sums = exact_product(subsets, right[start : start + group])
        for plane in range(bits):
            pattern = (((left[:, start : start + group] >> plane) & 1) * powers).sum(dim=1)
            total += sums[pattern] * (-(1 << plane) if plane == bits - 1 else 1 << plane)
    return wrapped(total, int(parameters.get("accumulator_bits", 24)))


def draw_bit_planes(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    a, w = (1 << (int(parameters.get(name, default)) - 1) for name, default in (("activation_bits", 8), ("weight_bits", 4)))
    return _between(-a, a - 1, (m, k), rng), _between(-w, w - 1, (k, n), rng)


def draw_sparse(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """At most `kept` of each 16 weights along K are not zero."""
    left, right = draw_int8(parameters, rng, m, n, k)
    blocks = -(-k // 16)
    rank = rng.random((blocks, 16, n)).argsort(axis=1).argsort(axis=1)
    return left, right * (rank < int(parameters.get("kept", 16))).reshape(-1, n)[:k]


def wht128(parameters: Parameters, values: Tensor) -> Tensor:
    """Butterflies on halves, recursively."""
    if values.shape[-1] == 1:
        return values
    left, right = values.chunk(2, dim=-1)
    return torch.cat([wht128(parameters, left + right), wht128(parameters, left - right)], dim=-1)


def draw_vectors(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Random vectors; of a size that can be listed, also those that bring every pair of operands to a butterfly of each stage."""
    points, half = int(parameters.get("points", 128)), 1 << (int(parameters.get("width", 8)) - 1)
    found = [_between(-half, half - 1, (m, points), rng)]
    if _butterfly_space(parameters) and m >= BULK_VECTORS:
        for stage in range(points.bit_length() - 1):
            span = 1 << stage
            # a stage's first butterfly takes the sums of the first two runs of `span` values, the second one alternating sums
            sums = np.arange(-half * span, (half - 1) * span + 1)
            runs = (sums[:, None] + np.arange(span)) // span
            vectors = np.zeros((len(sums), len(sums), points), np.int64)
            vectors[:, :, :span], vectors[:, :, span : 2 * span] = runs[:, None], runs[None]
            odd = np.arange(points) % 2 == 1
            found += [vectors.reshape(-1, points), np.where(odd, -1 - vectors, vectors).reshape(-1, points)]
    return (np.concatenate(found),)


BULK_VECTORS = 110_000


def _butterfly_space(parameters: Parameters) -> int | None:
    """Pairs of operands of each stage; None where they are too many to list.

    Of v values from -v/2 to v/2 - 1, sums of s lie between -sv/2 and sv/2 - s, alternating ones between -s(v-1)/2 and s(v-1)/2:
    each s(v-1) + 1 integers, of which all but s/2 are in both.
    """
    points, values = int(parameters.get("points", 128)), 1 << int(parameters.get("width", 8))
    spans = (1 << stage for stage in range(points.bit_length() - 1))
    found = sum(2 * ((values - 1) * span + 1) ** 2 - ((values - 1) * span + 1 - span // 2) ** 2 for span in spans)
    return found if points * values <= 512 else None


def _cells(parameters: Parameters, left: Any, right: Any) -> Identities:
    """A cell's two operands and its running sum."""
    return sums_and_pairs(left, right, int(parameters.get("accumulator_bits", 32)))


def _windows(parameters: Parameters, left: Any, right: Any) -> Identities:
    """Sixteen activations of two rows, and a column's sixteen weights."""
    first, second = (lanes_of(left[row::2], 16) for row in (0, 1))
    return joined(first[:, None], second[:, None], lanes_of(right.T, 16)[None]).ravel()


def _butterflies(parameters: Parameters, values: Any) -> Identities:
    """The two operands of every butterfly, and its stage."""
    found, span = [], 1
    while span < values.shape[1]:
        upper, lower = np.moveaxis(values.reshape(len(values), -1, 2, span), 2, 0)
        found.append(joined(span, upper, lower).ravel())
        values = np.stack([upper + lower, upper - lower], axis=2).reshape(values.shape)
        span *= 2
    return np.concatenate(found)


def _ternary(parameters: Parameters, left: Any, codes: Any) -> Identities:
    return dot_steps(left, codes, int(parameters.get("lanes", 8)))


def _lookups(parameters: Parameters, left: Any, codes: Any) -> Identities:
    """Four activations and four weights of all their bits."""
    return dot_steps(left, codes, 4)


KERNELS = {
    "systolic": Kernel(
        systolic,
        draw_int8,
        ({"rows": 4, "columns": 4}, {"rows": 3, "columns": 5, "accumulator_bits": 16}),
        (256, 256, 168),
        _cells,
    ),
    "ternary_row": Kernel(ternary_row, draw_ternary, ({}, {"lanes": 5, "accumulator_bits": 12}), (512, 512, 336), _ternary),
    "lut_tensor_core": Kernel(
        lut_tensor_core, draw_lut, tuple({"weight_bits": b} for b in (1, 2, 3, 4)), (512, 512, 168), _lookups, rounds=(32, 3, 1, 1)
    ),
    "olive_mac": Kernel(
        olive_mac,
        draw_pairs,
        ({}, {"activations": "flint4"}, {"activations": "flint4", "weights": "flint4"}),
        (256, 256, 80),
        lambda parameters, left, right: pairs(left, right),
        lambda parameters: 1 << 16,
    ),
    "sram_pim_slice": Kernel(
        sram_pim_slice,
        draw_bit_planes,
        ({}, {"weight_bits": 2, "activation_bits": 3, "group": 3, "accumulator_bits": 9}),
        (512, 512, 168),
        lambda parameters, left, right: dot_steps(left, right, int(parameters.get("group", 4))),
        lambda parameters: 1 << 15 if parameters else None,  # three activations of 3 bits and weights of 2
    ),
    "csd_chain": Kernel(systolic, draw_sparse, tuple({"kept": kept} for kept in (2, 4, 8, 16)), (1024, 1024, 336), _windows),
    "wht128": Kernel(wht128, draw_vectors, ({}, {"points": 16, "width": 5}), (BULK_VECTORS, 1, 1), _butterflies, _butterfly_space),
}

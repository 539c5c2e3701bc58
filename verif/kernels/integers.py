"""Integer arithmetic by way of exact float64 matrix products, signs and bit planes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from verif.kernels import Kernel, Operands, Parameters


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
    width = int(parameters.get("width", 8))
    return (_between(-(1 << (width - 1)), (1 << (width - 1)) - 1, (m, int(parameters.get("points", 128))), rng),)


LARGE = (256, 256, 160)
"""More than ten million products."""

KERNELS = {
    "systolic": Kernel(systolic, draw_int8, ({"rows": 4, "columns": 4}, {"rows": 3, "columns": 5, "accumulator_bits": 16}), LARGE),
    "ternary_row": Kernel(ternary_row, draw_ternary, ({}, {"lanes": 5, "accumulator_bits": 12}), LARGE),
    "lut_tensor_core": Kernel(lut_tensor_core, draw_lut, tuple({"weight_bits": b} for b in (1, 2, 3, 4)), LARGE),
    "olive_mac": Kernel(
        olive_mac, draw_pairs, ({}, {"activations": "flint4"}, {"activations": "flint4", "weights": "flint4"}), (256, 256, 80)
    ),
    "csd_chain": Kernel(systolic, draw_sparse, tuple({"kept": kept} for kept in (2, 4, 8, 16)), LARGE),
    "wht128": Kernel(wht128, draw_vectors, ({}, {"points": 16, "width": 5}), (80_000, 1, 1)),
}

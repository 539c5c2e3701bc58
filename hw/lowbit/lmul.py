"""L-Mul layers: linear layers and attention whose products are additions, bit for bit as `lmul_dot8` computes them.

Luo and Sun, "Addition is All You Need for Energy-efficient Language Models", arXiv:2410.00907, 2024. The paper defines the product as
(1 + x + y + 2^-l) 2^(ex + ey) for fractions x and y; an adder carries into the exponent where x + y + 2^-l reaches 1, which gives
(x + y + 2^-l) 2^(ex + ey + 1) there. The adder is what hardware computes and what these layers use; `formula` is the other one.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, Literal

import numpy as np

from hw.bits import Array
from hw.errors import HardwareError
from hw.number import FLOATS, Float
from hw.units.lmul import LmulDot8, LmulFormat, offset_bits, product

BLOCK = 1 << 22
"""Products that are held at a time."""


def fraction_format(bits: int) -> Float:
    """bf16's range with fractions of `bits`: what the paper varies. Raises `HardwareError` outside 1 to 23."""
    if not 1 <= bits <= 23:
        raise HardwareError(f"fractions of {bits} bits: expected 1 to 23, those of an fp32 number or less")
    return Float(f"e8m{bits}", 8, bits, 127, "ieee")


def adder(form: Float, x: Any, y: Any, offset: Literal["paper", "none"] = "paper") -> Array:
    """float64 values of L-Mul products of two arrays of codes; without the offset these are Mitchell's logarithmic products."""
    if offset == "paper":
        return form.decode(product(form, x, y))
    if offset != "none":
        raise HardwareError(f"offset {offset!r}: expected `paper` (2^-l of the fraction's width) or `none`")
    e, f, s = _parts(form, x, y)
    return np.asarray(s * np.where(f < 1, np.ldexp(1 + f, e), np.ldexp(f, e + 1)))


def formula(form: Float, x: Any, y: Any) -> Array:
    """float64 values of (1 + x + y + 2^-l) 2^(ex + ey), the paper's equation taken by its word; operands are normal numbers or zero."""
    e, f, s = _parts(form, x, y)
    return np.asarray(s * np.ldexp(1 + f + 2.0 ** -offset_bits(form.fraction), e))


def _parts(form: Float, x: Any, y: Any) -> tuple[Array, Array, Array]:
    """Sum of exponents, sum of fractions, and the sign of the product (0 where a factor is zero)."""
    a, b = form.decode(x), form.decode(y)
    (ma, ea), (mb, eb) = np.frexp(np.abs(a)), np.frexp(np.abs(b))
    return ea + eb - 2, (2 * ma - 1) + (2 * mb - 1), np.sign(a) * np.sign(b)


def linear(acts: Any, weights: Any, form: LmulFormat = "bf16") -> Array:
    """fp32 [tokens, outputs] of a linear layer: real [tokens, inputs] times real [outputs, inputs], rounded to `form` (nearest even).

    Products are L-Mul, sums in fp32 in the order of `lmul_dot8`: steps of eight along the inputs. A NaN in either operand makes
    its results NaN; infinities count as the largest finite number. Raises `HardwareError` for shapes that do not fit.
    """
    left, right = (np.asarray(x, np.float64) for x in (acts, weights))
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise HardwareError(
            "a linear layer takes [tokens, inputs] and [outputs, inputs] with as many inputs, found "
            f"{list(left.shape)} and {list(right.shape)}"
        )
    unit, codes = LmulDot8(format=form), FLOATS[form]
    a, b = codes.encode(left, saturate=True), codes.encode(right, saturate=True).T
    (m, k), n = a.shape, b.shape[1]
    rows = max(1, BLOCK // max(1, k * min(n, BLOCK // k + 1)))
    columns = max(1, min(n, BLOCK // max(1, k)))
    out = np.empty((m, n), np.float32)
    for i in range(0, m, rows):
        for j in range(0, n, columns):
            found = unit.golden(a[i : i + rows], b[:, j : j + columns])
            out[i : i + rows, j : j + columns] = found.astype(np.uint32).view(np.float32)
    return out


def softmax(scores: Array) -> Array:
    """fp32 rows that sum to one: exponentials and their sum in float64, the quotient rounded once."""
    wide = np.asarray(scores, np.float64)
    power = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return np.asarray(power / power.sum(axis=-1, keepdims=True), np.float32)


def attention(queries: Any, keys: Any, values: Any, form: LmulFormat = "bf16", causal: bool = True) -> Array:
    """fp32 [heads, queries, width] of scaled-dot-product attention whose two products are L-Mul.

    Queries [heads, queries, width], keys and values [heads, tokens, width]; the last query sees every token. Scores and outputs are
    those of `linear`; the scale 1/sqrt(width) and the softmax are exact, rounded to fp32. Raises `HardwareError` for shapes that do
    not fit.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (queries, keys, values))
    fits = q.ndim == k.ndim == v.ndim == 3 and q.shape[0] == k.shape[0] == v.shape[0] and k.shape[1] == v.shape[1]
    if not fits or q.shape[2] != k.shape[2]:
        shapes = ", ".join(str(list(x.shape)) for x in (q, k, v))
        raise HardwareError(f"attention takes [heads, queries, width] and twice [heads, tokens, width], found {shapes}")
    if causal and q.shape[1] > k.shape[1]:
        raise HardwareError(f"causal attention of {q.shape[1]} queries needs as many tokens at least, found {k.shape[1]}")
    scale = np.float32(1 / sqrt(q.shape[2]))
    visible = np.tri(q.shape[1], k.shape[1], k.shape[1] - q.shape[1], dtype=bool) if causal else True
    out = np.empty((*q.shape[:2], v.shape[2]), np.float32)
    for head in range(len(q)):
        scores = linear(q[head], k[head], form) * scale
        out[head] = linear(softmax(np.where(visible, scores, -np.inf)), v[head].T, form)
    return out

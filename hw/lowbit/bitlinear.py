"""Layers of ternary models: BitLinear and the recurrent mixer of MatMul-free language models, with exact integer sums.

Zhu et al., "Scalable MatMul-free Language Modeling", arXiv:2406.02528; Ma et al., "The Era of 1-bit LLMs", arXiv:2402.17764. Everything but
the integer sums is fp32; means and transcendental functions are taken in fp64 and rounded once, so that the result does not depend on an
order of summation or a library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hw.bits import Array
from hw.errors import HardwareError
from hw.units.ternary_row import TernaryRow

LEAST = np.float32(1e-5)
"""Largest magnitudes and mean magnitudes count as this at least."""
EPSILON = 1e-8
"""Added to the mean square in the norm of a BitLinear."""
CODES = np.array([0, 1, 3])
"""Two-bit codes of 0, +1 and -1, as the row unit takes them: CODES[t] for t of 0, 1 and -1."""
TRITS = 5
"""Ternary digits in a byte: 3^5 = 243."""


def rms_norm(x: Any, weight: Any = None, epsilon: float = EPSILON) -> Array:
    """fp32 [..., width]: x over the root of its mean square, times `weight`."""
    x = _real(x, "inputs")
    size = np.mean(np.square(x.astype(np.float64)), axis=-1, keepdims=True)
    normed = x * (1 / np.sqrt(size + epsilon)).astype(np.float32)
    return normed if weight is None else np.asarray(normed * np.asarray(weight, np.float32))


def quantised(x: Any) -> tuple[Array, Array]:
    """int8 [tokens, width] and the fp32 factor [tokens, 1] that made it: 127 over the largest magnitude, rounding to nearest even."""
    x = _real(x, "activations")
    factor = np.float32(127) / np.maximum(np.abs(x).max(axis=-1, keepdims=True), LEAST)
    return np.clip(np.rint(x * factor), -128, 127).astype(np.int8), factor


def ternary(weights: Any) -> tuple[Array, np.float32]:
    """{-1, 0, 1} [outputs, inputs] and the fp32 factor: one over the mean magnitude of the tensor."""
    weights = _real(weights, "weights")
    factor = np.float32(1) / np.maximum(np.float32(np.mean(np.abs(weights.astype(np.float64)))), LEAST)
    return np.clip(np.rint(weights * factor), -1, 1).astype(np.int8), factor


@dataclass(frozen=True, eq=False)
class Linear:
    """A BitLinear: ternary `weights` [outputs, inputs], their `factor`, and the `norm` weight of its RMSNorm (None: ones)."""

    weights: Array
    factor: np.float32
    norm: Any = None

    @classmethod
    def of(cls, weights: Any, norm: Any = None) -> Linear:
        """From real weights. Raises `HardwareError` for numbers that are not finite."""
        return cls(*ternary(weights), norm)

    def sums(self, x: Any) -> tuple[Array, Array]:
        """Exact integers [tokens, outputs] before they are scaled, and the factor of the activations."""
        x = np.asarray(x, np.float32)
        if x.ndim != 2 or x.shape[1] != self.weights.shape[1]:
            raise HardwareError(f"a layer of {self.weights.shape[1]} inputs takes [tokens, {self.weights.shape[1]}], found {list(x.shape)}")
        q, factor = quantised(rms_norm(x, self.norm))
        return TernaryRow().golden(q, CODES[self.weights.astype(np.int64)].T), factor

    def __call__(self, x: Any) -> Array:
        """fp32 [tokens, outputs]."""
        sums, factor = self.sums(x)
        return np.asarray(sums.astype(np.float32) / (self.factor * factor))


def sigmoid(x: Any) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.asarray(x, np.float64))), np.float32)


def silu(x: Any) -> Array:
    wide = np.asarray(x, np.float64)
    return np.asarray(wide / (1 + np.exp(-wide)), np.float32)


def mlgru(inputs: Any, forget: Any, state: Any) -> Array:
    """fp32 states [tokens, width]: h_t = f_t h_(t-1) + (1 - f_t) i_t from `state` [width], token by token; the last is the next state."""
    i, f, h = np.asarray(inputs, np.float32), np.asarray(forget, np.float32), np.asarray(state, np.float32)
    if i.ndim != 2 or i.shape != f.shape or h.shape != i.shape[1:]:
        raise HardwareError(f"the mixer takes inputs and gates [tokens, width] and a state [width], found {i.shape}, {f.shape}, {h.shape}")
    out = np.empty_like(i)
    for token in range(len(i)):
        h = f[token] * h + (np.float32(1) - f[token]) * i[token]
        out[token] = h
    return out


@dataclass(frozen=True, eq=False)
class Block:
    """One block of a MatMul-free model: its six BitLinear layers and the weights of its norms (None: ones)."""

    inputs: Linear
    forget: Linear
    gate: Linear
    out: Linear
    up: Linear
    down: Linear
    norms: tuple[Any, Any, Any] = (None, None, None)
    """Of the token mixer, of its states, and of the channel mixer."""

    def __call__(self, x: Any, state: Any) -> tuple[Array, Array]:
        """Outputs [tokens, width] and the next state [width] of inputs [tokens, width] and a state."""
        x = np.asarray(x, np.float32)
        normed = rms_norm(x, self.norms[0])
        states = mlgru(silu(self.inputs(normed)), sigmoid(self.forget(normed)), state)
        x = x + self.out(rms_norm(states, self.norms[1]) * silu(self.gate(normed)))
        a, b = np.split(self.up(rms_norm(x, self.norms[2])), 2, axis=1)
        return x + self.down(silu(a) * b), states[-1]


def pack_trits(values: Any) -> Array:
    """Bytes of {-1, 0, 1}, five to a byte: the sum of (t + 1) 3^k, digit 0 first; the last byte is filled with zeros.

    >>> pack_trits([-1, -1, -1, -1, -1, 0]).tolist()
    [0, 121]
    """
    values = np.asarray(values, np.int64).ravel()
    if values.size and not -1 <= values.min() <= values.max() <= 1:
        raise HardwareError(f"ternary weights are -1, 0 or 1, found {values.min()} to {values.max()}")
    digits = np.pad(values, (0, -values.size % TRITS)).reshape(-1, TRITS) + 1
    return np.asarray((digits * 3 ** np.arange(TRITS)).sum(axis=1), np.uint8)


def unpack_trits(data: Any, count: int) -> tuple[Array, Array]:
    """`count` values of bytes, and which bytes are no sum of five digits (243 to 255): those are five zeros."""
    codes = np.asarray(data, np.int64)
    wrong = codes >= 3**TRITS
    digits = codes[:, None] // 3 ** np.arange(TRITS) % 3 - 1
    return np.where(wrong[:, None], 0, digits).reshape(-1)[:count].astype(np.int8), wrong


def _real(values: Any, what: str) -> Array:
    array = np.asarray(values, np.float32)
    if wrong := int(np.count_nonzero(~np.isfinite(array))):
        raise HardwareError(f"{wrong} of {array.size} {what} are NaN or infinite: no scale quantises them; replace them first")
    return array

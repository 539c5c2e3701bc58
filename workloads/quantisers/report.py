"""What a format does to a tensor: error, and the bytes that its packer really produces."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from math import inf, isfinite, log10, prod, sqrt
from typing import Any

import numpy as np

from workloads.errors import WorkloadError, nearest
from workloads.format import Format, parse_format
from workloads.quantisers.base import Array, Quantiser, blocks, pack, unpack

SIGMA = 0.02
"""Standard deviation of the random tensors, of the order of an LLM's weights."""
FREEDOM = 5
"""Degrees of freedom of `student-t`: finite kurtosis, heavy tails."""
OUTLIERS = (0.001, 20.0)
"""Share of the values of `outliers` that are larger, and how many times."""
DISTRIBUTIONS = {
    "gaussian": f"normal, standard deviation {SIGMA}",
    "student-t": f"Student's t with {FREEDOM} degrees of freedom, standard deviation {SIGMA}",
    "outliers": f"normal, standard deviation {SIGMA}; one value in {round(1 / OUTLIERS[0])} is {OUTLIERS[1]:g} times as large",
    "uniform": f"uniform, standard deviation {SIGMA}",
}
LARGEST = 1 << 28
"""Values of a random tensor, at most: 1 GiB of fp32."""


@dataclass(frozen=True)
class Errors:
    """`sqnr_db` is signal over quantisation noise in decibels (None: no noise); `cosine` is None where one side is all zeros."""

    sqnr_db: float | None
    max_abs_error: float
    cosine: float | None
    exact: bool


@dataclass(frozen=True)
class ErrorReport:
    """One tensor in one format. `bits_per_value` is measured on the packed bytes, `charged_bits` is what estimates charge, and
    `once_bytes` what is stored once per channel or tensor besides."""

    tensor: str
    format: str
    shape: tuple[int, ...]
    sqnr_db: float | None
    max_abs_error: float
    cosine: float | None
    exact: bool
    size_bytes: int
    once_bytes: int
    bits_per_value: float
    charged_bits: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}

    def __repr__(self) -> str:
        noise = "exact" if self.sqnr_db is None else f"{self.sqnr_db:.2f} dB"
        return f"ErrorReport({self.tensor} in {self.format}: {noise}, {self.bits_per_value:.4g} bits per value)"


def errors(original: Array, restored: Array) -> Errors:
    """The error of `restored` against `original`, summed in fp64."""
    signal = noise = product = power = worst = 0.0
    for a, b in zip(blocks(np.ravel(original)), blocks(np.ravel(restored)), strict=True):
        x, y = a.astype(np.float64), b.astype(np.float64)
        signal, power, product = signal + float(x @ x), power + float(y @ y), product + float(x @ y)
        x -= y
        noise += float(x @ x)
        worst = max(worst, float(np.abs(x).max(initial=0)))
    cosine = product / (sqrt(signal) * sqrt(power)) if signal and power else None
    sqnr = 10 * log10(signal / noise) if noise and signal else (-inf if noise else None)
    return Errors(sqnr if sqnr is None or isfinite(sqnr) else None, worst, cosine, noise == 0)


def variants(format: Format) -> list[tuple[str, Quantiser]]:
    """The quantisers of a format with the names of their rows: KIVI treats keys and values differently."""
    from workloads.quantisers import quantiser
    from workloads.quantisers.kivi import Kivi

    if format.scheme == "kivi":
        return [(f"{format.name} keys", Kivi(format, "keys")), (f"{format.name} values", Kivi(format, "values"))]
    return [(format.name, quantiser(format))]


def report(values: Any, format: str | Format, *, tensor: str = "tensor") -> tuple[ErrorReport, ...]:
    """The error of storing real numbers [..., K] in a format: one row, or two for formats that treat keys and values differently.

    The values are quantised, packed to bytes, unpacked and dequantised. Raises `WorkloadError` for unknown formats, NaNs and infinities,
    and groups that do not divide K; the message names the tensor.
    """
    known = parse_format(format) if isinstance(format, str) else format
    rows = []
    for label, own in variants(known):
        try:
            quantised = own.quantise(values)
            packed = pack(quantised)
            restored = own.dequantise(unpack(packed))
        except WorkloadError as error:
            raise WorkloadError(f"{tensor}: {error}") from None
        original = np.asarray(own.prepared(values) if own.lossless else values, np.float32)
        found = errors(original, restored)
        rows.append(
            ErrorReport(
                tensor, label, quantised.shape, found.sqnr_db, found.max_abs_error, found.cosine, found.exact,
                packed.size_bytes, packed.once_bytes, packed.bits_per_value, float(known.bits),
            )
        )  # fmt: skip
    return tuple(rows)


def distribution(spec: str, seed: int = 0) -> Array:
    """A random fp32 tensor: `gaussian:4096x4096`, `student-t:...`, `outliers:...` or `uniform:...` (see `DISTRIBUTIONS`).

    Raises `WorkloadError` for another name or size.
    """
    name, _, size = spec.partition(":")
    if name not in DISTRIBUTIONS:
        raise WorkloadError(f"random tensor {spec!r}: expected one of {', '.join(DISTRIBUTIONS)}{nearest(name, DISTRIBUTIONS)}")
    if not re.fullmatch(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8})*", size):
        raise WorkloadError(f"random tensor {spec!r}: expected sizes such as {name}:4096x4096, not {size!r}")
    shape = tuple(int(n) for n in size.split("x"))
    if prod(shape) > LARGEST:
        raise WorkloadError(f"random tensor {spec!r}: {prod(shape)} values are more than {LARGEST}; use a smaller one")
    rng = np.random.default_rng(seed)
    if name == "uniform":
        return rng.uniform(-SIGMA * sqrt(3), SIGMA * sqrt(3), shape).astype(np.float32)
    if name == "student-t":
        return (rng.standard_t(FREEDOM, shape) * (SIGMA / sqrt(FREEDOM / (FREEDOM - 2)))).astype(np.float32)
    values = rng.standard_normal(shape, np.float32)
    values *= np.float32(SIGMA)
    if name == "outliers":
        share, times = OUTLIERS
        values[rng.random(shape, np.float32) < share] *= np.float32(times)
    return values

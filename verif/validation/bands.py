"""Error bands: how far measured latencies lay from predictions, for the class of work nearest to an estimate's.

The summary is written by `summarise` from scores of the shapes that nothing was fitted on; measurements themselves are not kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np

from hw.device import Device
from verif.validation.measurement import Measurement
from verif.validation.score import Score

SUMMARY = Path(__file__).parent / "residuals.json"

FEWEST = 20
"""Measurements below which a class has no band."""

QUANTILES = (0.05, 0.95)

ALIKE = {"fp16": "bf16", "bf16": "fp16"}
"""Data types of one width and rate, which stand in for each other where only one was measured."""


@dataclass(frozen=True)
class Band:
    """Nine of ten measured latencies of a class lay between `low` and `high` times the prediction. `basis` says which class, on
    which `device`, and how many; `exact` whether the device itself was measured, or another one of its generation."""

    low: float
    high: float
    basis: str
    exact: bool
    device: str

    def __repr__(self) -> str:
        return f"Band({self.low:.2f} to {self.high:.2f} times; {self.basis})"


def summarise(score: Score, source: str) -> dict[str, Any]:
    """Quantiles of measured over predicted time on the held-out shapes, per device, operator, data type and size class."""
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for m, predicted in zip(score.measured, score.predicted, strict=True):
        if not m.fitted and m.clock == "kernel":
            for size in (m.size_class, "all"):
                groups.setdefault((m.device, m.operator, m.dtype, size), []).append(m.latency_s / predicted)
    classes = []
    for (device, operator, dtype, size), ratios in sorted(groups.items()):
        if len(ratios) >= FEWEST:
            low, high = (float(q) for q in np.quantile(ratios, QUANTILES))
            names = {"device": device, "operator": operator, "dtype": dtype, "size_class": size}
            classes.append({**names, "n": len(ratios), "low": floor(low * 1e4) / 1e4, "high": ceil(high * 1e4) / 1e4})
    return {"schema": 1, "type": "residuals", "source": source, "quantiles": list(QUANTILES), "classes": classes}


@lru_cache
def _classes() -> tuple[dict[str, Any], ...]:
    if not SUMMARY.is_file():
        return ()
    return tuple(json.loads(SUMMARY.read_text(encoding="utf-8"))["classes"])


def band(device: Device, operator: str, dtype: str, size_class: str, classes: Sequence[dict[str, Any]] | None = None) -> Band | None:
    """The band of the nearest validated class: this device, else one of its generation; this size class, else all sizes; this data
    type, else the other 16-bit one. None where nothing of the kind was measured: the estimate is not validated.

    A variant of a device (another clock, another memory) is a relative of it, not the device that was measured.
    """
    from hw.devices import load, names

    everything = _classes() if classes is None else classes
    itself = device.name in names() and load(device.name).digest == device.digest
    for wanted in dict.fromkeys((dtype, ALIKE.get(dtype, dtype))):
        known = [c for c in everything if (c["operator"], c["dtype"]) == (operator, wanted)]
        by_device = {name: [c for c in known if c["device"] == name] for name in dict.fromkeys(c["device"] for c in known)}
        order = [device.name] if device.name in by_device else []
        order += [
            n for n in by_device if n != device.name and device.generation and n in names() and load(n).generation == device.generation
        ]
        for name in order:
            for size in (size_class, "all"):
                for found in by_device[name]:
                    if found["size_class"] == size:
                        exact = name == device.name and itself
                        variant = "" if exact else ", of which this is a variant" if name == device.name else ", of the same generation"
                        basis = f"{found['n']} measured {operator} {wanted} ({size} sizes) on {name}{variant}, none of them fitted"
                        return Band(found["low"], found["high"], basis, exact, name)
    return None


def band_of(device: Device, measurement: Measurement) -> Band | None:
    """The band of what a measurement states, its latency aside."""
    return band(device, measurement.operator, measurement.dtype, measurement.size_class)

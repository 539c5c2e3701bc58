"""Errors of predictions: per device, operator, data type and size class, for the shapes fitted on and for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hw.device import Device
from hw.devices import FOLDER, load
from hw.errors import HardwareError
from hw.generations import with_generation
from mapper.errors import MappingError
from verif.validation.baselines import BASELINES, fit
from verif.validation.hygiene import unphysical
from verif.validation.measurement import Measurement
from verif.validation.predict import Predictor
from workloads.errors import WorkloadError

Key = tuple[str, str, str, str]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Score:
    """Measurements with their predictions in seconds, in the same order; what was left out, and why."""

    measured: tuple[Measurement, ...]
    predicted: tuple[float, ...]
    baselines: Mapping[str, tuple[float, ...]]
    excluded: tuple[tuple[Measurement, str], ...] = ()
    refused: Mapping[str, int] = field(default_factory=dict)
    transferred: tuple[float, ...] = ()


def evaluate(measurements: Iterable[Measurement], *, leave_one_device_out: bool = False, progress: Progress | None = None) -> Score:
    """Predict every physical measurement. With `leave_one_device_out` also with the constants of another generation, as if nothing
    had been fitted on the device's own."""
    tell = progress or (lambda text: None)
    devices: dict[str, Device] = {}
    predictors: dict[str, Predictor] = {}
    others: dict[str, Predictor] = {}
    kept: list[Measurement] = []
    predicted: list[float] = []
    transferred: list[float] = []
    excluded: list[tuple[Measurement, str]] = []
    refused: dict[str, int] = {}
    for index, measurement in enumerate(measurements):
        if index % 5000 == 0 and index:
            tell(f"{index} rows")
        name = measurement.device
        if name not in devices:
            devices[name] = load(name)
            predictors[name] = Predictor(devices[name])
            if leave_one_device_out:
                others[name] = Predictor(without_own_constants(name), LENDERS.get(devices[name].generation or "", ""))
        if why := unphysical(measurement, devices[name]):
            excluded.append((measurement, why))
            continue
        try:
            seconds = predictors[name].seconds(measurement)
            foreign = others[name].seconds(measurement) if leave_one_device_out else 0.0
        except (MappingError, HardwareError, WorkloadError) as error:
            reason = f"{name} {measurement.operator} {measurement.dtype}: {error}"
            refused[reason] = refused.get(reason, 0) + 1
            continue
        kept.append(measurement)
        predicted.append(seconds)
        transferred.append(foreign)
    baselines = {label: tuple(np.zeros(len(kept))) for label in BASELINES}
    for label in BASELINES:
        values = np.zeros(len(kept))
        for indices in groups(kept).values():
            chosen = [kept[i] for i in indices]
            values[indices] = fit(label, chosen, devices[chosen[0].device])
        baselines[label] = tuple(values)
    return Score(tuple(kept), tuple(predicted), baselines, tuple(excluded), refused, tuple(transferred) if leave_one_device_out else ())


TRANSFER = {"ampere": "hopper", "hopper": "ampere"}
"""Whose constants stand in for those of a fitted generation."""

LENDERS = {"ampere": "h100-sxm", "hopper": "a100-80g"}
"""Whose constants of links between devices stand in for a generation's."""


def without_own_constants(name: str) -> Device:
    """A device with the constants of the other fitted generation: what would be predicted had its own never been measured. What is
    published of its own (data sheet, instruction set, tiles of the vendor's library) stays. A device of a generation that nothing was
    fitted on is itself such a one."""
    import yaml

    data = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    if (own := data.get("generation", "")) not in TRANSFER:
        return load(name)
    fields = with_generation(data, TRANSFER[own])
    return Device.from_dict({**fields, "generation": ""}, name)


def groups(measured: Sequence[Measurement]) -> dict[tuple[str, str, str, str], list[int]]:
    """Indices of the measurements of every device, operator, data type and clock."""
    found: dict[tuple[str, str, str, str], list[int]] = {}
    for index, m in enumerate(measured):
        found.setdefault((m.device, m.operator, m.dtype, m.clock), []).append(index)
    return found


def metrics(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Relative errors: mean, median, 90th percentile and largest of their absolute values, and their signed mean.

    >>> metrics(np.array([1.1, 0.8]), np.array([1.0, 1.0]))["mape"]
    0.15
    """
    errors = predicted / measured - 1
    size = np.abs(errors)
    return {
        "mape": round(float(size.mean()), 6),
        "median": round(float(np.median(size)), 6),
        "bias": round(float(errors.mean()), 6),
        "p90": round(float(np.percentile(size, 90)), 6),
        "max": round(float(size.max()), 6),
    }


def totals(score: Score) -> list[dict[str, object]]:
    """Wholes whose parts were measured one by one: the sums of measured and predicted seconds, and their relative difference."""
    sums: dict[tuple[str, str], list[float]] = {}
    for m, predicted in zip(score.measured, score.predicted, strict=True):
        if m.part_of:
            entry = sums.setdefault((m.device, m.part_of), [0.0, 0.0, 0.0])
            entry[0] += m.latency_s
            entry[1] += predicted
            entry[2] += 1
    return [
        {"device": device, "whole": whole, "parts": int(n), "measured_s": a, "predicted_s": b, "error": b / a - 1}
        for (device, whole), (a, b, n) in sorted(sums.items())
    ]


def rows(score: Score, values: Sequence[float] | None = None, half: bool | None = None) -> list[dict[str, object]]:
    """One row per device, operator, data type and size class, and `all` for the size classes together. `half` keeps the shapes
    fitted on (True) or the others (False); `values` replaces the predictions."""
    given = score.predicted if values is None else values
    groups: dict[Key, list[int]] = {}
    for index, m in enumerate(score.measured):
        if half is None or m.fitted == half:
            operator = m.operator if m.clock == "kernel" else f"{m.operator} ({m.clock})"
            for size in (m.size_class, "all"):
                groups.setdefault((m.device, operator, m.dtype, size), []).append(index)
    latencies = np.array([m.latency_s for m in score.measured])
    guesses = np.array(given, dtype=float)
    order = {"all": 0, "small": 1, "medium": 2, "large": 3}
    out: list[dict[str, object]] = []
    for device, operator, dtype, size in sorted(groups, key=lambda key: (*key[:3], order[key[3]])):
        chosen = groups[device, operator, dtype, size]
        names = {"device": device, "operator": operator, "dtype": dtype, "size_class": size, "n": len(chosen)}
        out.append({**names, **metrics(guesses[chosen], latencies[chosen])})
    return out

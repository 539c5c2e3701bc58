"""What a study optimises and constrains: quantities of an estimate and of its device, by name.

A quantity that cannot be had for a device is `None` with a reason ("not modelled"), never 0; a study that asks for it is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dovetail.explore import expression
from dovetail.explore.area import NODE_NM, area_mm2, cells
from dovetail.explore.errors import ExploreError
from hw.device import Device
from hw.errors import HardwareError, nearest
from hw.quantity import CAPACITY, POWER, TIME, parse

FS_PER_S = 10**15
Direction = Literal["minimize", "maximize"]
DIRECTIONS: tuple[Direction, ...] = ("minimize", "maximize")

Metrics = Mapping[str, Any]
"""What one evaluation measured; see `dovetail.explore.evaluate.measure`."""


class NotModelledError(ExploreError):
    """A quantity that this device has no model or no data for; the message names the device and what is missing."""


@dataclass(frozen=True)
class Run:
    """One workload on one design: its label, its weight in sums over workloads, and what was measured."""

    label: str
    weight: float
    metrics: Metrics


@dataclass(frozen=True)
class Quantity:
    """A named number of a design. `per_run` quantities are sums over workloads; the others belong to the device."""

    name: str
    unit: str
    direction: Direction
    meaning: str
    value: Callable[[Device, Sequence[Run]], float] = field(repr=False, compare=False)
    per_run: bool = True


def _latency_s(_: Device, runs: Sequence[Run]) -> float:
    return float(sum(run.weight * run.metrics["latency_fs"] for run in runs)) / FS_PER_S


def _energy_j(device: Device, runs: Sequence[Run]) -> float:
    for run in runs:
        if run.metrics["energy_j"] is None:
            missing = ", ".join(run.metrics["energy_missing"]) or "every part of it"
            raise NotModelledError(f"energy of {device.name} is not modelled: no energy is stated for {missing}")
    return float(sum(run.weight * run.metrics["energy_j"] for run in runs))


def _tokens(device: Device, runs: Sequence[Run]) -> float:
    for run in runs:
        if run.metrics["tokens"] is None:
            raise NotModelledError(f"tokens on {device.name} are not modelled: workload {run.label!r} is a single product and makes none")
    return float(sum(run.weight * run.metrics["tokens"] for run in runs))


def _traffic(_: Device, runs: Sequence[Run]) -> float:
    return float(sum(run.weight * run.metrics["dram_bytes"] for run in runs))


def _area(device: Device, _: Sequence[Run]) -> float:
    size, missing = area_mm2(device)
    if size is None:
        raise NotModelledError(f"area of {device.name} is not modelled: {missing}")
    return size


def _cells(device: Device, _: Sequence[Run]) -> float:
    size, missing = cells(device)
    if size is None:
        raise NotModelledError(f"cells of {device.name} are not modelled: {missing}")
    return size


def _power(device: Device, _: Sequence[Run]) -> float:
    if device.power is None:
        raise NotModelledError(f"power of {device.name} is not modelled: its description states no `power`")
    return float(device.power)


def _price(device: Device, _: Sequence[Run]) -> float:
    if device.price is None:
        raise NotModelledError(f"price of {device.name} is not modelled: its description states no `price`")
    return device.price


def _peak_macs(device: Device, _: Sequence[Run]) -> float:
    rates = [max((u.macs_per_cycle(f) for f in u.formats()), default=0) * u.count * device.unit_clock(n) for n, u in device.units.items()]
    return float(sum(rates))


def _throughput(device: Device, runs: Sequence[Run]) -> float:
    return _tokens(device, runs) / _latency_s(device, runs)


_QUANTITIES = (
    Quantity("latency", "s", "minimize", "time of all workloads", _latency_s),
    Quantity("energy", "J", "minimize", "switching energy of all workloads; static power is not part of it", _energy_j),
    Quantity("edp", "J s", "minimize", "energy times latency", lambda d, r: _energy_j(d, r) * _latency_s(d, r)),
    Quantity("dram_traffic", "B", "minimize", "bytes read from and written to main memory", _traffic),
    Quantity("throughput", "tokens/s", "maximize", "tokens over time of all workloads", _throughput),
    Quantity(
        "bound_gap", "x", "minimize", "latency over its compulsory lower bound",
        lambda d, r: _latency_s(d, r) * FS_PER_S / sum(run.weight * run.metrics["lower_bound_fs"] for run in r),
    ),
    Quantity(
        "average_power", "W", "minimize", "switching energy over latency; static power is not part of it",
        lambda d, r: _energy_j(d, r) / _latency_s(d, r),
    ),
    Quantity("area", f"mm2 at {NODE_NM} nm", "minimize", "multipliers, adders and memory cells; a lower bound", _area, per_run=False),
    Quantity("cells", "gates", "minimize", "generic gates of all units from synthesis", _cells, per_run=False),
    Quantity(
        "peak_macs", "MAC/s", "minimize", "multiply-accumulates per second of all units at the widest rate of each: the multipliers spent",
        _peak_macs, per_run=False,
    ),
    Quantity("power", "W", "minimize", "rated power of the device description", _power, per_run=False),
    Quantity("price", "$", "minimize", "price of the device description", _price, per_run=False),
    Quantity(
        "throughput_per_area", "tokens/s/mm2", "maximize", f"tokens per second and square millimetre at {NODE_NM} nm",
        lambda d, r: _throughput(d, r) / _area(d, r),
    ),
    Quantity(
        "tokens_per_joule", "tokens/J", "maximize", "tokens per joule of switching energy",
        lambda d, r: _tokens(d, r) / _energy_j(d, r),
    ),
    Quantity(
        "throughput_per_watt", "tokens/s/W", "maximize", "tokens per second and watt of rated power",
        lambda d, r: _throughput(d, r) / _power(d, r),
    ),
    Quantity(
        "throughput_per_dollar", "tokens/s/$", "maximize",
        "tokens per second and dollar of price; times a lifetime in seconds it is tokens per dollar, in the same order",
        lambda d, r: _throughput(d, r) / _price(d, r),
    ),
)  # fmt: skip

QUANTITIES: dict[str, Quantity] = {q.name: q for q in _QUANTITIES}
ALIASES = {
    "tokens/s": "throughput",
    "tokens/s/mm2": "throughput_per_area",
    "tokens/J": "tokens_per_joule",
    "tokens/s/W": "throughput_per_watt",
    "tokens/s/$": "throughput_per_dollar",
    "tokens/$": "throughput_per_dollar",
    "traffic": "dram_traffic",
}


@dataclass(frozen=True)
class Objective:
    """One number per design and which way it should go. `label` restricts it to one workload; `formula` is an expression over
    parameters and other quantities instead of a quantity."""

    name: str
    direction: Direction
    unit: str
    quantity: Quantity | None = None
    label: str = ""
    formula: str = ""

    @property
    def sign(self) -> int:
        """1 where smaller is better, -1 where larger is."""
        return 1 if self.direction == "minimize" else -1

    def value(self, device: Device, runs: Sequence[Run], parameters: Mapping[str, Any]) -> float:
        """The number of one design. Raises `NotModelledError` naming the device and what is missing."""
        if self.quantity is not None:
            chosen = [run for run in runs if run.label == self.label] if self.label else runs
            return float(self.quantity.value(device, chosen))
        values = dict(parameters)
        for name in expression.names(self.formula):
            if name not in values and (known := _find(name, [run.label for run in runs])):
                quantity, label = known
                values[name] = quantity.value(device, [run for run in runs if not label or run.label == label])
        result = expression.evaluate(self.formula, values)
        if isinstance(result, bool) or not isinstance(result, (int, float)) or not math.isfinite(result):
            raise ExploreError(f"objective {self.name!r}: {self.formula!r} is {result!r}, expected a number")
        return float(result)


def _find(name: str, labels: Sequence[str]) -> tuple[Quantity, str] | None:
    """The quantity and label that `latency` or `decode.latency` names."""
    label, _, tail = name.rpartition(".")
    quantity = QUANTITIES.get(ALIASES.get(tail, tail)) or QUANTITIES.get(ALIASES.get(name, name))
    if quantity is None or (label and name not in ALIASES and label not in labels):
        return None
    return quantity, label if name not in ALIASES else ""


def objective(given: object, labels: Sequence[str], parameters: Sequence[str]) -> Objective:
    """The objective that a name or a mapping describes: `latency`, `decode.latency`, `tokens/J`, or
    `{name, formula, direction}`. `labels` are those of the workloads. Raises `ExploreError` with the nearest name."""
    if isinstance(given, Objective):
        return given
    if isinstance(given, Mapping):
        return _formula(given, labels, parameters)
    names = [*QUANTITIES, *ALIASES]
    if not isinstance(given, str):
        raise ExploreError(f"objective {given!r}: expected one of {', '.join(names)}, or a name, a formula and a direction")
    if (found := _find(given.strip(), labels)) is None:
        head, _, tail = given.rpartition(".")
        if head and (tail in QUANTITIES or tail in ALIASES):
            known = f"expected one of {', '.join(labels)}{nearest(head, labels)}"
            raise ExploreError(f"objective {given!r}: no workload is labelled {head!r}, {known}")
        raise ExploreError(f"unknown objective {given!r}, expected one of {', '.join(names)}{nearest(given, names)}")
    quantity, label = found
    if label and not quantity.per_run:
        raise ExploreError(f"objective {given!r}: {quantity.name} belongs to the device, not to a workload; use {quantity.name!r}")
    name = f"{label}.{quantity.name}" if label else quantity.name
    return Objective(name, quantity.direction, quantity.unit, quantity, label)


def _formula(given: Mapping[Any, Any], labels: Sequence[str], parameters: Sequence[str]) -> Objective:
    fields = {str(k): v for k, v in given.items()}
    allowed = ("name", "formula", "direction", "unit")
    for key in fields:
        if key not in allowed:
            raise ExploreError(f"objective: unknown field {key!r}, expected one of {', '.join(allowed)}{nearest(key, allowed)}")
    for key in ("name", "formula"):
        if not isinstance(fields.get(key), str) or not fields[key]:
            raise ExploreError(f"objective {given!r}: expected a text for {key!r}")
    direction = fields.get("direction", "minimize")
    if direction not in DIRECTIONS:
        hint = nearest(str(direction), DIRECTIONS)
        raise ExploreError(f"objective {fields['name']!r}: direction: expected minimize or maximize, not {direction!r}{hint}")
    known = [*parameters, *QUANTITIES]
    for name in sorted(expression.names(fields["formula"])):
        if name not in parameters and _find(name, labels) is None:
            raise ExploreError(f"objective {fields['name']!r}: unknown name {name!r} in {fields['formula']!r}{nearest(name, known)}")
    return Objective(fields["name"], direction, str(fields.get("unit", "")), None, "", fields["formula"])


_CONSTRAINT = re.compile(r"\s*(?P<what>[\w./$]+?)\s*(?P<op><=|>=|<|>)\s*(?P<limit>.+?)\s*$")
_LIMIT_UNITS = {"s": TIME, "W": POWER, "B": CAPACITY}


@dataclass(frozen=True)
class Constraint:
    """`area <= 400`, `power <= 75 W`, `decode.latency <= 50 ms`: a design that breaks it is infeasible, with the numbers."""

    text: str
    objective: Objective
    upper: bool
    limit: float

    def violation(self, value: float) -> float:
        """How far `value` is on the wrong side, relative to the limit; at most 0 where the constraint holds."""
        excess = value - self.limit if self.upper else self.limit - value
        return excess / (abs(self.limit) or 1.0)


def constraint(text: object, labels: Sequence[str], parameters: Sequence[str]) -> Constraint:
    """The constraint that a text states. Raises `ExploreError` saying what was expected."""
    match = _CONSTRAINT.match(text) if isinstance(text, str) else None
    if match is None:
        raise ExploreError(f"constraint {text!r}: expected a quantity, <= or >=, and a limit, such as area <= 400 or power <= 75 W")
    if match["op"] in ("<", ">"):
        raise ExploreError(f"constraint {text!r}: use {match['op']}= ; a limit itself is allowed")
    chosen = objective(match["what"], labels, parameters)
    units = _LIMIT_UNITS.get(chosen.unit)
    try:
        if units is not None and not _is_number(match["limit"]):
            scale = FS_PER_S if chosen.unit == "s" else 1
            limit = float(parse(match["limit"], units, whole=False, minimum=0)) / scale
        else:
            limit = float(match["limit"])
    except (HardwareError, ValueError) as error:
        reason = str(error) if isinstance(error, HardwareError) else f"expected a number in {chosen.unit}, not {match['limit']!r}"
        raise ExploreError(f"constraint {text!r}: {reason}") from None
    if not math.isfinite(limit):
        raise ExploreError(f"constraint {text!r}: expected a finite limit")
    return Constraint(str(text).strip(), chosen, match["op"] == "<=", limit)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

"""What a mapping is judged by: latency, then energy, then traffic; or the product of energy and latency."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from mapper.errors import MappingError
from workloads.errors import nearest

if TYPE_CHECKING:
    from mapper.plan import Plan
    from mapper.search import Space

Array = np.ndarray[Any, Any]


NO_ENERGY = "objective 'edp': the device states no energies; state memories.*.energy and units.*.mac_energy, or use 'latency'"


@dataclass(frozen=True)
class Objective:
    """`latency`: the fastest; among equals the one of least energy, then of least traffic. `edp`: the least energy-delay product."""

    name: str

    @property
    def weighs_energy(self) -> bool:
        return self.name == "edp"

    def rank(self, latencies: Array, energies: Array | None) -> Array:
        """The first thing to minimise, for arrays of latencies (femtoseconds) and energies (picojoules)."""
        if not self.weighs_energy:
            return latencies
        if energies is None:
            raise MappingError(NO_ENERGY)
        product: Array = latencies.astype(float) * energies
        return product

    def key(self, space: Space, plan: Plan) -> tuple[Any, ...]:
        """What to minimise, for one plan."""
        energy, traffic = energy_pj(space, plan), plan.traffic(space.target.main)
        if self.weighs_energy:
            if energy is None:
                raise MappingError(NO_ENERGY)
            return (plan.latency_fs * energy, plan.latency_fs, traffic)
        return (plan.latency_fs, energy or Fraction(0), traffic)


LATENCY = Objective("latency")
EDP = Objective("edp")
OBJECTIVES = {objective.name: objective for objective in (LATENCY, EDP)}


def objective_named(name: str) -> Objective:
    """The objective of a name. Raises `MappingError` with the nearest name."""
    if name not in OBJECTIVES:
        raise MappingError(f"objective {name!r}: unknown, expected one of {', '.join(OBJECTIVES)}{nearest(name, OBJECTIVES)}")
    return OBJECTIVES[name]


def energy_pj(space: Space, plan: Plan) -> Fraction | None:
    """Picojoules of a plan as far as the device states them: products, vector work, and the bits that memories move. None where
    it states none of them."""
    device = space.target.device
    number_format = getattr(space, "placement", ("", ""))[1]
    total, known = Fraction(0), False
    for name, effort in plan.effort.items():
        rates: list[tuple[Fraction | None, Fraction | int]] = []
        if unit := device.units.get(name):
            rates = [(unit.mac_energy.get(number_format), effort.macs), (unit.operation_energy, effort.operations)]
        elif memory := device.memories.get(name):
            rates = [(memory.energy, (effort.read + effort.written) * 8)]
        for rate, amount in rates:
            if rate is not None:
                known = True
                total += rate * amount
    return total if known else None

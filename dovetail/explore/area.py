"""Silicon area of a device for comparisons at equal area: arithmetic and memory cells at 45 nm, and nothing else.

Only what has a published area is counted: multipliers and adders by format, and six-transistor memory cells. Registers,
wires, control, special functions, decoders and sense amplifiers are left out, so the sum is a lower bound, in which designs of
one family can be compared; it is not the size of a chip. A device with a unit whose arithmetic has no published area has no
area: it is not modelled.

Arithmetic: M. Horowitz, "Computing's Energy Problem (and what we can do about it)", ISSCC 2014, table of 45 nm, 0.9 V.
Memory cell: K. Mistry et al., "A 45nm Logic Technology with High-k+Metal Gate Transistors...", IEDM 2007: 0.346 um2.
"""

from __future__ import annotations

from fractions import Fraction

from hw.device import Device
from hw.memory import Dram
from hw.unit import Unit
from hw.units.systolic import Systolic
from hw.units.vector import VectorUnit

NODE_NM = 45
ADDER_UM2 = {"int8": 36, "int16": 67, "int32": 137, "fp16": 1360, "fp32": 4184}
MULTIPLIER_UM2 = {"int8": 282, "int32": 3495, "fp16": 1640, "fp32": 7700}
NOTE = "area counts multipliers, adders and memory cells at 45 nm: a lower bound for comparisons, not the size of a chip"
BIT_CELL_UM2 = Fraction(346, 1000)
UM2_PER_MM2 = 10**6


def area_mm2(device: Device) -> tuple[float | None, str]:
    """Square millimetres at 45 nm, and why there are none where there are none: the part that has no published area."""
    total = Fraction(0)
    for name, unit in device.units.items():
        size = _unit_um2(unit)
        if isinstance(size, str):
            return None, f"unit {name!r} of {device.name} ({size})"
        total += size * unit.count
    for memory in device.memories.values():
        if not isinstance(memory, Dram):
            total += memory.total * 8 * BIT_CELL_UM2
    return float(total / UM2_PER_MM2), ""


def _unit_um2(unit: Unit) -> Fraction | str:
    """The area of one copy, or what of it has none."""
    if isinstance(unit, Systolic):
        return _cells_um2(unit)
    if isinstance(unit, VectorUnit):
        return Fraction((ADDER_UM2["fp32"] + MULTIPLIER_UM2["fp32"]) * unit.lanes)
    return f"kind {unit.kind!r} has no published area"


def _cells_um2(unit: Systolic) -> Fraction | str:
    widest: list[int] = []
    for name in unit.dtypes:
        accumulate = "int32" if name.startswith("int") else "fp32"
        if name not in MULTIPLIER_UM2:
            return f"a {name} multiplier has no published area"
        widest.append(MULTIPLIER_UM2[name] + ADDER_UM2[accumulate])
    # formats do not share hardware in the published table: a cell for several formats has one datapath for each
    return Fraction(sum(widest) * unit.rows * unit.columns)


def cells(device: Device) -> tuple[float | None, str]:
    """Generic gates from synthesis over all units, and the unit that was not synthesised in exactly this shape, if any."""
    total = 0
    for name, unit in device.units.items():
        found = unit.area()
        if found is None:
            return None, f"unit {name!r} of {device.name} ({unit.kind} of exactly these parameters was not synthesised)"
        total += found.cells * unit.count
    return float(total), ""

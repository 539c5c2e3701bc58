"""Switching energy of a mapped workload: operations and bits times the energies that the device description states."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from hw.memory import Scratchpad
from mapper.compile import Compiled

PJ_PER_J = 10**12


def parts_pj(compiled: Compiled) -> Mapping[str, Fraction | None]:
    """Picojoules by unit and memory; None where the description states no energy for something that is used.

    Products are charged per multiply-accumulate in the format they are computed in, vector work per operation, memories
    per bit moved; bits that a unit near memory moves over its own way cost what that way states, if it does. Static power is not
    part of it. A node's parts are those of all its chips.
    """
    device = compiled.device
    parts: dict[str, Fraction | None] = {}

    def add(name: str, energy: Fraction | None) -> None:
        known = parts.get(name, Fraction(0))
        parts[name] = None if energy is None or known is None else known + energy

    for placed, part in ((kernel, part) for kernel in compiled.kernels for part in kernel.parts):
        way = device.own_way(part.site.unit)
        for name, energy in part.plan.energy_pj.items():
            add(name, None if energy is None else energy * placed.count)
        commanded = {move.memory: move.read + move.written for move in part.plan.commanded}
        for name, effort in part.plan.effort.items():
            if part.plan.commands and name == part.site.unit:
                continue  # charged command by command, with what commands move
            if unit := device.units.get(name):
                if effort.macs:
                    per_mac = unit.mac_energy.get(part.site.format)
                    add(name, None if per_mac is None else per_mac * effort.macs * placed.count)
                if effort.operations:
                    per_op = unit.operation_energy
                    add(name, None if per_op is None else per_op * effort.operations * placed.count)
            elif memory := device.memories.get(name):
                bits = (effort.read + effort.written - commanded.get(name, 0)) * 8 * placed.count
                per_bit = way.energy if way is not None and way.energy is not None and name == device.main_memory else memory.energy
                if bits:
                    add(name, None if per_bit is None else per_bit * bits)
    chips = device.node.chips if device.node else 1
    return {name: None if energy is None else energy * chips for name, energy in parts.items()}


def joules(compiled: Compiled) -> tuple[float | None, dict[str, float | None]]:
    """Energy in joules and its parts. The total is None when a unit or the main memory has no energy; scratchpads without one
    only leave out their own part."""
    parts = parts_pj(compiled)
    optional = {name for name, memory in compiled.device.memories.items() if isinstance(memory, Scratchpad)}
    needed = [value for name, value in parts.items() if name not in optional]
    total = None if not needed or any(v is None for v in needed) else sum((v for v in parts.values() if v is not None), Fraction(0))
    readable = {name: None if value is None else float(value) / PJ_PER_J for name, value in parts.items()}
    return (None if total is None else float(total) / PJ_PER_J), {**readable, "static power": None}

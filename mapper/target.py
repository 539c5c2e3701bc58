"""The device as the mapper uses it: jobs on its resources, the formats its units multiply, the memories of a unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from hw.device import Device
from hw.memory import Cache, Dram, Memory
from hw.quantity import FS_PER_S, cycles_to_fs
from hw.unit import Unit
from hw.work import Gemm, Vector
from mapper.errors import MappingError
from mapper.pipeline import LAUNCH, Job
from mapper.program import Move
from workloads.format import Format


@dataclass(frozen=True)
class Target:
    """A device with the closed-form costs of everything a mapping does on it."""

    device: Device

    @cached_property
    def main(self) -> str:
        return self.device.main_memory

    @cached_property
    def memory(self) -> Memory:
        return self.device.dram

    @cached_property
    def cache(self) -> tuple[str, Cache] | None:
        """The cache in front of main memory, if there is one."""
        return next(((name, m) for name, m in self.device.memories.items() if isinstance(m, Cache)), None)

    @cached_property
    def private_interfaces(self) -> bool:
        return isinstance(self.memory, Dram) and self.memory.sharing == "per_operand"

    @cached_property
    def excludes_cold_fill(self) -> bool:
        return isinstance(self.memory, Dram) and self.memory.cold_fill == "excluded"

    @cached_property
    def queues(self) -> dict[str, int]:
        """Every resource of the device that tasks run on, with its clock in hertz."""
        queues = {LAUNCH: FS_PER_S}
        if self.private_interfaces:
            queues |= {self.interface(operand): FS_PER_S for operand in ("activations", "weights", "outputs")}
        else:
            queues[self.main] = FS_PER_S
        if self.cache:
            queues[self.cache[0]] = FS_PER_S
        units = self.device.units
        queues |= {self.turns(name): FS_PER_S for name, unit in units.items() if unit.execution == "waves" and "gemm" in unit.executes}
        return queues | {name: self.device.unit_clock(name) for name in units}

    def turns(self, unit: str) -> str:
        """The queue of thread blocks in which a matrix unit and a vector unit take turns."""
        return f"{unit}.turns"

    def interface(self, operand: str) -> str:
        """The queue on which an operand (`activations`, `weights`, `outputs`) reaches main memory."""
        return f"{self.main}.{operand}" if self.private_interfaces else self.main

    def resource(self, queue: str) -> str:
        """The unit or memory that a queue belongs to."""
        return queue.split(".")[0]

    def unit(self, name: str) -> Unit:
        return self.device.units[name]

    # Choosing a unit -----------------------------------------------------------------------------------------------------
    def matrix_unit(self, operator: str, a: Format, b: Format) -> tuple[str, str]:
        """The first unit that multiplies these formats, and the format it computes in.

        Raises `MappingError` naming the formats that the device has.
        """
        candidates = self.device.units_for("gemm")
        for name in candidates:
            if chosen := compute_format(self.unit(name).formats(), a, b):
                return name, chosen
        have = "; ".join(f"{name!r} multiplies {', '.join(sorted(self.unit(name).formats()))}" for name in candidates)
        raise MappingError(
            f"operator {operator!r} multiplies {a} by {b}, which no unit of {self.device.name} does "
            f"({have or 'it has no matrix unit'}); choose other formats with --weights and --acts, or another device"
        )

    def vector_unit(self, operator: str) -> str:
        """The first unit that executes vector work. Raises `MappingError` when there is none."""
        for name in self.device.units_for("vector"):
            return name
        raise MappingError(f"operator {operator!r} is vector work, and {self.device.name} has no unit that executes it; add a vector unit")

    # Jobs --------------------------------------------------------------------------------------------------------------
    def transfer(self, name: str, operand: str, read: Fraction | int = 0, written: Fraction | int = 0) -> Job:
        """Moving bytes between main memory and the chip."""
        fs = self.memory.occupied_fs(read, written)
        return Job(name, self.interface(operand), fs, fs, (Move(self.main, read, written),))

    def multiply(self, name: str, unit: str, work: Gemm, moves: tuple[Move, ...] = ()) -> Job:
        """A matrix tile on one copy of a unit."""
        cycles = self.unit(unit).cycles(work)
        return Job(name, unit, cycles, cycles_to_fs(cycles, self.device.unit_clock(unit)), moves, macs=work.macs)

    def vector(self, name: str, unit: str, works: Iterable[Vector], moves: tuple[Move, ...] = ()) -> Job:
        """Vector work on one copy of a unit, one piece after the other."""
        works = tuple(works)
        cycles = sum(self.unit(unit).cycles(work) for work in works)
        operations = sum(work.elements * (work.operations + work.specials) for work in works)
        return Job(name, unit, cycles, cycles_to_fs(cycles, self.device.unit_clock(unit)), moves, operations=operations)

    def setup(self) -> tuple[tuple[str, int], ...]:
        """What the launch queue spends before a kernel's first step: its launch, and one unloaded memory access."""
        parts = (("launch", self.device.launch), ("first access", self.memory.latency))
        return tuple((what, fs) for what, fs in parts if fs)

    def pad_capacity(self, operand: str, unit: str) -> tuple[str, int]:
        """The scratchpad of an operand and its bytes. Raises `MappingError` when the unit has none."""
        name = self.device.scratchpad(operand, unit)
        if name is None:
            raise MappingError(f"{self.device.name}: unit {unit!r} has no scratchpad that holds {operand}; add one and link it to the unit")
        return name, self.device.memories[name].capacity


_FLOAT_BITS = {"fp64": 64, "fp32": 32, "tf32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "fp8-e4m3": 8, "fp8-e5m2": 8, "fp4": 4}


def compute_format(supported: frozenset[str], a: Format, b: Format) -> str | None:
    """The narrowest supported format that can represent the values of both operands, or None.

    Equal formats that are supported are used as they are. Integers stay integers when both are; otherwise the float operand
    decides and the other is converted to it (integers up to 8 bits fit into 16-bit floats).

    >>> from workloads.format import parse_format as f
    >>> compute_format(frozenset({"fp16", "int8"}), f("fp16"), f("int4-g128"))
    'fp16'
    >>> compute_format(frozenset({"fp16", "int8"}), f("int8"), f("ternary"))
    'int8'
    """
    if a.name == b.name and a.name in supported:
        return a.name
    integers = {"int", "ternary"}
    if a.family in integers and b.family in integers:
        need = max(a.element_bits, b.element_bits)
        integer = min((n for n in supported if n.startswith("int") and int(n[3:]) >= need), key=lambda n: int(n[3:]), default=None)
        if integer:
            return integer
    floats = [f for f in (a, b) if f.family in ("float", "lossless")]
    need = max([f.element_bits for f in floats] + ([16] if len(floats) < 2 or a.family != b.family else []) or [16])
    named = [f.name for f in floats]
    fits = [(bits, name not in named, name) for name, bits in _FLOAT_BITS.items() if name in supported and bits >= need]
    return min(fits)[2] if fits else None

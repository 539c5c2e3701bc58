"""The device as the mapper uses it: jobs on its resources, the formats its units multiply, the memories of a unit.

`Target(device)` is the whole device; `at(site)` is what a kernel sees that runs on one unit of it: its way to main memory, its
share of that, its share of scratchpads where copies of the unit work side by side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import Any

from hw.device import Device
from hw.memory import Cache, Dram, Memory, Pieces, Scratchpad
from hw.quantity import FS_PER_S, cycles_to_fs
from hw.unit import Unit
from hw.work import Gemm, Vector, sides
from mapper.errors import MappingError
from mapper.pipeline import LAUNCH, Job
from mapper.program import Move
from mapper.vectorwork import share
from workloads.format import Format


@dataclass(frozen=True)
class Site:
    """Where and how a kernel runs: the matrix `unit` (or the vector unit of a kernel without products), the `format` it multiplies
    in, and the `vector` unit beside it.

    `copies` of the unit work in lockstep on equal pieces of the kernel along `split`; `times` is what all copies move, in pieces,
    of what every operand is (`activations`, `weights`, `outputs`), and `work` what they compute: exactly the whole kernel, although
    the last piece may be smaller than the others. `share` is the part of the memory's time that is this unit's, where another one
    runs beside it; `reserved` are bytes of scratchpads that hold what stays on the chip.
    """

    unit: str
    format: str = ""
    vector: str = ""
    split: str = ""
    copies: int = 1
    times: tuple[tuple[str, Fraction], ...] = ()
    work: Fraction = Fraction(1)
    share: Fraction = Fraction(1)
    reserved: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Target:
    """A device with the closed-form costs of everything a mapping does on it, as `site` sees it."""

    device: Device
    site: Site | None = None
    whole: Device | None = field(default=None, repr=False, compare=False)  # the device of which `device` is what a site sees

    @property
    def sited(self) -> Site:
        """The site. Raises `MappingError` on the whole device, which has none."""
        if self.site is None:
            raise MappingError(f"{self.device.name}: a mapping for one unit needs the site of that unit; see `Target.at`")
        return self.site

    def at(self, site: Site) -> Target:
        """The device as a kernel at `site` sees it.

        Main memory has the bandwidth of the unit's own way and the share of it; a scratchpad that copies share is divided.
        """
        device = self.device
        memories = dict(device.memories)
        main = device.main_memory
        memory = memories[main]
        if (way := device.own_way(site.unit)) is not None:
            assert way.bandwidth is not None
            fields: dict[str, Any] = {"bandwidth": way.bandwidth, "latency": memory.latency + way.latency}
            if isinstance(memory, Dram):
                fields |= {"efficiency": way.efficiency, "timing": "", "channels": None, "refresh": Fraction(0), "sharing": "shared"}
            else:
                fields["bandwidth"] = max(1, int(way.bandwidth * way.efficiency))
            memory = memory.model_copy(update=fields)
        if site.share != 1:
            memory = memory.model_copy(update={"bandwidth": max(1, int(memory.bandwidth * site.share))})
        memories[main] = memory
        if site.copies > 1:
            for name, pad in device.memories.items():
                if isinstance(pad, Scratchpad) and pad.count < site.copies:
                    memories[name] = pad.model_copy(update={"capacity": pad.capacity * pad.count // site.copies})
        for name, size in site.reserved:
            memories[name] = memories[name].model_copy(update={"capacity": memories[name].capacity - size})
        unchanged = way is None and site.share == 1 and site.copies == 1 and not site.reserved
        view = device if unchanged else device.model_copy(update={"memories": memories})
        return Target(view, site, device)

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

    def times(self, operand: str) -> Fraction:
        """Bytes of an operand that cross per byte of the piece that one copy works on."""
        return next((times for name, times in self.site.times if name == operand), Fraction(1)) if self.site else Fraction(1)

    def turns(self, unit: str) -> str:
        """The queue of thread blocks in which a matrix unit and a vector unit take turns."""
        return f"{unit}.turns"

    def interface(self, operand: str) -> str:
        """The queue on which an operand (`activations`, `weights`, `outputs`) reaches main memory."""
        if self.private_interfaces:
            return f"{self.main}.{operand}"
        if self.site and self.whole and (way := self.whole.own_way(self.site.unit)) and way.access == "concurrent":
            end = way.sink if way.source == self.main else way.source
            return f"{self.main}.{end}" + (f".{self.site.unit}" if self.site.share != 1 else "")
        return f"{self.main}.{self.site.unit}" if self.site and self.site.share != 1 else self.main

    def resource(self, queue: str) -> str:
        """The unit or memory that a queue belongs to."""
        return queue.split(".")[0]

    def unit(self, name: str) -> Unit:
        return self.device.units[name]

    # Choosing a unit -----------------------------------------------------------------------------------------------------
    def matrix_unit(self, operator: str, a: Format, b: Format) -> tuple[str, str]:
        """The unit of the site and the format it multiplies in; on the whole device the first unit that multiplies these formats.

        Raises `MappingError` naming the formats that the device has.
        """
        if self.site:
            return self.site.unit, self.site.format
        candidates = self.device.units_for("gemm")
        for name in candidates:
            if chosen := self.lowerings(name, a, b):
                return name, chosen[0]
        have = "; ".join(f"{name!r} multiplies {', '.join(sorted(self.unit(name).formats()))}" for name in candidates)
        raise MappingError(
            f"operator {operator!r} multiplies {a} by {b}, which no unit of {self.device.name} does "
            f"({have or 'it has no matrix unit'}); choose other formats with --weights and --acts, or another device"
        )

    def vector_unit(self, operator: str) -> str:
        """The vector unit of the site; on the whole device the first. Raises `MappingError` when there is none."""
        if self.site and self.site.vector:
            return self.site.vector
        for name in self.device.units_for("vector"):
            return name
        raise MappingError(f"operator {operator!r} is vector work, and {self.device.name} has no unit that executes it; add a vector unit")

    def lowerings(self, unit: str, a: Format, b: Format) -> tuple[str, ...]:
        """The formats in which a unit can multiply operands that are stored as `a` and `b`: converted to one, or as they are; where
        neither does, the left operand of at most 8 bits converted to fp16. Tables of sums are not converted."""
        supported = self.unit(unit).formats()
        plain = None if a.family == "table" else compute_format(frozenset(name for name in supported if not mixed(name)), a, b)
        found = tuple(name for name in (plain, native(supported, a, b)) if name)
        if found or a.family == "table":
            return found
        wide = native(supported, replace(a, name="fp16"), b) if a.family in ("int", "ternary", "float") and a.element_bits <= 8 else None
        return (wide,) if wide else ()

    @cached_property
    def peak_bandwidth(self) -> int:
        """Bytes per second of main memory over its interface and the units' own ways together, as far as they work at one time. What
        units in memory banks read is not among it."""
        ways = {way for name in self.device.units if (way := self.device.own_way(name))}
        exclusive = [way.bandwidth or 0 for way in ways if way.access == "exclusive"]
        return max([self.memory.bandwidth, *exclusive]) + sum(way.bandwidth or 0 for way in ways if way.access == "concurrent")

    # Jobs --------------------------------------------------------------------------------------------------------------
    def transfer(
        self,
        name: str,
        operand: str,
        read: Fraction | int = 0,
        written: Fraction | int = 0,
        pieces: Pieces | None = None,
        turn: bool = True,
    ) -> Job:
        """Moving bytes between main memory and the chip, those of all copies.

        `pieces` says how they lie in main memory if not in one run. Writes turn the memory around and back, unless `turn` is
        false because that is part of what the memory's `efficiency` was fitted to.
        """
        if (times := self.times(operand)) != 1:
            read, written = read * times, written * times
        fs = self.memory.occupied_fs(read, written, pieces) + (self.memory.turn_fs if written and turn else 0)
        return Job(name, self.interface(operand), fs, fs, (Move(self.main, read, written),))

    def multiply(self, name: str, unit: str, work: Gemm, moves: tuple[Move, ...] = ()) -> Job:
        """A matrix tile on a unit, or one on each of its copies."""
        cycles = self.unit(unit).cycles(work)
        macs: Fraction | int = work.macs
        if self.site and self.site.work != 1:
            macs *= self.site.work
            moves = tuple(Move(m.memory, m.read * self.site.work, m.written * self.site.work) for m in moves)
        return Job(name, unit, cycles, cycles_to_fs(cycles, self.device.unit_clock(unit)), moves, macs=macs)

    def vector(self, name: str, unit: str, works: Iterable[Vector], moves: tuple[Move, ...] = ()) -> Job:
        """Vector work spread over all copies of a unit, one piece after the other."""
        works, times = tuple(works), self.site.work if self.site else Fraction(1)
        count = self.unit(unit).count
        if times != 1:
            works = tuple(replace(work, elements=ceil(work.elements * times)) for work in works)
        mine = works if count == 1 else tuple(share(work, 1, count) for work in works)
        cycles = sum(self.unit(unit).cycles(work) for work in mine)
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


def mixed(name: str) -> bool:
    """Whether a number format is that of products of unlike operands, `<left>x<right>`."""
    return sides(name)[0] != name


def native(supported: frozenset[str], a: Format, b: Format) -> str | None:
    """The supported format of unlike operands (`int8xint2`: left x right) that takes both as they are stored, or None.

    A right operand `intN` takes whole numbers of at most N bits; among several the narrowest.

    >>> from workloads.format import parse_format as f
    >>> native(frozenset({"fp16", "fp16xint4", "fp16xint2"}), f("fp16"), f("int3-g128"))
    'fp16xint4'
    """
    fits = []
    for name in supported:
        left, right = sides(name)
        if not mixed(name) or left != a.name:
            continue
        whole = right.startswith("int") and right[3:].isdigit() and b.family in ("int", "ternary")
        if whole and b.element_bits <= int(right[3:]):
            fits.append((int(right[3:]), name))
        elif right == b.name.split("-g")[0]:
            fits.append((b.element_bits, name))
    return min(fits)[1] if fits else None


def converts(number_format: str, stored: Format, position: int = 1) -> bool:
    """Whether an operand as it is stored, the left (0) or the right one (1), must be converted for products in `number_format`."""
    if mixed(number_format):
        return position == 0 and sides(number_format)[0] != stored.name
    return stored.name != number_format


_FLOAT_BITS = {"fp64": 64, "fp32": 32, "tf32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "fp8-e4m3": 8, "fp8-e5m2": 8, "fp4": 4}


def compute_format(supported: frozenset[str], a: Format, b: Format) -> str | None:
    """The narrowest supported format that can represent the values of both operands, or None.

    Equal formats that are supported are used as they are. Integers stay integers when both are; otherwise the float operand
    decides and the other is converted to it (integers up to 8 bits fit into 16-bit floats, those of 4 bits into 8-bit ones).

    >>> from workloads.format import parse_format as f
    >>> compute_format(frozenset({"fp16", "int8"}), f("fp16"), f("int4-g128"))
    'fp16'
    >>> compute_format(frozenset({"fp16", "int8"}), f("int8"), f("ternary"))
    'int8'
    >>> compute_format(frozenset({"fp16", "fp8-e4m3"}), f("fp8-e4m3"), f("int4-g128"))
    'fp8-e4m3'
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
    wide = [16] if len(floats) < 2 or a.family != b.family else []
    if len(floats) == 1 and floats[0].element_bits == 8 and any(f.family in integers and f.element_bits <= 4 for f in (a, b)):
        wide = []
    need = max([f.element_bits for f in floats] + wide or [16])
    named = [f.name for f in floats]
    fits = [(bits, name not in named, name) for name, bits in _FLOAT_BITS.items() if name in supported and bits >= need]
    return min(fits)[2] if fits else None

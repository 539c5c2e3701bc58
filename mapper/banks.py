"""Kernels on units in memory banks: one mapping, whose cost is that of the kernel's commands on the DRAM channels.

The vectors of a product enter and its results leave as commands of the kernel; work fused behind it runs on a vector unit
afterwards. The memory's controller starts the commands: there is no launch. A kernel that the banks cannot hold or read, as its
operands are stored, is no candidate there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from hw.device import Device
from hw.errors import HardwareError
from hw.pim.kernel import Kernel as Commands
from hw.quantity import FS_PER_S, cycles_to_fs
from hw.units.pim import BankUnit
from hw.work import Vector
from mapper.errors import CapacityError
from mapper.kernels import Kernel, Operand
from mapper.mapping import OperatorMapping
from mapper.nest import products
from mapper.pipeline import Job, Tile
from mapper.plan import Plan
from mapper.program import Move
from mapper.sited import Sited
from mapper.vectorwork import of_operator

FAMILY = "banks"


def is_bare(kernel: Kernel) -> bool:
    """Whether a kernel is a workload of its own: all that it reads enters the graph, all that it writes leaves it."""
    known = {operand.tensor for operand in kernel.compulsory}
    return all(operand.tensor in known for operand in (*kernel.reads, *kernel.writes))


def stored(kernel: Kernel) -> tuple[Operand, ...]:
    """What units in banks would compute on: the right operand of products, keys and values; nothing for other kernels."""
    op = kernel.operator
    match kernel.kind:
        case "attention":
            return tuple(o for o in kernel.reads if o.tensor in op.inputs[1:3])
        case "matmul" | "grouped_matmul":
            return (kernel.input(1),)
    return ()


def holds(unit: BankUnit, kernel: Kernel) -> bool:
    """Whether what a kernel computes on may lie in the banks of a unit in its computing layout: in a format that the unit reads, and of
    a role that it holds. Whether it fits is another question."""
    operands = stored(kernel)
    roles = all(operand.role in unit.holds for operand in operands) or is_bare(kernel)
    return bool(operands) and roles and all(operand.format.name in unit.formats() for operand in operands)


def beside(device: Device, kernel: Kernel) -> str | None:
    """The bank unit that alone can reach a cache of keys and values which lies in a memory of its own; None for a kernel that reads
    none of what was cached before."""
    cached = {o.tensor for o in kernel.compulsory if o.role == "kv_cache"} & {o.tensor for o in stored(kernel)}
    formats = {operand.format.name for operand in stored(kernel)}
    return home_of_cache(device, formats) if cached else None


def home_of_cache(device: Device, formats: Iterable[str]) -> str | None:
    """The bank unit in whose memory, beside the main one, keys and values of these formats lie; None where they lie in main memory."""
    for name, unit in device.units.items():
        if isinstance(unit, BankUnit) and unit.memory != device.main_memory and unit.memory in device.memories and "kv_cache" in unit.holds:
            return name if set(formats) <= unit.formats() else None
    return None


@dataclass(frozen=True)
class Series:
    """Kernels of commands one after the other, each so often: products with matrices of their own."""

    kernels: tuple[tuple[Commands, int], ...]

    @property
    def fs(self) -> int:
        return sum(kernel.fs * count for kernel, count in self.kernels)

    @property
    def macs(self) -> int:
        return sum(kernel.macs * count for kernel, count in self.kernels)

    @property
    def host_read(self) -> int:
        return sum(kernel.host_read * count for kernel, count in self.kernels)

    @property
    def host_written(self) -> int:
        return sum(kernel.host_written * count for kernel, count in self.kernels)

    @property
    def counts(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for kernel, count in self.kernels:
            total.update({name: number * count for name, number in kernel.counts.items()})
        return dict(total)

    @property
    def energy_pj(self) -> dict[str, float | None]:
        """By location; None where one of the kernels does not know it."""
        total: dict[str, float | None] = {}
        for kernel, count in self.kernels:
            for place, pj in kernel.energy_pj.items():
                before = total.get(place, 0.0)
                total[place] = None if pj is None or before is None else before + pj * count
        return total

    @property
    def scope(self) -> str:
        return self.kernels[0][0].channel.scope

    @property
    def notes(self) -> tuple[str, ...]:
        more = ("products with matrices of their own run one after the other on all banks",) if sum(c for _, c in self.kernels) > 1 else ()
        return (*dict.fromkeys(note for kernel, _ in self.kernels for note in kernel.notes), *more)


@dataclass(frozen=True)
class Banks(Sited):
    """The one mapping of a kernel onto a bank unit; it has no parameters."""

    @cached_property
    def unit(self) -> BankUnit:
        unit = self.target.unit(self.name)
        assert isinstance(unit, BankUnit)
        return unit

    def _refuse(self, reason: str) -> CapacityError:
        return CapacityError(f"operator {self.kernel.name!r} cannot run in the banks of {self.unit.memory!r}: {reason}")

    @property
    def bare(self) -> bool:
        return is_bare(self.kernel)

    @cached_property
    def commands(self) -> tuple[Series, bool]:
        """The kernel's commands, and whether they include softmax. Raises `CapacityError` where the banks cannot serve it."""
        kernel, unit, op = self.kernel, self.unit, self.kernel.operator
        if self.target.site is not None and (self.target.site.share != 1 or self.target.site.copies != 1):
            raise self._refuse("all banks take part, and nothing else uses them meanwhile")
        if not stored(kernel):
            raise self._refuse(f"there is no command sequence for {kernel.kind}")
        for operand in stored(kernel):
            if operand.format.name not in unit.formats():
                raise self._refuse(f"units read what is stored, {operand.format} is not one of {', '.join(sorted(unit.formats()))}")
            if operand.role not in unit.holds and not self.bare:
                raise self._refuse(f"they hold {', '.join(unit.holds)}, not {operand.role}")
        try:
            if kernel.kind == "attention":
                group = op["heads"] // op["kv_heads"]
                jobs, queries = op["batch"] * op["kv_heads"], group * op["queries"]
                commands, complete = unit.attention(jobs, op["keys"], op["head_dim"], op["value_dim"], queries)
                return Series(((commands, 1),)), complete
            return self._products(), True
        except HardwareError as error:
            raise self._refuse(str(error)) from None

    def _products(self) -> Series:
        """The products one after the other. Raises `CapacityError` when their matrices, each with rows of its own, do not fit."""
        parts = tuple((self.unit.product(p.n, p.k, p.m), p) for p in products(self.kernel))
        held = self.kernel.operator.attributes.get("experts", 0)
        count = max(held, sum(p.count for _, p in parts))
        need = count * max(commands.internal_bytes // p.m for commands, p in parts)
        have = self.target.device.memories[self.unit.memory].total
        if count > 1 and need > have:
            raise self._refuse(f"{count} matrices with rows of their own need {need} B, they hold {have} B: {need - have} B short")
        return Series(tuple((commands, p.count) for commands, p in parts))

    def candidates(self) -> Iterator[OperatorMapping]:
        yield OperatorMapping(self.kernel.name, self.name, FAMILY, {})

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        return {}

    def bound(self, mapping: OperatorMapping) -> int:
        return self.commands[0].fs

    def plan(self, mapping: OperatorMapping) -> Plan:
        commands, complete = self.commands
        energy = {f"{self.name} {place}": None if pj is None else Fraction(pj) for place, pj in commands.energy_pj.items()}
        return Plan(
            mapping,
            (self._tile(commands, complete),),
            (0, 1, 2, 3),
            {},
            (),
            notes=commands.notes,
            commands=commands.counts,
            energy_pj=energy,
            commanded=self._moves(commands),
        )

    def _tile(self, commands: Series, complete: bool) -> Tile:
        """Vectors are read, the commands run, the rest is computed, results are written."""
        kernel, target, op = self.kernel, self.target, self.kernel.operator
        held = {operand.tensor for operand in stored(kernel)}
        vectors = [o for o in kernel.reads if o.tensor == op.inputs[0]]
        others = [o for o in kernel.reads if o.tensor not in held and o not in vectors]
        load: tuple[Job, ...] = ()
        if size := sum((o.size for o in vectors), Fraction(0)):
            load = (target.transfer("load", "activations", read=size),)
        works = [work for fused in kernel.fused for work in of_operator(fused)]
        if not complete:
            works.append(Vector(op["batch"] * op["heads"] * op["queries"] * op["keys"], 4, 1))
        after: tuple[Job, ...] = ()
        if works:
            after = (target.vector("softmax" if not complete else "compute", target.vector_unit(kernel.name), works),)
        if size := sum((o.size for o in others), Fraction(0)):
            after += (target.transfer("load", "activations", read=size),)
        store: tuple[Job, ...] = ()
        if size := sum((o.size for o in kernel.writes), Fraction(0)):
            store = (target.transfer("store", "outputs", written=size),)
        return load, self._compute(commands, load, store), after, store

    def _compute(self, commands: Series, load: tuple[Job, ...], store: tuple[Job, ...]) -> tuple[Job, ...]:
        """The commands on the unit; a main memory that they run in is occupied as long."""
        target, unit = self.target, self.unit
        moves = self._moves(commands)
        jobs = [self._job("commands", commands.fs, () if unit.memory == target.main else moves, commands.macs)]
        if unit.link is not None:
            jobs.insert(0, self._job("link", int(-(-self._crossing() * FS_PER_S // unit.link)), (), 0))
        if unit.memory == target.main:
            fs = commands.fs
            if commands.scope == "none":  # row buffers of their own: the memory serves others meanwhile
                fs = target.memory.occupied_fs(commands.host_read, commands.host_written)
            jobs.append(Job("commands", target.main, fs, fs, moves))
        return tuple(jobs)

    def _crossing(self) -> Fraction:
        """Bytes over the link: vectors, results, and the keys and values of new tokens, each once."""
        kernel, op = self.kernel, self.kernel.operator
        size = sum((o.size for o in kernel.reads if o.tensor == op.inputs[0]), Fraction(0))
        size += sum((o.size for o in kernel.writes), Fraction(0))
        if kernel.kind == "attention":
            new = op["batch"] * op["kv_heads"] * op["queries"] * (op["head_dim"] + op["value_dim"])
            size += new * kernel.input(1).format.bits / 8
        return size

    def _moves(self, commands: Series) -> tuple[Move, ...]:
        return (Move(self.unit.memory, commands.host_read, commands.host_written),)

    def _job(self, name: str, fs: int, moves: tuple[Move, ...], macs: int) -> Job:
        """A job of so many femtoseconds in whole clocks of the unit."""
        clock = self.target.device.unit_clock(self.name)
        cycles = -(-fs * clock // FS_PER_S)
        return Job(name, self.name, cycles, cycles_to_fs(cycles, clock), moves, macs=macs)

"""Kernels on units in memory banks: one mapping, whose cost is that of the kernel's commands on the DRAM channels.

The vectors of a product enter and its results leave as commands of the kernel; work fused behind it runs on a vector unit
afterwards. The memory's controller starts the commands: there is no launch. A kernel that the banks cannot hold or read, as its
operands are stored, is no candidate there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from hw.errors import HardwareError
from hw.pim.kernel import Kernel as Commands
from hw.quantity import FS_PER_S, cycles_to_fs
from hw.units.pim import BankUnit
from hw.work import Vector
from mapper.errors import CapacityError
from mapper.kernels import Kernel
from mapper.mapping import OperatorMapping
from mapper.pipeline import Job, Tile
from mapper.plan import Plan
from mapper.program import Move
from mapper.residency import NOTHING, Found
from mapper.target import Target
from mapper.vectorwork import of_operator

FAMILY = "banks"


@dataclass(frozen=True)
class Banks:
    """The one mapping of a kernel onto a bank unit; it has no parameters."""

    target: Target
    kernel: Kernel
    resident: Found = NOTHING

    @cached_property
    def name(self) -> str:
        assert self.target.site is not None
        return self.target.site.unit

    @cached_property
    def unit(self) -> BankUnit:
        unit = self.target.unit(self.name)
        assert isinstance(unit, BankUnit)
        return unit

    def _refuse(self, reason: str) -> CapacityError:
        return CapacityError(f"operator {self.kernel.name!r} cannot run in the banks of {self.unit.memory!r}: {reason}")

    @property
    def bare(self) -> bool:
        """Whether the kernel is a workload of its own: all that it reads enters the graph, all that it writes leaves it."""
        known = {operand.tensor for operand in self.kernel.compulsory}
        return all(operand.tensor in known for operand in (*self.kernel.reads, *self.kernel.writes))

    @cached_property
    def commands(self) -> tuple[Commands, bool]:
        """The kernel's commands, and whether they include softmax. Raises `CapacityError` where the banks cannot serve it."""
        kernel, unit, op = self.kernel, self.unit, self.kernel.operator
        if self.target.site is not None and (self.target.site.share != 1 or self.target.site.copies != 1):
            raise self._refuse("all banks take part, and nothing else uses them meanwhile")
        if kernel.kind not in ("matmul", "attention"):
            raise self._refuse(f"there is no command sequence for {kernel.kind}")
        stored = [o for o in kernel.reads if o.tensor in op.inputs[1:3]] if kernel.kind == "attention" else [kernel.input(1)]
        for operand in stored:
            if operand.format.name not in unit.formats():
                raise self._refuse(f"units read what is stored, {operand.format} is not one of {', '.join(sorted(unit.formats()))}")
            if operand.role not in unit.holds and not self.bare:
                raise self._refuse(f"they hold {', '.join(unit.holds)}, not {operand.role} ({operand.tensor!r})")
        try:
            if kernel.kind == "attention":
                group = op["heads"] // op["kv_heads"]
                return unit.attention(op["batch"] * op["kv_heads"], op["keys"], op["head_dim"], op["value_dim"], group * op["queries"])
            if op["batch"] != 1:
                raise self._refuse(f"its {op['batch']} products have matrices of their own")
            return unit.product(op["n"], op["k"], op["m"]), True
        except HardwareError as error:
            raise self._refuse(str(error)) from None

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

    def _tile(self, commands: Commands, complete: bool) -> Tile:
        """Vectors are read, the commands run, the rest is computed, results are written."""
        kernel, target, op = self.kernel, self.target, self.kernel.operator
        stored = set(op.inputs[1:3]) if kernel.kind == "attention" else {op.inputs[1]}
        vectors = [o for o in kernel.reads if o.tensor == op.inputs[0]]
        others = [o for o in kernel.reads if o.tensor not in stored and o not in vectors]
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

    def _compute(self, commands: Commands, load: tuple[Job, ...], store: tuple[Job, ...]) -> tuple[Job, ...]:
        """The commands on the unit; a main memory that they run in is occupied as long."""
        target, unit = self.target, self.unit
        moves = self._moves(commands)
        jobs = [self._job("commands", commands.fs, () if unit.memory == target.main else moves, commands.macs)]
        if unit.link is not None:
            jobs.insert(0, self._job("link", int(-(-self._crossing() * FS_PER_S // unit.link)), (), 0))
        if unit.memory == target.main:
            fs = commands.fs
            if commands.channel.scope == "none":  # row buffers of their own: the memory serves others meanwhile
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

    def _moves(self, commands: Commands) -> tuple[Move, ...]:
        return (Move(self.unit.memory, commands.host_read, commands.host_written),)

    def _job(self, name: str, fs: int, moves: tuple[Move, ...], macs: int) -> Job:
        """A job of so many femtoseconds in whole clocks of the unit."""
        clock = self.target.device.unit_clock(self.name)
        cycles = -(-fs * clock // FS_PER_S)
        return Job(name, self.name, cycles, cycles_to_fs(cycles, clock), moves, macs=macs)

"""Attention in the drives that hold keys and values: what crosses the link, which pages are read, and who waits for whom.

In a step of decode, queries and new keys and values go down, and the attention's output comes up, while keys and values stay in the
drives. In a prefill the processor attends to what it has just computed, and ships it to the drives behind the next layer's work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil

from hw.quantity import cycles_to_fs, transfer_fs
from hw.units.storage import FlashArray, StorageAttention
from mapper.errors import CapacityError, MappingError
from mapper.kernels import Kernel
from mapper.mapping import OperatorMapping
from mapper.pipeline import Job
from mapper.plan import Plan
from mapper.program import Item, Move, Task
from mapper.residency import NOTHING, Found
from mapper.target import Target
from workloads import cost
from workloads.cost import attended_keys
from workloads.graph import Graph

FAMILY = "storage"
LINK = "p2p"
"""The queue of the link between processor and drives."""


def storage_unit(target: Target) -> tuple[str, StorageAttention, FlashArray] | None:
    """The attention kernels of a device's drives and their flash, if it has any. Raises `MappingError` where the flash is missing."""
    for name, unit in target.device.units.items():
        if isinstance(unit, StorageAttention):
            memory = target.device.memories.get(unit.memory)
            if not isinstance(memory, FlashArray):
                raise MappingError(f"{target.device.name}: units.{name}.memory: expected a flash_array, found {unit.memory!r}")
            return name, unit, memory
    return None


def reads_storage(target: Target, kernel: Kernel) -> bool:
    """Whether a kernel attends to keys and values that lie in drives: more than it has just been handed."""
    if kernel.kind != "attention" or storage_unit(target) is None:
        return False
    return any(operand.role == "kv_cache" for operand in kernel.compulsory)


def link_rate(target: Target, flash: str) -> int:
    """Bytes per second of the link between drives and main memory. Raises `MappingError` where there is none."""
    for link in target.device.links:
        if {link.source, link.sink} == {flash, target.main} and link.bandwidth:
            return link.bandwidth
    raise MappingError(f"{target.device.name}: no link with a bandwidth between {flash!r} and {target.main!r}")


@dataclass(frozen=True)
class InStorage:
    """Attention of one layer in the drives; its one mapping has no parameters."""

    target: Target
    kernel: Kernel
    resident: Found = NOTHING

    @cached_property
    def parts(self) -> tuple[str, StorageAttention, FlashArray]:
        found = storage_unit(self.target)
        assert found is not None
        return found

    def candidates(self) -> Iterator[OperatorMapping]:
        yield OperatorMapping(self.kernel.name, self.parts[0], FAMILY, {})

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        return {}

    def bound(self, mapping: OperatorMapping) -> int:
        return 0

    @cached_property
    def heads(self) -> tuple[int, int]:
        """Heads of all sequences of the drive that has most of them, and drives at work."""
        op, drives = self.kernel.operator, self.parts[2].count
        each = ceil(op["kv_heads"] / drives)
        return op["batch"] * each, min(drives, ceil(op["kv_heads"] / each))

    @cached_property
    def pages(self) -> int:
        """Pages of keys and values that the drive with most heads reads."""
        op, flash = self.kernel.operator, self.parts[2]
        keys = attended_keys(op)
        found = 0
        for operand in (o for o in self.kernel.reads if o.role == "kv_cache"):
            per_token = operand.size / (op["batch"] * op["kv_heads"] * keys)
            if per_token > flash.page:
                raise CapacityError(f"operator {self.kernel.name!r}: a token of a head needs {per_token} B, a page holds {flash.page}")
            found += ceil(Fraction(keys, int(flash.page / per_token)))
        return ceil(self.heads[0] * found * self.parts[1].kept)

    def plan(self, mapping: OperatorMapping) -> Plan:
        name, unit, flash = self.parts
        op, target = self.kernel.operator, self.target
        rate = link_rate(target, unit.memory)
        group = op["heads"] // op["kv_heads"] * op["queries"]
        old = [o for o in self.kernel.reads if o.role == "kv_cache"]
        new = sum((o.size * op["queries"] / attended_keys(op) for o in old), Fraction(0))
        down = ceil(sum((o.size for o in self.kernel.reads if o.role != "kv_cache"), Fraction(0)) + new)
        up = ceil(sum((o.size for o in self.kernel.writes), Fraction(0)))
        heads, drives = self.heads
        read = flash.read_fs(self.pages * drives, drives)
        written = ceil(new * unit.stored)
        busy = read + flash.write_fs(written, drives)  # pages of new tokens, once they are full
        page_vectors = ceil(Fraction(heads * group * attended_keys(op) * (op["head_dim"] + op["value_dim"]), 2048) * unit.products)
        cycles = ceil(Fraction(page_vectors, unit.kernels)) * unit.page_cycles
        clock = target.device.unit_clock(name)
        moves = (Move(unit.memory, self.pages * drives * flash.page, written),)
        tile = (
            (Job("down", LINK, transfer_fs(down, rate), transfer_fs(down, rate)),),
            (
                Job("pages", unit.memory, busy, busy, moves),
                Job("attend", name, cycles, cycles_to_fs(cycles, clock), (), cost.macs(op) * unit.products),
            ),
            (Job("up", LINK, transfer_fs(up, rate), transfer_fs(up, rate)),),
        )
        setup = tuple((what, fs) for what, fs in (("command", target.device.launch),) if fs)
        return Plan(mapping, (tile,), (0, 1, 2), {}, setup)


# Prefill -------------------------------------------------------------------------------------------------------------------
def shipping(target: Target, kernels: list[Kernel], body: str) -> list[Item]:
    """Tasks that ship the keys and values of a body of a prefill to the drives, beside whatever runs next; none where attention is
    in the drives or there are none."""
    found = storage_unit(target)
    if found is None or any(reads_storage(target, kernel) for kernel in kernels):
        return []
    _, unit, flash = found
    size = sum((o.size for kernel in kernels for o in kernel.writes if o.role == "kv_cache"), Fraction(0))
    if not size:
        return []
    stored = ceil(size * unit.stored)
    fs = max(transfer_fs(size, link_rate(target, unit.memory)), flash.write_fs(stored, flash.count))
    return [
        Task(f"{body}: ship", "launch", 0, (), (f"{LINK}.ship",)),
        Task(f"{body}: keys and values", LINK, fs, (f"{LINK}.ship",), (), (Move(unit.memory, 0, stored),)),
    ]


def held(graph: Graph, target: Target, parts: dict[str, int]) -> dict[str, dict[str, int]]:
    """The KV cache in the drives: taken out of `parts`, but for one layer at a time. Raises `CapacityError` when it does not fit."""
    found = storage_unit(target)
    if found is None or not parts["kv cache"]:
        return {}
    _, unit, flash = found
    need = ceil(parts["kv cache"] * unit.stored)
    if need > flash.total:
        copies = " (keys twice)" if unit.stored > 1 else ""
        raise CapacityError(
            f"{graph.name}: the KV cache needs {need} B{copies} in {unit.memory!r} of {target.device.name}, which holds {flash.total} B: "
            f"{need - flash.total} B short; use a smaller batch or context, or more drives (memories.{unit.memory}.count)"
        )
    largest = {name: tensor.bytes for name, tensor in graph.tensors.items() if tensor.role == "kv_cache" and graph.tokens == graph.context}
    parts["kv cache"] = 2 * max(largest.values(), default=0)  # keys and values of a layer, until they are shipped
    return {unit.memory: {"kv cache": need}}

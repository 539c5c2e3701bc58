"""Lower bounds: what no mapping on a device can beat, per kernel and for a whole workload.

Three bounds, of which the largest counts. Compute: multiply-accumulates (vector operations) at the peak rate of all units
that execute them. Bytes: compulsory traffic (weights, the cache that was there before, what enters and leaves) at the peak
bandwidth of main memory; what units in memory banks can compute on may be read at their rate instead. Latency: one launch and one
unloaded memory access per kernel, which run one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from hw.memory import Scratchpad
from hw.quantity import FS_PER_S, transfer_fs
from hw.units.pim import BankUnit
from hw.work import Vector
from mapper import lmma
from mapper.banks import beside, holds, stored
from mapper.kernels import Kernel
from mapper.target import Target
from mapper.vectorwork import of_operator
from workloads import cost


@dataclass(frozen=True)
class Bound:
    """The parts of a lower bound. Compute is in femtoseconds by kind of work, bytes by operand, latency in femtoseconds.

    `banked` bytes may be read by units in the banks of a memory or over its interface, `beside` ones by such units alone.
    """

    matrix_fs: int
    vector_fs: int
    sizes: tuple[Fraction, ...]
    latency_fs: int
    banked: Fraction = Fraction(0)
    beside: Fraction = Fraction(0)

    def scaled(self, count: int) -> Bound:
        return Bound(
            self.matrix_fs * count,
            self.vector_fs * count,
            tuple(s * count for s in self.sizes),
            self.latency_fs * count,
            self.banked * count,
            self.beside * count,
        )


def kernel_bound(target: Target, kernel: Kernel, number_format: str, latency_fs: int) -> Bound:
    """The bound of one kernel that computes in `number_format` and needs `latency_fs` to start. Building tables is not part of it:
    whatever is looked up could be multiplied."""
    device = target.device
    latency_fs = 0 if lmma.builds_tables(kernel.operator) else latency_fs
    macs = cost.macs(kernel.operator) if number_format else 0
    alone = beside(device, kernel)
    banks = [name for name, unit in device.units.items() if isinstance(unit, BankUnit) and holds(unit, kernel) and alone in (None, name)]
    rate = 0
    if kernel.multiplied:
        for name in [alone] if alone else device.units_for("gemm"):
            unit = device.units[name]
            if name in banks or not isinstance(unit, BankUnit):
                rate += lmma.best_rate(target, name, kernel) * unit.count * device.unit_clock(name)
    if banks:
        latency_fs = 0  # their commands need no launch
    elif any(unit.execution == "bundles" for unit in device.units.values()):
        latency_fs = min(latency_fs, target.memory.latency)
    matrix = macs * FS_PER_S // rate if macs else 0
    operators = (op for op in (kernel.operator, *kernel.fused) if not lmma.builds_tables(op))
    vector = _vector_fs(target, tuple(work for op in operators for work in of_operator(op)))
    total = sum((o.size for o in kernel.compulsory), Fraction(0))
    computed = {o.tensor for o in stored(kernel)} if banks else set()
    inside = sum((o.size for o in kernel.compulsory if o.tensor in computed and o.position >= 0), Fraction(0))
    if not target.private_interfaces:
        sizes: tuple[Fraction, ...] = (total - inside,)
    elif kernel.kind in ("matmul", "grouped_matmul"):
        left, right = (sum((o.size for o in kernel.compulsory if o.position == p), Fraction(0)) for p in (0, 1))
        sizes = (left, right, total - left - right)
        inside = Fraction(0)
    else:
        sizes, inside = (total / 3,) * 3, Fraction(0)
    return Bound(matrix, vector, sizes, latency_fs, Fraction(0) if alone else inside, inside if alone else Fraction(0))


def _vector_fs(target: Target, works: tuple[Vector, ...]) -> int:
    """Femtoseconds of vector work spread over all units that execute it, at their peak rates."""
    if not works:
        return 0
    rate = Fraction(0)
    for name, unit in target.device.units.items():
        if "vector" in unit.executes:
            cycles = sum((unit.least_cycles(work) for work in works), Fraction(0))
            rate += unit.count * target.device.unit_clock(name) / cycles if cycles else 0
    return int(FS_PER_S / rate) if rate else 0


def total_fs(target: Target, bounds: Iterable[Bound]) -> int:
    """Femtoseconds that all these kernels together cannot beat, however they overlap."""
    bounds = tuple(bounds)
    if not bounds:
        return 0
    sizes = [sum(column, Fraction(0)) for column in zip(*(b.sizes for b in bounds), strict=True)]
    if target.excludes_cold_fill:
        # what fits on the chip may be there before the clock starts, or leave after it stops, in every kernel
        room = len(bounds) * sum(m.total for m in target.device.memories.values() if isinstance(m, Scratchpad))
        sizes = [max(Fraction(0), size - room) for size in sizes]
    bytes_fs = max((transfer_fs(size, target.peak_bandwidth) - 1 for size in sizes if size), default=0)
    banked, only = (sum(values, Fraction(0)) for values in zip(*((b.banked, b.beside) for b in bounds), strict=True))
    bytes_fs = max(bytes_fs, _bank_fs(target, sum(sizes, Fraction(0)), banked, only))
    # kernels that run at the same time on different units wait for their launches at the same time
    latency = sum(b.latency_fs for b in bounds) // max(1, len(target.device.units_for("gemm")))
    return max(sum(b.matrix_fs for b in bounds), sum(b.vector_fs for b in bounds), bytes_fs, latency)


def _bank_fs(target: Target, outside: Fraction, banked: Fraction, only: Fraction) -> int:
    """Femtoseconds for bytes that cross the interface of main memory, that either way may serve, and that banks alone can read.

    Banks of another memory, or with row buffers of their own, work while the interface does; others stop it.
    """
    units = [unit for unit in target.device.units.values() if isinstance(unit, BankUnit)]
    inside, interface = sum(unit.internal_peak for unit in units), target.peak_bandwidth
    if not inside or not banked + only:
        return 0
    times = [only / inside]
    if any(unit.memory != target.main or unit.design.channel.scope == "none" for unit in units):
        times.append((outside + banked) / (interface + inside))
    else:
        times.append(outside / interface + banked / max(interface, inside))
    return max(0, int(max(times) * FS_PER_S) - 1)

"""From a graph and a device to a program: fuse, place, tile, check capacities, lower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from hw.device import Device
from hw.memory import Dram, Scratchpad
from mapper.attention import Blocks, Flash
from mapper.bounds import Bound, kernel_bound, total_fs
from mapper.errors import CapacityError, MappingError
from mapper.kernels import Kernel, fuse, tensor_sizes
from mapper.mapping import Mapping as SavedMapping
from mapper.nest import Nest
from mapper.pipeline import Lowering
from mapper.plan import Plan
from mapper.program import Item, Program
from mapper.residency import NOTHING, Found, residents
from mapper.search import Space, replay, search
from mapper.stream import Stream
from mapper.target import Target
from mapper.wave_attention import WaveAttention
from mapper.waves import WaveProduct, WaveStream
from workloads.graph import Graph

MATRIX = frozenset({"matmul", "grouped_matmul"})


@dataclass(frozen=True)
class Placed:
    """A kernel with its plan: it runs `count` times. `number_format` is what its products are computed in, if it has any."""

    kernel: Kernel
    plan: Plan
    count: int
    number_format: str
    bound: Bound
    lower_bound_fs: int


@dataclass(frozen=True)
class Compiled:
    """A workload on a device, ready to be simulated."""

    graph: Graph
    device: Device
    kernels: tuple[Placed, ...]
    program: Program
    occupancy: Mapping[str, Mapping[str, int]]  # memory -> what its peak consists of, in bytes
    lower_bound_fs: int
    assumptions: tuple[str, ...]

    @property
    def mapping(self) -> SavedMapping:
        return SavedMapping(self.device.name, workload_name(self.graph), tuple(p.plan.mapping for p in self.kernels))

    def __repr__(self) -> str:
        return f"Compiled({self.graph.name} on {self.device.name}, {len(self.kernels)} kernels, {self.program!r})"


def workload_name(graph: Graph) -> str:
    """The workload as a mapping names it."""
    return f"{graph.name} {graph.phase} batch {graph.batch} tokens {graph.tokens} context {graph.context}"


def compile_graph(
    graph: Graph, device: Device, mapping: SavedMapping | None = None, progress: Callable[[str], None] | None = None
) -> Compiled:
    """Map a graph onto a device, by search or by replaying a saved `mapping`.

    Raises `CapacityError` when the workload does not fit, `MappingError` when an operator cannot run on the device or the
    mapping was made for another workload or device.
    """
    _check_copies(device)
    target = Target(device)
    occupancy = check_capacity(graph, target)
    if mapping is not None:
        _check_origin(mapping, graph, device)
    segments = fuse(graph)
    bodies = [(segment.count, kernels) for segment, kernels in segments]
    found = residents(bodies, target.cache[1] if target.cache else None)
    memo: dict[Any, Plan] = {}
    lowering = Lowering()
    items: list[Item] = []
    placed: list[Placed] = []
    for (segment, kernels), hits in zip(segments, found, strict=True):
        body: list[Placed] = []
        for kernel, resident in zip(kernels, hits, strict=True):
            if progress:
                progress(kernel.name)
            space, number_format = choose_space(target, kernel, resident)
            if mapping is not None:
                plan = replay(space, mapping.find(kernel.name))
            else:
                key = _signature(kernel, resident)
                if key not in memo:
                    memo[key] = search(space, kernel.name)
                plan = replace(memo[key], mapping=replace(memo[key].mapping, operator=kernel.name))
            bound = kernel_bound(target, kernel, number_format, sum(fs for _, fs in plan.setup))
            body.append(Placed(kernel, plan, segment.count, number_format, bound, total_fs(target, [bound])))
        placed += body
        items += lowering.repeat(segment.count, partial(_write, lowering, body))
    for name, memory in device.memories.items():
        if isinstance(memory, Scratchpad) and name in {pad for p in placed for pad in p.plan.footprint}:
            occupancy[name] = {"tiles": max(p.plan.footprint.get(name, 0) for p in placed)}
    return Compiled(
        graph=graph,
        device=device,
        kernels=tuple(placed),
        program=Program(target.queues, tuple(items)),
        occupancy=occupancy,
        lower_bound_fs=total_fs(target, [p.bound.scaled(p.count) for p in placed]),
        assumptions=_assumptions(graph, target, placed),
    )


def _write(lowering: Lowering, body: list[Placed]) -> list[Item]:
    return [item for p in body for item in lowering.kernel(p.kernel.name, p.plan.steps, p.plan.setup)]


def choose_space(target: Target, kernel: Kernel, resident: Found = NOTHING) -> tuple[Space, str]:
    """The family of mappings for a kernel on a device, and the number format of its products ("" if it has none).

    Raises `MappingError` when no unit executes the kernel.
    """
    space: Nest | Flash | WaveProduct | WaveAttention | Stream | WaveStream
    if kernel.kind in MATRIX:
        unit, number_format = target.matrix_unit(kernel.name, kernel.input(0).format, kernel.input(1).format)
        space = WaveProduct(target, kernel, resident) if _in_waves(target, unit) else Nest(target, kernel)
        return space, number_format
    if kernel.kind == "attention":
        blocks = Blocks(kernel)
        unit, number_format = target.matrix_unit(kernel.name, blocks.query.format, blocks.cached[-1].format)
        space = WaveAttention(target, kernel, resident) if _in_waves(target, unit) else Flash(target, kernel)
        return space, number_format
    waves = any(unit.execution == "waves" for unit in target.device.units.values())
    return (WaveStream(target, kernel, resident) if waves else Stream(target, kernel)), ""


def _in_waves(target: Target, name: str) -> bool:
    """Whether a unit runs thread blocks in waves."""
    return target.unit(name).execution == "waves"


def _check_copies(device: Device) -> None:
    """Raises `MappingError` for copies of a unit that nothing would use: tiles run on one copy."""
    if any(unit.execution == "waves" for unit in device.units.values()):
        return
    for name, unit in device.units.items():
        if unit.count > 1:
            raise MappingError(
                f"{device.name}: unit {name!r} has {unit.count} copies, and tiles run on one; describe one larger unit or set "
                f"units.{name}.count=1"
            )


def _signature(kernel: Kernel, resident: Found) -> Any:
    """Everything that a kernel's plan depends on, names left out."""
    names: dict[str, int] = {}
    operands = tuple(
        (names.setdefault(o.tensor, len(names)), o.elements, o.total, o.format.name, o.role, o.position, resident.share(o.tensor))
        for o in (*kernel.reads, *kernel.writes)
    )
    ops = tuple((op.kind, tuple(sorted(op.attributes.items()))) for op in (kernel.operator, *kernel.fused))
    inputs = tuple(names.get(name, -1) for name in kernel.operator.inputs)
    return ops, inputs, operands, len(kernel.reads)


def _check_origin(mapping: SavedMapping, graph: Graph, device: Device) -> None:
    if mapping.device != device.name:
        raise MappingError(f"the mapping was made for device {mapping.device!r}, not for {device.name!r}")
    if mapping.workload != workload_name(graph):
        raise MappingError(f"the mapping was made for workload {mapping.workload!r}, not for {workload_name(graph)!r}")


# Capacity ------------------------------------------------------------------------------------------------------------------
def check_capacity(graph: Graph, target: Target) -> dict[str, dict[str, int]]:
    """What main memory holds at its peak, by role. Raises `CapacityError` when that is more than it has."""
    parts = {"weights": 0, "kv cache": 0, "constants": 0, "activations": live_activations(graph)}
    labels = {"weight": "weights", "kv_cache": "kv cache", "constant": "constants"}
    for name, tensor in graph.tensors.items():
        if tensor.role in labels:
            parts[labels[tensor.role]] += tensor.bytes * graph.multiplicity.get(name, 1)
    need, have = sum(parts.values()), target.memory.total
    if need > have:
        largest = ", ".join(f"{tensor.name} ({_gib(size)})" for tensor, size in tensor_sizes(graph)[:3])
        split = ", ".join(f"{label} {_gib(size)}" for label, size in parts.items() if size)
        raise CapacityError(
            f"{graph.name}: needs {_gib(need)} in {target.main!r} of {target.device.name}, which holds {_gib(have)}: {need - have} B short "
            f"({split}); largest tensors over all layers: {largest}. Use a smaller batch or context, or a narrower format "
            "(--weights, --kv)"
        )
    return {target.main: {label: size for label, size in parts.items() if size}}


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 // 10 else f"{size / 2**20:.2f} MiB"


def live_activations(graph: Graph) -> int:
    """The most bytes of activations that exist at a time, each from its producer to its last consumer."""
    events: dict[str, list[int]] = {name: [0] for name in graph.inputs}
    index = 0
    for segment in graph.segments:
        for operator in segment.operators:
            for name in (*operator.inputs, *operator.outputs):
                events.setdefault(name, []).append(index)
            index += 1
    for name in graph.outputs:
        events.setdefault(name, []).append(index)
    changes: dict[int, int] = {}
    for name, times in events.items():
        tensor = graph.tensors[name]
        if tensor.role == "activation":
            changes[min(times)] = changes.get(min(times), 0) + tensor.bytes
            changes[max(times) + 1] = changes.get(max(times) + 1, 0) - tensor.bytes
    level = peak = 0
    for time in sorted(changes):
        level += changes[time]
        peak = max(peak, level)
    return peak


def _memory_note(target: Target) -> str:
    memory = target.memory
    if isinstance(memory, Dram) and memory.timing:
        return (
            f"{target.main} moves data at the rate of long streams of {memory.timing} ({memory.mapping}, refresh included); short pieces "
            "and turns between reads and writes cost nothing more"
        )
    less = " less refresh" if isinstance(memory, Dram) and memory.refresh else ""
    return f"{target.main} moves data at its data-sheet bandwidth{less}; banks, rows and turnarounds are not modelled"


# Assumptions ---------------------------------------------------------------------------------------------------------------
def _assumptions(graph: Graph, target: Target, placed: list[Placed]) -> tuple[str, ...]:
    notes = list(graph.notes)
    notes.append("operators run one after the other: no prefetch and no overlap across operators")
    if any("+" in p.kernel.name for p in placed):
        notes.append("products of the same input (queries, keys and values; gate and up) run as one kernel, as inference libraries do")
    if target.cache:
        notes.append(
            f"the {target.cache[0]} keeps whole tensors, least recently used first out; results are written through to {target.main}"
        )
        notes.append("thread blocks of one kind take equally long; what power limits cost long products is part of a constant")
    else:
        notes.append(f"intermediate results go through {target.main} unless the operators are fused")
        notes.append("scratchpads deliver what the units consume: their ports and banks are not modelled")
    notes.append(_memory_note(target))
    converted = sorted(
        {
            f"{o.format} operands are converted to {p.number_format} on their way into the unit; the conversion takes "
            + ("one vector operation per weight and thread block" if p.plan.mapping.family == "wave" and o.position == 1 else "no time")
            for p in placed
            if p.number_format
            for o in p.kernel.reads
            if o.position in (0, 1) and o.format.name != p.number_format
        }
    )
    notes += converted
    if any(p.kernel.kind == "grouped_matmul" for p in placed):
        notes.append("experts are chosen uniformly and independently; active experts share their rows evenly")
    if any(p.kernel.kind == "scan" for p in placed):
        notes.append("state-space scans run on the vector unit, token by token; chunked scans on the matrix unit are not modelled")
    if target.excludes_cold_fill:
        notes.append("the first fill and the last write-back of each operator are left out of the time (cold_fill=excluded)")
    return tuple(dict.fromkeys(notes))

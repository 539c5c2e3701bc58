"""The front door: one call from a workload's name to a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import ceil
from typing import TYPE_CHECKING

from dovetail.report import FS, Constant, MemoryUse, OperatorRow, Report, Roof

if TYPE_CHECKING:
    from hw.device import Device
    from mapper.compile import Compiled, Placed
    from mapper.mapping import Mapping as SavedMapping
    from mapper.target import Target
    from sim.trace import Trace
    from workloads.graph import Graph

Progress = Callable[[str], None]


def estimate(
    workload: str | Graph,
    *,
    device: str | Device,
    phase: str | None = None,
    batch: int | None = None,
    seq: int | None = None,
    context: int | None = None,
    weights: str | None = None,
    acts: str | None = None,
    kv: str | None = None,
    settings: Mapping[str, object] | None = None,
    mapping: SavedMapping | None = None,
    engine: str = "fast",
    progress: Progress | None = None,
) -> Report:
    """Cycles, energy and bounds of one phase of a workload on a device.

    `workload` is a catalogue name, a Hugging Face `config.json`, a saved trace, `gemm:MxKxN[:format]`, or a `Graph`; `device` a name,
    a YAML file or a `Device`. `phase` is `prefill` (`seq` tokens enter) or `decode` (one token, attending to `context` tokens).
    `weights`, `acts` and `kv` change number formats. `settings` maps paths of the device description to values
    (`{"units.array.rows": 32}`). `mapping` replays a saved mapping instead of searching one. `engine` is `fast` or `simpy`; both give
    the same spans.

    Raises `WorkloadError`, `HardwareError`, `MappingError` or `CapacityError` (all `ValueError`s) with one message for each mistake.
    """
    import workloads
    from hw.devices import load as load_device
    from mapper.compile import compile_graph
    from mapper.errors import MappingError
    from sim import ENGINES, simulate

    if engine not in ENGINES:
        raise MappingError(f"engine {engine!r}: unknown, expected one of {', '.join(ENGINES)}")
    tell = progress or (lambda text: None)
    target = load_device(device) if isinstance(device, str) else device
    if settings:
        target = target.with_settings(settings)
    start = time.perf_counter()
    if isinstance(workload, str):
        graph = workloads.load(workload, phase=phase, batch=batch, seq=seq, context=context, progress=progress)
    else:
        graph = workload
    if weights or acts or kv:
        graph = workloads.quantise(graph, weights=weights, acts=acts, kv=kv)
    traced = time.perf_counter()
    tell(f"mapping {graph.name} onto {target.name}")
    compiled = compile_graph(graph, target, mapping)
    mapped = time.perf_counter()
    tell(f"simulating {compiled.program.tasks()} tasks")
    trace = simulate(compiled.program, engine)
    elapsed = {"trace": traced - start, "map": mapped - traced, "simulate": time.perf_counter() - mapped}
    return build_report(compiled, trace, engine, elapsed)


def build_report(compiled: Compiled, trace: Trace, engine: str, elapsed_s: Mapping[str, float]) -> Report:
    """The report of a simulated workload."""
    from mapper.target import Target
    from sim.energy import joules

    graph, device, target = compiled.graph, compiled.device, Target(compiled.device)
    total = trace.makespan
    energy, energy_parts = joules(compiled)
    memories = _memories(compiled, target)
    fractions = _peak_fractions(compiled, target, total, memories)
    used = {name for name, busy in trace.busy.items() if busy}
    bound = max(trace.busy, key=lambda name: (trace.busy[name], name))
    resource = target.resource(bound)
    return Report(
        workload=graph.name,
        phase=graph.phase,
        batch=graph.batch,
        tokens=graph.tokens,
        context=graph.context,
        formats=_formats(graph),
        device=device.name,
        clock_hz=device.clock,
        engine=engine,
        latency_fs=total,
        lower_bound_fs=compiled.lower_bound_fs,
        bound_resource=resource,
        bound_utilization=fractions.get(resource, trace.busy[bound] / total if total else 0.0),
        utilization={name: trace.busy[name] / total if total else 0.0 for name in trace.busy if name in used},
        peak_fraction=fractions,
        stalls={
            name: {reason: time_fs / total for reason, time_fs in reasons.items()} for name, reasons in trace.stalls.items() if name in used
        },
        memories=memories,
        energy_j=energy,
        energy_parts=energy_parts,
        tasks=compiled.program.tasks(),
        operators=tuple(_row(placed, target) for placed in compiled.kernels),
        roofs=_roofs(compiled, target),
        assumptions=compiled.assumptions,
        constants=tuple(Constant(name, c.value, f"{c.meaning}; {c.source}") for name, c in device.constants.items()),
        elapsed_s=elapsed_s,
        trace=trace,
        mapping=compiled.mapping,
    )


def _row(placed: Placed, target: Target) -> OperatorRow:
    kernel, plan = placed.kernel, placed.plan
    busy = {name: effort.busy_fs for name, effort in plan.effort.items() if effort.busy_fs}
    waiting = sum(fs for _, fs in plan.setup)
    slowest = max(busy, key=lambda name: (busy[name], name), default="launch")
    return OperatorRow(
        name=kernel.name,
        kind=kernel.kind,
        unit=plan.mapping.unit,
        count=placed.count,
        latency_fs=plan.latency_fs,
        lower_bound_fs=placed.lower_bound_fs,
        flops=kernel.flops,
        bytes=plan.traffic(target.main),
        bound="launch" if waiting > busy.get(slowest, 0) else target.resource(slowest),
        mapping=str(plan.mapping),
        fused=tuple(op.function or op.kind for op in kernel.fused),
    )


def _memories(compiled: Compiled, target: Target) -> tuple[MemoryUse, ...]:
    traffic = compiled.program.traffic()
    uses = []
    for name, memory in compiled.device.memories.items():
        read, written = traffic.get(name, (0, 0))
        parts = compiled.occupancy.get(name, {})
        if read or written or parts:
            capacity = memory.total if name == target.main else memory.capacity
            uses.append(MemoryUse(name, capacity, sum(parts.values()), ceil(read), ceil(written), parts))
    return tuple(uses)


def _peak_fractions(compiled: Compiled, target: Target, total: int, memories: tuple[MemoryUse, ...]) -> dict[str, float]:
    """Achieved over peak: bytes for memories, multiply-accumulates or operations for units."""
    device, fractions = compiled.device, {}
    if not total:
        return {}
    for use in memories:
        interfaces = 3 if use.name == target.main and target.private_interfaces else 1
        if use.read + use.written:
            fractions[use.name] = (use.read + use.written) * FS / (device.memories[use.name].bandwidth * interfaces * total)
    for name, unit in device.units.items():
        needed = 0.0
        for placed in compiled.kernels:
            effort = placed.plan.effort.get(name)
            if effort is None:
                continue
            rate = unit.macs_per_cycle(placed.number_format) if effort.macs else unit.operations_per_cycle()
            work = effort.macs or effort.operations
            needed += placed.count * work * FS / (rate * unit.count * device.unit_clock(name)) if rate else 0.0
        if needed:
            fractions[name] = needed / total
    return fractions


def _formats(graph: Graph) -> dict[str, str]:
    """The format that most bytes of each role are stored in."""
    names = {}
    for label, role in (("weights", "weight"), ("acts", "activation"), ("kv", "kv_cache")):
        sizes: dict[str, int] = {}
        for tensor in graph.tensors.values():
            if tensor.role == role:
                sizes[tensor.format.name] = sizes.get(tensor.format.name, 0) + tensor.bytes * graph.multiplicity.get(tensor.name, 1)
        if sizes:
            names[label] = max(sizes, key=lambda name: (sizes[name], name))
    return names


def _roofs(compiled: Compiled, target: Target) -> tuple[Roof, ...]:
    device = compiled.device
    seen = dict.fromkeys((p.plan.mapping.unit, p.number_format) for p in compiled.kernels if p.plan.mapping.unit in device.units)
    bandwidth = float(target.memory.bandwidth * (3 if target.private_interfaces else 1))
    return tuple(
        Roof(unit, number_format or "vector", float(device.peak_flops(unit, number_format)), target.main, bandwidth)
        for unit, number_format in seen
    )

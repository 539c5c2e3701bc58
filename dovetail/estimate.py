"""The front door: one call from a workload's name to a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from math import ceil
from typing import TYPE_CHECKING, Literal

from dovetail.error_band import ErrorBand, of_operators, of_total
from dovetail.report import FS, Candidate, Constant, MemoryUse, OperatorRow, Report, Roof, UnitPart
from dovetail.streams import runs_streams, stream_report

if TYPE_CHECKING:
    from hw.device import Device
    from mapper.compile import Compiled, Placed
    from mapper.flightllm.compile import Stream
    from mapper.mapping import Mapping as SavedMapping
    from mapper.strategies import Search
    from mapper.target import Target
    from mapper.timeloop import TimeloopMapping
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
    mapping: SavedMapping | TimeloopMapping | Stream | None = None,
    strategy: str | Search | None = None,
    objective: str | None = None,
    budget: str | float | None = None,
    engine: str = "fast",
    co_processing: bool | Literal["rule"] = True,
    experts: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Cycles, energy and bounds of one phase of a workload on a device.

    `workload` is a catalogue name, a Hugging Face `config.json`, a saved trace, `gemm:MxKxN[:format]`, or a `Graph`; `device` a name,
    a YAML file or a `Device`. `phase` is `prefill` (`seq` tokens enter) or `decode` (one token, attending to `context` tokens).
    `weights`, `acts` and `kv` change number formats. `settings` maps paths of the device description to values
    (`{"units.array.rows": 32}`). `mapping` replays a saved mapping, or Timeloop's loop nest of a single product (or an instruction
    stream), instead of searching one.
    `strategy` names how mappings are chosen (`search`), `objective` what for: `latency` (then energy, then traffic) or `edp`. `budget`
    is the time after which the search takes the best mappings so far ("5 s", or seconds); Ctrl-C while it maps does the same.
    A `mapper.strategies.Search` as the `strategy` is all three, and remembers from one call to the next.

    `engine` is `fast` or `simpy`; both give the same spans. With `co_processing` units of a device may share an operator, or run
    independent ones at the same time, wherever that is faster; without it they take turns; `"rule"` divides the experts of a mixture
    by the rule of the smallest first in place of the best division. `experts` are the tokens of each expert, in every layer; without
    them the rows of a mixture are shared out evenly.

    Raises `WorkloadError`, `HardwareError`, `MappingError` or `CapacityError` (all `ValueError`s) with one message for each mistake.
    """
    import workloads
    from hw.devices import load as load_device
    from mapper.compile import compile_graph, workload_name
    from mapper.errors import MappingError
    from mapper.flightllm.compile import Stream
    from mapper.kernels import fuse
    from mapper.stop import interruptible
    from mapper.target import Target
    from mapper.timeloop import TimeloopMapping, resolve
    from sim import ENGINES, simulate
    from workloads.experts import with_tokens

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
    if experts is not None:
        graph = with_tokens(graph, experts)
    traced = time.perf_counter()
    if runs_streams(target):
        tell(f"compiling {graph.name} for {target.name}")
        return stream_report(graph, target, formats_of(graph), engine, traced - start, tell, mapping)
    if isinstance(mapping, Stream):
        raise MappingError(f"{target.name} runs loop nests: expected a saved mapping, found instructions for another kind of device")
    tell(f"mapping {graph.name} onto {target.name}")
    if isinstance(mapping, TimeloopMapping):
        mapping = resolve(mapping, [kernel for _, kernels in fuse(graph) for kernel in kernels], Target(target), workload_name(graph))
    chooser = _chooser(graph, mapping, strategy, objective, budget)
    with interruptible(chooser.stop) if mapping is None and chooser is not strategy else nullcontext():
        compiled = compile_graph(graph, target, mapping, strategy=chooser, co_processing=co_processing)
    mapped = time.perf_counter()
    tell(f"simulating {compiled.program.tasks()} tasks")
    trace = simulate(compiled.program, engine, progress=lambda done, tasks: tell(f"simulating: {done} of {tasks} tasks"))
    elapsed = {"trace": traced - start, "map": mapped - traced, "simulate": time.perf_counter() - mapped}
    return build_report(compiled, trace, engine, elapsed, _searched(compiled, chooser) if mapping is None else {})


def _chooser(
    graph: Graph, mapping: SavedMapping | None, strategy: str | Search | None, objective: str | None, budget: str | float | None
) -> Search:
    """What chooses the mappings. Raises `MappingError` for names it does not know and for wishes that exclude each other."""
    from hw.errors import HardwareError
    from hw.quantity import TIME, parse
    from mapper.errors import MappingError
    from mapper.kernels import fuse
    from mapper.memo import Memo
    from mapper.objective import objective_named
    from mapper.stop import Stop
    from mapper.strategies import DEFAULT, Search

    given = [name for name, value in (("strategy", strategy), ("objective", objective), ("budget", budget)) if value is not None]
    if mapping is not None and given:
        raise MappingError(f"a saved mapping is replayed as it is: leave out {' and '.join(given)}, or the mapping")
    if isinstance(strategy, Search):
        if len(given) > 1:
            raise MappingError(f"the strategy is a Search, which has its own: leave out {' and '.join(given[1:])}")
        return strategy
    seconds: float | None = None
    if budget is not None:
        try:
            seconds = float(parse(f"{budget} s" if isinstance(budget, (int, float)) else budget, TIME, minimum=0)) / FS
        except HardwareError as error:
            raise MappingError(f"budget: {error}") from None
    kernels = sum(len(kernels) for _, kernels in fuse(graph)) if seconds is not None else 1
    return Search(strategy or DEFAULT, objective_named(objective or "latency"), Stop(seconds), Memo.default(), kernels)


def _searched(compiled: Compiled, chooser: Search) -> dict[str, object]:
    """How the mappings were found and how good they are known to be."""
    choices = [(p.choice, p.count) for p in compiled.kernels if p.choice is not None]
    ended = "interrupted" if chooser.stop.interrupted else "budget" if chooser.stop.ended else "complete"
    proven = sum(choice.proven for choice, _ in choices)
    return {
        "strategy": chooser.strategy,
        "objective": chooser.objective.name,
        "ended": ended,
        "operators": len(compiled.kernels),
        "proven": proven,
        "examined": sum(choice.examined for choice, _ in choices),
        "mappings_bound_fs": sum(max(choice.bound_fs, p.lower_bound_fs) * p.count for p in compiled.kernels if (choice := p.choice)),
        "mappings_fs": sum(choice.plan.latency_fs * count for choice, count in choices),
    }


def build_report(
    compiled: Compiled, trace: Trace, engine: str, elapsed_s: Mapping[str, float], search: Mapping[str, object] | None = None
) -> Report:
    """The report of a simulated workload; `search` says how its mappings were found."""
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
    bands = of_operators(compiled.kernels, device)
    return Report(
        workload=graph.name,
        phase=graph.phase,
        batch=graph.batch,
        tokens=graph.tokens,
        context=graph.context,
        formats=formats_of(graph),
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
        operators=tuple(_row(placed, target, band, compiled) for placed, band in zip(compiled.kernels, bands, strict=True)),
        error_band=of_total(compiled.kernels, bands, total),
        roofs=_roofs(compiled, target),
        assumptions=compiled.assumptions,
        constants=tuple(Constant(name, c.value, f"{c.meaning}; {c.source}") for name, c in device.constants.items()),
        elapsed_s=elapsed_s,
        trace=trace,
        mapping=compiled.mapping,
        search=search or {},
        compiled=compiled,
    )


def _row(placed: Placed, target: Target, band: ErrorBand, compiled: Compiled) -> OperatorRow:
    from mapper.lmma import how

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
        error_band=band,
        mapping_bound_fs=max(placed.choice.bound_fs, placed.lower_bound_fs) if placed.choice else placed.lower_bound_fs,
        proven=placed.choice is not None and placed.choice.proven,
        commands={name: count for part in placed.parts for name, count in part.plan.commands.items()},
        candidates=tuple(Candidate(c.unit, c.mapping, c.latency_fs, c.reason) for c in placed.candidates if len(placed.candidates) > 1),
        parts=tuple(UnitPart(p.site.unit, p.plan.latency_fs, str(p.plan.mapping)) for p in placed.parts if len(placed.parts) > 1),
        lowering=how(target, kernel, placed.number_format, [p.kernel for p in compiled.kernels]),
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
        bandwidth = target.peak_bandwidth if use.name == target.main else device.memories[use.name].bandwidth
        if use.read + use.written:
            fractions[use.name] = (use.read + use.written) * FS / (bandwidth * interfaces * total)
    for name, unit in device.units.items():
        needed = 0.0
        for placed in compiled.kernels:
            for part in placed.parts:
                effort = part.plan.effort.get(name)
                if effort is None:
                    continue
                rate = unit.macs_per_cycle(part.site.format) if effort.macs else unit.operations_per_cycle()
                work = effort.macs or effort.operations
                needed += placed.count * work * FS / (rate * unit.count * device.unit_clock(name)) if rate else 0.0
        if needed:
            fractions[name] = needed / total
    return fractions


def formats_of(graph: Graph) -> dict[str, str]:
    """The format of most bytes of each role: of the weights and the inputs of linear layers, and of the cache. Roles that a graph has
    elsewhere only go by all of it. Inputs that were made into tables count as what they are tables of."""
    from workloads.transforms import linear_layers

    linear = linear_layers(graph)
    own = {"weights": {op.inputs[1] for op in linear.values()}, "acts": {op.inputs[0] for op in linear.values()}}
    names = {}
    for label, role in (("weights", "weight"), ("acts", "activation"), ("kv", "kv_cache")):
        tensors = [t for t in graph.tensors.values() if t.role == role]
        sizes: dict[str, int] = {}
        for tensor in [t for t in tensors if t.name in own.get(label, ())] or tensors:
            name = tensor.format.scheme if tensor.format.family == "table" else tensor.format.name
            sizes[name] = sizes.get(name, 0) + tensor.bytes * graph.multiplicity.get(tensor.name, 1)
        if sizes:
            names[label] = max(sizes, key=lambda name: (sizes[name], name))
    return names


def _roofs(compiled: Compiled, target: Target) -> tuple[Roof, ...]:
    device = compiled.device
    places = [(part.site.unit, part.site.format) for placed in compiled.kernels for part in placed.parts]

    def bandwidth(unit: str) -> float:
        way = device.own_way(unit)
        return float(way.bandwidth if way and way.bandwidth else target.memory.bandwidth * (3 if target.private_interfaces else 1))

    return tuple(
        Roof(unit, number_format or "vector", float(device.peak_flops(unit, number_format)), target.main, bandwidth(unit))
        for unit, number_format in dict.fromkeys(places)
        if unit in device.units
    )

"""From a graph and a device to a program: fuse, place, tile, check capacities, lower."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Literal

from hw.device import Device
from hw.memory import Dram, Scratchpad
from hw.quantity import FS_PER_S
from hw.units.pim import BankUnit
from hw.units.rdu import Rdu
from hw.work import sides
from mapper import lmma
from mapper.allocation import allocations
from mapper.banks import home_of_cache
from mapper.bounds import Bound, kernel_bound, total_fs
from mapper.errors import CapacityError, MappingError
from mapper.keep import Kept, allocate, candidates, reserved
from mapper.kernels import Kernel, fuse, tensor_sizes
from mapper.mapping import Mapping as SavedMapping
from mapper.pipeline import Lowering
from mapper.placement import Candidate, Joint, Part, Placer, independent, sites, space_at
from mapper.plan import Plan
from mapper.program import Item, Program, stored
from mapper.residency import NOTHING, Found, Side, residents
from mapper.search import Choice, Space
from mapper.shard import tensor_parallel
from mapper.storage import held, shipping
from mapper.strategies import Chooser, Search
from mapper.target import Target, converts
from workloads.graph import Graph, Segment


@dataclass(frozen=True)
class Placed:
    """A kernel with its plan: it runs `count` times. `number_format` is what its products are computed in, if it has any.

    `parts` are what each unit does of it, one for a kernel that runs on one unit. Kernels of one `stage` of a segment run at the
    same time on different units; the stages of a segment follow each other.
    """

    kernel: Kernel
    plan: Plan | Joint
    count: int
    number_format: str
    bound: Bound
    lower_bound_fs: int
    choice: Choice | None  # how good the plan is in its space; None for a replayed mapping and where several units share the kernel
    parts: tuple[Part, ...] = ()
    stage: tuple[int, int] = (0, 0)  # segment, and stage in it
    candidates: tuple[Candidate, ...] = ()  # what was weighed; nothing for a replayed mapping
    found: Found = NOTHING  # what it finds in the cache


@dataclass(frozen=True)
class Compiled:
    """A workload on a device, ready to be simulated. `kept` says which results stay in which scratchpad, where and how long."""

    graph: Graph
    device: Device
    kernels: tuple[Placed, ...]
    program: Program
    occupancy: Mapping[str, Mapping[str, int]]  # memory -> what its peak consists of, in bytes
    lower_bound_fs: int
    assumptions: tuple[str, ...]
    kept: tuple[Kept, ...] = ()

    @property
    def mapping(self) -> SavedMapping:
        operators = tuple(placed.plan.mapping for placed in self.kernels)
        return SavedMapping(self.device.name, workload_name(self.graph), operators, allocations(self))

    def __repr__(self) -> str:
        return f"Compiled({self.graph.name} on {self.device.name}, {len(self.kernels)} kernels, {self.program!r})"


def workload_name(graph: Graph) -> str:
    """The workload as a mapping names it."""
    return f"{graph.name} {graph.phase} batch {graph.batch} tokens {graph.tokens} context {graph.context}"


def compile_graph(
    graph: Graph,
    device: Device,
    mapping: SavedMapping | None = None,
    progress: Callable[[str], None] | None = None,
    strategy: Chooser | None = None,
    co_processing: bool | Literal["rule"] = True,
) -> Compiled:
    """Map a graph onto a device, by a `strategy` (the default searches) or by replaying a saved `mapping`.

    With `co_processing` two units may share a kernel and independent kernels may run on different units at the same time,
    wherever that is faster; without it the units take turns. With `"rule"` experts are divided by the rule of the smallest first,
    not by the best division.

    Raises `CapacityError` when the workload does not fit, `MappingError` when an operator cannot run on the device or the
    mapping was made for another workload or device.
    """
    if device.node is not None:
        graph = tensor_parallel(graph, device.node.chips)
    if any(isinstance(unit, Rdu) for unit in device.units.values()):
        from mapper.sections import compile_sections

        return compile_sections(graph, device, mapping, progress)
    target = Target(device)
    occupancy = check_capacity(graph, target)
    if mapping is not None:
        _check_origin(mapping, graph, device)
    placer = Placer(target, strategy or Search(), bool(co_processing), "rule" if co_processing == "rule" else "optimum")
    lowered = lmma.lower(graph, target, mapping, lambda variant: _time_fs(variant, placer))
    if lowered is not graph:
        graph, occupancy = lowered, check_capacity(lowered, target)
    segments = fuse(graph)
    staged, kept = _place(graph, segments, placer, mapping, progress)
    lowering = Lowering()
    items: list[Item] = []
    placed: list[Placed] = []
    for number, ((segment, _), stages) in enumerate(zip(segments, staged, strict=True)):
        for index, stage in enumerate(stages):
            placed += [_placed(target, kernel, joint, segment.count, (number, index)) for kernel, joint in stage]
        ships = shipping(target, [kernel for stage in stages for kernel, _ in stage], segment.name)
        items += lowering.repeat(segment.count, partial(_write, lowering, stages, ships))
    for name, memory in device.memories.items():
        if isinstance(memory, Scratchpad) and name in {pad for p in placed for pad in p.plan.footprint}:
            occupancy[name] = {"tiles": _most({p.stage: 0 for p in placed}, placed, name)}
            if stays := max((k.offset + k.size_bytes for k in kept if k.pad == name), default=0):
                occupancy[name] = {**occupancy[name], "results that stay": stays}
    return Compiled(
        graph=graph,
        device=device,
        kernels=tuple(placed),
        program=Program(_queues(target, items), tuple(items)),
        occupancy=occupancy,
        lower_bound_fs=total_fs(target, [p.bound.scaled(p.count) for p in placed]),
        assumptions=_assumptions(graph, target, placed),
        kept=tuple(kept),
    )


ROUNDS = 16
"""Rounds of placing behind a cache with co-processing, at most; two or three are usual."""

Stage = list[tuple[Kernel, Joint]]
"""Kernels that run at the same time, one by itself as a rule."""


def _place(
    graph: Graph,
    segments: list[tuple[Segment, list[Kernel]]],
    placer: Placer,
    mapping: SavedMapping | None,
    progress: Callable[[str], None] | None,
) -> tuple[list[list[Stage]], list[Kept]]:
    """The stages of every segment, and what stays on the chip between their kernels.

    Units that share kernels go past the cache with their parts, so that later kernels may find less there than without: behind a
    cache the whole is placed without co-processing too, and the better of both taken.
    """
    best = _settled(graph, segments, placer, mapping, progress)
    several = any(len(stage) > 1 or len(joint.parts) > 1 for stages in best[0] for stage in stages for _, joint in stage)
    if several and mapping is None and placer.target.cache is not None:
        apart = _settled(graph, segments, replace(placer, co_processing=False), None, None)
        best = min(best, apart, key=lambda placed: _total_fs(segments, placed[0]))
    return best


def _settled(
    graph: Graph,
    segments: list[tuple[Segment, list[Kernel]]],
    placer: Placer,
    mapping: SavedMapping | None,
    progress: Callable[[str], None] | None,
) -> tuple[list[list[Stage]], list[Kept]]:
    """What a kernel finds in the cache depends on which kernels before it go through the cache: placing is repeated until that is
    what was assumed. A kernel that was once placed past the cache by itself stays there, and kernels that once ran at the same time
    and then did not stay apart, so that this ends; after `ROUNDS` without co-processing.
    """
    cache = placer.target.cache
    bodies = [(segment.count, kernels) for segment, kernels in segments]
    sides: list[list[Side]] = [["behind"] * len(kernels) for _, kernels in bodies]
    past: set[tuple[int, int]] = set()
    apart: set[tuple[int, int]] = set()
    together: set[tuple[int, int]] = set()
    for attempt in itertools.count():
        if attempt == ROUNDS:
            placer = replace(placer, co_processing=False)
        found = residents(bodies, cache[1] if cache else None, sides)
        staged: list[list[Stage]] = []
        kept: list[Kept] = []
        for number, ((_, kernels), hits) in enumerate(zip(bodies, found, strict=True)):
            stays: tuple[Kept, ...] = ()
            if mapping is not None:
                stages, stays = _replayed(graph, kernels, hits, placer, mapping)
            else:
                stages = _stages(number, kernels, hits, placer, past, apart, progress)
                if cache is None:
                    stages, stays = _keep(graph, placer, stages)
            staged.append(_prefetch(placer, stages, stays, mapping is not None))
            kept += [replace(one, body=number) for one in stays]
        again = [[placer.side(joint) for stage in stages for _, joint in stage] for stages in staged]
        if cache is None or again == sides:
            break
        sides = again
        was, together = together, set()
        for number, stages in enumerate(staged):
            index = 0
            for stage in stages:
                if len(stage) > 1:
                    together.add((number, index))
                elif placer.side(stage[0][1]) == "past":
                    past.add((number, index))
                index += len(stage)
        apart |= was - together
    return [_finding(stages, hits) for stages, hits in zip(staged, found, strict=True)], kept


def _total_fs(segments: list[tuple[Segment, list[Kernel]]], staged: list[list[Stage]]) -> int:
    """Femtoseconds of all stages, those of repeated bodies as often as they run."""
    return sum(segment.count * _stage_fs(stage) for (segment, _), stages in zip(segments, staged, strict=True) for stage in stages)


def _stage_fs(stage: Stage) -> int:
    """Femtoseconds of kernels that run at the same time, those of one unit after each other."""
    units: dict[str, int] = {}
    for _, joint in stage:
        for part in joint.parts:
            units[part.site.unit] = units.get(part.site.unit, 0) + part.plan.latency_fs
    return max(units.values())


def _finding(stages: list[Stage], hits: list[Found]) -> list[Stage]:
    """The same stages; every kernel knows what it finds in the cache."""
    each = iter(hits)
    return [[(kernel, replace(joint, found=next(each))) for kernel, joint in stage] for stage in stages]


def _time_fs(graph: Graph, placer: Placer) -> int:
    """Femtoseconds of a graph as it would be placed: what decides between graphs that compute the same. Raises `CapacityError` when
    it does not fit."""
    check_capacity(graph, placer.target)
    segments = fuse(graph)
    staged, _ = _place(graph, segments, placer, None, None)
    return _total_fs(segments, staged)


def _stages(
    number: int,
    kernels: list[Kernel],
    hits: list[Found],
    placer: Placer,
    past: set[tuple[int, int]],
    apart: set[tuple[int, int]],
    progress: Callable[[str], None] | None,
) -> list[Stage]:
    """A body of kernels, each placed where it is fastest."""
    plans: list[Joint] = []
    for index, (kernel, resident) in enumerate(zip(kernels, hits, strict=True)):
        if progress:
            progress(kernel.name)
        plans.append(placer.place(kernel, resident, past=(number, index) in past))
    stages: list[Stage] = []
    for run in independent(kernels):
        beside = None
        if placer.co_processing and (number, run.start) not in apart and not any((number, i) in past for i in run):
            beside = placer.beside([(kernels[i], hits[i]) for i in run], plans[run.start : run.stop])
        if beside is None:
            stages += [[(kernels[i], plans[i])] for i in run]
        else:
            stages.append([(kernels[i], joint) for i, joint in zip(run, beside, strict=True)])
    return stages


def _replayed(
    graph: Graph, kernels: list[Kernel], hits: list[Found], placer: Placer, mapping: SavedMapping
) -> tuple[list[Stage], tuple[Kept, ...]]:
    """A body of kernels as a saved mapping has it, and what stays on the chip."""
    saved = [mapping.find(kernel.name) for kernel in kernels]
    units = ["" if o.parts or "copies" in o.placement or "together" in o.placement else placer.scratch_unit(o.unit) for o in saved]
    places = {} if placer.target.cache else candidates(graph, placer.target.device, kernels, units)
    names = [name for o in saved for name in str(o.placement.get("keep", "")).split(", ") if name]
    where = f"mapping of {kernels[0].name!r} and what follows it"
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in places:
            raise MappingError(f"{where}: keep: {name!r} cannot stay on the chip; what can: {', '.join(places) or 'none of its results'}")
    for kernel, own in zip(kernels, saved, strict=True):
        written = [operand.tensor for operand in kernel.writes]
        for name in str(own.placement.get("keep", "")).split(", "):
            if name in names and name not in written:
                raise MappingError(f"mapping of {kernel.name!r}: keep: expected what it writes, {', '.join(written)}, found {name!r}")
    found = allocate(placer.target.device, [kept for name in names for kept in places[name]])
    if found is None:
        raise MappingError(f"{where}: keep: {', '.join(names)} need more than the scratchpads hold")
    plans = []
    for index, (kernel, own, resident) in enumerate(zip(kernels, saved, hits, strict=True)):
        mine = [o.tensor for o in (*kernel.reads, *kernel.writes) if o.tensor in names] if units[index] else []
        plans.append(placer.replay(kernel, own, resident, mine, reserved(found, index) if units[index] else ()))
    stages: list[Stage] = []
    for run in independent(kernels):
        stages += placer.replay_stages([kernels[i] for i in run], plans[run.start : run.stop])
    if _crowded(placer.target, stages, found):
        raise MappingError(f"{where}: keep: {', '.join(names)} leave too little room for the kernels that run meanwhile")
    return stages, found


def _keep(graph: Graph, placer: Placer, stages: list[Stage]) -> tuple[list[Stage], tuple[Kept, ...]]:
    """A body whose results stay on the chip where that is faster, and which do.

    Tried are no results, and all that are at most as large as one of them: sets that do not depend on what fits, so that more
    room never makes the best of them slower.
    """
    flat = [entry for stage in stages for entry in stage]
    target = placer.target
    kernels = [kernel for kernel, _ in flat]
    alone = [len(stage) == 1 and placer.keeps(joint) for stage in stages for _, joint in stage]
    units = [joint.parts[0].site.unit if may else "" for (_, joint), may in zip(flat, alone, strict=True)]
    places = candidates(graph, target.device, kernels, units)
    best: tuple[list[Stage], tuple[Kept, ...]] = stages, ()
    for size in sorted({kept.size_bytes for pads in places.values() for kept in pads}):
        names = [name for name, pads in places.items() if pads[0].size_bytes <= size]
        found = allocate(target.device, [kept for name in names for kept in places[name]])
        if found is None:
            break
        changed: list[Stage] = []
        numbers = iter(range(len(flat)))
        try:
            for stage in stages:
                row: Stage = []
                for kernel, joint in stage:
                    index = next(numbers)
                    mine = [o.tensor for o in (*kernel.reads, *kernel.writes) if o.tensor in names]
                    room = reserved(found, index)
                    if alone[index] and (mine or room):
                        joint = placer.keeping(kernel, joint, mine, room, NOTHING)
                    row.append((kernel, joint))
                changed.append(row)
        except CapacityError:
            break
        if _crowded(target, changed, found):
            break
        if _stage_cost(target, changed) < _stage_cost(target, best[0]):
            best = changed, found
    return best


def _crowded(target: Target, stages: list[Stage], kept: tuple[Kept, ...]) -> bool:
    """Whether kernels that share a stage or are shared by units, and so do not make room, need what is kept meanwhile."""
    index = 0
    for stage in stages:
        needs: dict[tuple[str, str], int] = {}
        for part in (part for _, joint in stage for part in joint.parts):
            for pad, need in part.plan.footprint.items():
                count = max(1, part.site.copies // target.device.memories[pad].count)
                needs[part.site.unit, pad] = max(needs.get((part.site.unit, pad), 0), need * count)
        for pad, size in (room for i in range(index, index + len(stage)) for room in reserved(kept, i)):
            if size + sum(need for (_, name), need in needs.items() if name == pad) > target.device.memories[pad].capacity:
                return True
        index += len(stage)
    return False


def _prefetch(placer: Placer, stages: list[Stage], kept: tuple[Kept, ...], saved: bool) -> list[Stage]:
    """A body whose kernels load what they can of the next one's weights: all that is gained by, or what a saved mapping says."""
    done = [list(stage) for stage in stages]
    for kernel, joint in [*done[0], *(entry for stage in done[1:] for entry in stage[1:])] if saved and done else []:
        if "prefetch" in joint.mapping.placement:
            raise MappingError(f"mapping of {kernel.name!r}: prefetch: no kernel runs before it by itself that could load its weights")
    for number in range(len(done) - 1):
        index = sum(len(stage) for stage in done[:number])
        wanted = done[number + 1][0][1].mapping.placement.get("prefetch")
        if saved and wanted is None:
            continue
        if wanted is not None and (not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1):
            name = done[number + 1][0][0].name
            raise MappingError(f"mapping of {name!r}: prefetch: expected a number of bytes of at least 1, found {wanted!r}")
        if saved and (len(done[number]) != 1 or len(done[number + 1]) != 1):
            name = done[number + 1][0][0].name
            raise MappingError(f"mapping of {name!r}: prefetch: kernels that run at the same time load nothing ahead")
        if len(done[number]) == len(done[number + 1]) == 1:
            (before,), (after,) = done[number], done[number + 1]
            both = placer.prefetch(before, after, reserved(kept, index), wanted)
            if both is not None:
                done[number], done[number + 1] = [(before[0], both[0])], [(after[0], both[1])]
    return done


def _stage_cost(target: Target, stages: list[Stage]) -> tuple[int, int]:
    """Femtoseconds and bytes of main memory of kernels one after the other; kernels at the same time do not take part."""
    joints = [joint for stage in stages if len(stage) == 1 for _, joint in stage]
    return sum(joint.latency_fs for joint in joints), sum(joint.traffic(target.main) for joint in joints)


def _placed(target: Target, kernel: Kernel, joint: Joint, count: int, stage: tuple[int, int]) -> Placed:
    number_format = joint.parts[0].site.format if kernel.multiplied else ""
    plan = joint.parts[0].plan.under(joint.mapping) if len(joint.parts) == 1 else joint
    bound = kernel_bound(target, kernel, number_format, sum(fs for _, fs in joint.setup))
    choice = joint.parts[0].choice if len(joint.parts) == 1 else None
    own = replace(bound, sizes=tuple(max(Fraction(0), size - joint.prefetched) for size in bound.sizes)) if joint.prefetched else bound
    least = total_fs(target, [own])
    return Placed(kernel, plan, count, number_format, bound, least, choice, joint.parts, stage, joint.candidates, joint.found)


def _most(stages: dict[tuple[int, int], int], placed: list[Placed], pad: str) -> int:
    """The most bytes that the kernels of a stage need of a scratchpad: those of one unit after each other, of several together."""
    needs: dict[tuple[tuple[int, int], str], int] = {}
    for p in placed:
        for part in p.parts:
            key = (p.stage, part.site.unit)
            needs[key] = max(needs.get(key, 0), part.plan.footprint.get(pad, 0))
    for (stage, _), need in needs.items():
        stages[stage] += need
    return max(stages.values())


def _queues(target: Target, items: list[Item]) -> dict[str, int]:
    """The device's queues, and those of sequencers and shares of memories beside them; all but units count femtoseconds."""
    queues = dict(target.queues)
    for task, _ in stored(items):
        queues.setdefault(task.on, FS_PER_S)
    return queues


def _write(lowering: Lowering, stages: list[Stage], after: list[Item]) -> list[Item]:
    return [*(item for stage in stages for item in _write_stage(lowering, stage)), *after]


def _write_stage(lowering: Lowering, stage: Stage) -> list[Item]:
    """Tasks of kernels that run at the same time: the parts of each unit in a row, beside those of the other units."""
    rows: dict[str, list[tuple[str, Plan]]] = {}
    for kernel, joint in stage:
        for part in joint.parts:
            rows.setdefault(part.site.unit, []).append((kernel.name, part.plan))
    if len(rows) == 1:
        (row,) = rows.values()
        return [item for name, plan in row for item in lowering.kernel(name, plan.steps, plan.setup)]

    def branch(row: list[tuple[str, Plan]], own: Lowering) -> list[Item]:
        return [item for name, plan in row for item in own.kernel(name, plan.steps, plan.setup)]

    return lowering.fork(stage[0][0].name, [(unit, partial(branch, row)) for unit, row in rows.items()])


def choose_space(target: Target, kernel: Kernel, resident: Found = NOTHING) -> tuple[Space, str]:
    """The family of mappings for a kernel on the first unit of a device that runs it, and the number format of its products ("" if
    it has none).

    Raises `MappingError` when no unit executes the kernel.
    """
    site = sites(target, kernel)[0]
    return space_at(target, kernel, site, resident)[0], site.format


def _check_origin(mapping: SavedMapping, graph: Graph, device: Device) -> None:
    names = [one.operator for one in mapping.operators]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise MappingError(f"the mapping has operator {twice[0]!r} more than once; leave one")
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
    beside = {**_held_beside(graph, target, parts), **held(graph, target, parts)}
    need, have = sum(parts.values()), target.memory.total
    if need > have:
        largest = ", ".join(f"{tensor.name} ({_gib(size)})" for tensor, size in tensor_sizes(graph)[:3])
        split = ", ".join(f"{label} {_gib(size)}" for label, size in parts.items() if size)
        raise CapacityError(
            f"{graph.name}: needs {_gib(need)} in {target.main!r} of {target.device.name}, which holds {_gib(have)}: {need - have} B short "
            f"({split}); largest tensors over all layers: {largest}. Use a smaller batch or context, or a narrower format "
            "(--weights, --kv)"
        )
    return {target.main: {label: size for label, size in parts.items() if size}, **beside}


def _held_beside(graph: Graph, target: Target, parts: dict[str, int]) -> dict[str, dict[str, int]]:
    """The KV cache in a memory of its own whose banks compute on it: taken out of `parts`. Raises `CapacityError` when it does not
    fit there."""
    formats = {tensor.format.name for tensor in graph.tensors.values() if tensor.role == "kv_cache"}
    name = home_of_cache(target.device, formats)
    if name is None:
        return {}
    unit = target.device.units[name]
    assert isinstance(unit, BankUnit)
    need, have = parts["kv cache"], target.device.memories[unit.memory].total
    if need > have:
        raise CapacityError(
            f"{graph.name}: the KV cache needs {_gib(need)} in {unit.memory!r} of {target.device.name}, which holds {_gib(have)}: "
            f"{need - have} B short; use a smaller batch or context, or more stacks"
        )
    if need:
        parts["kv cache"] = 0
        return {unit.memory: {"kv cache": need}}
    return {}


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
    if isinstance(memory, Dram) and memory.timing and memory.service:
        note = (
            f"{target.main} is {memory.service.channels} x {memory.timing} ({memory.mapping}) at the stated bandwidth: data moves at the "
            "rate of long streams of that preset, with rows, bank groups and refresh; "
        )
        if any(unit.execution == "waves" for unit in target.device.units.values()):
            return note + (
                "what thread blocks lose to short pieces and to turns between reads and writes is part of the memory's `efficiency`; no "
                "bank state is carried from one kernel to the next"
            )
        return note + (
            "rows of a tile that end before those of its matrix cost the rate of chunks of what one set of open rows holds of them; each "
            f"write-back turns the bus around and back ({memory.turn_fs / 1e6:.3g} ns); each operator pays one first access "
            f"({memory.latency / 1e6:.3g} ns); no bank state is carried from one transfer to the next"
        )
    less = " less refresh" if isinstance(memory, Dram) and memory.refresh else ""
    return f"{target.main} moves data at its data-sheet bandwidth{less}; banks, rows and turnarounds are not modelled"


def _order_notes(target: Target, placed: list[Placed]) -> Iterator[str]:
    """What runs at the same time, and what does not."""
    if any("prefetch" in p.plan.mapping.placement for p in placed):
        yield (
            "operators run one after the other; the first weights of some are loaded while the operator before still computes (prefetch in "
            "the mapping)"
        )
    elif len(placed) > 1:
        yield "operators run one after the other: no prefetch and no overlap across operators"
    if any(len(p.parts) > 1 for p in placed):
        yield "units that share an operator start together and wait for each other at its end; each reads all that its part needs"
    if any("together" in p.plan.mapping.placement for p in placed):
        yield "independent operators on different units run at the same time; what follows waits for all of them"
    if any("share" in m.placement for p in placed for m in (p.plan.mapping, *p.plan.mapping.parts)):
        yield f"units that use {target.main} at the same time have fixed shares of its time"
    if any(part.site.copies > 1 for p in placed for part in p.parts):
        yield "copies of a unit work in lockstep on equal pieces; one transfer fills all copies with what they share"
    for link in dict.fromkeys(way for p in placed for part in p.parts if (way := target.device.own_way(part.site.unit))):
        end = link.sink if link.source == target.main else link.source
        yield (
            f"units at {end} move data at {float(link.efficiency):.3g} of the bandwidth of their own way to {target.main}, "
            + ("beside its interface, in banks of their own" if link.access == "concurrent" else "in turns with its interface")
        )
        if link.sections > 1:
            yield (
                f"{target.main} has {link.sections} sections, of which the two ways use different ones at a time: every tensor lies in a "
                "stripe of each, weights by columns, keys and values by sequences and heads, experts round robin; units that share an "
                "operator are given whole stripes"
            )


# Assumptions ---------------------------------------------------------------------------------------------------------------
def _assumptions(graph: Graph, target: Target, placed: list[Placed]) -> tuple[str, ...]:
    notes = list(graph.notes)
    notes += _order_notes(target, placed)
    if any("+" in p.kernel.name for p in placed):
        notes.append("products of the same input (queries, keys and values; gate and up) run as one kernel, as inference libraries do")
    if target.cache:
        notes.append(
            f"the {target.cache[0]} keeps whole tensors, least recently used first out; results are written through to {target.main}"
        )
        notes.append("thread blocks of one kind take equally long; what power limits cost long products is part of a constant")
    else:
        kept = any("keep" in p.plan.mapping.placement for p in placed)
        notes.append(
            f"intermediate results go through {target.main} unless the operators are fused"
            + (" or they are kept on the chip, written and read in place (keep in the mapping)" if kept else "")
        )
        notes.append("scratchpads deliver what the units consume: their ports and banks are not modelled")
    notes.append(_memory_note(target))
    converted = sorted(
        {
            f"{o.format} operands are converted to {sides(p.number_format)[o.position]} on their way into the unit; the conversion takes "
            + ("one vector operation per weight and thread block" if p.plan.mapping.family == "wave" and o.position == 1 else "no time")
            for p in placed
            if p.number_format
            for o in p.kernel.reads
            if o.position in (0, 1) and converts(p.number_format, o.format, o.position)
        }
    )
    notes += converted
    notes += lmma.notes(target, [p.kernel for p in placed])
    if any(p.kernel.kind == "grouped_matmul" for p in placed):
        notes.append("experts are chosen uniformly and independently; active experts share their rows evenly")
    if any(p.kernel.kind == "scan" for p in placed):
        notes.append("state-space scans run on the vector unit, token by token; chunked scans on the matrix unit are not modelled")
    notes += [note for p in placed for part in p.parts if part.plan.commands for note in part.plan.notes]
    if target.excludes_cold_fill:
        notes.append("the first fill and the last write-back of each operator are left out of the time (cold_fill=excluded)")
    return tuple(dict.fromkeys(notes))

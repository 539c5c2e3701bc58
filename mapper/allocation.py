"""Where every tensor lies, at each level of memory, and for how long: what a saved mapping says beside its loop nests.

Weights, constants and the cache of keys and values lie in main memory (or in the memory whose banks compute on them) for the whole
run, one after the other; activations behind them, each from the kernel that writes it to the last one that reads it, first fit.
Tiles of a kernel start at the beginning of a scratchpad, results that stay on the chip end at its end. Of a cache it says which
share of a tensor a kernel finds there.

It follows from the mapping: a replay computes it again and does not read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mapper.banks import home_of_cache
from mapper.mapping import Allocation
from workloads.graph import Graph

if TYPE_CHECKING:
    from hw.device import Device
    from mapper.compile import Compiled, Placed

PERSISTENT = ("weight", "constant", "kv_cache")
"""Roles of tensors that lie in memory for the whole run, in the order in which they lie there."""


def allocations(compiled: Compiled) -> tuple[Allocation, ...]:
    """The tensors of a workload in every memory of its device."""
    graph, device, kernels = compiled.graph, compiled.device, compiled.kernels
    lasting = tuple(_lasting(graph, device))
    start = sum(one.size_bytes * one.copies for one in lasting if one.memory == device.main_memory)
    return (*lasting, *_activations(compiled, start), *_cached(device, graph, kernels), *_tiles(device, kernels), *_kept(compiled))


def _lasting(graph: Graph, device: Device) -> Iterator[Allocation]:
    formats = {tensor.format.name for tensor in graph.tensors.values() if tensor.role == "kv_cache"}
    bank = home_of_cache(device, formats) if formats else None
    home = str(getattr(device.units[bank], "memory", "")) if bank else device.main_memory
    ends: dict[str, int] = {}
    for role in PERSISTENT:
        memory = home if role == "kv_cache" else device.main_memory
        for name, tensor in graph.tensors.items():
            if tensor.role == role:
                copies = graph.multiplicity.get(name, 1)
                yield Allocation(memory, name, tensor.bytes, ends.get(memory, 0), copies=copies)
                ends[memory] = ends.get(memory, 0) + tensor.bytes * copies


def _activations(compiled: Compiled, start: int) -> Iterator[Allocation]:
    """Those in main memory, behind what lies there all the time. What enters a repeated body stays until its last run ends, what
        leaves it has its place from its first run on: from run to run the two swap places."""
    graph, kernels, main = compiled.graph, compiled.kernels, compiled.device.main_memory
    if not kernels:
        return
    inside = {(one.body, one.tensor) for one in compiled.kept}
    bodies = [placed.stage[0] for placed in kernels]
    ends = {body: len(bodies) - 1 - bodies[::-1].index(body) for body in bodies}
    lives: dict[str, list[int]] = {}
    for name in graph.inputs:
        lives[name] = [0]
    for index, placed in enumerate(kernels):
        for operand in (*placed.kernel.reads, *placed.kernel.writes):
            if operand.role == "activation" and (placed.stage[0], operand.tensor) not in inside:
                life = lives.setdefault(operand.tensor, [index])
                repeated = placed.count > 1 and bodies[life[0]] != placed.stage[0]
                life.append(ends[placed.stage[0]] if repeated else index)
    for name in graph.outputs:
        lives.setdefault(name, [len(kernels) - 1]).append(len(kernels) - 1)
    for life in lives.values():  # what a repeated body hands to its next run, or on, has its place from the start
        body = bodies[min(life)]
        if kernels[min(life)].count > 1 and bodies[max(life)] != body:
            life.append(bodies.index(body))
    stored = {name for name, tensor in graph.tensors.items() if tensor.role == "activation"}
    spans = [(min(life), max(life), name) for name, life in lives.items() if name in stored]
    done: list[tuple[int, int, int, int]] = []  # first, last, offset, end
    for first, last, name in sorted(spans, key=lambda s: (s[0], -graph.tensors[s[2]].bytes, s[2])):
        size = graph.tensors[name].bytes
        offset = _first_fit(size, [(a, b) for f, t, a, b in done if f <= last and first <= t])
        done.append((first, last, offset, offset + size))
        yield Allocation(main, name, size, start + offset, kernels[first].kernel.name, kernels[last].kernel.name)


def _first_fit(size: int, taken: Sequence[tuple[int, int]]) -> int:
    """The lowest offset at which `size` bytes meet none of the ranges that are taken."""
    offset = 0
    for begin, end in sorted(taken):
        if begin >= offset + size:
            break
        offset = max(offset, end)
    return offset


def _cached(device: Device, graph: Graph, kernels: Sequence[Placed]) -> Iterator[Allocation]:
    """What kernels find in a cache of what earlier ones have touched."""
    for placed in kernels:
        name = placed.kernel.name
        sizes = {o.tensor: o.total * o.format.bits / 8 for o in (*placed.kernel.reads, *placed.kernel.writes)}
        for tensor, share in placed.found.items():
            cache = next(m for m, memory in device.memories.items() if type(memory).kind == "cache")
            yield Allocation(cache, tensor, int(sizes.get(tensor, 0)), None, name, name, share=share)


def _tiles(device: Device, kernels: Sequence[Placed]) -> Iterator[Allocation]:
    """Buffers of tiles: of one unit after each other, of several that work at the same time side by side."""
    stages: dict[tuple[int, int], list[Placed]] = {}
    for placed in kernels:
        stages.setdefault(placed.stage, []).append(placed)
    for stage in stages.values():
        starts: dict[str, dict[str, int]] = {}  # scratchpad: unit: offset of its tiles
        for pad in dict.fromkeys(pad for placed in stage for part in placed.parts for pad in part.plan.footprint):
            offset = 0
            for unit in dict.fromkeys(part.site.unit for placed in stage for part in placed.parts):
                starts.setdefault(pad, {})[unit] = offset
                needs = [part.plan.footprint.get(pad, 0) for placed in stage for part in placed.parts if part.site.unit == unit]
                offset += max(needs, default=0)
        for placed in stage:
            name = placed.kernel.name
            for part in placed.parts:
                for pad, need in part.plan.footprint.items():
                    if type(device.memories[pad]).kind == "scratchpad":
                        yield Allocation(pad, f"tiles of {name} on {part.site.unit}", need, starts[pad][part.site.unit], name, name)


def _kept(compiled: Compiled) -> Iterator[Allocation]:
    """Results that stay on the chip."""
    for one in compiled.kept:
        names = [placed.kernel.name for placed in compiled.kernels if placed.stage[0] == one.body]
        offset = compiled.device.memories[one.pad].capacity - one.offset - one.size_bytes
        yield Allocation(one.pad, one.tensor, one.size_bytes, offset, names[one.first], names[one.last])

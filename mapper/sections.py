"""Dataflow machines: a section of operators runs as one kernel, its operators as stages of a pipeline over tiles of rows.

Every stage has compute units of its own; what passes between stages stays in memory units, double buffered; main memory serves
the edges of a section and its weights. In each step all stages work on their tile, one behind the other, so that a section takes
its fill plus, per tile, the longest of its stages and of what main memory, the tier behind it and the links between chips have to
move meanwhile. Weights that later stages need are loaded ahead as far as memory units are free.

Which operators form a section, in how many tiles, with how many compute units per stage, is searched for: every row of neighbours
that fits is a candidate, and the cheapest division of a layer into such rows is taken. With one operator per section this is the
machine without fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial
from math import ceil
from typing import NamedTuple

from hw.device import Device
from hw.errors import nearest
from hw.memory import Dram, Scratchpad
from hw.quantity import FS_PER_S, cycles_to_fs, transfer_fs
from hw.units.rdu import CapacityTier, Rdu
from hw.work import Vector
from mapper.bounds import Bound, total_fs
from mapper.collective import FABRIC
from mapper.compile import Compiled, Placed, live_activations, workload_name
from mapper.errors import CapacityError, MappingError
from mapper.kernels import Kernel, Operand, fuse, separate, tensor_sizes
from mapper.mapping import Mapping as SavedMapping
from mapper.mapping import OperatorMapping
from mapper.pipeline import Job, Lowering
from mapper.placement import Part
from mapper.plan import Plan
from mapper.program import Item, Move, Program, stored
from mapper.search import Choice
from mapper.target import Site, Target, compute_format
from mapper.vectorwork import of_kernel
from workloads import cost
from workloads.graph import Graph, Operator, Segment

FAMILY = "section"
MOST_TILES = 64
"""Tiles that a section is cut into at most: the fill is then a small part of it."""
BUFFERS = 2
"""Of what enters and leaves a section, and of weights that are not kept."""


def runs_sections(device: Device) -> bool:
    """Whether a device is a dataflow machine."""
    return any(isinstance(unit, Rdu) for unit in device.units.values())


# The machine ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Machine:
    """A dataflow device with the names of its parts. Raises `MappingError` where one is missing."""

    device: Device

    def __post_init__(self) -> None:
        if not isinstance(self.device.memories.get(self.pmu), Scratchpad):
            raise MappingError(f"{self.device.name}: unit {self.name!r} has no memory units; link a scratchpad to it")

    @cached_property
    def name(self) -> str:
        return next(name for name, unit in self.device.units.items() if isinstance(unit, Rdu))

    @cached_property
    def unit(self) -> Rdu:
        unit = self.device.units[self.name]
        assert isinstance(unit, Rdu)
        return unit

    @cached_property
    def clock(self) -> int:
        return self.device.unit_clock(self.name)

    @cached_property
    def pmu(self) -> str:
        return self.device.scratchpad("activations", self.name) or ""

    @cached_property
    def pmus(self) -> int:
        return self.device.memories[self.pmu].count

    def pmus_for(self, size: Fraction | int) -> int:
        """Memory units that a buffer occupies."""
        return max(1, ceil(Fraction(size) / self.device.memories[self.pmu].capacity))

    @cached_property
    def tier(self) -> tuple[str, int] | None:
        """The tier behind main memory and the bytes per second from it, if there is one."""
        main = self.device.main_memory
        for name, memory in self.device.memories.items():
            if isinstance(memory, CapacityTier):
                rates = [link.bandwidth for link in self.device.links if {link.source, link.sink} == {name, main} and link.bandwidth]
                return name, min([memory.bandwidth, *rates])
        return None

    @cached_property
    def main_rate(self) -> Fraction:
        """Bytes per second that long reads of main memory reach."""
        memory = self.device.dram
        return memory.bandwidth * (memory.fraction() if isinstance(memory, Dram) else Fraction(1))

    @cached_property
    def _main_costs(self) -> tuple[int, int, int, int, int]:
        memory = self.device.dram
        if not isinstance(memory, Dram):
            return FS_PER_S, memory.bandwidth, FS_PER_S, memory.bandwidth, 0
        read, write = memory.fraction() * memory.bandwidth, memory.fraction(write=True) * memory.bandwidth
        return FS_PER_S * read.denominator, read.numerator, FS_PER_S * write.denominator, write.numerator, memory.turn_fs

    def main_fs(self, read: int, written: int) -> int:
        """Femtoseconds that main memory is occupied by whole bytes, as `Memory.occupied_fs` with a turn for writes."""
        a, b, c, d, turn = self._main_costs
        return -(-read * a // b) + ((-(-written * c // d) + turn) if written else 0)

    def tier_fs(self, size: int) -> int:
        """Femtoseconds that the tier behind main memory takes."""
        return transfer_fs(size, self.tier[1]) if size and self.tier else 0

    def collective_fs(self, operation: str, size: int) -> int:
        if self.device.node is None:
            raise MappingError(f"{self.device.name}: is one chip; {operation} needs a node")
        return self.device.node.collective_fs(operation, max(1, size))


# Sections ------------------------------------------------------------------------------------------------------------------
class SectionKernel(Kernel):
    """All operators of a section, as one kernel."""

    @property
    def kind(self) -> str:
        return "section"


@dataclass(frozen=True)
class Stage:
    """A kernel as a stage: cycles of one compute unit per tile, cycles until its first results, and its place in the pipeline.

    `fabric_fs` is the time of a collective on the links.
    """

    kernel: Kernel
    steps: int
    fill: int
    lag: int
    fabric_fs: int
    macs: Fraction
    operations: Fraction


@dataclass(frozen=True)
class Layout:
    """A section in `tiles`: its stages, the compute units of each, and what it moves.

    `weights` are (bytes from main memory, bytes from the tier behind it, lag of the stage) of one pass; `kept` says whether they
    stay on the chip for all tiles. `reads` and `writes` are bytes per tile with the lag at which they cross the edge; `pmus` is what
    the buffers occupy, by purpose.
    """

    stages: tuple[Stage, ...]
    tiles: int
    kept: bool
    pcus: tuple[int, ...]
    weights: tuple[tuple[int, int, int], ...]
    reads: tuple[tuple[int, int], ...]
    writes: tuple[tuple[int, int], ...]
    pmus: Mapping[str, int]

    @property
    def depth(self) -> int:
        return max(stage.lag for stage in self.stages) + 1

    @property
    def cycles(self) -> list[int]:
        """Cycles of every stage for a tile."""
        pairs = zip(self.stages, self.pcus, strict=True)
        return [ceil(stage.steps / max(1, n)) + stage.fill if stage.steps else 0 for stage, n in pairs]

    @property
    def traffic(self) -> int:
        passes = 1 if self.kept else self.tiles
        return sum(a + b for a, b, _ in self.weights) * passes + self.tiles * sum(size for size, _ in (*self.reads, *self.writes))


class Step(NamedTuple):
    """A step of a section: the stages at work with the cycles of the longest, and femtoseconds and bytes of every resource.

    `away` comes from the tier behind main memory and is neither in `read` nor in `written`.
    """

    active: tuple[int, ...]
    cycles: int
    compute_fs: int
    fabric_fs: int
    read: int
    written: int
    away: int
    main_fs: int
    tier_fs: int

    @property
    def fs(self) -> int:
        return max(self.compute_fs, self.fabric_fs, self.main_fs, self.tier_fs)


@dataclass(frozen=True)
class Section:
    """Neighbouring kernels of a body with the best layout, its steps and its time."""

    first: int
    last: int  # not included
    layout: Layout
    steps: tuple[Step, ...]
    fs: int
    examined: int = 0  # layouts that were timed


@dataclass
class Body:
    """The kernels of a segment and what is known of their tensors. `spilled` is the share of each tensor that lies in the tier behind
    main memory; `outside` says whether a tensor written by a kernel is needed beyond a row of neighbours."""

    machine: Machine
    kernels: list[Kernel]
    graph: Graph
    spilled: Mapping[str, Fraction]
    users: Mapping[str, frozenset[tuple[int, int]]]
    number: int
    _layouts: dict[tuple[int, int], Section | CapacityError] = field(default_factory=dict)
    _stages: dict[tuple[str, int], Stage] = field(default_factory=dict)

    def format(self, kernel: Kernel) -> str:
        """The format of a kernel's products. Raises `MappingError` where the unit has none for them."""
        if kernel.multiplied is None:
            return ""
        found = compute_format(self.machine.unit.formats(), *kernel.multiplied)
        if found is None:
            a, b = kernel.multiplied
            raise MappingError(
                f"operator {kernel.name!r} multiplies {a} by {b}, which {self.machine.name!r} of {self.machine.device.name} does not: it "
                f"multiplies {', '.join(sorted(self.machine.unit.formats()))}"
            )
        return found

    # Searching ------------------------------------------------------------------------------------------------------------
    def best(self, fused: bool) -> list[Section]:
        """The division into sections that takes least time, then moves least. Raises `CapacityError` when an operator does not fit."""
        count = len(self.kernels)
        paths: list[tuple[int, int, list[Section]] | None] = [(0, 0, [])] + [None] * count
        setup = self._setup()
        for last in range(1, count + 1):
            for first in range(last - 1 if not fused else 0, last):
                before = paths[first]
                if before is None:
                    continue
                found = self.section(first, last)
                if isinstance(found, CapacityError):
                    if last - first == 1:
                        raise found
                    continue
                path = (before[0] + found.fs + setup, before[1] + found.layout.traffic, [*before[2], found])
                known = paths[last]
                if known is None or path[:2] < known[:2]:
                    paths[last] = path
        end = paths[count]
        assert end is not None
        return end[2]

    def _setup(self) -> int:
        device = self.machine.device
        return device.launch + device.dram.latency

    def section(self, first: int, last: int) -> Section | CapacityError:
        """The best layout of neighbours as one section, or why there is none."""
        known = self._layouts.get((first, last))
        if known is None:
            best: Section | None = None
            refused: CapacityError | None = None
            examined = 0
            for tiles in self.tilings(first, last):
                for kept in (True, False) if tiles > 1 else (True,):
                    try:
                        for pcus in self.allocations(first, last, tiles):
                            layout = self.layout(first, last, tiles, kept, pcus)
                            found = self.timed(first, last, layout)
                            examined += 1
                            if best is None or (found.fs, found.layout.traffic) < (best.fs, best.layout.traffic):
                                best = found
                    except CapacityError as error:
                        refused = error
            known = replace(best, examined=examined) if best else refused
            assert known is not None
            self._layouts[first, last] = known
        return known

    def rows(self, kernel: Kernel) -> int:
        """Rows of a kernel along which tiles are cut."""
        op = kernel.operator
        match kernel.kind:
            case "matmul":
                return op["m"] * op["batch"]
            case "attention":
                return op["batch"] * op["queries"]
            case "grouped_matmul" | "norm" | "softmax" | "topk" | "embedding":
                return op["rows"]
            case "scan" | "conv1d":
                return op["batch"] * op["length"]
        return max(1, self.graph.batch * self.graph.tokens)

    def tilings(self, first: int, last: int) -> Iterator[int]:
        """Numbers of tiles to consider: powers of two, of at least a row each. What needs all rows of a tensor before its first result
        (attention in both directions, a slice) is only cut where it begins a section."""
        yield 1
        whole = [k for k in self.kernels[first + 1 : last] if self._needs_all(k)]
        rows = min(self.rows(kernel) for kernel in self.kernels[first:last])
        tiles = 2
        while not whole and tiles <= min(MOST_TILES, rows):
            yield tiles
            tiles *= 2

    def _needs_all(self, kernel: Kernel) -> bool:
        op = kernel.operator
        if kernel.kind == "attention":
            return not op["causal"] and op["queries"] > 1
        if kernel.kind == "copy":
            return sum(o.total for o in kernel.writes) < max((o.total for o in kernel.reads), default=0)
        return False

    # One layout -----------------------------------------------------------------------------------------------------------
    def stages(self, first: int, last: int, tiles: int) -> tuple[Stage, ...]:
        producer: dict[str, int] = {}
        stages: list[Stage] = []
        for kernel in self.kernels[first:last]:
            lag = max((producer[o.tensor] + 1 for o in kernel.reads if o.tensor in producer), default=0)
            producer |= {o.tensor: lag for o in kernel.writes}
            key = kernel.name, tiles
            if key not in self._stages:
                self._stages[key] = self._stage(kernel, tiles)
            stages.append(replace(self._stages[key], lag=lag))
        return tuple(stages)

    def _stage(self, kernel: Kernel, tiles: int) -> Stage:
        unit, op = self.machine.unit, kernel.operator
        works = of_kernel(kernel)
        vector = sum(unit.vector_steps(replace(work, elements=ceil(work.elements / tiles))) for work in works)
        operations = Fraction(sum(work.elements * (work.operations + work.specials) for work in works), tiles)
        if kernel.kind == "collective":
            size = ceil(Fraction(op["elements"]) * self.graph.tensors[op.outputs[0]].format.bits / 8 / tiles)
            return Stage(kernel, vector, 0, 0, self.machine.collective_fs(op.function, size), Fraction(0), operations)
        product = 0
        match kernel.kind:
            case "matmul":
                if op["m"] == 1 < op["batch"]:
                    product = unit.product_steps(1, op["n"], op["k"], ceil(op["batch"] / tiles))
                else:
                    product = unit.product_steps(ceil(op["m"] / tiles), op["n"], op["k"], op["batch"])
            case "grouped_matmul":
                rows = ceil(op["rows"] / tiles)
                active = min(op["active"], rows)
                product = unit.product_steps(ceil(rows / active), op["n"], op["k"], active)
            case "attention":
                product, pairs = self._attention(op, tiles)
                vector += unit.vector_steps(_softmax(pairs))
                operations += 5 * pairs
        fill = (unit.product_fill if product else 0) + (unit.vector_fill if vector else 0)
        steps = product + vector
        return Stage(kernel, steps, fill, 0, 0, Fraction(cost.macs(op), tiles) if product else Fraction(0), operations)

    def _attention(self, op: Operator, tiles: int) -> tuple[int, int]:
        """Cycles of one compute unit for scores and context of a tile, on average, and the pairs of queries and keys."""
        unit, group = self.machine.unit, op["heads"] // op["kv_heads"]
        sequences, queries = op["batch"], op["queries"]
        if queries == 1 or tiles <= sequences:
            sequences = ceil(sequences / tiles)
        else:
            queries = ceil(queries * sequences / tiles)
            sequences = 1
        pairs = cost.attended_pairs(op["queries"], op["keys"], bool(op["causal"]), op["window"])
        keys = ceil(pairs / op["queries"])  # of a query, on average
        heads = sequences * op["kv_heads"]
        score = unit.product_steps(group * queries, keys, op["head_dim"], heads)
        context = unit.product_steps(group * queries, op["value_dim"], keys, heads)
        return score + context, sequences * op["heads"] * queries * keys

    def allocations(self, first: int, last: int, tiles: int) -> Iterator[tuple[int, ...]]:
        """Compute units per stage: so that the longest stage is as short as can be, and where stages hardly overlap also so that
        their sum is short. Raises `CapacityError` when there are more stages than compute units."""
        stages, pcus = self.stages(first, last, tiles), self.machine.unit.pcus
        busy = [stage.steps for stage in stages if stage.steps]
        if len(busy) > pcus:
            short = f"{len(busy)} stages need a compute unit each of {pcus}: {len(busy) - pcus} short"
            raise CapacityError(f"{self._title(first, last)}: {short}")
        yield _even(stages, pcus)
        if tiles < len(stages) and len(busy) > 1:
            yield _by_root(stages, pcus)

    def layout(self, first: int, last: int, tiles: int, kept: bool, pcus: tuple[int, ...]) -> Layout:
        """What a section moves and holds. Raises `CapacityError` when its buffers need more memory units than there are."""
        machine, stages = self.machine, self.stages(first, last, tiles)
        lags: dict[str, int] = {}
        uses: dict[str, int] = {}  # the last lag at which a tensor made inside is used
        made: dict[str, Operand] = {}
        weights: list[tuple[int, int, int]] = []
        reads: dict[str, tuple[int, int]] = {}
        writes: list[tuple[int, int]] = []
        pmus = {"weights": 0, "between stages": 0, "edges": 0, "keys and values": 0}
        inside = {(self.number, index) for index in range(first, last)}
        for stage in stages:
            kernel = stage.kernel
            for operand in kernel.reads:
                if operand.role in ("weight", "constant"):
                    size = ceil(operand.size)
                    away = ceil(size * self.spilled.get(operand.tensor, Fraction(0)))
                    weights.append((size - away, away, stage.lag))
                    pmus["weights"] += machine.pmus_for(operand.size) if kept and tiles > 1 else BUFFERS
                elif operand.role == "kv_cache":
                    new = made[operand.tensor].elements if operand.tensor in made else 0
                    old = max(Fraction(0), (operand.elements - new) * operand.format.bits / 8)
                    if kernel.kind == "attention" and tiles > 1 and kernel.operator["queries"] > 1:
                        sequences = min(2, kernel.operator["batch"])
                        pmus["keys and values"] += machine.pmus_for(sequences * operand.size / kernel.operator["batch"])
                    else:
                        pmus["keys and values"] += BUFFERS
                    if old:
                        reads[operand.tensor] = ceil(old / tiles), stage.lag
                elif operand.tensor in made:
                    uses[operand.tensor] = max(uses.get(operand.tensor, 0), stage.lag)
                else:
                    size, lag = reads.get(operand.tensor, (0, stage.lag))
                    reads[operand.tensor] = max(size, ceil(operand.size / tiles)), min(lag, stage.lag)
                    uses[operand.tensor] = max(uses.get(operand.tensor, 0), stage.lag)
                    lags.setdefault(operand.tensor, lag)
            for operand in kernel.writes:
                made[operand.tensor] = operand
                lags[operand.tensor] = stage.lag
                if self._leaves(operand, inside):
                    writes.append((ceil(operand.size / tiles), stage.lag))
        for name, lag in lags.items():
            if name in made:
                if made[name].role != "kv_cache":
                    part = machine.pmus_for(made[name].size / tiles)
                    pmus["between stages"] += (max(uses.get(name, lag + 1), lag + 1) - lag + 1) * part
            else:
                pmus["edges"] += (uses[name] - lag + BUFFERS) * machine.pmus_for(reads[name][0])
        need = sum(pmus.values())
        if need > machine.pmus:
            size = machine.device.memories[machine.pmu].capacity
            parts = ", ".join(f"{count} for {what}" for what, count in pmus.items() if count)
            raise CapacityError(
                f"{self._title(first, last)} in {tiles} tiles needs {need} memory units of {size} B in {machine.pmu!r} of "
                f"{machine.device.name}, which has {machine.pmus}: {need - machine.pmus} short ({parts})"
            )
        return Layout(stages, tiles, kept, pcus, tuple(weights), tuple(reads.values()), tuple(writes), pmus)

    def _leaves(self, operand: Operand, inside: set[tuple[int, int]]) -> bool:
        """Whether what a kernel writes is needed outside its section."""
        if operand.role == "kv_cache" or operand.tensor in self.graph.outputs:
            return True
        return bool(self.users.get(operand.tensor, frozenset()) - inside)

    def _title(self, first: int, last: int) -> str:
        names = [kernel.name for kernel in self.kernels[first:last]]
        return f"section {section_name(names)!r} of {len(names)} operators"

    # Time -----------------------------------------------------------------------------------------------------------------
    def timed(self, first: int, last: int, layout: Layout) -> Section:
        """The steps of a layout: what every resource does in each."""
        machine, tiles = self.machine, layout.tiles
        cycles = layout.cycles
        times = [cycles_to_fs(own, machine.clock) for own in cycles]
        count = tiles + layout.depth - 1 + bool(layout.writes)
        loads = _Loads(machine, layout, (machine.pmus - sum(layout.pmus.values())) * machine.device.memories[machine.pmu].capacity)
        steps: list[Step] = []
        total = 0
        settled = False
        for number in range(count):
            if settled and layout.depth + 1 < number < tiles - 1:  # as the step before: all stages at work, nothing left to load
                steps.append(steps[-1])
                total += steps[-1].fs
                continue
            active = tuple(i for i, stage in enumerate(layout.stages) if 0 <= number - stage.lag < tiles)
            compute = max((times[i] for i in active), default=0)
            fabric = sum(layout.stages[i].fabric_fs for i in active)
            read = sum(size for size, lag in layout.reads if 0 <= number - lag < tiles)
            written = sum(size for size, lag in layout.writes if 0 <= number - 1 - lag < tiles)
            near, away = loads.step(number, max(compute, fabric), read, written)
            settled = not loads.left and not (near + away and loads.once)
            main = machine.main_fs(read + near + away, written + away)  # what the tier sends passes through main memory
            tier = machine.tier_fs(away)
            step = Step(active, max((cycles[i] for i in active), default=0), compute, fabric, read + near, written, away, main, tier)
            steps.append(step)
            total += step.fs
        return Section(first, last, layout, tuple(steps), total)

    def jobs(self, section: Section, step: Step) -> tuple[Job, ...]:
        """What the resources do in a step."""
        machine, stages = self.machine, section.layout.stages
        main = machine.device.main_memory
        jobs: list[Job] = []
        if step.main_fs:
            moves = (Move(main, step.read + step.away, step.written + step.away),)
            jobs.append(Job("move", main, step.main_fs, step.main_fs, moves))
        if step.away and machine.tier:
            jobs.append(Job("load", machine.tier[0], step.tier_fs, step.tier_fs, (Move(machine.tier[0], step.away, 0),)))
        if step.fabric_fs:
            jobs.append(Job("exchange", FABRIC, step.fabric_fs, step.fabric_fs))
        if step.compute_fs:
            macs = sum((stages[i].macs for i in step.active), Fraction(0))
            operations = sum((stages[i].operations for i in step.active), Fraction(0))
            jobs.append(Job("tile", machine.name, step.cycles, step.compute_fs, (), macs, operations))
        return tuple(jobs)

    def plan(self, section: Section) -> Plan:
        kernels, layout = self.kernels[section.first : section.last], section.layout
        parameters: dict[str, int | str] = {"operators": ", ".join(kernel.name for kernel in kernels), "tiles": layout.tiles}
        if layout.tiles > 1:
            parameters["weights"] = "kept" if layout.kept else "streamed"
        parameters["pcus"] = ", ".join(map(str, layout.pcus))
        mapping = OperatorMapping(section_name([kernel.name for kernel in kernels]), self.machine.name, FAMILY, parameters)
        device = self.machine.device
        size = sum(layout.pmus.values()) * device.memories[self.machine.pmu].capacity
        setup = tuple((what, fs) for what, fs in (("launch", device.launch), ("first access", device.dram.latency)) if fs)
        tiles = tuple((jobs,) for step in section.steps if (jobs := self.jobs(section, step)))
        return Plan(mapping, tiles, (0,), {self.machine.pmu: size}, setup)

    def kernel(self, section: Section) -> SectionKernel:
        kernels = self.kernels[section.first : section.last]
        inside = {(self.number, index) for index in range(section.first, section.last)}
        made = {operand.tensor for kernel in kernels for operand in kernel.writes}
        entering = [o for kernel in kernels for o in kernel.reads if o.tensor not in made or o.role == "kv_cache"]
        reads = {o.tensor: replace(o, position=-1) for o in entering}
        writes = {o.tensor: o for kernel in kernels for o in kernel.writes if self._leaves(o, inside)}
        operators = tuple(op for kernel in kernels for op in (kernel.operator, *kernel.fused))
        name = section_name([kernel.name for kernel in kernels])
        elements = max(1, sum(ceil(o.elements) for o in writes.values()))
        return SectionKernel(
            operator=Operator(name, "copy", tuple(reads), tuple(writes), {"elements": elements}),
            fused=operators,
            reads=tuple(reads.values()),
            writes=tuple(writes.values()),
            operations=sum(kernel.operations for kernel in kernels),
            specials=sum(kernel.specials for kernel in kernels),
            compulsory=tuple(o for kernel in kernels for o in kernel.compulsory),
        )

    def bound(self, section: Section, setup: int) -> Bound:
        """What no layout can beat: products and vector work at the peak of all compute units, compulsory bytes of main memory."""
        machine, matrix, vector, size = self.machine, 0, Fraction(0), Fraction(0)
        for kernel in self.kernels[section.first : section.last]:
            if number_format := self.format(kernel):
                macs = sum(cost.macs(op) for op in (kernel.operator, *kernel.fused))
                matrix += macs * FS_PER_S // (machine.unit.macs_per_cycle(number_format) * machine.clock)
            for work in of_kernel(kernel):
                vector += machine.unit.least_cycles(work) * FS_PER_S / machine.clock
            size += sum((o.size * (1 - self.spilled.get(o.tensor, Fraction(0))) for o in kernel.compulsory), Fraction(0))
        return Bound(matrix, int(vector), (size,), setup)

    # Replaying ------------------------------------------------------------------------------------------------------------
    def replay(self, mapping: SavedMapping) -> list[Section]:
        """The sections of a saved mapping. Raises `MappingError` for sections in conflict: an operator in two of them, in none, out
        of order, or with more compute units than there are."""
        names = [kernel.name for kernel in self.kernels]
        sections: list[Section] = []
        held: dict[str, str] = {}
        position = 0
        for own in mapping.operators:
            listed = [name.strip() for name in str(own.parameters.get("operators", "")).split(",")]
            if own.family != FAMILY or not set(listed) & set(names):
                continue
            for name in listed:
                if name in held:
                    raise MappingError(f"sections {held[name]!r} and {own.operator!r} are in conflict: both hold operator {name!r}")
                if name not in names:
                    raise MappingError(f"section {own.operator!r}: unknown operator {name!r}{nearest(name, names)}")
                held[name] = own.operator
            if listed != names[position : position + len(listed)]:
                raise MappingError(
                    f"section {own.operator!r}: expected neighbours in their order, from {names[min(position, len(names) - 1)]!r} on, "
                    f"found {', '.join(listed)}"
                )
            last = position + len(listed)
            sections.append(self._replayed(own, position, last))
            position = last
        if position < len(names):
            raise MappingError(f"the mapping has no section for operator {names[position]!r}: it is for another workload")
        return sections

    def _replayed(self, own: OperatorMapping, first: int, last: int) -> Section:
        tiles = own.integer("tiles")
        if tiles not in set(self.tilings(first, last)):
            known = ", ".join(map(str, self.tilings(first, last)))
            raise MappingError(f"section {own.operator!r}: tiles: expected one of {known}, found {tiles}")
        kept = tiles == 1 or own.choice("weights", ("kept", "streamed")) == "kept"
        try:
            pcus = tuple(int(text) for text in str(own.parameters.get("pcus", "")).split(","))
        except ValueError:
            pcus = ()
        stages = self.stages(first, last, tiles)
        if len(pcus) != len(stages) or any(n < (stage.steps > 0) for n, stage in zip(pcus, stages, strict=False)):
            raise MappingError(
                f"section {own.operator!r}: pcus: expected {len(stages)} numbers, at least 1 for each stage that computes, found "
                f"{own.parameters.get('pcus')!r}"
            )
        if (need := sum(pcus)) > self.machine.unit.pcus:
            have = self.machine.unit.pcus
            raise MappingError(
                f"section {own.operator!r}: its stages are in conflict: they need {need} compute units of {self.machine.name!r}, which "
                f"has {have}: {need - have} short"
            )
        return self.timed(first, last, self.layout(first, last, tiles, kept, pcus))


@dataclass
class _Loads:
    """Loads of weights, each due by the step in which its stage begins, earlier where memories would idle and there is room."""

    machine: Machine
    layout: Layout
    room: int  # bytes of memory units that nothing else uses

    def __post_init__(self) -> None:
        self.due = sorted([lag, near, away] for near, away, lag in self.layout.weights)

    @property
    def once(self) -> bool:
        """Whether weights are loaded once, not for every tile."""
        return self.layout.kept or self.layout.tiles == 1

    @property
    def left(self) -> bool:
        """Whether there are weights to come."""
        return self.once and any(near or away for _, near, away in self.due)

    def step(self, number: int, busy_fs: int, read: int, written: int) -> tuple[int, int]:
        """Bytes of weights that a step loads from main memory, and from the tier behind it, beside what it reads and writes while other
        resources are busy for so long."""
        machine, layout = self.machine, self.layout
        near = away = 0
        if not self.once:  # every tile brings the weights of the stages that work on it
            for size, far, lag in layout.weights:
                if 0 <= number - lag < layout.tiles:
                    near, away = near + size, away + far
            return near, away
        for entry in self.due:
            if entry[0] <= number:
                near, away = near + entry[1], away + entry[2]
                entry[1] = entry[2] = 0
        if not self.left:
            return near, away
        base = max(busy_fs, machine.tier_fs(away))
        fs = machine.main_fs(read + near + away, written + away)
        near += self._more(1, base - fs, machine.main_rate, number)
        if machine.tier:
            away += self._more(2, max(base, fs) - machine.tier_fs(away), Fraction(machine.tier[1]), number)
        return near, away

    def _more(self, which: int, idle_fs: int, rate: Fraction, number: int) -> int:
        """Bytes of later weights that fit into idle time and free memory units."""
        if idle_fs <= 0:
            return 0
        limit = idle_fs * rate.numerator // (rate.denominator * FS_PER_S)
        if self.layout.tiles == 1:  # where weights are kept they have their memory units from the start
            limit = min(limit, self.room - sum(first - now for first, now in self._early(number)))
        taken = 0
        for entry in self.due:
            part = min(entry[which], limit - taken)
            if part > 0:
                entry[which] -= part
                taken += part
        return taken

    def _early(self, number: int) -> Iterator[tuple[int, int]]:
        """Bytes of the weights of later stages in all, and those still to come."""
        left = {lag: 0 for lag, _, _ in self.due}
        for lag, near, away in self.due:
            left[lag] += near + away
        whole: dict[int, int] = {}
        for near, away, lag in self.layout.weights:
            whole[lag] = whole.get(lag, 0) + near + away
        for lag, size in whole.items():
            if lag > number:
                yield size, left[lag]


def _softmax(pairs: int) -> Vector:
    return Vector(pairs, 4, 1)


def _even(stages: tuple[Stage, ...], pcus: int) -> tuple[int, ...]:
    """Compute units so that the longest stage is as short as can be."""
    low, high = 1, max([1, *(stage.steps for stage in stages)])
    while low < high:
        middle = (low + high) // 2
        if sum(ceil(stage.steps / middle) for stage in stages) <= pcus:
            high = middle
        else:
            low = middle + 1
    return tuple(ceil(stage.steps / low) for stage in stages)


def _by_root(stages: tuple[Stage, ...], pcus: int) -> tuple[int, ...]:
    """Compute units in proportion to the root of the work: the least sum of the stages' times."""
    roots = [stage.steps**0.5 for stage in stages]
    spare = pcus - sum(1 for stage in stages if stage.steps)
    total = sum(roots) or 1.0
    return tuple(min(stage.steps, 1 + int(spare * root / total)) if stage.steps else 0 for stage, root in zip(stages, roots, strict=True))


def section_name(names: list[str]) -> str:
    """The name of a section by those of its kernels."""
    return names[0] if len(names) == 1 else f"{names[0]}-{names[-1].rpartition('.')[2]}"


# Memories ------------------------------------------------------------------------------------------------------------------
def hold(graph: Graph, machine: Machine) -> tuple[dict[str, Fraction], dict[str, dict[str, int]]]:
    """The share of each tensor that the tier behind main memory holds, and what each memory holds by role.

    What is read least per byte moves out first: tables of embeddings and experts before the weights of every token. Raises
    `CapacityError` when all memories together do not hold the workload.
    """
    device = machine.device
    labels = {"weight": "weights", "kv_cache": "kv cache", "constant": "constants"}
    fixed = {"kv cache": 0, "activations": live_activations(graph)}
    weights: dict[str, int] = {}
    for name, tensor in graph.tensors.items():
        if tensor.role in ("weight", "constant"):
            weights[name] = tensor.bytes * graph.multiplicity.get(name, 1)
        elif tensor.role == "kv_cache":
            fixed["kv cache"] += tensor.bytes * graph.multiplicity.get(name, 1)
    have, tier = device.dram.total, machine.tier
    need = sum(fixed.values()) + sum(weights.values())
    beyond = device.memories[tier[0]].total if tier else 0
    if sum(fixed.values()) > have or need > have + beyond:
        where = f"{device.main_memory!r} of {device.name}, which holds {have} B"
        largest = ", ".join(f"{tensor.name} ({size} B)" for tensor, size in tensor_sizes(graph)[:3])
        if sum(fixed.values()) > have:
            short = sum(fixed.values()) - have
            raise CapacityError(
                f"{graph.name}: KV cache ({fixed['kv cache']} B) and activations ({fixed['activations']} B) of one chip do not fit into "
                f"{where}: {short} B short; use a smaller batch or context, or a narrower cache (--kv)"
            )
        raise CapacityError(
            f"{graph.name}: needs {need} B in {where}, and {beyond} B behind it: {need - have - beyond} B short; largest tensors over all "
            f"layers: {largest}"
        )
    touched: dict[str, Fraction] = {}
    for operator, count in graph.operators():
        for position, tensor in enumerate(graph.reads(operator)):
            if tensor.name in weights:
                touched[tensor.name] = touched.get(tensor.name, Fraction(0)) + count * cost.read_elements(operator, tensor, position)
    spilled: dict[str, Fraction] = {}
    over = need - have

    def density(name: str) -> Fraction:
        return touched.get(name, Fraction(0)) / max(1, graph.tensors[name].elements * graph.multiplicity.get(name, 1))

    order = sorted(weights, key=lambda name: (density(name), name))
    for name in order:
        if over <= 0:
            break
        part = min(weights[name], over)
        spilled[name] = Fraction(part, weights[name])
        over -= part
    away = {name: ceil(weights[name] * share) for name, share in spilled.items()}
    here: dict[str, int] = {}
    for name, size in weights.items():
        label = labels[graph.tensors[name].role]
        here[label] = here.get(label, 0) + size - away.get(name, 0)
    occupancy = {device.main_memory: {label: size for label, size in {**here, **fixed}.items() if size}}
    if tier and away:
        occupancy[tier[0]] = {"weights": sum(away.values())}
    return spilled, occupancy


# The whole workload --------------------------------------------------------------------------------------------------------
def compile_sections(
    graph: Graph,
    device: Device,
    mapping: SavedMapping | None = None,
    progress: Callable[[str], None] | None = None,
    fused: bool = True,
) -> Compiled:
    """A graph (one chip's share of it) on a dataflow device. Without `fused` every operator of the graph is a section of its own.

    Raises `CapacityError` when the workload or an operator does not fit, `MappingError` for formats that the device lacks and for
    sections of a saved mapping that are in conflict.
    """
    machine, target = Machine(device), Target(device)
    spilled, occupancy = hold(graph, machine)
    if mapping is not None and (mapping.device != device.name or mapping.workload != workload_name(graph)):
        raise MappingError(
            f"the mapping was made for {mapping.workload!r} on {mapping.device!r}, not for {workload_name(graph)!r} on {device.name!r}"
        )
    lowering, items, placed = Lowering(), list[Item](), list[Placed]()
    pads = 0
    for number, (segment, body) in enumerate(bodies(graph, machine, spilled, fused)):
        if progress:
            progress(segment.name)
        formats = [body.format(kernel) for kernel in body.kernels]
        sections = body.best(fused) if mapping is None else body.replay(mapping)
        plans = [body.plan(section) for section in sections]
        for index, (section, plan) in enumerate(zip(sections, plans, strict=True)):
            number_format = next((f for f in formats[section.first : section.last] if f), "")
            bound = body.bound(section, sum(fs for _, fs in plan.setup))
            choice = Choice(plan, plan.latency_fs, True, section.examined) if mapping is None else None
            part = Part(Site(machine.name, number_format), plan, choice)
            own = total_fs(target, [bound])
            pads = max(pads, plan.footprint[machine.pmu])
            placed.append(Placed(body.kernel(section), plan, segment.count, number_format, bound, own, choice, (part,), (number, index)))
        items += lowering.repeat(segment.count, partial(_write, lowering, plans))
    queues = dict(target.queues)
    for task, _ in stored(items):
        queues.setdefault(task.on, FS_PER_S)
    occupancy[machine.pmu] = {"buffers": pads}
    return Compiled(
        graph=graph,
        device=device,
        kernels=tuple(placed),
        program=Program(queues, tuple(items)),
        occupancy=occupancy,
        lower_bound_fs=total_fs(target, [p.bound.scaled(p.count) for p in placed]),
        assumptions=tuple(_assumptions(graph, machine, placed, spilled)),
    )


def bodies(graph: Graph, machine: Machine, spilled: Mapping[str, Fraction], fused: bool = True) -> list[tuple[Segment, Body]]:
    """Every segment of a graph with the kernels that sections are made of: single operators where not `fused`."""
    segments = fuse(graph) if fused else separate(graph)
    users: dict[str, set[tuple[int, int]]] = {}
    for number, (_, kernels) in enumerate(segments):
        for index, kernel in enumerate(kernels):
            for operand in kernel.reads:
                users.setdefault(operand.tensor, set()).add((number, index))
    frozen = {name: frozenset(places) for name, places in users.items()}
    return [(segment, Body(machine, kernels, graph, spilled, frozen, number)) for number, (segment, kernels) in enumerate(segments)]


def _write(lowering: Lowering, plans: Iterable[Plan]) -> list[Item]:
    return [item for plan in plans for item in lowering.kernel(plan.mapping.operator, plan.steps, plan.setup)]


def _assumptions(graph: Graph, machine: Machine, placed: list[Placed], spilled: Mapping[str, Fraction]) -> Iterator[str]:
    yield from graph.notes
    yield (
        "operators of a section are stages of a pipeline over tiles of rows, handing over once per tile; results between them stay in "
        f"{machine.pmu!r}, main memory serves the edges of sections, weights, and keys and values"
    )
    yield "sections run one after the other, each started by the device itself; nothing is loaded for the next section before it starts"
    yield "links between compute and memory units, and ports of memory units, are not modelled: stages get what they consume"
    yield f"{machine.device.main_memory} moves data at the stated share of its bandwidth; banks and rows are not modelled"
    if any(p.kernel.kind == "section" and any(op.kind == "grouped_matmul" for op in p.kernel.fused) for p in placed):
        yield "experts are chosen uniformly and independently; active experts share their rows evenly"
    formats = {o.format.name for p in placed for o in p.kernel.reads if o.role == "weight"} - {p.number_format for p in placed} - {""}
    if formats:
        yield f"weights in {', '.join(sorted(formats))} are converted on their way into the compute units, which takes no time"
    if spilled and machine.tier:
        size = sum(ceil(share * graph.tensors[n].bytes * graph.multiplicity.get(n, 1)) for n, share in spilled.items())
        yield f"{size} B of weights, those that are read least per byte, lie in {machine.tier[0]!r} and pass through main memory when read"

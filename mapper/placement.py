"""Placement: which unit runs a kernel, and how several share it, by exact cost.

A kernel's candidates are its `sites`: every unit that takes its operands, in every format it multiplies them in (converted to
one of its own, or as they are stored), over all copies of the unit. The cheapest is taken; no rule of thumb decides. With
co-processing two units may share a kernel, cut where both end at the same time, and independent kernels may run on different
units at once, wherever that is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import combinations, pairwise, product
from math import ceil
from typing import Any

from mapper import lmma
from mapper.attention import Flash
from mapper.banks import Banks, beside
from mapper.cached import CachedAttention, CachedProduct
from mapper.collective import Collective
from mapper.cut import extents, piece, together, with_experts
from mapper.divide import Division, Tokens, by_rule, cuts, groups, optimum, sections
from mapper.errors import CapacityError, MappingError
from mapper.keep import without
from mapper.kernels import Kernel
from mapper.mapping import OperatorMapping, Value
from mapper.near import Near
from mapper.nest import Nest
from mapper.pipeline import Loop, Tiles
from mapper.plan import Effort, Plan
from mapper.prefetch import hand_over
from mapper.prefetch import independent as early
from mapper.residency import NOTHING, Found, Side
from mapper.search import Choice, Space, replay
from mapper.storage import InStorage, reads_storage, storage_unit
from mapper.strategies import Chooser
from mapper.stream import Stream
from mapper.target import Site, Target, compute_format
from mapper.vectorwork import of_kernel
from mapper.wave_attention import WaveAttention
from mapper.waves import WaveStream
from workloads.experts import has_histogram, tokens_of

PRODUCTS = frozenset({"matmul", "grouped_matmul"})

POSITIONS = 64
"""Places along a dimension at which a kernel may be cut between two units."""

TOGETHER = 6
"""Independent kernels in a row of which it is tried whether units should run them at the same time."""

SITE = ("format", "vector", "split", "copies", "share")
WHOLE, PART = (*SITE, "together", "keep", "prefetch"), (*SITE, "size", "tokens")
"""What the placement of a saved mapping may say: of a kernel on one unit, and of a part of one that several units share."""

NEVER_FS = 10**21
"""The time of what cannot be done: longer than anything else."""

SHARED = "shared"
"""The family of a kernel that several units share."""


# Families of mappings ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Family:
    """The spaces of mappings for units of one kind of execution: for products, for attention, and for vector work and copies."""

    product: Callable[[Target, Kernel, Found], Space]
    attention: Callable[[Target, Kernel, Found], Space]
    stream: Callable[[Target, Kernel, Found], Space]


FAMILIES: dict[str, Family] = {
    "tiles": Family(lambda t, k, _: Nest(t, k), lambda t, k, _: Flash(t, k), lambda t, k, _: Stream(t, k)),
    "waves": Family(lmma.product, WaveAttention, WaveStream),
    "banks": Family(Banks, Banks, Banks),
    "storage": Family(InStorage, InStorage, InStorage),
    "cached": Family(CachedProduct, CachedAttention, lambda t, k, _: Stream(t, k)),
    "bundles": Family(Near, Near, lambda t, k, _: Stream(t, k)),
}
"""Families by the `execution` of a unit. Units with costs of their own register theirs here."""


def in_banks(target: Target, unit: str) -> bool:
    """Whether a unit sits in the banks of a memory, which serve nothing else while it works."""
    return unit in target.device.units and target.unit(unit).execution == "banks"


def needs_vector(kernel: Kernel) -> bool:
    """Whether a kernel of products needs a vector unit beside the matrix unit: softmax, or elementwise work fused behind it."""
    return kernel.kind == "attention" or bool(kernel.operations or kernel.specials)


def sites(target: Target, kernel: Kernel) -> list[Site]:
    """Every place where a kernel can run by itself, in the order of the description. Raises `MappingError` when there is none."""
    formats = kernel.multiplied
    if formats is None:
        return _vector_sites(target, kernel)
    if reads_storage(target, kernel) and (held := storage_unit(target)) is not None:
        if compute_format(held[1].formats(), *formats) is None:
            raise MappingError(f"operator {kernel.name!r} attends to {formats[1]} in drives, which multiply {', '.join(held[1].formats())}")
        return [Site(held[0], compute_format(held[1].formats(), *formats) or "")]
    found: list[Site] = []
    alone = beside(target.device, kernel)
    for unit in [alone] if alone else target.device.units_for("gemm"):
        for number_format in target.lowerings(unit, *formats):
            for vector in _beside(target, unit, kernel):
                found += _over_copies(target, kernel, Site(unit, number_format, vector))
    if not found:
        unit, _ = target.matrix_unit(kernel.name, *formats)  # raises where no unit multiplies these formats
        target.vector_unit(kernel.name)
        raise MappingError(
            f"operator {kernel.name!r} needs vector work behind its products, and {unit!r} of {target.device.name} has no vector unit that "
            "reaches main memory the same way; add one and link it to the same scratchpad"
        )
    return found


def _beside(target: Target, unit: str, kernel: Kernel) -> list[str]:
    """Vector units that can work on what a matrix unit computes: those that reach main memory the same way."""
    device = target.device
    way = device.own_way(unit)
    near = [name for name in device.units_for("vector") if device.own_way(name) == way]
    return near or ([] if needs_vector(kernel) else [""])


def _over_copies(target: Target, kernel: Kernel, site: Site) -> Iterator[Site]:
    """A site, and the same with all copies of its unit in lockstep, along every dimension that can be cut."""
    unit = target.unit(site.unit)
    yield site
    if unit.count > 1 and unit.execution == "tiles":
        for dimension, size in extents(kernel).items():
            yield replace(site, split=dimension, copies=min(unit.count, size))


def _vector_sites(target: Target, kernel: Kernel) -> list[Site]:
    if not of_kernel(kernel):
        return [Site("")]
    units = target.device.units_for("vector")
    if not units:
        target.vector_unit(kernel.name)  # raises
    return [Site(unit, vector=unit) for unit in units]


def space_at(target: Target, kernel: Kernel, site: Site, resident: Found = NOTHING) -> tuple[Space, Site]:
    """The mappings of a kernel at a site, and the site with what its copies move together.

    Raises `MappingError` for a dimension that the kernel does not have.
    """
    device = target.device
    unit = device.units.get(site.unit)
    near = unit is not None and device.own_way(site.unit) is not None
    if kernel.kind == "collective":
        return Collective(target, kernel), site
    execution = unit.execution if unit is not None and kernel.multiplied else "tiles"
    if kernel.multiplied is None and not near and any(u.execution == "waves" for u in device.units.values()):
        execution = "waves"
    mine = kernel
    if site.copies > 1:
        sizes = extents(kernel)
        if site.split not in sizes:
            raise MappingError(
                f"operator {kernel.name!r} cannot be split along {site.split!r}; it has {', '.join(sizes) or 'nothing to split'}"
            )
        each = ceil(sizes[site.split] / site.copies)
        mine = piece(kernel, site.split, 0, each)
        times, work = together(kernel, mine)
        site = replace(site, times=times, work=work)
    if execution not in FAMILIES:
        raise MappingError(f"unit {site.unit!r}: nothing maps kernels onto units that run {execution!r}; known: {', '.join(FAMILIES)}")
    family = FAMILIES[execution]
    make = family.attention if kernel.kind == "attention" else family.product if kernel.kind in PRODUCTS else family.stream
    view = target.at(site) if site.unit else target
    return make(view, mine, NOTHING if near else resident), site


# Plans ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Part:
    """What one unit does of a kernel."""

    site: Site
    plan: Plan
    choice: Choice | None = None


@dataclass(frozen=True)
class Candidate:
    """What was weighed for a kernel: a unit (or several together, `a+b`) with its best mapping and time, or why it cannot run there."""

    unit: str
    mapping: str
    latency_fs: int | None
    reason: str = ""


@dataclass(frozen=True)
class Joint:
    """A kernel's plan: one part per unit, all at the same time on different resources; and what was weighed for it."""

    mapping: OperatorMapping
    parts: tuple[Part, ...]
    prefetched: int = 0  # bytes of the right operand that the kernel before has loaded
    candidates: tuple[Candidate, ...] = field(default=(), compare=False)
    found: Found = field(default=NOTHING, compare=False)

    @cached_property
    def latency_fs(self) -> int:
        """Femtoseconds from the start of all parts to the end of the last."""
        return max(part.plan.latency_fs for part in self.parts)

    @property
    def setup(self) -> tuple[tuple[str, int], ...]:
        """The shortest wait before a part's first step."""
        return min((part.plan.setup for part in self.parts), key=lambda setup: sum(fs for _, fs in setup))

    @cached_property
    def effort(self) -> Mapping[str, Effort]:
        total: dict[str, Effort] = {}
        for part in self.parts:
            for name, effort in part.plan.effort.items():
                sums = total.setdefault(name, Effort())
                sums.read += effort.read
                sums.written += effort.written
                sums.macs += effort.macs
                sums.operations += effort.operations
                sums.busy_fs += effort.busy_fs
        return total

    @cached_property
    def footprint(self) -> Mapping[str, int]:
        total: dict[str, int] = {}
        for part in self.parts:
            for pad, need in part.plan.footprint.items():
                total[pad] = total.get(pad, 0) + need
        return total

    def traffic(self, memory: str) -> int:
        effort = self.effort.get(memory)
        return ceil(effort.read + effort.written) if effort else 0

    @property
    def number_format(self) -> str:
        return self.parts[0].site.format


def queues_of(plan: Plan) -> set[str]:
    """Every queue that a plan's jobs run on."""
    found: set[str] = set()

    def collect(tiles: Tiles) -> None:
        for item in tiles:
            if isinstance(item, Loop):
                collect(item.body)
            else:
                found.update(job.on for stage in item for job in stage)

    collect(plan.tiles)
    return found


def single(plan: Plan, site: Site, choice: Choice | None = None, default: bool = True) -> Joint:
    """A kernel on one unit. The mapping states what the unit alone does not say."""
    shown: dict[str, Value] = {}
    if not default:
        shown |= {key: value for key, value in (("format", site.format), ("vector", site.vector)) if value and value != site.unit}
    if site.copies > 1:
        shown |= {"split": site.split, "copies": site.copies}
    if site.share != 1:
        shown["share"] = str(site.share)
    plan = plan.under(replace(plan.mapping, placement=shown))
    return Joint(plan.mapping, (Part(site, plan, choice),))


@dataclass
class Placer:
    """Places the kernels of a workload on the units of a device."""

    target: Target
    chooser: Chooser
    co_processing: bool = True
    division: str = "optimum"  # of experts between two units: the `optimum`, or by the `rule` of smallest first
    _known: dict[Hashable, Part | CapacityError] = field(default_factory=dict)

    # One kernel on one unit -----------------------------------------------------------------------------------------------
    def part(self, kernel: Kernel, site: Site, resident: Found) -> Part:
        """A kernel at a site. Raises `CapacityError` when no mapping fits there."""
        near = site.unit in self.target.device.units and self.target.device.own_way(site.unit) is not None
        key = (signature(kernel, NOTHING if near else resident), site)
        known = self._known.get(key)
        if known is None:
            space, full = space_at(self.target, kernel, site, resident)
            try:
                choice = self.chooser.choose(space, kernel.name, key)
                known = Part(full, choice.plan, choice)
            except CapacityError as error:
                known = error
            except OverflowError:
                known = CapacityError(f"operator {kernel.name!r} takes hours on {site.unit!r}, more femtoseconds than 64 bits hold")
            self._known[key] = known
        if isinstance(known, CapacityError):
            raise known
        return replace(known, plan=known.plan.under(replace(known.plan.mapping, operator=kernel.name)))

    def _fewer(self, kernel: Kernel, site: Site, resident: Found) -> Part:
        """A kernel at a site, on half as many copies of its unit for as long as they do not fit. Raises `CapacityError` when one copy
        does not."""
        try:
            return self.part(kernel, site, resident)
        except CapacityError:
            if site.copies <= 3:
                raise
            return self._fewer(kernel, replace(site, copies=site.copies // 2), resident)

    def alone(self, kernel: Kernel, resident: Found) -> tuple[dict[str, Part], dict[str, str]]:
        """The best part of every unit that can run the whole kernel, and why the others cannot. Raises what the best attempt raised
        when none can."""
        best: dict[str, Part] = {}
        refused: dict[str, CapacityError] = {}
        for site in sites(self.target, kernel):
            try:
                part = self._fewer(kernel, site, resident)
            except CapacityError as error:
                refused.setdefault(site.unit, error)
                continue
            if site.unit not in best or self._key(part.plan) < self._key(best[site.unit].plan):
                best[site.unit] = part
        if not best:
            raise next(iter(refused.values()))
        prefix = f"operator {kernel.name!r} "
        return best, {unit: str(error).removeprefix(prefix) for unit, error in refused.items() if unit not in best}

    def _key(self, plan: Plan | Joint) -> tuple[int, int]:
        return plan.latency_fs, plan.traffic(self.target.main)

    def side(self, joint: Joint) -> Side:
        """How a plan reaches main memory: through the cache, past it, or both."""
        device = self.target.device
        near = {p.site.unit in device.units and device.own_way(p.site.unit) is not None for p in joint.parts}
        return "both" if len(near) > 1 else "past" if near == {True} else "behind"

    def place(self, kernel: Kernel, resident: Found, past: bool = False) -> Joint:
        """The fastest way to run a kernel; among equals the one that moves fewest bytes, then the first. `past` keeps it on units
        that reach main memory past the cache.

        Raises `MappingError` when no unit executes it, `CapacityError` when nothing fits.
        """
        every, refused = self.alone(kernel, resident)
        many = self._many(kernel)
        weighed = {unit: self._single(part, many) for unit, part in every.items()}
        lone = {unit: part for unit, part in every.items() if not past or self.target.device.own_way(unit) is not None}
        best = min((weighed[unit] for unit in lone), key=self._key)
        shared: list[Joint] = []
        if self.co_processing and len(lone) > 1:
            parts = [part for unit, part in lone.items() if not in_banks(self.target, unit)]
            for one, other in combinations(parts, 2):
                shared += sorted(self._shared(kernel, one, other, resident), key=self._key)[:1]
            best = min([best, *shared], key=self._key)
        known = [Candidate(joint.mapping.unit, str(joint.mapping), joint.latency_fs) for joint in (*weighed.values(), *shared)]
        known += [Candidate(unit, "", None, reason) for unit, reason in {**refused, **self._unable(kernel, {*every, *refused})}.items()]
        return replace(best, candidates=tuple(known))

    def _unable(self, kernel: Kernel, able: Collection[str]) -> dict[str, str]:
        """Units with products that have no place for a kernel, and why."""
        if (formats := kernel.multiplied) is None:
            return {}
        found = {}
        for unit in self.target.device.units_for("gemm"):
            if unit in able:
                continue
            home = beside(self.target.device, kernel)
            if home is None and reads_storage(self.target, kernel) and (held := storage_unit(self.target)) is not None:
                home = held[0]
            if home is not None:
                found[unit] = f"keys and values lie in the memory of {home!r}"
            elif self.target.lowerings(unit, *formats):
                found[unit] = "no vector unit reaches main memory the same way"
            else:
                have = ", ".join(sorted(self.target.unit(unit).formats()))
                found[unit] = f"multiplies {have}, not {formats[0]} by {formats[1]}"
        return found

    def _many(self, kernel: Kernel) -> bool:
        """Whether there is a choice of format or vector unit on a unit, so that a mapping has to say which; look-up is one."""
        places = sites(self.target, kernel)
        if lmma.of_tables(kernel):
            return True
        return len({(s.unit, s.format, s.vector) for s in places}) > len({s.unit for s in places})

    def _single(self, part: Part, many: bool) -> Joint:
        return single(part.plan, part.site, part.choice, default=not many)

    # Several units share a kernel -----------------------------------------------------------------------------------------
    def contend(self, one: str, other: str) -> bool:
        """Whether two units that run at the same time share main memory's time."""
        device = self.target.device
        ways = [device.own_way(unit) if unit in device.units else None for unit in (one, other)]
        return ways[0] == ways[1] or any(way is not None and way.access == "exclusive" for way in ways)

    def _shared(self, kernel: Kernel, one: Part, other: Part, resident: Found) -> Iterator[Joint]:
        """A kernel cut between two units, at the places where the first stops being the one that ends earlier."""
        if max(one.plan.latency_fs, other.plan.latency_fs) >= POSITIONS * min(one.plan.latency_fs, other.plan.latency_fs):
            return  # less than one position for the slower unit
        parts = sections(self.target.device, one.site.unit, other.site.unit)
        for dimension, size in extents(kernel).items():
            if self.division == "rule" and kernel.kind == "grouped_matmul" and dimension != "experts":
                continue
            if dimension == "experts" and (parts > 1 or self.division == "rule" or has_histogram(kernel.operator)):
                yield from self._experts(kernel, one, other, parts, resident)
                continue
            places = cuts(kernel, dimension, size, parts)
            if places is None:
                step = ceil(size / POSITIONS)
                places = [*range(step, size, step)]
            low, high = -1, len(places)  # the first unit is early at `low`, late at `high`
            rates = Fraction(1, max(1, one.plan.latency_fs)), Fraction(1, max(1, other.plan.latency_fs))
            while high - low > 1:
                # where both would end together if each kept its rate of the last cut, inside what is still open
                wanted = size * rates[0] / sum(rates)
                nearest = min(range(len(places)), key=lambda i: abs(places[i] - wanted))
                middle = min(max(nearest, low + 1), high - 1)
                cut = places[middle]
                joint = self._cut(kernel, dimension, cut, (one.site, other.site), resident)
                if joint is None:
                    break
                yield joint
                first, second = (part.plan.latency_fs for part in joint.parts)
                low, high = (middle, high) if first < second else (low, middle)
                rates = Fraction(cut, first), Fraction(size - cut, second)

    def _cut(self, kernel: Kernel, dimension: str, cut: int, pair: Sequence[Site], resident: Found) -> Joint | None:
        """The first `cut` positions on one unit, the rest on another; None where that does not fit or both need one resource."""
        size = extents(kernel)[dimension]
        contend = self.contend(pair[0].unit, pair[1].unit)
        parts = []
        for site, start, length in zip(pair, (0, cut), (cut, size - cut), strict=True):
            mine = piece(kernel, dimension, start, length)
            share = Fraction(length, size) if contend else Fraction(1)
            if site.copies > 1 and site.split not in extents(mine):
                return None
            site = Site(site.unit, site.format, site.vector, site.split, site.copies, share=share)
            try:
                parts.append((self.part(mine, site, resident), length))
            except CapacityError:
                return None
        return self.joint(kernel, dimension, parts)

    def _experts(self, kernel: Kernel, one: Part, other: Part, parts: int, resident: Found) -> Iterator[Joint]:
        """A mixture of experts divided between two units: as the rule has it, and by default as is best, by what one expert takes;
        the best of them with experts moved for as long as that helps the whole."""
        items = groups(tokens_of(kernel.operator), parts)
        device = self.target.device
        costs = [self._expert_cost(kernel, part.site, resident) for part in (one, other)]
        near = [device.own_way(part.site.unit) is not None for part in (one, other)]
        divisions = []
        if not near[0] or near[1]:  # the unit near memory is the one that takes the small experts
            divisions.append(by_rule(items, *costs))
        if not near[1] or near[0]:
            divisions.append(by_rule(items, *reversed(costs))[::-1])
        if self.division != "rule":
            divisions.append(optimum(items, *costs))
        found = self._all_divided(kernel, one, other, divisions, resident)
        yield from (joint for joint, _ in found)
        while found and self.division != "rule" and parts == 1:
            best, division = min(found, key=lambda pair: self._key(pair[0]))
            slow = best.parts[0].plan.latency_fs < best.parts[1].plan.latency_fs
            moved = [_moved(division, slow, count) for count in dict.fromkeys(division[slow])]
            better = self._all_divided(kernel, one, other, moved, resident)
            found = [pair for pair in better if self._key(pair[0]) < self._key(best)]
            yield from (joint for joint, _ in found)

    def _all_divided(
        self, kernel: Kernel, one: Part, other: Part, divisions: Iterable[Division], resident: Found
    ) -> list[tuple[Joint, Division]]:
        plans = ((self._divided(kernel, one, other, division, resident), division) for division in dict.fromkeys(divisions))
        return [(joint, division) for joint, division in plans if joint is not None]

    def _expert_cost(self, kernel: Kernel, site: Site, resident: Found) -> Callable[[int], int]:
        """Femtoseconds that an expert takes at a site by its tokens, without the wait before a kernel's first step."""
        known: dict[int, int] = {}

        def cost(count: int) -> int:
            if count not in known:
                try:
                    plan = self.part(with_experts(kernel, (count,)), _elsewhere(site), resident).plan
                    known[count] = plan.latency_fs - sum(fs for _, fs in plan.setup)
                except (CapacityError, MappingError):
                    known[count] = NEVER_FS
            return known[count]

        return cost

    def _divided(self, kernel: Kernel, one: Part, other: Part, division: Division, resident: Found) -> Joint | None:
        """Experts on two units; None where one has nothing to do or that does not fit."""
        if not all(division):
            return None
        contend = self.contend(one.site.unit, other.site.unit)
        count = sum(map(len, division))
        parts = []
        for part, tokens in zip((one, other), division, strict=True):
            site = replace(_elsewhere(part.site), share=Fraction(len(tokens), count) if contend else Fraction(1))
            try:
                parts.append((self.part(with_experts(kernel, tokens), site, resident), len(tokens)))
            except (CapacityError, MappingError):
                return None
        return self.joint(kernel, "experts", parts, division)

    def joint(
        self, kernel: Kernel, dimension: str, parts: Sequence[tuple[Part, int]], tokens: Sequence[Sequence[int]] | None = None
    ) -> Joint | None:
        """Parts of a kernel at the same time, experts by their `tokens`; None where two need the same queue or more of a scratchpad
        than there is."""
        used: set[str] = set()
        for part, _ in parts:
            queues = queues_of(part.plan)
            if used & queues:
                return None
            used |= queues
        pieces = []
        for number, (part, length) in enumerate(parts):
            mapping = single(part.plan, part.site, default=False).mapping
            which: dict[str, Value] = {"tokens": " ".join(map(str, tokens[number]))} if tokens else {}
            pieces.append(replace(mapping, placement={"size": length, **which, **mapping.placement}))
        name = "+".join(part.site.unit for part, _ in parts)
        joint = Joint(OperatorMapping(kernel.name, name, SHARED, {"split": dimension}, parts=tuple(pieces)), tuple(p for p, _ in parts))
        memories = self.target.device.memories
        return joint if all(need <= memories[pad].capacity for pad, need in joint.footprint.items()) else None

    # Independent kernels at the same time ---------------------------------------------------------------------------------
    def beside(self, kernels: Sequence[tuple[Kernel, Found]], placed: Sequence[Joint]) -> list[Joint] | None:
        """Plans for independent kernels that run at the same time on different units, each unit one after the other; None where
        that is no faster than one after the other as they were placed."""
        executes = [self._executes(kernel) for kernel, _ in kernels]
        names = [n for n in dict.fromkeys(unit for units in executes for unit in units) if not in_banks(self.target, n)]
        if len(names) < 2 or len(kernels) < 2 or not all(executes):
            return None
        best: tuple[int, list[Joint]] | None = None
        for pair in combinations(names, 2):
            share = Fraction(1, 2) if self.contend(*pair) else Fraction(1)
            options = [self._options(kernel, resident, pair, share) for kernel, resident in kernels]
            for chosen in product(*options):
                if len({part.site.unit for part in chosen}) < 2:
                    continue
                used = {unit: set[str]().union(*(queues_of(p.plan) for p in chosen if p.site.unit == unit)) for unit in pair}
                if used[pair[0]] & used[pair[1]] or not self._fit(chosen, pair) or self._meet(pair, kernels, chosen):
                    continue
                time = max(sum(part.plan.latency_fs for part in chosen if part.site.unit == unit) for unit in pair)
                if best is None or time < best[0]:
                    best = time, [single(part.plan, part.site, part.choice, default=False) for part in chosen]
        if best is None or best[0] >= sum(joint.latency_fs for joint in placed):
            return None
        first = kernels[0][0].name
        weighed = [joint.candidates for joint in placed]
        return [replace(j, mapping=_together(j.mapping, first), candidates=c) for j, c in zip(best[1], weighed, strict=True)]

    def _meet(self, pair: Sequence[str], kernels: Sequence[tuple[Kernel, Found]], chosen: Sequence[Part]) -> bool:
        """Whether kernels on two units would read one section of memory at the same time: whole weights or caches lie in all of them."""
        if sections(self.target.device, *pair) == 1:
            return False
        both = list(zip(kernels, chosen, strict=True))
        return all(any(part.site.unit == unit and _striped(kernel) for (kernel, _), part in both) for unit in pair)

    def _executes(self, kernel: Kernel) -> list[str]:
        """Units that can run a kernel; none for one that only moves data."""
        return list(dict.fromkeys(site.unit for site in sites(self.target, kernel) if site.unit))

    def _options(self, kernel: Kernel, resident: Found, pair: Sequence[str], share: Fraction) -> list[Part]:
        """The best part of each unit of a pair that can run a kernel."""
        best: dict[str, Part] = {}
        for site in sites(self.target, kernel):
            if site.unit in pair:
                try:
                    part = self.part(kernel, replace(site, share=share), resident)
                except CapacityError:
                    continue
                if site.unit not in best or self._key(part.plan) < self._key(best[site.unit].plan):
                    best[site.unit] = part
        return list(best.values())

    def _fit(self, chosen: Iterable[Part], pair: Sequence[str]) -> bool:
        """Whether the largest needs of both units fit side by side."""
        needs: dict[tuple[str, str], int] = {}
        for part in chosen:
            for pad, need in part.plan.footprint.items():
                key = (part.site.unit, pad)
                needs[key] = max(need, needs.get(key, 0))
        memories = self.target.device.memories
        return all(sum(needs.get((unit, pad), 0) for unit in pair) <= memories[pad].capacity for _, pad in needs)

    # Replaying ------------------------------------------------------------------------------------------------------------
    def prefetch(
        self, before: tuple[Kernel, Joint], after: tuple[Kernel, Joint], reserved: tuple[tuple[str, int], ...], wanted: int | None = None
    ) -> tuple[Joint, Joint] | None:
        """Two kernels that follow each other on units with scratchpads, where the first loads weights of the second; None where
        nothing can be loaded ahead or nothing is gained. `reserved` bytes hold what stays on the chip during the first.

        With `wanted` bytes of a saved mapping, raises `MappingError` when they cannot be loaded ahead.
        """
        moved = 0
        if self.keeps(before[1]) and self.keeps(after[1]) and early(before[0], after[0]) and not self.target.excludes_cold_fill:
            (first,), (second,) = before[1].parts, after[1].parts
            ways = [self.target.device.own_way(part.site.unit) for part in (first, second)]
            pad = self.target.device.scratchpad("weights", second.site.unit)
            if pad is not None and ways[0] == ways[1]:
                taken = first.plan.footprint.get(pad, 0) + dict(reserved).get(pad, 0)
                room = self.target.device.memories[pad].capacity - taken
                one, two, moved = hand_over(first.plan, second.plan, after[0].name, room, wanted)
        if wanted is not None and moved != wanted:
            raise MappingError(f"mapping of {after[0].name!r}: prefetch: {wanted} B cannot be loaded ahead, at most {moved} B can")
        if not moved or (wanted is None and two.latency_fs >= second.plan.latency_fs):
            return None
        mapping = after[1].mapping
        if wanted is None:
            mapping = replace(mapping, placement={**mapping.placement, "prefetch": moved})
        return (
            replace(before[1], parts=(replace(first, plan=one),)),
            replace(after[1], mapping=mapping, parts=(replace(second, plan=two.under(mapping)),), prefetched=moved),
        )

    def keeps(self, joint: Joint) -> bool:
        """Whether what a plan reads or writes may stay on the chip: it runs on one copy of one unit with scratchpads."""
        (part, *others) = joint.parts
        return not others and bool(self.scratch_unit(part.site.unit)) and part.site.copies == 1 and part.site.share == 1

    def scratch_unit(self, name: str) -> str:
        """The name of a unit that works from scratchpads; "" for any other."""
        unit = self.target.device.units.get(name)
        return name if unit is not None and unit.execution == "tiles" else ""

    def keeping(self, kernel: Kernel, joint: Joint, kept: Collection[str], reserved: tuple[tuple[str, int], ...], resident: Found) -> Joint:
        """A kernel where it is placed, which neither loads nor stores what is `kept` and leaves the `reserved` bytes alone. Raises
        `CapacityError` when that leaves too little room."""
        (part,) = joint.parts
        site = replace(part.site, reserved=reserved)
        if kept or reserved:
            part = self.part(without(kernel, kept), site, resident)
        stays = ", ".join(o.tensor for o in kernel.writes if o.tensor in kept)
        placement = {**joint.mapping.placement, **({"keep": stays} if stays else {})}
        plan = part.plan.under(replace(part.plan.mapping, placement=placement))
        return replace(joint, mapping=plan.mapping, parts=(replace(part, plan=plan),))

    def replay(
        self,
        kernel: Kernel,
        mapping: OperatorMapping,
        resident: Found,
        kept: Collection[str] = (),
        reserved: tuple[tuple[str, int], ...] = (),
    ) -> Joint:
        """The plan of a saved mapping. Raises `MappingError` where it names something that the device or the kernel has not."""
        _check_keys(mapping, () if mapping.parts else WHOLE)
        if not mapping.parts:
            part, default = self._replayed(without(kernel, kept), mapping, resident, reserved)
            return replace(single(part.plan, part.site, default=default), mapping=mapping)
        where = f"mapping of {mapping.operator!r}"
        sizes = extents(kernel)
        dimension = mapping.choice("split", tuple(sizes) or ("nothing",))
        lengths = [_integer(part, "size") for part in mapping.parts]
        if sum(lengths) != sizes[dimension]:
            raise MappingError(f"{where}: the sizes of its parts must add up to {sizes[dimension]} along {dimension}, found {sum(lengths)}")
        tokens = _tokens(kernel, mapping, dimension)
        parts, start = [], 0
        for number, (saved, length) in enumerate(zip(mapping.parts, lengths, strict=True)):
            mine = with_experts(kernel, tokens[number]) if tokens else piece(kernel, dimension, start, length)
            if saved.parts:
                raise MappingError(f"{where}: a part cannot have parts of its own; list all parts side by side")
            part, _ = self._replayed(mine, saved, resident, part=True)
            parts.append((part, length))
            start += length
        self._check_sections(kernel, dimension, parts, tokens, where)
        shares = [part.site.share for part, _ in parts]
        for (one, _), (other, _) in combinations(parts, 2):
            if self.contend(one.site.unit, other.site.unit) and one.site.share + other.site.share > 1:
                raise MappingError(f"{where}: the shares of main memory must add up to at most 1, found {' and '.join(map(str, shares))}")
        joint = self.joint(kernel, dimension, parts, tokens)
        if joint is None:
            raise MappingError(f"{where}: its parts need the same unit, or together more than a scratchpad holds; use different units")
        return replace(joint, mapping=mapping)

    def _check_sections(
        self, kernel: Kernel, dimension: str, parts: Sequence[tuple[Part, int]], tokens: Sequence[Tokens] | None, where: str
    ) -> None:
        """Raises `MappingError` where two parts would use one section of memory at the same time."""
        size, units = extents(kernel)[dimension], [part.site.unit for part, _ in parts]
        for index, (one, other) in enumerate(pairwise(units)):
            ways = sections(self.target.device, one, other)
            if ways == 1:
                continue
            if tokens:
                count = tuple(tokens[index])
                whole = groups(tokens_of(kernel.operator), ways)
                mine = {tuple(sorted(c for g in chosen for c in g)) for n in range(1, len(whole)) for chosen in combinations(whole, n)}
                if count not in mine:
                    raise MappingError(
                        f"{where}: memory serves {one!r} and {other!r} from {ways} sections, over which experts are dealt round robin: "
                        f"expected experts of whole sections, {' | '.join(' '.join(map(str, g)) for g in whole)}"
                    )
                continue
            places = cuts(kernel, dimension, size, ways)
            if places is not None and (cut := sum(length for _, length in parts[: index + 1])) not in places:
                raise MappingError(
                    f"{where}: memory serves {one!r} and {other!r} from {ways} sections of their own: cut {dimension} at "
                    f"{', '.join(map(str, places)) or 'no place'}, found {cut}"
                )

    def replay_stages(self, kernels: Sequence[Kernel], joints: Sequence[Joint]) -> list[list[tuple[Kernel, Joint]]]:
        """Independent kernels in the stages that their saved mappings name: those `together` with one kernel run at the same time."""
        stages: list[list[tuple[Kernel, Joint]]] = []
        for kernel, joint in zip(kernels, joints, strict=True):
            name = joint.mapping.placement.get("together")
            if stages and name is not None and name == stages[-1][0][1].mapping.placement.get("together"):
                stages[-1].append((kernel, joint))
            else:
                stages.append([(kernel, joint)])
        for stage in stages:
            (first, joint), *more = stage
            if more:
                self._check_stage(stage)
            elif (name := joint.mapping.placement.get("together")) is not None:
                raise MappingError(
                    f"mapping of {first.name!r}: together: nothing that is independent of it and next to it runs together with {name!r}; "
                    "give both the same, or leave it out"
                )
        return stages

    def _check_stage(self, stage: Sequence[tuple[Kernel, Joint]]) -> None:
        parts = [part for _, joint in stage for part in joint.parts]
        where = f"mapping of {stage[0][0].name!r} and what runs together with it"
        units = list(dict.fromkeys(part.site.unit for part in parts))
        used = {unit: set[str]().union(*(queues_of(p.plan) for p in parts if p.site.unit == unit)) for unit in units}
        for one, other in combinations(units, 2):
            if both := sorted(used[one] & used[other]):
                raise MappingError(f"{where}: {one!r} and {other!r} both use {', '.join(both)}; state a share of memory, or run them apart")
            striped = {p.site.unit for kernel, joint in stage if _striped(kernel) for p in joint.parts}
            if {one, other} <= striped and sections(self.target.device, one, other) > 1:
                raise MappingError(
                    f"{where}: {one!r} and {other!r} would read weights or caches from one section of {self.target.main!r}; run them apart"
                )
            shares = [max(p.site.share for p in parts if p.site.unit == unit) for unit in (one, other)]
            if self.contend(one, other) and sum(shares) > 1:
                raise MappingError(f"{where}: the shares of main memory must add up to at most 1, found {shares[0]} and {shares[1]}")
        if not self._fit(parts, units):
            raise MappingError(f"{where}: together they need more of a scratchpad than it holds; run them apart or with smaller tiles")

    def _replayed(
        self, kernel: Kernel, mapping: OperatorMapping, resident: Found, reserved: tuple[tuple[str, int], ...] = (), part: bool = False
    ) -> tuple[Part, bool]:
        options = sites(self.target, kernel)
        placement = mapping.placement
        where = f"mapping of {mapping.operator!r}"
        _check_keys(mapping, PART if part else WHOLE)
        named = [site for site in options if site.unit == mapping.unit]
        if not named and len({site.unit for site in options}) > 1:
            raise MappingError(
                f"{where}: unit {mapping.unit!r} cannot run it, expected one of {', '.join(dict.fromkeys(s.unit for s in options))}"
            )
        for key, attribute in (("format", "format"), ("vector", "vector")):
            if (value := placement.get(key)) is not None:
                kept = [site for site in named if getattr(site, attribute) == value]
                if not kept:
                    raise MappingError(
                        f"{where}: {key}: expected one of {', '.join(sorted({getattr(s, attribute) for s in named}))}, found {value!r}"
                    )
                named = kept
        site = named[0] if named else options[0]
        if "copies" in placement or "split" in placement:
            copies, most = _integer(mapping, "copies"), self.target.unit(site.unit).count
            if copies > most:
                raise MappingError(f"{where}: copies: unit {site.unit!r} has {most}, found {copies}")
            if (split := placement.get("split")) not in (sizes := extents(kernel)):
                raise MappingError(f"{where}: split: expected one of {', '.join(sizes) or 'nothing (leave it out)'}, found {split!r}")
            site = replace(site, split=str(split), copies=copies)
        if "share" in placement:
            site = replace(site, share=_share(mapping))
        site = replace(site, reserved=reserved)
        space, full = space_at(self.target, kernel, site, resident)
        return Part(full, replay(space, mapping)), "format" not in placement and "vector" not in placement


def _striped(kernel: Kernel) -> bool:
    """Whether a kernel reads what lies in stripes over all sections of memory: weights, keys and values."""
    return any(operand.role in ("weight", "kv_cache") for operand in kernel.reads)


def _elsewhere(site: Site) -> Site:
    """A site without what follows from the kernel that it was found for."""
    return Site(site.unit, site.format, site.vector, site.split, site.copies)


def _moved(division: Division, side: bool, count: int) -> Division:
    """A division with one expert of `count` tokens of the first (`side` False) or second unit moved to the other."""
    left = list(division[side])
    left.remove(count)
    gained = tuple(sorted((*division[not side], count)))
    return (gained, tuple(left)) if side else (tuple(left), gained)


def _tokens(kernel: Kernel, mapping: OperatorMapping, dimension: str) -> list[Tokens] | None:
    """The experts of each part of a saved mapping by their tokens; None where it does not say. Raises `MappingError` where these are
    not the kernel's."""
    said = [part.placement.get("tokens") for part in mapping.parts]
    if all(text is None for text in said):
        return None
    if dimension != "experts":
        raise MappingError(f"mapping of {mapping.operator!r}: tokens belong to parts split along experts, not along {dimension}")
    have = tokens_of(kernel.operator)
    try:
        found = [tuple(sorted(int(count) for count in str(text).split())) for text in said]
    except ValueError:
        found = []
    sizes = [part.placement.get("size") for part in mapping.parts]
    if sorted(count for part in found for count in part) != list(have) or [len(part) for part in found] != sizes:
        raise MappingError(
            f"mapping of {mapping.operator!r}: tokens: expected those of the experts of each part, {' '.join(map(str, have))} in all, "
            f"found {' | '.join(map(str, said))}"
        )
    return found


def _together(mapping: OperatorMapping, first: str) -> OperatorMapping:
    return replace(mapping, placement={**mapping.placement, "together": first})


def _check_keys(mapping: OperatorMapping, known: Sequence[str]) -> None:
    """Raises `MappingError` for what the placement of a mapping may not say."""
    for key in mapping.placement:
        if key not in known:
            expected = f"expected one of {', '.join(known)}" if known else "its parts have placements of their own"
            raise MappingError(f"mapping of {mapping.operator!r}: placement has no {key!r}, {expected}")


def _integer(mapping: OperatorMapping, name: str) -> int:
    value = mapping.placement.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise MappingError(f"mapping of {mapping.operator!r}: {name}: expected an integer of at least 1, found {value!r}")
    return value


def _share(mapping: OperatorMapping) -> Fraction:
    value = mapping.placement["share"]
    try:
        share = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if not 0 < share <= 1:
        raise MappingError(f"mapping of {mapping.operator!r}: share: expected a share such as 1/2, above 0 and up to 1, found {value!r}")
    return share


def signature(kernel: Kernel, resident: Found) -> Any:
    """Everything that a kernel's plan depends on, names left out."""
    names: dict[str, int] = {}
    operands = tuple(
        (names.setdefault(o.tensor, len(names)), o.elements, o.total, o.format.name, o.role, o.position, resident.share(o.tensor))
        for o in (*kernel.reads, *kernel.writes)
    )
    ops = tuple((op.kind, tuple(sorted(op.attributes.items()))) for op in (kernel.operator, *kernel.fused))
    inputs = tuple(names.get(name, -1) for name in kernel.operator.inputs)
    return ops, inputs, operands, len(kernel.reads)


def independent(kernels: Sequence[Kernel]) -> list[range]:
    """Maximal runs of kernels of which none reads or writes what another one writes, in execution order, `TOGETHER` at most."""
    runs: list[range] = []
    start = 0
    touched: set[str] = set()
    written: set[str] = set()
    for index, kernel in enumerate(kernels):
        reads, writes = {o.tensor for o in kernel.reads}, {o.tensor for o in kernel.writes}
        if index > start and (reads & written or writes & touched or index - start >= TOGETHER):
            runs.append(range(start, index))
            start, touched, written = index, set(), set()
        touched |= reads | writes
        written |= writes
    if kernels:
        runs.append(range(start, len(kernels)))
    return runs

"""A kernel's plan: what a mapping makes of it, ready to be timed and lowered."""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from math import ceil

from mapper.mapping import OperatorMapping
from mapper.pipeline import Loop, Steps, Tile, Tiles, exclude_exposed, makespan, pipeline
from mapper.program import Move


@dataclass(frozen=True)
class Plan:
    """Tiles through stages with `lags`; `footprint` is the bytes needed in each on-chip memory; `setup` the time before the
    first step by reason; `untimed` names the memory whose exposed transfers are left out of the time, if any.

    A kernel in memory banks has `commands` of one channel by name, and `energy_pj` by location: in place of what its unit and
    the traffic that is `commanded` would cost. `revised` are the steps of a kernel that loads some of the next one's weights, or
    whose own were loaded by the one before; tiles and effort are those of the kernel by itself.
    """

    mapping: OperatorMapping
    tiles: Tiles
    lags: tuple[int, ...]
    footprint: MappingType[str, int] = field(default_factory=dict)
    setup: tuple[tuple[str, int], ...] = ()
    untimed: str = ""
    notes: tuple[str, ...] = ()
    commands: MappingType[str, int] = field(default_factory=dict)
    energy_pj: MappingType[str, Fraction | None] = field(default_factory=dict)
    commanded: tuple[Move, ...] = ()
    revised: Steps | None = None

    def under(self, mapping: OperatorMapping) -> Plan:
        """The same plan, and what is known of it, under another mapping that says the same."""
        plan = replace(self, mapping=mapping)
        plan.__dict__.update({name: self.__dict__[name] for name in ("steps", "latency_fs", "effort") if name in self.__dict__})
        return plan

    @cached_property
    def steps(self) -> Steps:
        if self.revised is not None:
            return self.revised
        steps = pipeline(self.tiles, self.lags)
        return exclude_exposed(steps, self.untimed) if self.untimed else steps

    @cached_property
    def latency_fs(self) -> int:
        """Femtoseconds from the kernel's start to its end: exactly what the lowered program takes."""
        return sum(fs for _, fs in self.setup) + makespan(self.steps)

    @cached_property
    def effort(self) -> MappingType[str, Effort]:
        """What the kernel does on every unit, and the bytes it moves in every memory."""
        counts: dict[int, tuple[Tile, int]] = {}
        _count(self.tiles, 1, counts)
        efforts: dict[str, Effort] = {}
        for tile, count in counts.values():
            _collect(tile, count, efforts)
        return efforts

    def traffic(self, memory: str) -> int:
        """Whole bytes that the kernel moves to and from a memory."""
        effort = self.effort.get(memory)
        return ceil(effort.read + effort.written) if effort else 0


@dataclass
class Effort:
    """Bytes, multiply-accumulates, vector operations and busy femtoseconds of one resource."""

    read: Fraction = Fraction(0)
    written: Fraction = Fraction(0)
    macs: Fraction | int = 0
    operations: Fraction | int = 0
    busy_fs: int = 0


def _count(tiles: Tiles, count: int, counts: dict[int, tuple[Tile, int]]) -> None:
    """How often every tile comes, equal ones that are one object together."""
    for item in tiles:
        if isinstance(item, Loop):
            _count(item.body, count * item.count, counts)
        else:
            _, before = counts.get(id(item), (item, 0))
            counts[id(item)] = item, before + count


def _collect(tile: Tile, count: int, efforts: dict[str, Effort]) -> None:
    for stage in tile:
        for job in stage:
            effort = efforts.setdefault(job.on, Effort())
            effort.macs += count * job.macs
            effort.operations += count * job.operations
            effort.busy_fs += count * job.fs
            for move in job.moves:
                memory = efforts.setdefault(move.memory, Effort())
                memory.read += count * move.read
                memory.written += count * move.written


def tile_sizes(size: int, block: int) -> list[int]:
    """Tile sizes to consider for a dimension: doublings of the block below its size, and the whole.

    >>> tile_sizes(300, 64)
    [64, 128, 256, 300]
    """
    sizes = []
    tile = block
    while tile < size:
        sizes.append(tile)
        tile *= 2
    return [*sizes, size]


def balanced_sizes(size: int, block: int) -> list[int]:
    """Tile sizes to consider for a dimension, in whole blocks: its even division into up to eight, and 2^i and 3 x 2^i blocks.

    Of sizes that need the same number of tiles only the smallest counts: it leaves most room and the evenest rest.

    >>> balanced_sizes(300, 32)
    [32, 64, 96, 128, 160, 300]
    """
    blocks = ceil(size / block)
    counts = set(range(1, 9))
    step = 1
    while step < blocks:
        counts |= {ceil(blocks / step), ceil(blocks / (3 * step))}
        step *= 2
    return sorted({min(size, ceil(blocks / count) * block) for count in counts})


def pieces(size: int, tile: int) -> list[tuple[int, int]]:
    """(piece, how many) of a dimension cut into tiles.

    >>> pieces(300, 128)
    [(128, 2), (44, 1)]
    """
    whole, rest = divmod(size, tile)
    return [(tile, whole)] * (whole > 0) + [(rest, 1)] * (rest > 0)

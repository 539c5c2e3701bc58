"""Products as a sequence of folds through which the contraction streams in slabs, with loads spread over time.

A unit that keeps its sums computes one fold (one block of results as large as the unit) after the other; each takes its operands
slab by slab. `rows` folds of one operand, the standing one, stay on the chip while all panels of the other operand, the passing
one, go by. What is needed next moves in early, over what has been used for the last time: the next panel of the passing operand
spread over as many folds as share it, the next block of the standing operand spread over the last and the first pass. Buffers
then hold little more than what is in use, and an interface that is fast enough on average never stalls the unit.

Parameters: `order` (the last operand to move but one: `mnk` keeps rows, `nmk` keeps columns), `rows` folds that stand, `slab` and
`chunk` elements of the contraction per step and per run (sums of several chunks meet in the scratchpad, for `across` passing panels
at a time), `keep`: of so many slabs all but one stand, the last one streams anew each pass (`all` or `none` for the extremes), and
`fill`: whether the first block is loaded `first` or as it is used (`late`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

from hw.quantity import FS_PER_S
from hw.work import Gemm
from mapper.errors import MappingError
from mapper.mapping import OperatorMapping
from mapper.pipeline import Job, Loop, Tile, Tiles
from mapper.plan import Plan

if TYPE_CHECKING:
    from mapper.nest import Nest
    from mapper.target import Target

ORDERS = ("mnk", "nmk")
KEEPS = ("all", "32", "8", "3", "2", "none")
FILLS = ("late", "first")
ROWS = (1, 2, 3, 4, 6, 8)
SLABS = (16, 64)
CHUNKS = (1, 2, 3)
ACROSS = (4, 8, 16)

SHORTEST = 16
"""Elements of the contraction in a slab, at least: shorter ones only make more steps."""

MOST_BLOCKS = 20_000
"""Blocks of the standing operand beyond which a mapping is not considered."""


@dataclass(frozen=True)
class Block:
    """Sizes of the standing folds, of the panels that pass, and of the slabs; whether sums begin and end in this block."""

    standing: tuple[int, ...]
    passing: tuple[int, ...]
    slabs: tuple[int, ...]
    last: bool

    @property
    def steps(self) -> int:
        """Steps of one pass."""
        return len(self.standing) * len(self.slabs)


def even(size: int, parts: int) -> list[int]:
    """`size` things in `parts` groups, the larger ones first.

    >>> even(10, 4)
    [3, 3, 2, 2]
    """
    each, more = divmod(size, parts)
    return [each + 1] * more + [each] * (parts - more)


def cut(size: int, piece: int) -> list[int]:
    """A size in pieces, the last one as large as what is left.

    >>> cut(10, 4)
    [4, 4, 2]
    """
    whole, rest = divmod(size, piece)
    return [piece] * whole + [rest] * (rest > 0)


@dataclass(frozen=True)
class Shape:
    """A mapping's parameters, resolved for a product."""

    order: str
    rows: int
    slab: int
    chunk: int
    across: int
    keep: int  # 0: all, 1: none, else of so many slabs all but one
    first: bool  # the first block is loaded before anything is computed

    def stands(self, slab: int) -> bool:
        """Whether a slab of the standing operand stays."""
        return self.keep == 0 or (self.keep > 1 and slab % self.keep != self.keep - 1)


@dataclass(frozen=True)
class Streamed:
    """The streamed mappings of one product on a unit that keeps its sums."""

    nest: Nest

    @property
    def target(self) -> Target:
        return self.nest.target

    @property
    def placement(self) -> tuple[str, str]:
        return self.nest.placement

    @staticmethod
    def applies(nest: Nest) -> bool:
        """Whether there are such mappings: one product, and a unit that keeps its sums."""
        return len(nest.products) == 1 and nest.products[0].count == 1 and nest.target.unit(nest.unit).stationary() == "outputs"

    @cached_property
    def fold(self) -> dict[str, int]:
        """Elements of one fold in each dimension; of the contraction the least that makes sense."""
        m, n, k = self.nest.target.unit(self.nest.unit).granularity()
        return {"m": m, "n": n, "k": k}

    @cached_property
    def full(self) -> dict[str, int]:
        p = self.nest.products[0]
        return {"m": p.m, "n": p.n, "k": p.k}

    # Candidates -----------------------------------------------------------------------------------------------------------------
    def candidates(self) -> Iterator[OperatorMapping]:
        seen = set()
        for order in ORDERS:
            folds = ceil(self.full[order[0]] / self.fold[order[0]])
            passing = ceil(self.full[order[1]] / self.fold[order[1]])
            for chunks in CHUNKS:
                chunk = self._whole(ceil(self.full["k"] / chunks))
                for slabs in SLABS:
                    slab = min(chunk, self._whole(max(SHORTEST, ceil(chunk / slabs))))
                    for rows in sorted({min(r, folds) for r in ROWS}):
                        for across in sorted({min(a, passing) for a in ACROSS}) if chunks > 1 else [passing]:
                            for keep in KEEPS:
                                for fill in FILLS:
                                    shape = Shape(order, rows, slab, chunk, across, _keep(keep), fill == "first")
                                    if shape not in seen and self._sensible(shape):
                                        seen.add(shape)
                                        yield self._mapping(shape)

    def _whole(self, k: int) -> int:
        """Whole multiples of what the unit contracts at a time."""
        return min(self.full["k"], ceil(k / self.fold["k"]) * self.fold["k"])

    def _mapping(self, s: Shape) -> OperatorMapping:
        keep = {0: "all", 1: "none"}.get(s.keep, str(s.keep))
        parameters: dict[str, int | str] = {"order": s.order, "rows": s.rows, "slab": s.slab, "chunk": s.chunk, "across": s.across}
        return OperatorMapping(
            self.nest.kernel.name, self.nest.unit, "streamed", {**parameters, "keep": keep, "fill": "first" if s.first else "late"}
        )

    def _sensible(self, s: Shape) -> bool:
        """Whether the parameters describe a mapping of its own that this family can run."""
        slabs = len(cut(s.chunk, s.slab))
        if s.keep > 1 and s.keep >= slabs:
            return False  # everything stands
        return not self._problem(s)

    def _problem(self, s: Shape) -> str:
        """Why the parameters are impossible; empty if they are not."""
        last = cut(self.full["k"], s.chunk)[-1]
        if len(cut(last, s.slab)) != len(cut(s.chunk, s.slab)):
            return f"chunk: the last one, of {last}, has fewer slabs of {s.slab} than those of {s.chunk}"
        folds, passing = (ceil(self.full[d] / self.fold[d]) for d in s.order[:2])
        blocks = ceil(folds / s.rows) * ceil(passing / s.across) * ceil(self.full["k"] / s.chunk)
        if blocks > MOST_BLOCKS:
            return f"rows: {blocks} blocks, more than {MOST_BLOCKS}"
        if s.across < passing and s.chunk >= self.full["k"]:
            return "across: belongs to several chunks; without them all panels pass"
        if blocks > 1 and s.keep != 1 and min(even(passing, ceil(passing / s.across))) < 2:
            return "keep: what stands for one pass only is not kept; use keep=none"
        return ""

    def shape(self, mapping: OperatorMapping) -> Shape:
        """The parameters of a mapping. Raises `MappingError` for one that is impossible."""
        order = mapping.choice("order", ORDERS)
        keep = _keep(mapping.choice("keep", KEEPS))
        folds, passing = (ceil(self.full[d] / self.fold[d]) for d in order[:2])
        chunk = mapping.integer("chunk", self.full["k"])
        rows, across = mapping.integer("rows", folds), mapping.integer("across", passing)
        first = mapping.choice("fill", FILLS) == "first"
        shape = Shape(order, rows, mapping.integer("slab", chunk), chunk, across, keep, first)
        if problem := self._problem(shape):
            raise MappingError(f"mapping of {mapping.operator!r}: {problem}")
        return shape

    # Buffers --------------------------------------------------------------------------------------------------------------------
    def _operands(self, s: Shape) -> tuple[tuple[str, str, Fraction], tuple[str, str, Fraction]]:
        """Job name, operand and bytes per element of the standing and of the passing operand."""
        a = ("load a", "activations", self.nest.a_size)
        b = ("load b", "weights", self.nest.b_size)
        return (a, b) if s.order == "mnk" else (b, a)

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        """Bytes in each scratchpad: the slabs that stand, one more while blocks change and two that stream; the passing panel with as
        much of the next one as is there before its slabs become free; results twice, and sums that are not complete."""
        s, nest = self.shape(mapping), self.nest
        wide = nest.target.unit(nest.unit).accumulator_bytes()
        x, y = (min(self.full[d], self.fold[d]) for d in s.order[:2])
        folds, passing = (ceil(self.full[d] / self.fold[d]) for d in s.order[:2])
        slabs = len(cut(s.chunk, s.slab))
        chunks = ceil(self.full["k"] / s.chunk)
        kept = sum(s.stands(i) for i in range(slabs))
        blocks = ceil(folds / s.rows) * ceil(passing / s.across) * chunks
        standing = s.rows * kept + (blocks > 1 and kept > 0) + (2 if kept < slabs else 0)
        panels = passing * ceil(folds / s.rows) * chunks
        moving = min(2, slabs * panels) if s.rows == 1 else slabs + (((s.rows - 2) * slabs + 1) // s.rows + 1 if panels > 1 else 0)
        (_, stands, x_size), (_, moves, y_size) = self._operands(s)
        piece, copies = x * y, 2 if folds * passing > 1 else 1
        waiting = 3 if copies > 1 and slabs * chunks == 1 and nest.post_unit else copies  # from the load to the epilogue
        out = ceil(piece * nest.out_size) * copies + ceil(piece * nest.extra_size) * waiting
        sums = s.rows * s.across if chunks > 1 else (copies if nest.post_unit else 1)
        out += piece * wide * sums if slabs * chunks > 1 or nest.post_unit else 0
        needs: dict[str, int] = {}
        for operand, size in (
            (stands, ceil(standing * x * s.slab * x_size)),
            (moves, ceil(moving * y * s.slab * y_size)),
            ("outputs", out),
        ):
            pad = nest.pads[operand]
            needs[pad] = needs.get(pad, 0) + size
        return needs

    # The schedule ---------------------------------------------------------------------------------------------------------------
    def blocks(self, s: Shape) -> list[Block]:
        """The blocks of the standing operand in their order."""
        xs, ys = (cut(self.full[d], self.fold[d]) for d in s.order[:2])
        chunks = cut(self.full["k"], s.chunk)
        groups = even(len(ys), ceil(len(ys) / s.across))
        out = []
        for start in range(0, len(xs), s.rows):
            position = 0
            for group in groups:
                for index, chunk in enumerate(chunks):
                    standing, passing = tuple(xs[start : start + s.rows]), tuple(ys[position : position + group])
                    out.append(Block(standing, passing, tuple(cut(chunk, s.slab)), index == len(chunks) - 1))
                position += group
        return out

    def bound(self, mapping: OperatorMapping) -> int:
        """Femtoseconds that the mapping cannot beat: all of its computation, all loads of an interface, or the sum over the first
        pass, the passes around a change of blocks, and all others, each as long as its computation or its loads."""
        s = self.shape(mapping)
        per_fs, apart = self._rates(s)
        clock = self.target.device.unit_clock(self.nest.unit)
        compute, stands, moves = self._totals(s)
        loads = int(stands * per_fs[0]), int(moves * per_fs[1])
        setup = sum(fs for _, fs in self.target.setup())
        counted = compute * FS_PER_S // clock
        if self.target.excludes_cold_fill:
            first = s.rows * s.chunk * min(self.full[s.order[0]], self.fold[s.order[0]]) if s.first else 0
            loads = max(0, loads[0] - int(first * per_fs[0])), max(0, loads[1] - int(s.chunk * self.fold[s.order[1]] * per_fs[1]))
        whole = max(loads) if apart else sum(loads)
        return setup + max(counted, whole, self._in_groups(s, per_fs, apart, clock))

    def _rates(self, s: Shape) -> tuple[tuple[Fraction, Fraction], bool]:
        """Femtoseconds per element of the standing and the passing operand at best, and whether they have interfaces of their own."""
        target = self.target
        rate = Fraction(target.memory.least_fs(1 << 60), 1 << 60)
        (_, stands, x_size), (_, moves, y_size) = self._operands(s)
        rates = x_size * target.times(stands) * rate, y_size * target.times(moves) * rate
        return rates, target.interface(stands) != target.interface(moves)

    def _totals(self, s: Shape) -> tuple[int, int, int]:
        """Cycles of all folds, and elements of the standing and the passing operand that are loaded."""
        x, y = (self.full[d] for d in s.order[:2])
        xs, ys = (kinds(self.full[d], self.fold[d]) for d in s.order[:2])
        folds, passing = (ceil(self.full[d] / self.fold[d]) for d in s.order[:2])
        groups, blocks = ceil(passing / s.across), ceil(folds / s.rows)
        cycles = stands = moves = 0
        for chunk, chunks in kinds(self.full["k"], s.chunk):
            slabs = cut(chunk, s.slab)
            kept = sum(size for i, size in enumerate(slabs) if s.stands(i))
            for (size_x, count_x) in xs:
                cycles += sum(chunks * count_x * count_y * self._fold_cycles(size_x, size_y, slabs) for size_y, count_y in ys)
            stands += chunks * x * (kept * groups + (chunk - kept) * passing)
            moves += chunks * y * chunk * blocks
        return cycles, stands, moves

    def _in_groups(self, s: Shape, per_fs: tuple[Fraction, Fraction], apart: bool, clock: int) -> int:
        """The sum over groups of passes, with the smallest panel and chunk for all, without blocks of fewer folds."""
        folds, passing = (ceil(self.full[d] / self.fold[d]) for d in s.order[:2])
        x = min(self.full[s.order[0]], self.fold[s.order[0]])
        if folds * self.fold[s.order[0]] > self.full[s.order[0]] and folds < 2 * s.rows:
            return 0
        y = self.full[s.order[1]] - (passing - 1) * self.fold[s.order[1]]
        chunks = ceil(self.full["k"] / s.chunk)
        slabs = cut(self.full["k"] - (chunks - 1) * s.chunk, s.slab)
        full = folds // s.rows if folds * self.fold[s.order[0]] == self.full[s.order[0]] else (folds - 1) // s.rows
        blocks = full * ceil(passing / s.across) * chunks
        kept = sum(size for i, size in enumerate(slabs) if s.stands(i))
        each = self._fold_cycles(x, y, slabs) * s.rows * FS_PER_S // clock
        stand = int(s.rows * kept * x * per_fs[0])
        again = int(s.rows * (sum(slabs) - kept) * x * per_fs[0])
        panel = int(sum(slabs) * y * per_fs[1])

        def least(passes: int, standing: int, panels: Fraction) -> int:
            loads = standing + again * passes, int(panel * panels)
            return max(passes * each, max(loads) if apart else sum(loads))

        passes, changes, total = full * passing * chunks, blocks - 1, 0
        if not s.first:
            total += least(1, stand, Fraction(1))
            passes -= 1
        elif not self.target.excludes_cold_fill:
            total += max(stand, panel) if apart else stand + panel
        if s.keep != 1 and changes and passes >= 2 * changes:
            total += changes * least(2, stand, Fraction(2 * (s.rows - 1), s.rows))
            passes -= 2 * changes
        total += passes * max(each, again, int(panel * Fraction(s.rows - 1, s.rows)))
        return total - each // max(1, s.rows) - 2 * (each // max(1, s.rows * len(slabs)))

    def least_energy_pj(self, mapping: OperatorMapping) -> Fraction:
        """Picojoules of the products and of main memory's traffic, as far as the device states them."""
        nest, target = self.nest, self.target
        s = self.shape(mapping)
        _, stands, moves = self._totals(s)
        (_, x_operand, x_size), (_, y_operand, y_size) = self._operands(s)
        size = stands * x_size * target.times(x_operand) + moves * y_size * target.times(y_operand)
        size += nest.results * (nest.out_size + nest.extra_size) * target.times("outputs")
        per_mac = target.unit(nest.unit).mac_energy.get(nest.placement[1]) or Fraction(0)
        macs = self.full["m"] * self.full["n"] * self.full["k"]
        return per_mac * macs + (target.memory.energy or Fraction(0)) * 8 * size

    def _fold_cycles(self, x: int, y: int, slabs: Sequence[int]) -> int:
        known = self._cycles_known
        key = (x, y, tuple(slabs))
        if key not in known:
            unit, number_format = self.nest.target.unit(self.nest.unit), self.nest.placement[1]
            total, before = 0, 0
            for index, size in enumerate(slabs):
                opens, closes = index == 0, index == len(slabs) - 1
                work = Gemm(x, y, size, number_format, opens, closes, False, False, before if closes and not opens else 0)
                total += unit.cycles(work)
                before += size
            known[key] = total
        return known[key]

    @cached_property
    def _cycles_known(self) -> dict[Any, int]:
        return {}

    def plan(self, mapping: OperatorMapping) -> Plan:
        """The stream of tiles of a mapping. Raises `MappingError` when a parameter is not possible."""
        s = self.shape(mapping)
        tiles = _Emission(self, s).tiles()
        untimed = self.target.main if self.target.excludes_cold_fill else ""
        lags = (0, 1, 2, 3) if self.nest.post_unit else (0, 1, 1, 2)
        return Plan(mapping, tiles, lags, self.footprint(mapping), self.target.setup(), untimed)


def kinds(size: int, piece: int) -> list[tuple[int, int]]:
    """Sizes of the pieces of a dimension, and how many there are of each.

    >>> kinds(10, 4)
    [(4, 2), (2, 1)]
    """
    whole, rest = divmod(size, piece)
    return [(piece, whole)] * (whole > 0) + [(rest, 1)] * (rest > 0)


def _from(line: Line, start: int) -> Line:
    return line[0][start:], line[1]


def _keep(text: str) -> int:
    return {"all": 0, "none": 1}.get(text) if text in ("all", "none") else int(text)  # type: ignore[return-value]


Line = tuple[list[int], int]
"""Elements that every step of a run moves: numerators, and their common denominator."""

Key = tuple[Fraction, Fraction, int, int, int, bool, bool, bool, bool, bool, int]


class _Emission:
    """Writes the tiles of a streamed mapping."""

    def __init__(self, streamed: Streamed, shape: Shape) -> None:
        self.streamed, self.nest, self.s = streamed, streamed.nest, shape
        self.made: dict[Key, Tile] = {}
        self.folds: dict[Any, Tiles] = {}
        self.lines: dict[Any, Line] = {}

    def tiles(self) -> Tiles:
        blocks = self.streamed.blocks(self.s)
        around = [
            (blocks[i - 1] if i else None, block, blocks[i + 1] if i + 1 < len(blocks) else None) for i, block in enumerate(blocks)
        ]
        names: dict[Any, int] = {}
        made: dict[int, Tiles] = {}
        numbers = []
        for key in around:
            number = names.setdefault(key, len(names))
            if number not in made:
                made[number] = self._block(*key)
            numbers.append(number)
        out: Tiles = self._before(blocks[0]) if self.s.first else ()
        return out + folded(numbers, made)

    def _before(self, block: Block) -> Tiles:
        """What is loaded before anything is computed: the first block and the first panel."""
        (x_name, x_operand, x_size), (y_name, y_operand, y_size) = self.streamed._operands(self.s)
        kept = sum(size for i, size in enumerate(block.slabs) if self.s.stands(i))
        whole, full = sum(block.slabs), self.streamed.full["k"]
        run = whole if self.s.keep == 0 else block.slabs[0] * max(1, self.s.keep - 1)
        loads = [
            self.nest.transfer(x_name, x_operand, sum(block.standing) * kept, x_size, run, full),
            self.nest.transfer(y_name, y_operand, block.passing[0] * whole, y_size, whole, full),
        ]
        return ((tuple(job for job in loads if job.fs), (), (), ()),)

    # Shares of a load that is spread over steps ------------------------------------------------------------------------------------
    def _spread(self, sizes: Sequence[int], steps: int) -> Line:
        """Elements that each of `steps` moves of consecutive slabs of `sizes`, at one pace of slabs per step."""
        key = (tuple(sizes), steps)
        if key not in self.lines:
            before = list(itertools.accumulate(sizes, initial=0))
            padded = (*sizes, 0)
            marks = []
            for step in range(steps + 1):
                whole, rest = divmod(len(sizes) * step, steps)
                marks.append(before[whole] * steps + rest * padded[whole])
            self.lines[key] = [after - earlier for earlier, after in itertools.pairwise(marks)], steps
        return self.lines[key]

    def _standing_line(self, block: Block) -> list[int]:
        """Elements of every slab of a block that stands."""
        return [size * slab for size in block.standing for i, slab in enumerate(block.slabs) if self.s.stands(i)]

    def _change(self, old: Block, new: Block) -> Line:
        """Elements of the new block that each step of the last pass of the old and of the first pass of the new one moves. Where
        some slabs stream, all that stands is there one step before the last, which may use a streaming one."""
        line = self._standing_line(new)
        steps = old.steps + new.steps
        if not self.s.keep:
            return self._spread(line, steps)
        numerators, parts = self._spread(line, steps - 1)
        return [*numerators, 0], parts

    def _panel(self, rows: int, slabs_before: int, size: int, slabs: Sequence[int]) -> Line:
        return self._spread([size * slab for slab in slabs], (rows - 1) * slabs_before + len(slabs))

    # Blocks and passes --------------------------------------------------------------------------------------------------------------
    def _block(self, before: Block | None, block: Block, after: Block | None) -> Tiles:
        passes = len(block.passing)
        names: dict[Any, int] = {}
        made: dict[int, Tiles] = {}
        numbers = []
        for index, size in enumerate(block.passing):
            follower = (block, block.passing[index + 1]) if index + 1 < passes else (after, after.passing[0]) if after is not None else None
            leader = (block, block.passing[index - 1]) if index else (before, before.passing[-1]) if before is not None else None
            key = (
                size,
                before if index == 0 else block,
                index == 0,
                after if index == passes - 1 else None,
                (len(follower[0].slabs), follower[0].slabs, follower[1]) if follower else None,
                (len(leader[0].standing), len(leader[0].slabs)) if leader else None,
                after is None and index == passes - 1,
            )
            number = names.setdefault(key, len(names))
            if number not in made:
                made[number] = self._pass(block, size, *key[1:])
            numbers.append(number)
        return folded(numbers, made)

    def _pass(
        self, block: Block, size: int, before: Block | None, opening: bool, after: Block | None, follower: Any, leader: Any, end: bool
    ) -> Tiles:
        """The tiles of one panel passing all standing folds of a block."""
        s, rows, slabs = self.s, len(block.standing), block.slabs
        start = opening and before is None
        steps, none = block.steps, ([0] * block.steps, 1)
        arriving = _from(self._change(before, block), before.steps) if opening and before else none
        leaving = self._change(block, after) if after else none
        coming = self._panel(rows, len(slabs), follower[2], follower[1]) if follower else none
        own = _from(self._panel(leader[0], leader[1], size, slabs), (leader[0] - 1) * leader[1]) if leader else none
        first_use = start and not s.first
        again = [(0, 1)] * len(slabs) if s.keep == 0 or first_use else [self._again(slabs, j) for j in range(len(slabs))]
        x_parts, y_parts = math.lcm(arriving[1], leaving[1], again[0][1]), math.lcm(coming[1], own[1])
        x_scale = (x_parts // arriving[1], x_parts // leaving[1], x_parts // again[0][1])
        y_scale = (y_parts // coming[1], y_parts // own[1])
        done = sum(slabs[:-1])
        numbers: list[int] = []
        keys: dict[tuple[int, int, int, int, bool, bool, bool, bool], int] = {}
        for i, standing in enumerate(block.standing):
            for j, slab in enumerate(slabs):
                step = i * len(slabs) + j
                x = arriving[0][step] * x_scale[0] + leaving[0][step] * x_scale[1] + standing * again[j][0] * x_scale[2]
                if first_use:
                    x += standing * slab * x_parts
                if i:
                    y = coming[0][step - len(slabs)] * y_scale[0] if follower else 0
                else:
                    y = own[0][j] * y_scale[1] if leader else 0 if s.first else size * slab * y_parts
                cold, final = start and step == 0, end and step == steps - 1
                numbers.append(keys.setdefault((x, y, standing, slab, j == 0, j == len(slabs) - 1, cold, final), len(keys)))
        made: dict[int, Tiles] = {}
        for (x, y, standing, slab, first, last, cold, final), number in keys.items():
            loads = Fraction(x, x_parts), Fraction(y, y_parts)
            summed = done if last and not first else 0
            made[number] = (self._tile((*loads, standing, size, slab, first, last, cold, final, last and block.last, summed)),)
        return folded(numbers, made)

    def _again(self, slabs: Sequence[int], j: int) -> tuple[int, int]:
        """Elements per standing one of slabs that stream in every pass which move in this step, as a numerator and a denominator."""
        keep = self.s.keep
        index = j // keep * keep + keep - 1
        return (slabs[index] if index < len(slabs) else 0), keep

    def _tile(self, key: Key) -> Tile:
        if key in self.made:
            return self.made[key]
        x, y, standing, passing, slab, opens, closes, cold, final, done, before = key
        nest, streamed = self.nest, self.streamed
        (x_name, x_operand, x_size), (y_name, y_operand, y_size) = streamed._operands(self.s)
        loads: list[Job] = []
        if x:
            loads.append(nest.transfer(x_name, x_operand, x, x_size, slab, streamed.full["k"]))
        if y:
            loads.append(nest.transfer(y_name, y_operand, y, y_size, slab, streamed.full["k"]))
        m, n = (standing, passing) if self.s.order == "mnk" else (passing, standing)
        if done and nest.extra_size:
            loads.append(nest.transfer("load extra", "outputs", m * n, nest.extra_size, n, streamed.full["n"]))
        work = Gemm(m, n, slab, nest.placement[1], opens, closes, cold, final, before)
        post = (nest.post_process(m * n),) if nest.post_unit and done else ()
        stores = (nest.transfer("store c", "outputs", m * n, nest.out_size, n, streamed.full["n"], store=True),) if done else ()
        tile = self.made[key] = tuple(loads), (nest.multiply(work),), post, stores
        return tile


def folded(numbers: Sequence[int], made: dict[int, Tiles]) -> Tiles:
    """The streams of `numbers` one after the other, with what repeats folded: the shortest period that covers most."""
    out: Tiles = ()
    at = 0
    while at < len(numbers):
        best = (1, 1)
        for period in range(1, min(32, (len(numbers) - at) // 2) + 1):
            unit = numbers[at : at + period]
            count = 1
            while numbers[at + count * period : at + (count + 1) * period] == unit:
                count += 1
            if count > 1 and count * period > best[0] * best[1]:
                best = (period, count)
        period, count = best
        body: Tiles = ()
        for number in numbers[at : at + period]:
            body += made[number]
        out += (Loop(count, body),) if count > 1 else body
        at += period * count
    return out

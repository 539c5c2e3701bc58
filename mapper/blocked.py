"""Products on a unit that keeps its weights, with sums that stay in the scratchpad and weights that arrive evenly.

The sums of a block of `rows` x `n` results stay on the chip while the contraction passes in slabs of `k`. The weights of a slab
stand while all tiles of `m` rows of the block pass; meanwhile those of the next slab move in, the same share in every step. An
interface that is fast enough on average then never stalls the unit, and a block whose sums fill the scratchpad moves the fewest bytes.

Tile j of a slab brings share j of the next slab, the first one the last share of its own: so two slabs have room in the buffer of
two, although the tile before is still computed when a tile is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

from hw.quantity import FS_PER_S
from hw.work import Gemm
from mapper.errors import MappingError
from mapper.mapping import OperatorMapping
from mapper.pipeline import Job, Tile, Tiles
from mapper.plan import Plan
from mapper.streamed import cut, folded, kinds

if TYPE_CHECKING:
    from mapper.nest import Nest
    from mapper.target import Target

ROWS = (1, 2, 3, 4, 6)
TILES = (1, 2, 4, 8, 16)
COLUMNS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
SLABS = (1, 2, 4, 6, 8, 10, 12, 16, 24, 32)
"""Even divisions of the rows, of a block's rows, of the columns and of the contraction that are considered."""

LEAST_ROWS = 64
"""Rows of a product from which on sums are worth a block of their own."""

MOST_VISITS = 4096
"""Slabs of weights, one after the other, beyond which a mapping is not considered."""


@dataclass(frozen=True)
class Visit:
    """A slab of weights: rows of its block, its columns and depth, and whether it begins and ends the sums."""

    rows: int
    n: int
    k: int
    closes: bool


@dataclass(frozen=True)
class Blocked:
    """The blocked mappings of one product."""

    nest: Nest

    @property
    def target(self) -> Target:
        return self.nest.target

    @property
    def placement(self) -> tuple[str, str]:
        return self.nest.placement

    @staticmethod
    def applies(nest: Nest) -> bool:
        """Whether there are such mappings: one product of some rows, and a unit that keeps its weights."""
        one = len(nest.products) == 1 and nest.products[0].count == 1 and nest.products[0].m >= LEAST_ROWS
        return one and nest.target.unit(nest.unit).stationary() == "weights"

    @cached_property
    def full(self) -> dict[str, int]:
        product = self.nest.products[0]
        return {"m": product.m, "n": product.n, "k": product.k}

    # Candidates -----------------------------------------------------------------------------------------------------------------
    def candidates(self) -> Iterator[OperatorMapping]:
        _, bn, bk = self.nest.target.unit(self.nest.unit).granularity()
        for rows in _even(self.full["m"], 32, ROWS):
            for m in _even(rows, 32, TILES):
                for n in _even(self.full["n"], bn, COLUMNS):
                    for k in _even(self.full["k"], bk, SLABS):
                        if self._visits(rows, n, k) <= MOST_VISITS:
                            parameters = {"rows": rows, "m": m, "n": n, "k": k}
                            yield OperatorMapping(self.nest.kernel.name, self.nest.unit, "blocked", parameters)

    def _visits(self, rows: int, n: int, k: int) -> int:
        return ceil(self.full["m"] / rows) * ceil(self.full["n"] / n) * ceil(self.full["k"] / k)

    def shape(self, mapping: OperatorMapping) -> tuple[int, int, int, int]:
        """Rows of a block, and the rows, columns and depth of a tile. Raises `MappingError` for what is impossible."""
        rows = mapping.integer("rows", self.full["m"])
        m, n, k = mapping.integer("m", rows), mapping.integer("n", self.full["n"]), mapping.integer("k", self.full["k"])
        if (visits := self._visits(rows, n, k)) > MOST_VISITS:
            raise MappingError(f"mapping of {mapping.operator!r}: {visits} slabs of weights, more than {MOST_VISITS}")
        return rows, m, n, k

    # Buffers --------------------------------------------------------------------------------------------------------------------
    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        """Bytes in each scratchpad: two tiles of rows, two slabs of weights, the sums of a block (of two where a block is one tile
        that is still post-processed), results twice, and what the epilogue reads for the three steps from its load to its use."""
        nest = self.nest
        rows, m, n, k = self.shape(mapping)
        slabs = ceil(self.full["k"] / k)
        tiles = {ceil(size / m) for size, _ in kinds(self.full["m"], rows)}
        lone = tiles == {1}
        several = self._visits(rows, n, k) > slabs or not lone
        post = nest.post_unit is not None
        sums = rows * n * nest.target.unit(nest.unit).accumulator_bytes() * (2 if post and 1 in tiles and several else 1)
        results = 2 if several and (slabs == 1 or not lone) else 1
        extras = (3 if post and (slabs == 1 or not lone) else 2 if slabs <= 2 else 1) if several else 1
        needs: dict[str, int] = {}
        for operand, size in (
            ("activations", ceil(m * k * nest.a_size) * (2 if several or slabs > 1 else 1)),
            ("weights", ceil(n * k * nest.b_size) * (2 if self._visits(rows, n, k) > 1 else 1)),
            ("outputs", sums + ceil(m * n * nest.out_size) * results + ceil(m * n * nest.extra_size) * extras),
        ):
            pad = nest.pads[operand]
            needs[pad] = needs.get(pad, 0) + size
        return needs

    # The schedule ---------------------------------------------------------------------------------------------------------------
    def visits(self, mapping: OperatorMapping) -> list[Visit]:
        """The slabs in their order."""
        rows, _, n, k = self.shape(mapping)
        depths = cut(self.full["k"], k)
        return [
            Visit(block, columns, depth, index == len(depths) - 1)
            for block in cut(self.full["m"], rows)
            for columns in cut(self.full["n"], n)
            for index, depth in enumerate(depths)
        ]

    def bound(self, mapping: OperatorMapping) -> int:
        """Femtoseconds that the mapping cannot beat: all of its computation, where full tiles pass full slabs no less than what
        they load meanwhile; or all of its traffic."""
        rows, m, n, k = self.shape(mapping)
        target, full = self.target, self.full
        clock = target.device.unit_clock(self.nest.unit)
        compute = sum(
            count_b * count_m * count_n * count_k * self._cycles(size_m, size_n, size_k)
            for block, count_b in kinds(full["m"], rows)
            for size_m, count_m in kinds(block, m)
            for size_n, count_n in kinds(full["n"], n)
            for size_k, count_k in kinds(full["k"], k)
        )
        counted = compute * FS_PER_S // clock
        setup = sum(fs for _, fs in target.setup())
        if not target.excludes_cold_fill:
            counted += self._waits(rows, m, n, k, clock) + self._ends(rows, m, n, k)
        if target.private_interfaces or target.excludes_cold_fill:
            return setup + counted
        return setup + max(counted, target.memory.least_fs(self._bytes(rows, n)))

    def _ends(self, rows: int, m: int, n: int, k: int) -> int:
        """Femtoseconds before the first tile is computed, for its loads, and behind the last one, for its epilogue and its store."""
        nest, full = self.nest, self.full
        first = min(m, rows)
        depth = min(k, full["k"])
        loads: dict[str, int] = {}
        for job in self._loads(first, n, depth, Fraction(n * depth), depth):
            loads[job.on] = loads.get(job.on, 0) + job.fs
        block, columns = full["m"] - (ceil(full["m"] / rows) - 1) * rows, full["n"] - (ceil(full["n"] / n) - 1) * n
        last = (block - (ceil(block / m) - 1) * m) * columns
        store = nest.transfer("store c", "outputs", last, nest.out_size, columns, full["n"], store=True)
        return max(loads.values()) + store.fs + (nest.post_process(last).fs if nest.post_unit else 0)

    def _waits(self, rows: int, m: int, n: int, k: int, clock: int) -> int:
        """Femtoseconds by which steps take longer than their computation, at least: full tiles that load a full tile and a share
        of a full slab, in slabs before the last and in the last one of a block, where results go as well."""
        nest, full = self.nest, self.full
        tiles = ceil(rows / m)
        steps = tiles if rows % m == 0 else tiles - 2  # of a slab, with a full tile in the unit and another one coming
        blocks, columns, depths = full["m"] // rows, full["n"] // n, full["k"] // k
        share = Fraction(n * k, tiles)
        total = 0

        def waits(count: int, depth: int, *more: Job) -> int:
            loads: dict[str, int] = {}
            for job in (*self._loads(m, n, depth, share, k), *more):
                loads[job.on] = loads.get(job.on, 0) + job.fs
            return count * max(0, max(loads.values()) - self._cycles(m, n, depth) * FS_PER_S // clock - 1)

        if (inner := blocks * columns * max(0, depths - 1) * max(0, steps - 1)) > 0:
            total += waits(inner, k)
        last = full["k"] - (ceil(full["k"] / k) - 1) * k
        lag = 3 if nest.post_unit else 2
        if (closing := blocks * max(0, columns - 1)) and steps > 1:
            extra = [nest.transfer("load extra", "outputs", m * n, nest.extra_size, n, full["n"])] if nest.extra_size else []
            store = nest.transfer("store c", "outputs", m * n, nest.out_size, n, full["n"], store=True)
            stored = max(0, steps - lag)
            total += waits(closing * stored, last, *extra, store) + waits(closing * (steps - 1 - stored), last, *extra)
        return total

    def _bytes(self, rows: int, n: int) -> Fraction:
        nest, full, times = self.nest, self.full, self.target.times
        a = full["m"] * full["k"] * ceil(full["n"] / n) * nest.a_size * times("activations")
        b = full["n"] * full["k"] * ceil(full["m"] / rows) * nest.b_size * times("weights")
        return a + b + nest.results * (nest.out_size + nest.extra_size) * times("outputs")

    def least_energy_pj(self, mapping: OperatorMapping) -> Fraction:
        """Picojoules of the products and of main memory's traffic, as far as the device states them."""
        rows, _, n, _ = self.shape(mapping)
        per_mac = self.target.unit(self.nest.unit).mac_energy.get(self.nest.placement[1]) or Fraction(0)
        macs = self.full["m"] * self.full["n"] * self.full["k"]
        return per_mac * macs + (self.target.memory.energy or Fraction(0)) * 8 * self._bytes(rows, n)

    def _cycles(self, m: int, n: int, k: int) -> int:
        """Cycles of a tile whose weights stand already, if they can."""
        key = (m, n, k)
        if key not in self._known:
            unit = self.target.unit(self.nest.unit)
            whole = not self._stands(n, k)
            self._known[key] = unit.cycles(Gemm(m, n, k, self.placement[1], whole, whole, cold=False, final=False))
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[int, int, int], int]:
        return {}

    def _stands(self, n: int, k: int) -> bool:
        """Whether a slab is one fold, which stays in the unit from tile to tile."""
        _, bn, bk = self.target.unit(self.nest.unit).granularity()
        return n <= bn and k <= bk

    def _loads(self, m: int, n: int, k: int, share: Fraction, depth: int = 0) -> list[Job]:
        """A tile of rows, and a share of a slab of weights that is `depth` deep (as deep as the tile if not given)."""
        nest, full = self.nest, self.full["k"]
        loads = [nest.transfer("load a", "activations", m * k, nest.a_size, k, full)]
        if share:
            loads.append(nest.transfer("load b", "weights", share, nest.b_size, depth or k, full))
        return loads

    def plan(self, mapping: OperatorMapping) -> Plan:
        """The stream of tiles of a mapping. Raises `MappingError` when a parameter is not possible."""
        _, m, n, k = self.shape(mapping)
        visits, stands = self.visits(mapping), self._stands(n, k)
        numbers: list[int] = []
        keys: dict[Any, int] = {}
        made: dict[int, Tiles] = {}
        for index, visit in enumerate(visits):
            before = visits[index - 1] if index else None
            after = visits[index + 1] if index + 1 < len(visits) else None
            key = (visit, before and ceil(before.rows / m), after and (after.n, after.k))
            number = keys.setdefault(key, len(keys))
            if number not in made:
                made[number] = self._visit(visit, m, before, after, stands)
            numbers.append(number)
        untimed = self.target.main if self.target.excludes_cold_fill else ""
        lags = (0, 1, 2, 3) if self.nest.post_unit else (0, 1, 1, 2)
        return Plan(mapping, folded(numbers, made), lags, self.footprint(mapping), self.target.setup(), untimed)

    def _visit(self, visit: Visit, m: int, before: Visit | None, after: Visit | None, stands: bool) -> Tiles:
        """The tiles that pass one slab of weights."""
        sizes = cut(visit.rows, m)
        own = Fraction(visit.n * visit.k, ceil(before.rows / m) if before else 1)
        coming = Fraction(after.n * after.k, len(sizes)) if after else Fraction(0)
        made: dict[int, Tiles] = {}
        known: dict[Any, int] = {}
        numbers = []
        for j, size in enumerate(sizes):
            first, last = j == 0, j == len(sizes) - 1
            key = (size, first, last)
            number = known.setdefault(key, len(known))
            if number not in made:
                share, depth = (own, visit.k) if first else (coming, after.k if after else 0)
                opens, closes = (first, last) if stands else (True, True)
                flags = opens, closes, first and before is None, last and after is None
                made[number] = (self._tile(size, visit, share, depth, flags),)
            numbers.append(number)
        return folded(numbers, made)

    def _tile(self, m: int, visit: Visit, share: Fraction, depth: int, flags: tuple[bool, bool, bool, bool]) -> Tile:
        key = (m, visit, share, depth, flags)
        if key not in self._made:
            nest, n = self.nest, visit.n
            loads = self._loads(m, n, visit.k, share, depth)
            if visit.closes and nest.extra_size:
                loads.append(nest.transfer("load extra", "outputs", m * n, nest.extra_size, n, self.full["n"]))
            opens, closes, cold, final = flags
            work = Gemm(m, n, visit.k, self.placement[1], opens, closes, cold=cold, final=final)
            post = (nest.post_process(m * n),) if nest.post_unit and visit.closes else ()
            stores: tuple[Job, ...] = ()
            if visit.closes:
                stores = (nest.transfer("store c", "outputs", m * n, nest.out_size, n, self.full["n"], store=True),)
            self._made[key] = tuple(loads), (nest.multiply(work),), post, stores
        return self._made[key]

    @cached_property
    def _made(self) -> dict[Any, Tile]:
        return {}


def _even(size: int, block: int, counts: tuple[int, ...]) -> list[int]:
    """Sizes of even divisions in whole blocks.

    >>> _even(300, 32, (1, 2, 4))
    [96, 160, 300]
    """
    blocks = ceil(size / block)
    return sorted({min(size, ceil(blocks / count) * block) for count in counts})

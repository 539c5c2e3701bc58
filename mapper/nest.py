"""Tiled products on a unit with scratchpads: the loop nest, its buffers and its cost.

One kernel is `batch` products of [m, k] by [k, n]. Tiles of `m` x `n` x `k` elements are visited in the loop order; the
innermost loop is the last letter. An operand's tile is loaded when its indices changed since the step before. `hold`
keeps an operand on chip over the loop that does not index it: `a` (left) over n, `b` (right) over m. When k is not the innermost
loop, partial sums stay on chip (`sums=local`) or go to main memory and come back (`sums=spill`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, prod
from typing import Any

import numpy as np

from hw.memory import Pieces
from hw.quantity import FS_PER_S
from hw.work import Gemm, Vector
from mapper.blocked import Blocked
from mapper.kernels import Kernel, Operand
from mapper.mapping import OperatorMapping, Value
from mapper.matrix import OnMatrixUnit
from mapper.nest_table import Columns, NestTable
from mapper.pipeline import Job, Loop, Tile, Tiles
from mapper.plan import Plan, balanced_sizes, pieces
from mapper.program import Move
from mapper.streamed import Streamed
from mapper.target import Target
from workloads.experts import tokens_of
from workloads.format import Format

ORDERS = {"outputs": ("mnk", "nmk"), "weights": ("nkm", "mnk", "nmk")}
HOLDS = ("none", "a", "b", "ab")
SUMS = ("local", "spill")

Flags = dict[str, tuple[bool, bool]]
"""For each loop whether this is its first and its last iteration."""


@dataclass(frozen=True)
class Product:
    """`count` products of [m, k] by [k, n] in a row."""

    count: int
    m: int
    n: int
    k: int


def products(kernel: Kernel) -> tuple[Product, ...]:
    """The products of a matrix kernel, experts with most rows first."""
    op = kernel.operator
    if op.kind == "matmul" and kernel.input(1).total == op["n"] * op["k"]:
        return (Product(1, op["batch"] * op["m"], op["n"], op["k"]),)  # one right operand for the whole batch
    if op.kind == "matmul":
        return (Product(op["batch"], op["m"], op["n"], op["k"]),)
    counts = Counter(tokens_of(op))
    parts = (Product(counts[rows], rows, op["n"], op["k"]) for rows in sorted(counts, reverse=True))
    return tuple(p for p in parts if p.count and p.m)


@dataclass(frozen=True)
class Nest(OnMatrixUnit):
    """One matrix kernel on one unit."""

    target: Target
    kernel: Kernel

    # The work -------------------------------------------------------------------------------------------------------------
    @cached_property
    def products(self) -> tuple[Product, ...]:
        return products(self.kernel)

    @property
    def multiplied(self) -> tuple[Format, Format]:
        return self.left.format, self.right.format

    @cached_property
    def left(self) -> Operand:
        return self.kernel.input(0)

    @cached_property
    def right(self) -> Operand:
        return self.kernel.input(1)

    def _per_element(self, operand: Operand, index: str) -> Fraction:
        """Bytes of main-memory traffic per logical element of an operand."""
        elements = sum(p.count * (p.m * p.k if index == "a" else p.k * p.n) for p in self.products)
        return operand.size / elements

    @cached_property
    def a_size(self) -> Fraction:
        return self._per_element(self.left, "a")

    @cached_property
    def b_size(self) -> Fraction:
        return self._per_element(self.right, "b")

    @cached_property
    def results(self) -> int:
        return sum(p.count * p.m * p.n for p in self.products)

    @cached_property
    def extra_size(self) -> Fraction:
        """Bytes per result element of everything else that is read (bias, residual, gate)."""
        names = {self.left.tensor, self.right.tensor}
        return Fraction(sum(o.size for o in self.kernel.reads if o.tensor not in names), self.results)

    @cached_property
    def out_size(self) -> Fraction:
        return Fraction(sum(o.size for o in self.kernel.writes), self.results)

    @cached_property
    def epilogue(self) -> tuple[int, int]:
        """Operations and transcendental functions per result element."""
        return ceil(Fraction(self.kernel.operations, self.results)), ceil(Fraction(self.kernel.specials, self.results))

    @cached_property
    def pads(self) -> dict[str, str]:
        """The scratchpad of each operand."""
        return {operand: self.target.pad_capacity(operand, self.unit)[0] for operand in ("activations", "weights", "outputs")}

    @cached_property
    def _made(self) -> dict[Any, Job]:
        return {}

    def transfer(
        self, name: str, operand: str, elements: Fraction | int, size: Fraction | int, run: int = 0, width: int = 0, store: bool = False
    ) -> Job:
        """A transfer of `elements` of `size` bytes each; equal ones are made once. They are pieces of
        `run` elements of rows of `width` elements; 0: one run."""
        key = (name, elements, run, width)
        if key not in self._made:
            read, written = (0, elements * size) if store else (elements * size, 0)
            pieces = Pieces(run * size, width * size) if run < min(width, elements) else None
            self._made[key] = self.target.transfer(name, operand, read, written, pieces)
        return self._made[key]

    def multiply(self, work: Gemm) -> Job:
        """A tile's product with the scratchpad accesses it makes; equal ones are made once."""
        if work not in self._made:
            unit = self.target.unit(self.unit)
            left, right, sums = unit.operand_elements(work)
            moves = (
                Move(self.pads["activations"], read=left * self.left.format.bits / 8),
                Move(self.pads["weights"], read=right * self.right.format.bits / 8),
                Move(self.pads["outputs"], written=sums * unit.accumulator_bytes()),
            )
            self._made[work] = self.target.multiply("multiply", self.unit, work, moves)
        return self._made[work]

    def post_process(self, elements: int) -> Job:
        """The epilogue of a tile; equal ones are made once."""
        if elements not in self._made:
            assert self.post_unit is not None
            self._made[elements] = self.target.vector("post-process", self.post_unit, [Vector(elements, *self.epilogue)])
        return self._made[elements]

    @cached_property
    def post_unit(self) -> str | None:
        return self.target.vector_unit(self.kernel.name) if any(self.epilogue) else None

    # Candidates --------------------------------------------------------------------------------------------------------------
    @cached_property
    def table(self) -> NestTable:
        """Every mapping of the search space, whether it fits or not; the space does not depend on capacities or speeds."""
        unit = self.target.unit(self.unit)
        bm, bn, bk = unit.granularity()
        orders = ORDERS[unit.stationary()]
        full = (max(p.m for p in self.products), self.products[0].n, self.products[0].k)
        blocks = (max(bm, 32), max(bn, 32), bk if unit.stationary() == "weights" else 64)
        least = (bm, bn, bk) if unit.stationary() == "weights" else (bm, bn, 64)
        sizes = [
            sorted({min(size, small), *balanced_sizes(size, block)}) for size, block, small in zip(full, blocks, least, strict=True)
        ]
        axes = [np.array(values, dtype=np.int64) for values in (*sizes, range(len(orders)), range(len(HOLDS)), range(len(SUMS)))]
        m, n, k, order, hold, sums = (grid.reshape(-1) for grid in np.meshgrid(*axes, indexing="ij"))
        c = Columns(m, n, k, order, (hold == 1) | (hold == 3), hold >= 2, sums == 1)
        return NestTable(self, c.take(np.flatnonzero(_useful(c, orders, full))), orders)

    def mapping(self, row: int) -> OperatorMapping:
        """The mapping in a row of the table."""
        c = self.table.columns
        hold = ("a" if c.hold_a[row] else "") + ("b" if c.hold_b[row] else "") or "none"
        sizes: dict[str, Value] = {d: int(getattr(c, d)[row]) for d in "mnk"}
        order, sums = self.table.orders[int(c.order[row])], SUMS[int(c.spill[row])]
        return OperatorMapping(self.kernel.name, self.unit, "nest", {**sizes, "order": order, "hold": hold, "sums": sums})

    def candidates(self) -> Iterator[OperatorMapping]:
        """The mappings of the table, one after the other."""
        return (self.mapping(row) for row in range(len(self.table.columns)))

    @cached_property
    def others(self) -> tuple[Streamed | Blocked, ...]:
        """Further families of mappings of the same kernel."""
        families: tuple[type[Streamed] | type[Blocked], ...] = (Streamed, Blocked)
        return tuple(family(self) for family in families if family.applies(self))

    def rules_of_thumb(self) -> Iterator[OperatorMapping]:
        """Mappings by rule, likely ones first: tiles grown evenly until the scratchpads are full, the contraction innermost."""
        unit = self.target.unit(self.unit)
        bm, bn, bk = unit.granularity()
        big = max(self.products, key=lambda p: p.m)
        room = {name: self.target.device.memories[name].capacity for name in set(self.pads.values())}
        m, n, k = min(big.m, max(bm, 32)), min(big.n, max(bn, 32)), min(big.k, max(bk, 64))
        best = None
        for _ in range(24):
            sizes: dict[str, Value] = {"m": m, "n": n, "k": k}
            mapping = OperatorMapping(self.kernel.name, self.unit, "nest", {**sizes, "order": "mnk", "hold": "none", "sums": "local"})
            if any(need > room[pad] for pad, need in self.footprint(mapping).items()):
                break
            best = mapping
            if k < big.k and k <= 8 * min(m, n):
                k = min(big.k, 2 * k)
            elif n < big.n and (n <= m or m >= big.m):
                n = min(big.n, 2 * n)
            elif m < big.m:
                m = min(big.m, 2 * m)
            elif k < big.k:
                k = min(big.k, 2 * k)
            else:
                break
        if best is not None:
            yield best

    # One mapping ---------------------------------------------------------------------------------------------------------------
    def shape(self, mapping: OperatorMapping, product: Product) -> dict[str, int]:
        return {d: min(mapping.integer(d), size) for d, size in (("m", product.m), ("n", product.n), ("k", product.k))}

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        """Bytes that the mapping needs in each scratchpad."""
        order, hold, sums = (str(mapping.parameters[name]) for name in ("order", "hold", "sums"))
        unit = self.target.unit(self.unit)
        needs: dict[str, int] = {}
        worst = {"activations": 0, "weights": 0, "outputs": 0}
        for product in self.products:
            full = {"m": product.m, "n": product.n, "k": product.k}
            tile = self.shape(mapping, product)
            trips = {d: ceil(full[d] / tile[d]) for d in full}

            def held(dims: str, over: str, full: dict[str, int] = full, tile: dict[str, int] = tile) -> int:
                """Elements kept while the loop `over` runs: whole extents inside it, tiles outside."""
                return prod(full[d] if order.index(d) > order.index(over) else tile[d] for d in dims)

            for operand, dims, over, key, size in (
                ("activations", "mk", "n", "a", self.a_size),
                ("weights", "kn", "m", "b", self.b_size),
            ):
                piece = prod(tile[d] for d in dims)
                several = product.count > 1 or any(trips[d] > 1 for d in dims)
                if key in hold:
                    elements = held(dims, over)
                    # the next panel moves in tile by tile over the one whose last pass is on; a panel of one tile has no room for that
                    outer = product.count > 1 or any(trips[d] > 1 for d in dims if order.index(d) < order.index(over))
                    single = all(trips[d] == 1 for d in dims if order.index(d) > order.index(over))
                    elements += piece if outer and single else 0
                else:
                    elements = piece * (2 if several else 1)
                worst[operand] = max(worst[operand], ceil(elements * size))
            piece, wide = tile["m"] * tile["n"], unit.accumulator_bytes()
            several = product.count > 1 or trips["m"] > 1 or trips["n"] > 1
            copies = 2 if several else 1
            outside = trips["k"] > 1 or (unit.stationary() == "weights" and product.k > unit.granularity()[2])
            # with the contraction innermost a tile's results come only with its last step: the ones before have left by then
            turns = trips["k"] if order[-1] == "k" else 1
            out = ceil(piece * self.out_size) * (1 if turns > 1 else copies)
            waiting = 1 if turns > 2 else 2 if turns == 2 or not self.post_unit else 3  # from the load to the epilogue
            out += ceil(piece * self.extra_size) * min(waiting, 3 if several else 1)
            if trips["k"] > 1 and order[-1] != "k" and any(trips[d] > 1 for d in "mn" if order.index(d) > order.index("k")):
                out += (held("mn", "k") if sums == "local" else 4 * piece) * wide
            elif outside or self.post_unit:
                out += piece * wide * (copies if self.post_unit else 1)
            worst["outputs"] = max(worst["outputs"], out)
        for operand, need in worst.items():
            needs[self.pads[operand]] = needs.get(self.pads[operand], 0) + need
        return needs

    def bound(self, mapping: OperatorMapping) -> int:
        """Femtoseconds that the mapping cannot beat: total computation plus first load and last store, or total traffic."""
        order, hold, sums = str(mapping.parameters["order"]), str(mapping.parameters["hold"]), mapping.parameters["sums"]
        unit, clock = self.target.unit(self.unit), self.target.device.unit_clock(self.unit)
        bm, bn, bk = unit.granularity()
        cycles, sizes = 0, {"activations": Fraction(0), "weights": Fraction(0), "outputs": Fraction(0)}
        for product in self.products:
            full = {"m": product.m, "n": product.n, "k": product.k}
            tile = self.shape(mapping, product)
            trips = {d: ceil(full[d] / tile[d]) for d in full}
            real = [d for d in order if trips[d] > 1]
            a_again = trips["n"] if "a" not in hold and "n" in real and any(d in "mk" for d in real[real.index("n") + 1 :]) else 1
            b_again = trips["m"] if "b" not in hold and "m" in real and any(d in "nk" for d in real[real.index("m") + 1 :]) else 1
            results = product.m * product.n * product.count
            sizes["activations"] += product.m * product.k * product.count * a_again * self.a_size
            sizes["weights"] += product.n * product.k * product.count * b_again * self.b_size
            sizes["outputs"] += results * (self.out_size + self.extra_size)
            if sums == "spill":
                sizes["outputs"] += 2 * (trips["k"] - 1) * results * unit.accumulator_bytes()
            resident = tile["m"] <= bm and tile["n"] <= bn if unit.stationary() == "outputs" else tile["k"] <= bk and tile["n"] <= bn
            number_format = self.placement[1]
            for m, cm in pieces(product.m, tile["m"]):
                for n, cn in pieces(product.n, tile["n"]):
                    for k, ck in pieces(product.k, tile["k"]):
                        work = Gemm(m, n, k, number_format, not resident, not resident, cold=False, final=False)
                        cycles += unit.cycles(work) * cm * cn * ck * product.count
        compute = cycles * FS_PER_S // clock
        if self.target.excludes_cold_fill:
            return compute
        memory = self.target.memory
        if self.target.private_interfaces:
            traffic = max(memory.least_fs(size) for size in sizes.values())
        else:
            traffic = memory.least_fs(sum(sizes.values()))
        first = self.products[0]
        tile = self.shape(mapping, first)
        a, b = tile["m"] * tile["k"] * self.a_size, tile["k"] * tile["n"] * self.b_size
        fill = max(memory.least_fs(a), memory.least_fs(b)) if self.target.private_interfaces else memory.least_fs(a + b)
        return max(compute + fill, traffic) - len(self.products)

    def plan(self, mapping: OperatorMapping) -> Plan:
        """The stream of tiles of a mapping. Raises `MappingError` when a parameter is not valid."""
        order = mapping.choice("order", ORDERS[self.target.unit(self.unit).stationary()])
        for d in "mnk":
            mapping.integer(d, max(getattr(product, d) for product in self.products))
        mapping.choice("hold", HOLDS)
        mapping.choice("sums", SUMS)
        tiles: Tiles = ()
        for index, product in enumerate(self.products):
            first, last = index == 0, index == len(self.products) - 1
            tiles += _Tiling(self, mapping, order, product, first, last).tiles()
        untimed = self.target.main if self.target.excludes_cold_fill else ""
        lags = (0, 1, 2, 3) if self.post_unit else (0, 1, 1, 2)
        return Plan(mapping, tiles, lags, self.footprint(mapping), self.target.setup(), untimed)



def _useful(c: Columns, orders: tuple[str, ...], full: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """Rows that say something new: of loop orders that visit the same tiles the first, and only what can be held or spilled."""
    real = {d: -(-size // getattr(c, d)) > 1 for d, size in zip("mnk", full, strict=True)}
    useful = np.ones(len(c), dtype=bool)
    for index, order in enumerate(orders):
        here = c.order == index
        for earlier in orders[:index]:
            same = np.ones(len(c), dtype=bool)
            for x, y in ((0, 1), (0, 2), (1, 2)):
                if earlier.index(order[x]) > earlier.index(order[y]):  # the two loops are exchanged: alike only if one is none
                    same &= ~(real[order[x]] & real[order[y]])
            useful &= ~(here & same)
        after_n, after_m, after_k = (order[order.index(d) + 1 :] for d in "nmk")
        inside_n, inside_m, inside_k = (
            np.logical_or.reduce([real[d] for d in after]) if after else np.zeros(len(c), dtype=bool)
            for after in (after_n, after_m, after_k)
        )
        useful &= ~here | ((~c.hold_a | (real["n"] & inside_n)) & (~c.hold_b | (real["m"] & inside_m)))
        useful &= ~here | ~c.spill | (real["k"] & inside_k)
    return useful


class _Tiling:
    """Writes the tiles of one product."""

    def __init__(self, nest: Nest, mapping: OperatorMapping, order: str, product: Product, first: bool, last: bool) -> None:
        self.nest, self.product, self.first, self.last = nest, product, first, last
        self.order = "b" + order
        self.hold, self.sums = str(mapping.parameters["hold"]), mapping.parameters["sums"]
        self.full = {"b": product.count, "m": product.m, "n": product.n, "k": product.k}
        self.tile = {"b": 1, **nest.shape(mapping, product)}
        self.trips = {d: ceil(self.full[d] / self.tile[d]) for d in self.full}
        self.unit = nest.target.unit(nest.unit)
        bm, bn, bk = self.unit.granularity()
        weights = self.unit.stationary() == "weights"
        one_fold = self.tile["n"] <= bn and (self.tile["k"] <= bk if weights else self.tile["m"] <= bm)
        self.run = ("m" if weights else "k") if one_fold and order[-1] == ("m" if weights else "k") else None
        self.made: dict[tuple[tuple[bool, bool], ...], Tile] = {}

    def tiles(self) -> Tiles:
        return self._emit(self.order, {})

    def _emit(self, dims: str, flags: Flags) -> Tiles:
        if not dims:
            key = tuple(flags[d] for d in self.order)
            if key not in self.made:
                self.made[key] = self._tile(flags)
            return (self.made[key],)
        dim, rest, trips = dims[0], dims[1:], self.trips[dims[0]]
        if trips == 1:
            return self._emit(rest, {**flags, dim: (True, True)})
        out = self._emit(rest, {**flags, dim: (True, False)})
        if trips > 2:
            middle = self._emit(rest, {**flags, dim: (False, False)})
            out += (Loop(trips - 2, middle),) if trips > 3 else middle
        return out + self._emit(rest, {**flags, dim: (False, True)})

    def _changed(self, dims: str, flags: Flags) -> bool:
        """Whether the tile index over `dims` differs from the step before."""
        if all(first for first, _ in flags.values()):
            return True
        inner_first = True
        for dim in reversed(self.order):
            if dim in dims and self.trips[dim] > 1 and inner_first:
                return True
            inner_first = inner_first and flags[dim][0]
        return False

    def _tile(self, flags: Flags) -> Tile:
        nest = self.nest
        size = {d: self.full[d] - self.tile[d] * (self.trips[d] - 1) if flags[d][1] else self.tile[d] for d in self.full}
        m, n, k = size["m"], size["n"], size["k"]
        load_a = self._changed("bmk", flags) and ("a" not in self.hold or flags["n"][0])
        load_b = self._changed("bkn", flags) and ("b" not in self.hold or flags["m"][0])
        k_first, k_last = flags["k"]
        wide = self.unit.accumulator_bytes()
        loads: list[Job] = []
        full = self.full
        if load_a:
            loads.append(nest.transfer("load a", "activations", m * k, nest.a_size, k, full["k"]))
        if load_b:
            loads.append(nest.transfer("load b", "weights", k * n, nest.b_size, k, full["k"]))
        if k_last and nest.extra_size:
            loads.append(nest.transfer("load extra", "outputs", m * n, nest.extra_size, n, full["n"]))
        if self.sums == "spill" and not k_first:
            loads.append(nest.transfer("load sums", "outputs", m * n, wide, n, full["n"]))
        start = all(first for first, _ in flags.values()) and self.first
        end = all(last for _, last in flags.values()) and self.last
        opens = flags[self.run][0] if self.run else True
        closes = flags[self.run][1] if self.run else True
        accumulated = self.full["k"] - k if self.run == "k" and closes and not opens else 0
        work = Gemm(m, n, k, nest.placement[1], opens, closes, cold=start, final=end, accumulated=accumulated)
        post = (nest.post_process(m * n),) if nest.post_unit and k_last else ()
        stores: list[Job] = []
        if k_last:
            stores.append(nest.transfer("store c", "outputs", m * n, nest.out_size, n, full["n"], store=True))
        elif self.sums == "spill":
            stores.append(nest.transfer("store sums", "outputs", m * n, wide, n, full["n"], store=True))
        return tuple(loads), (nest.multiply(work),), post, tuple(stores)

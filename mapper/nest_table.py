"""All mappings of one tiled product at once, as arrays: what they need, how fast they can be at best, and what they take.

The stream of tiles of a mapping repeats itself, so that its time is a sum over the kinds of steps it has: every loop index is
either one of its first values, a middle one or the last, and a step sees at most `depth` steps back. `latencies` is that sum;
it equals `Plan.latency_fs` to the femtosecond. Durations of single jobs come from the same functions that a plan uses, once
for each distinct size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product as combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from hw.quantity import FS_PER_S
from hw.work import Gemm

if TYPE_CHECKING:
    from mapper.nest import Nest, Product

Array = np.ndarray[Any, Any]

MARGIN = 1 - 1e-9
"""Bounds are floating-point numbers; this keeps them below the exact value."""

LONGEST_FS = 9e18
"""Latencies beyond what 64-bit integers hold (2.5 hours) are no answer."""


@dataclass(frozen=True)
class Columns:
    """The parameters of mappings: tile sizes, index of the loop order, operands held, and whether sums are spilled."""

    m: Array
    n: Array
    k: Array
    order: Array
    hold_a: Array
    hold_b: Array
    spill: Array

    def take(self, index: Array) -> Columns:
        return Columns(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.m)


def unique_map(values: Array, function: Callable[[int], int]) -> Array:
    """`function` of every value, called once for each distinct one."""
    known, where = np.unique(values, return_inverse=True)
    out: Array = np.array([function(value) for value in known.tolist()], dtype=np.int64)[where].reshape(values.shape)
    return out


def unique_pairs(first: Array, second: Array, function: Callable[[int, int], int]) -> Array:
    """`function` of every pair of values, called once for each distinct pair."""
    known, where = np.unique(np.stack([first, second]), axis=1, return_inverse=True)
    out: Array = np.array([function(a, b) for a, b in known.T.tolist()], dtype=np.int64)[where.reshape(-1)].reshape(first.shape)
    return out


def pair_map(values: Array, others: Array, function: Callable[[int, int], int]) -> Array:
    """`function` of every pair, called once for each distinct one."""
    width = int(others.max()) + 1 if len(others) else 1
    if len(values) and int(values.max()) >= (1 << 62) // width:
        return np.array([function(a, b) for a, b in zip(values.tolist(), others.tolist(), strict=True)], dtype=np.int64)
    return unique_map(values * width + others, lambda key: function(*divmod(key, width)))


class NestTable:
    """The candidates of a nest as columns; row i is the i-th mapping of the space."""

    def __init__(self, nest: Nest, columns: Columns, orders: Sequence[str]) -> None:
        self.nest, self.columns, self.orders = nest, columns, tuple(orders)
        self.unit = nest.target.unit(nest.unit)
        self.clock = nest.target.device.unit_clock(nest.unit)
        self._known: dict[tuple[int, ...], int] = {}
        self._bounds = np.full(len(columns), np.nan)
        self._latencies = np.full(len(columns), -1, dtype=np.int64)

    @property
    def size(self) -> int:
        """How many mappings there are."""
        return len(self.columns)

    # Capacity ------------------------------------------------------------------------------------------------------------------
    def fitting(self, capacities: dict[str, int]) -> Array:
        """Rows whose buffers fit."""
        fits = np.ones(len(self.columns), dtype=bool)
        for pad, need in self.needs().items():
            fits &= need <= capacities[pad]
        rows: Array = np.flatnonzero(fits)
        return rows

    def needs(self) -> dict[str, Array]:
        """Bytes that every row needs in each scratchpad."""
        nest, c, unit = self.nest, self.columns, self.unit
        worst: dict[str, Array] = {}
        wide = unit.accumulator_bytes()
        for product in nest.products:
            full = {"m": product.m, "n": product.n, "k": product.k}
            tile = {d: np.minimum(getattr(c, d), full[d]) for d in "mnk"}
            trips = {d: -(-full[d] // tile[d]) for d in "mnk"}
            totals = {name: np.zeros(len(c), dtype=np.int64) for name in ("activations", "weights", "outputs")}
            for index, order in enumerate(self.orders):
                rows = np.flatnonzero(c.order == index)
                t, r = ({d: values[d][rows] for d in "mnk"} for values in (tile, trips))

                def held(dims: str, over: str, order: str = order, t: dict[str, Array] = t) -> Array:
                    out: Array = np.ones(1, dtype=np.int64)
                    for d in dims:
                        out = out * (full[d] if order.index(d) > order.index(over) else t[d])  # noqa: B023 - used at once
                    return out

                for operand, dims, over, hold, size in (
                    ("activations", "mk", "n", c.hold_a[rows], nest.a_size),
                    ("weights", "kn", "m", c.hold_b[rows], nest.b_size),
                ):
                    piece = t[dims[0]] * t[dims[1]]
                    several = (product.count > 1) | (r[dims[0]] > 1) | (r[dims[1]] > 1)
                    outer = np.full(len(rows), product.count > 1)
                    single = np.ones(len(rows), dtype=bool)
                    for d in dims:
                        if order.index(d) < order.index(over):
                            outer |= r[d] > 1
                        else:
                            single &= r[d] == 1
                    kept = held(dims, over) + piece * (outer & single)
                    elements = np.where(hold, kept, piece * (1 + several))
                    totals[operand][rows] = -(-elements * size.numerator // size.denominator)
                piece = t["m"] * t["n"]
                copies = 1 + ((product.count > 1) | (r["m"] > 1) | (r["n"] > 1))
                turns = r["k"] if order[-1] == "k" else np.ones(len(rows), dtype=np.int64)
                waiting = np.where(turns > 2, 1, np.where((turns == 2) | (not nest.post_unit), 2, 3))
                out = -(-piece * nest.out_size.numerator // nest.out_size.denominator) * np.where(turns > 1, 1, copies)
                waiting = np.where(copies > 1, waiting, 1)
                out += -(-piece * nest.extra_size.numerator // nest.extra_size.denominator) * waiting
                inner = np.zeros(len(rows), dtype=bool)
                for d in "mn":
                    if order.index(d) > order.index("k"):
                        inner |= r[d] > 1
                inner &= (r["k"] > 1) & (order[-1] != "k")
                outside = (r["k"] > 1) | (unit.stationary() == "weights" and product.k > unit.granularity()[2]) | bool(nest.post_unit)
                partial = np.where(c.spill[rows], 4 * piece, held("mn", "k"))
                here = piece * (copies if nest.post_unit else 1) * outside
                totals["outputs"][rows] = out + np.where(inner, partial, here) * wide
            for name, need in totals.items():
                worst[name] = np.maximum(worst[name], need) if name in worst else need
        needs: dict[str, Array] = {}
        for operand, need in worst.items():
            pad = nest.pads[operand]
            needs[pad] = needs[pad] + need if pad in needs else need
        return needs

    # Bounds and traffic -----------------------------------------------------------------------------------------------------------
    def bytes(self, rows: Array) -> dict[str, Array]:
        """Bytes to and from main memory by operand, as floating-point numbers."""
        nest, c = self.nest, self.columns.take(rows)
        sizes = {name: np.zeros(len(rows)) for name in ("activations", "weights", "outputs")}
        for product in nest.products:
            trips = self._trips(c, product)
            again_a = np.where(~c.hold_a & self._inside(c, trips, "n", "mk"), trips["n"], 1)
            again_b = np.where(~c.hold_b & self._inside(c, trips, "m", "nk"), trips["m"], 1)
            results = product.m * product.n * product.count
            sizes["activations"] += float(product.m * product.k * product.count * nest.a_size) * again_a
            sizes["weights"] += float(product.n * product.k * product.count * nest.b_size) * again_b
            sizes["outputs"] += float(results * (nest.out_size + nest.extra_size))
            sizes["outputs"] += c.spill * 2.0 * (trips["k"] - 1) * results * self.unit.accumulator_bytes()
        return {operand: size * float(nest.target.times(operand)) for operand, size in sizes.items()}

    def _busiest(self, sizes: dict[str, Array]) -> Array:
        """Bytes on the interface that carries most."""
        queues: dict[str, Array] = {}
        for operand, size in sizes.items():
            queue = self.nest.target.interface(operand)
            queues[queue] = queues[queue] + size if queue in queues else size
        most: Array = np.maximum.reduce(list(queues.values()))
        return most

    def traffic(self, rows: Array) -> Array:
        """Bytes to and from main memory, in all."""
        total: Array = np.add.reduce(list(self.bytes(rows).values()))
        return total

    def _trips(self, c: Columns, product: Product) -> dict[str, Array]:
        full = {"m": product.m, "n": product.n, "k": product.k}
        return {d: -(-full[d] // np.minimum(getattr(c, d), full[d])) for d in "mnk"}

    def _inside(self, c: Columns, trips: dict[str, Array], over: str, dims: str) -> Array:
        """Whether a loop over one of `dims` runs inside the loop `over`."""
        result = np.zeros(len(c), dtype=bool)
        for index, order in enumerate(self.orders):
            inner = [d for d in dims if order.index(d) > order.index(over)]
            some = np.logical_or.reduce([trips[d] > 1 for d in inner]) if inner else np.zeros(len(c), dtype=bool)
            result |= (c.order == index) & some & (trips[over] > 1)
        return result

    def bounds(self, rows: Array) -> Array:
        """Femtoseconds that no row beats: computation between the first load and the last store, or the traffic of the busiest
        interface."""
        unknown = rows[np.isnan(self._bounds[rows])]
        if len(unknown):
            self._bounds[unknown] = self._bounds_of(unknown)
        known: Array = self._bounds[rows]
        return known

    def _bounds_of(self, rows: Array) -> Array:
        nest, target, c = self.nest, self.nest.target, self.columns.take(rows)
        memory = target.memory
        cycles = self._compute_cycles(c)
        compute = cycles * (FS_PER_S / self.clock)
        setup = float(sum(fs for _, fs in target.setup()))
        if target.excludes_cold_fill:
            out: Array = (compute + setup) * MARGIN - len(nest.products)
            return out
        rate = memory.least_fs(1 << 60) / (1 << 60)
        sizes = self.bytes(rows)
        first = nest.products[0]
        tile = {d: np.minimum(getattr(c, d), size) for d, size in (("m", first.m), ("n", first.n), ("k", first.k))}
        last = nest.products[-1]
        a = tile["m"] * tile["k"] * float(nest.a_size)
        b = tile["k"] * tile["n"] * float(nest.b_size)
        drain = (1 + (last.m - 1) % np.minimum(c.m, last.m)) * (1 + (last.n - 1) % np.minimum(c.n, last.n)) * float(nest.out_size)
        times = {operand: float(target.times(operand)) for operand in sizes}
        traffic = self._busiest(sizes)
        fill = self._busiest({"activations": a * times["activations"], "weights": b * times["weights"]})
        drain = drain * times["outputs"]
        bound: Array = (np.maximum(compute + (fill + drain) * rate, traffic * rate) + setup) * MARGIN - len(nest.products)
        return bound

    def _compute_cycles(self, c: Columns) -> Array:
        """Cycles of the unit, without what the first and the last tile of the operator add."""
        unit, total = self.unit, np.zeros(len(c), dtype=np.int64)
        bm, bn, bk = unit.granularity()
        for product in self.nest.products:
            full = {"m": product.m, "n": product.n, "k": product.k}
            tile = {d: np.minimum(getattr(c, d), full[d]) for d in "mnk"}
            other = "m" if unit.stationary() == "outputs" else "k"
            block = bm if other == "m" else bk
            resident = (tile[other] <= block) & (tile["n"] <= bn)
            pieces = {d: ((tile[d], full[d] // tile[d]), (full[d] % tile[d], full[d] % tile[d] > 0)) for d in "mnk"}
            for (m, cm), (n, cn), (k, ck) in combinations(pieces["m"], pieces["n"], pieces["k"]):
                count = cm * cn * ck * product.count
                some = np.flatnonzero(count)
                if len(some):
                    whole = ~resident[some]
                    total[some] += count[some] * self._cycles(m[some], n[some], k[some], whole, whole)
        return total

    def _cycles(
        self, m: Array, n: Array, k: Array, opens: Array, closes: Array, cold: bool = False, final: Any = False, total_k: int = 0
    ) -> Array:
        """Cycles of tiles, each distinct one asked for once. `total_k` is the length of the accumulation that a closing tile ends."""
        number_format, known = self.nest.placement[1], self._known
        flags = opens * 2 + closes + 4 * np.asarray(final, dtype=np.int64)
        limits = [int(values.max()) + 1 for values in (m, n, k)]
        if limits[0] * limits[1] * limits[2] * 8 < 1 << 62:
            keys = ((m * limits[1] + n) * limits[2] + k) * 8 + flags
            _, index, where = np.unique(keys, return_index=True, return_inverse=True)
        else:
            _, index, where = np.unique(np.stack([m, n, k, flags]), axis=1, return_index=True, return_inverse=True)
        values = []
        for key in zip(*(column[index].tolist() for column in (m, n, k, flags)), strict=True):
            full_key = (*key, cold, total_k)
            if full_key not in known:
                rows, columns, depth, flag = key
                before = total_k - depth if flag & 3 == 1 and total_k else 0
                work = Gemm(rows, columns, depth, number_format, bool(flag & 2), bool(flag & 1), cold, bool(flag & 4), before)
                known[full_key] = self.unit.cycles(work)
            values.append(known[full_key])
        out: Array = np.array(values, dtype=np.int64)[where.reshape(-1)]
        return out

    # Exact latencies ------------------------------------------------------------------------------------------------------------
    def latencies(self, rows: Array) -> Array:
        """Femtoseconds of every row, exactly those of its plan."""
        unknown = rows[self._latencies[rows] < 0]
        if len(unknown):
            self._latencies[unknown] = self._latencies_of(unknown)
        known: Array = self._latencies[rows]
        return known

    def _latencies_of(self, rows: Array) -> Array:
        out = np.zeros(len(rows), dtype=np.int64)
        orders = self.columns.order[rows]
        for index, order in enumerate(self.orders):
            chosen = np.flatnonzero(orders == index)
            for start in range(0, len(chosen), 256):
                part = chosen[start : start + 256]
                out[part] = _Streams(self, self.columns.take(rows[part]), order).latencies()
        return out

    # Energy ----------------------------------------------------------------------------------------------------------------------
    def energies(self, rows: Array) -> Array | None:
        """Picojoules of products, vector work, main memory and scratchpads, as far as the device states them. None where it states
        none of them."""
        nest, target, c = self.nest, self.nest.target, self.columns.take(rows)
        memories = {name: m.energy for name, m in target.device.memories.items() if m.energy is not None}
        per_mac = self.unit.mac_energy.get(nest.placement[1])
        per_operation = target.unit(nest.post_unit).operation_energy if nest.post_unit else None
        if not memories and per_mac is None and per_operation is None:
            return None
        macs = sum(p.count * p.m * p.n * p.k for p in nest.products)
        fixed = (per_mac or 0) * macs + (per_operation or 0) * nest.results * sum(nest.epilogue)
        total: Array = float(fixed) + self.traffic(rows) * 8 * float(memories.get(target.main, 0))
        pads = [float(memories.get(nest.pads[operand], 0)) for operand in ("activations", "weights", "outputs")]
        if any(pads):
            bits = (float(nest.left.format.bits), float(nest.right.format.bits), 8.0 * self.unit.accumulator_bytes())
            total = total + self._pad_energy(c, [rate * width for rate, width in zip(pads, bits, strict=True)])
        return total

    def _pad_energy(self, c: Columns, rates: list[float]) -> Array:
        total = np.zeros(len(c))
        known: dict[tuple[int, int, int], float] = {}

        def energy(m: int, n: int, k: int) -> float:
            if (m, n, k) not in known:
                crossing = self.unit.operand_elements(Gemm(m, n, k, self.nest.placement[1]))
                known[m, n, k] = sum(elements * rate for elements, rate in zip(crossing, rates, strict=True))
            return known[m, n, k]

        for product in self.nest.products:
            full = {"m": product.m, "n": product.n, "k": product.k}
            tile = {d: np.minimum(getattr(c, d), full[d]) for d in "mnk"}
            pieces = {d: ((tile[d], full[d] // tile[d]), (full[d] % tile[d], full[d] % tile[d] > 0)) for d in "mnk"}
            for (m, cm), (n, cn), (k, ck) in combinations(pieces["m"], pieces["n"], pieces["k"]):
                count = cm * cn * ck * product.count
                for row in np.flatnonzero(count).tolist():
                    total[row] += int(count[row]) * energy(int(m[row]), int(n[row]), int(k[row]))
        return total


class _Streams:
    """The exact time of mappings of one loop order."""

    def __init__(self, table: NestTable, c: Columns, order: str) -> None:
        self.table, self.nest, self.c, self.order = table, table.nest, c, "b" + order
        self.products = self.nest.products
        self.depth = 3 if self.nest.post_unit else 2
        self.full = [{"b": p.count, "m": p.m, "n": p.n, "k": p.k} for p in self.products]
        self.tile = [
            {"b": np.ones(len(c), dtype=np.int64), **{d: np.minimum(getattr(c, d), full[d]) for d in "mnk"}} for full in self.full
        ]
        self.trips = [{d: -(-full[d] // tile[d]) for d in "bmnk"} for full, tile in zip(self.full, self.tile, strict=True)]
        self.lengths = [np.multiply.reduce([t[d] for d in "bmnk"]) for t in self.trips]
        self.offsets = [np.zeros(len(c), dtype=np.int64)]
        for length in self.lengths[:-1]:
            self.offsets.append(self.offsets[-1] + length)
        self.total = self.offsets[-1] + self.lengths[-1]
        unit = table.unit
        bm, bn, bk = unit.granularity()
        weights = unit.stationary() == "weights"
        self.run = ("m" if weights else "k") if order[-1] == ("m" if weights else "k") else None
        other, block = ("k", bk) if weights else ("m", bm)
        self.fold = [(tile["n"] <= bn) & (tile[other] <= block) for tile in self.tile]

    @cached_property
    def sizes(self) -> list[dict[str, tuple[Array, Array]]]:
        """For each product and dimension the size of a tile and of the last one."""
        return [
            {d: (tile[d], full[d] - tile[d] * (trips[d] - 1)) for d in "mnk"}
            for full, tile, trips in zip(self.full, self.tile, self.trips, strict=True)
        ]

    def latencies(self) -> Array:
        setup = sum(fs for _, fs in self.nest.target.setup())
        steps, counts = (np.stack(columns) for columns in zip(*self._kinds(), strict=True))
        fs = self._step(steps)
        total: Array = setup + (counts * fs).sum(axis=0)
        total[(counts.astype(float) * fs).sum(axis=0) > LONGEST_FS] = np.iinfo(np.int64).max
        return total

    def _kinds(self) -> Iterator[tuple[Array, Array]]:
        """Kinds of steps: the number of one of them, and how many there are."""
        for offset, trips in zip(self.offsets, self.trips, strict=True):
            choices: list[list[tuple[Array, Array]]] = []
            inner = np.ones(len(self.c), dtype=np.int64)
            for d in reversed(self.order):
                deep = self.depth if d == self.order[-1] or int(inner.min()) < self.depth else 1
                t = trips[d]
                kinds = [(np.full_like(t, digit), (t > digit).astype(np.int64)) for digit in range(deep + 1)]
                kinds.append((np.full_like(t, deep + 1), np.maximum(0, t - 2 - deep)))
                kinds.append((t - 1, (t - 1 > deep).astype(np.int64)))
                choices.append([(digit * inner, count) for digit, count in kinds if count.any()])
                inner = inner * t
            for combination in combinations(*choices):
                count = np.multiply.reduce([c for _, c in combination])
                if count.any():
                    index = np.add.reduce([d for d, _ in combination])
                    yield offset + index, count
        for late in range(self.depth):
            yield self.total + late, np.ones(len(self.c), dtype=np.int64)

    def _step(self, step: Array) -> Array:
        """Femtoseconds of the steps whose first stage takes tiles of these numbers, one column per mapping."""
        nest = self.nest
        load = self._jobs(step)
        work = self._jobs(step - 1)
        store = self._jobs(step - self.depth)
        queues: dict[str, Array] = {}
        for operand, fs in (("activations", load["a"]), ("weights", load["b"]), ("outputs", load["extra"] + store["store"])):
            queue = nest.target.interface(operand)
            queues[queue] = queues[queue] + fs if queue in queues else fs
        memory = np.maximum.reduce(list(queues.values()))
        busy = work["multiply"]
        if nest.post_unit:
            busy = np.maximum(busy, self._jobs(step - 2)["post"])
        if nest.target.excludes_cold_fill:
            idle = (step == 0) | (step > self.total + (1 if nest.post_unit else 0))
            if nest.post_unit:
                idle |= (step > self.total) & (self._jobs(step - 2)["closed"] == 0)
            memory = np.where(idle, 0, memory)
        result: Array = np.maximum(memory, busy)
        return result

    def _jobs(self, tile: Array) -> dict[str, Array]:
        """Femtoseconds of the jobs of a tile by its number in the stream; none before the first and behind the last."""
        result: dict[str, Array] = {}
        for index, (offset, length) in enumerate(zip(self.offsets, self.lengths, strict=True)):
            there = (tile >= offset) & (tile < offset + length)
            if not there.any():
                continue
            for name, fs in self._product_jobs(index, np.where(there, tile - offset, 0)).items():
                fs = np.where(there, fs, 0)
                result[name] = result[name] + fs if name in result else fs
        if not result:
            zero = np.zeros(len(self.c), dtype=np.int64)
            return dict.fromkeys(("a", "b", "extra", "multiply", "post", "store", "closed"), zero)
        return result

    def _product_jobs(self, index: int, tile: Array) -> dict[str, Array]:
        trips, c, hold = self.trips[index], self.c, self.durations[index]
        first, last, rest = {}, {}, tile
        for d in reversed(self.order):
            rest, digit = np.divmod(rest, trips[d])
            first[d], last[d] = digit == 0, digit == trips[d] - 1
        start = np.logical_and.reduce(list(first.values()))
        end = np.logical_and.reduce(list(last.values()))

        def changed(dims: str) -> Array:
            result, inner = start, np.ones(len(c), dtype=bool)
            for d in reversed(self.order):
                if d in dims:
                    result = result | (inner & (trips[d] > 1))
                inner = inner & first[d]
            found: Array = np.asarray(result)
            return found

        def pick(values: dict[tuple[int, ...], Array], dims: str) -> Array:
            out = np.zeros(len(c), dtype=np.int64)
            for ends, fs in values.items():
                here = np.logical_and.reduce([last[d] if e else ~last[d] for d, e in zip(dims, ends, strict=True)])
                out = np.where(here, fs, out)
            return out

        load_a = changed("bmk") & (~c.hold_a | first["n"])
        load_b = changed("bkn") & (~c.hold_b | first["m"])
        extra = np.where(last["k"], pick(hold["extra"], "mn"), 0) if hold["extra"] else np.zeros(len(c), dtype=np.int64)
        store = np.where(last["k"], pick(hold["store c"], "mn"), 0)
        if c.spill.any():
            extra = extra + np.where(c.spill & ~first["k"], pick(hold["load sums"], "mn"), 0)
            store = store + np.where(c.spill & ~last["k"], pick(hold["store sums"], "mn"), 0)
        if self.run:
            fold = self.fold[index]
            opens, closes = first[self.run] | ~fold, last[self.run] | ~fold
            multiply = np.zeros(len(c), dtype=np.int64)
            for o, cl in combinations((False, True), repeat=2):
                here = (opens == o) & (closes == cl)
                if here.any():
                    multiply = np.where(here, pick(hold[f"multiply {o} {cl}"], "mnk"), multiply)
        else:
            multiply = pick(hold["multiply True True"], "mnk")
        if index == len(self.products) - 1:
            multiply = np.where(end, hold["final"][()], multiply)
        if index == 0:
            multiply = np.where(start, hold["cold"][()], multiply)
        post = np.where(last["k"], pick(hold["post"], "mn"), 0) if hold["post"] else np.zeros(len(c), dtype=np.int64)
        return {
            "a": np.where(load_a, pick(hold["a"], "mk"), 0),
            "b": np.where(load_b, pick(hold["b"], "kn"), 0),
            "extra": extra,
            "multiply": multiply,
            "post": post,
            "store": store,
            "closed": last["k"].astype(np.int64),
        }

    @cached_property
    def durations(self) -> list[dict[str, dict[tuple[int, ...], Array]]]:
        """For each product the femtoseconds of every job, by which of its dimensions are at their last tile."""
        nest, out = self.nest, []
        for index, sizes in enumerate(self.sizes):

            def moved(
                name: str, operand: str, dims: str, size: Any, store: bool = False, s: Any = sizes, full: Any = self.full[index]
            ) -> dict[tuple[int, ...], Array]:
                x, y = dims[0], dims[1]
                along = "k" if "k" in dims else "n"  # the dimension in which an operand's elements lie side by side
                out: dict[tuple[int, ...], Array] = {}
                for i, j in combinations((0, 1), repeat=2):
                    lengths = {x: s[x][i], y: s[y][j]}
                    out[i, j] = pair_map(
                        lengths[x] * lengths[y],
                        lengths[along],
                        lambda e, run: nest.transfer(name, operand, e, size, run, full[along], store=store).fs,
                    )
                return out

            wide = self.table.unit.accumulator_bytes()
            known: dict[str, dict[tuple[int, ...], Array]] = {
                "a": moved("load a", "activations", "mk", nest.a_size),
                "b": moved("load b", "weights", "kn", nest.b_size),
                "extra": moved("load extra", "outputs", "mn", nest.extra_size) if nest.extra_size else {},
                "store c": moved("store c", "outputs", "mn", nest.out_size, store=True),
                "post": {},
            }
            if self.c.spill.any():
                known["load sums"] = moved("load sums", "outputs", "mn", wide)
                known["store sums"] = moved("store sums", "outputs", "mn", wide, store=True)
            if nest.post_unit:
                known["post"] = {
                    (i, j): unique_map(sizes["m"][i] * sizes["n"][j], lambda e: nest.post_process(e).fs)
                    for i, j in combinations((0, 1), repeat=2)
                }
            yes = np.ones(len(self.c), dtype=bool)
            fold, folded = self.fold[index], bool(self.run and self.fold[index].any())
            total_k = self.full[index]["k"] if self.run == "k" else 0
            for o, cl in combinations((False, True), repeat=2):
                if folded or (o and cl):
                    known[f"multiply {o} {cl}"] = {
                        ends: self._multiply(index, ends, yes & o, yes & cl, total_k=total_k) for ends in combinations((0, 1), repeat=3)
                    }
            if not folded and self.run:
                for o, cl in ((False, False), (False, True), (True, False)):
                    known[f"multiply {o} {cl}"] = known["multiply True True"]
            trips = self.trips[index]
            single = trips[self.run] == 1 if self.run else yes
            if index == 0:
                only = self.total == 1
                starts = tuple(trips[d] == 1 for d in "mnk")
                known["cold"] = {(): self._multiply(0, starts, yes, single | ~fold, cold=True, final=only, total_k=total_k)}
            if index == len(self.products) - 1:
                known["final"] = {(): self._multiply(index, (1, 1, 1), single | ~fold, yes, final=True, total_k=total_k)}
            out.append(known)
        return out

    def _multiply(
        self, index: int, ends: Sequence[Any], opens: Array, closes: Array, cold: bool = False, final: Any = False, total_k: int = 0
    ) -> Array:
        m, n, k = (np.where(e, self.sizes[index][d][1], self.sizes[index][d][0]) for d, e in zip("mnk", ends, strict=True))
        finals = np.broadcast_to(np.asarray(final, dtype=bool), m.shape)
        cycles = self.table._cycles(m, n, k, opens, closes, cold, finals, total_k)
        return cycles_fs(cycles, self.table.clock)


def cycles_fs(cycles: Array, clock_hz: int) -> Array:
    """Femtoseconds of cycles, rounded as `hw.quantity.cycles_to_fs` does."""
    from hw.quantity import cycles_to_fs

    return unique_map(cycles, lambda count: cycles_to_fs(count, clock_hz))

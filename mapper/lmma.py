"""Products by table look-up: weights of few bits on units with LMMA instructions.

Such a product reads tables of signed sums of its activations. Who builds them is an operator of its own, `tables`, which like
any elementwise operator runs behind the kernel that writes the activations, or as a kernel by itself. Converting the weights
and multiplying stays possible for every product; `lower` takes what is fastest, by the cost of the whole graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any, Literal

import numpy as np

from hw.units.lmma_core import SCALE_BITS, SCALE_GROUP, LmmaCore
from mapper.errors import CapacityError, MappingError
from mapper.kernels import Kernel
from mapper.mapping import Mapping as SavedMapping
from mapper.mapping import OperatorMapping
from mapper.residency import Found
from mapper.target import Target, converts, native
from mapper.waves import SHORTEST_SPLIT, SLAB, STAGES, SUM_BYTES, WaveProduct, tilings
from workloads.format import Format, parse_format
from workloads.graph import Graph, Operator, Tensor

TABLES = "tables"
"""The function of operators that build tables."""

FAMILY = "table"
"""The family of the formats of tables."""

ACTIVATIONS = frozenset({"int8", "fp16", "bf16", "fp8", "fp8-e4m3", "fp8-e5m2"})
"""Formats of which LMMA instructions take tables."""

Building = Literal["fused", "separate"]


def lmma_unit(target: Target) -> tuple[str, LmmaCore] | None:
    """The first unit of a device with LMMA instructions, and its name; None where there is none."""
    return next(((name, unit) for name, unit in target.device.units.items() if isinstance(unit, LmmaCore)), None)


def table_format(unit: LmmaCore, activations: Format) -> Format:
    """How tables of `activations` are stored, per activation. `scheme` keeps what they are tables of."""
    note = f"{unit.entries} sums of {unit.depth} activations, {unit.table_bits} bits each"
    return Format(unit.table_format, unit.table_bits_per_activation, unit.table_bits, FAMILY, note, activations.name)


def looks_up(unit: LmmaCore, activations: Format, weights: Format) -> str | None:
    """The format in which a unit multiplies by looking up, None where it cannot."""
    if activations.name not in ACTIVATIONS:
        return None
    return native(unit.formats(), table_format(unit, activations), weights)


def of_tables(kernel: Kernel) -> bool:
    """Whether a kernel multiplies by looking up."""
    return bool((formats := kernel.multiplied) and formats[0].family == FAMILY)


def builds_tables(operator: Operator) -> bool:
    return operator.function == TABLES


# The graph with tables -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tabled:
    """Products of one segment that read the same activations and can look them up."""

    segment: int
    activations: str
    products: tuple[str, ...]

    @property
    def operator(self) -> str:
        """The name of the operator that builds their tables, and of the tables."""
        return f"{self.activations}.{TABLES}"


def tabled(graph: Graph, unit: LmmaCore) -> list[Tabled]:
    """Everything in a graph that a unit could multiply by looking up. Weights must be known ahead: they are stored in another order."""
    found: dict[tuple[int, str], list[str]] = {}
    for number, segment in enumerate(graph.segments):
        for op in segment.operators:
            if op.kind not in ("matmul", "grouped_matmul"):
                continue
            left, right = (graph.tensors[name] for name in op.inputs[:2])
            if right.role == "weight" and left.role == "activation" and looks_up(unit, left.format, right.format):
                found.setdefault((number, left.name), []).append(op.name)
    return [Tabled(number, name, tuple(products)) for (number, name), products in found.items()]


def with_tables(graph: Graph, unit: LmmaCore, building: Mapping[Tabled, Building]) -> Graph:
    """`graph` with tables for the products of `building`: one operator per activations, and products that read what it writes."""
    if not building:
        return graph
    tensors = dict(graph.tensors)
    segments = list(graph.segments)
    for number in sorted({one.segment for one in building}):
        here = [one for one in building if one.segment == number]
        source = {product: one for one in here for product in one.products}
        operators: list[Operator] = []
        built: set[Tabled] = set()
        for op in segments[number].operators:
            one = source.get(op.name)
            if one is not None:
                if one not in built:
                    built.add(one)
                    operators.append(_build(graph.tensors[one.activations], unit, one, building[one]))
                    tensors[one.operator] = _tables(graph.tensors[one.activations], unit, one)
                op = replace(op, inputs=(one.operator, *op.inputs[1:]))
            operators.append(op)
        segments[number] = replace(segments[number], operators=tuple(operators))
    return replace(graph, tensors=tensors, segments=tuple(segments))


def _tables(activations: Tensor, unit: LmmaCore, one: Tabled) -> Tensor:
    return replace(activations, name=one.operator, format=table_format(unit, activations.format))


def _build(activations: Tensor, unit: LmmaCore, one: Tabled, building: Building) -> Operator:
    attributes = {"elements": activations.elements, "operations": ceil(unit.build_operations), "specials": 0}
    if building == "separate":
        attributes["separate"] = 1
    return Operator(one.operator, "elementwise", (one.activations,), (one.operator,), attributes, "", TABLES)


# The choice ----------------------------------------------------------------------------------------------------------------
def lower(graph: Graph, target: Target, mapping: SavedMapping | None, cost: Callable[[Graph], int]) -> Graph:
    """`graph` as it runs on a device with LMMA instructions; as it is on any other.

    By cost: of no tables, all fused and all separate, the fastest; then for one group of products after the other whatever is
    fastest while the others keep theirs, until nothing changes. `cost` is in femtoseconds; it may raise `CapacityError`. A saved
    `mapping` decides itself. Raises `CapacityError` when nothing fits.
    """
    found = lmma_unit(target)
    if found is None:
        return graph
    _, unit = found
    groups = tabled(graph, unit)
    if mapping is not None:
        return with_tables(graph, unit, _saved(groups, mapping))
    if unit.tables == "none" or not groups:
        return graph
    if unit.tables != "by_cost":
        return with_tables(graph, unit, dict.fromkeys(groups, unit.tables))
    known: dict[tuple[Building | None, ...], int | None] = {}

    def fs(choice: tuple[Building | None, ...]) -> int | None:
        if choice not in known:
            try:
                known[choice] = cost(with_tables(graph, unit, _building(groups, choice)))
            except CapacityError:
                known[choice] = None
        return known[choice]

    options: tuple[Building | None, ...] = (None, "fused", "separate")
    best = _fastest([(option,) * len(groups) for option in options], fs)
    while True:
        before = best
        for index in range(len(groups)):
            best = _fastest([best, *((*best[:index], option, *best[index + 1 :]) for option in options)], fs)
        if best == before:
            return with_tables(graph, unit, _building(groups, best))


def _building(groups: list[Tabled], choice: tuple[Building | None, ...]) -> dict[Tabled, Building]:
    return {one: how for one, how in zip(groups, choice, strict=True) if how is not None}


def _fastest(
    choices: list[tuple[Building | None, ...]], fs: Callable[[tuple[Building | None, ...]], int | None]
) -> tuple[Building | None, ...]:
    """The first of the fastest; the first of all where none fits."""
    timed = [(time, number) for number, choice in enumerate(choices) if (time := fs(choice)) is not None]
    return choices[min(timed)[1]] if timed else choices[0]


def _saved(groups: list[Tabled], mapping: SavedMapping) -> dict[Tabled, Building]:
    """Who builds the tables that a saved mapping's products read."""
    looked_up: set[str] = set()
    alone: set[str] = set()
    for saved in mapping.operators:
        alone.add(saved.operator)
        if any(_format(part).startswith(("table", "fulltable")) for part in (saved, *saved.parts)):
            looked_up |= set(_members(saved.operator))
    return {one: "separate" if one.operator in alone else "fused" for one in groups if set(one.products) & looked_up}


def _format(mapping: OperatorMapping) -> str:
    return str(mapping.placement.get("format", ""))


def _members(name: str) -> Iterator[str]:
    """The products of a kernel that runs several side by side: `a.q_proj+k_proj` is `a.q_proj` and `a.k_proj`."""
    first, *tails = name.split("+")
    yield first
    prefix = first.rpartition(".")[0]
    yield from (f"{prefix}.{tail}" if prefix else tail for tail in tails)


# The product ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class TableProduct(WaveProduct):
    """A product in thread blocks whose rows are tables: slabs of tables and of weights as they are stored in shared memory."""

    @cached_property
    def lut(self) -> LmmaCore:
        core = self.tensor_core
        assert isinstance(core, LmmaCore)
        return core

    @cached_property
    def table(self) -> np.ndarray[Any, Any]:
        """The candidates of the multiplying kernels, and larger tiles where registers hold their sums: half of them, as there."""
        _, capacity = self.target.pad_capacity("outputs", self.unit)
        rows = max(shape[1] for shape in self.shapes)
        every = tilings(self.core.tile_rows, self.core.tile_columns, capacity // (2 * SUM_BYTES))
        m, n, split = every[:, 0], every[:, 1], every[:, 2]
        _, _, columns, k = self.shapes[0]
        useful = ((m == m.min()) | (m < 2 * rows)) & ((n == n.min()) | (n < 2 * columns))
        kept: np.ndarray[Any, Any] = every[useful & ((split == 1) | (k // split >= SHORTEST_SPLIT))]
        return kept

    def _needs(self, m: Any, n: Any, split: Any, blocks: Any) -> tuple[tuple[str, Any], ...]:
        planes, depth = self.lut.planes(self.placement[1]), self.lut.depth
        bits = m * self.lut.entries * self.lut.table_bits + n * planes * depth  # of a group of `depth` along k
        shared = self.target.pad_capacity("activations", self.unit)[0]
        sums = self.target.pad_capacity("outputs", self.unit)[0]
        results = sum(count * rows * columns for count, rows, columns, _ in self.shapes)
        return (
            (shared, blocks * STAGES * -(-bits * SLAB // (8 * depth))),
            (sums, blocks * m * n * SUM_BYTES),
            (self.cache[0], (split > 1) * results * split * SUM_BYTES),
        )


def product(target: Target, kernel: Kernel, resident: Found) -> WaveProduct:
    """The mappings of a product in thread blocks: by look-up where its left operand are tables. Raises `MappingError` for tables of
    another shape than the unit's."""
    if not of_tables(kernel):
        return WaveProduct(target, kernel, resident)
    space = TableProduct(target, kernel, resident)
    if space.lut.table_format != kernel.input(0).format.name:
        raise MappingError(f"operator {kernel.name!r} reads {kernel.input(0).format}, and {space.unit!r} takes {space.lut.table_format}")
    return space


# What reports say ------------------------------------------------------------------------------------------------------------
def best_rate(target: Target, unit: str, kernel: Kernel) -> int:
    """Multiply-accumulates per cycle of one copy of a unit that no lowering of a kernel's products beats: converted, as they are
    stored, or looked up."""
    part = target.unit(unit)
    formats = kernel.multiplied
    assert formats is not None
    names = list(target.lowerings(unit, *formats))
    if isinstance(part, LmmaCore):
        if formats[0].family == FAMILY:
            names += target.lowerings(unit, parse_format(formats[0].scheme), formats[1])
        elif kernel.kind != "attention" and kernel.input(1).role == "weight" and (found := looks_up(part, *formats)):
            names.append(found)
    return max((part.macs_per_cycle(name) for name in names), default=0)


def how(target: Target, kernel: Kernel, number_format: str, kernels: Sequence[Kernel]) -> str:
    """How a kernel multiplies, in words: by which instruction, and who builds its tables; empty for a kernel without products."""
    formats = kernel.multiplied
    if formats is None:
        return ""
    left = formats[0]
    if left.family != FAMILY:
        converted = [f.name for position, f in enumerate(formats) if converts(number_format, f, position)]
        return f"{number_format} from {' and '.join(dict.fromkeys(converted))}" if converted else f"{number_format} as stored"
    found = lmma_unit(target)
    assert found is not None
    name = found[1].instruction_name(left.scheme, number_format)
    table = kernel.operator.inputs[0]
    builder = next((k for k in kernels if any(table in op.outputs for op in (k.operator, *k.fused))), None)
    if builder is None:
        return name
    return f"{name}, tables {'by' if builds_tables(builder.operator) else 'fused into'} {builder.name}"


def notes(target: Target, kernels: Sequence[Kernel]) -> Iterator[str]:
    """What is assumed of look-ups."""
    found = lmma_unit(target)
    if found is None or not any(of_tables(kernel) for kernel in kernels):
        return
    name, unit = found
    yield (
        f"tables of {unit.entries} sums of {unit.depth} activations, {unit.table_bits} bits each "
        f"({float(unit.table_bits_per_activation):g} bits per activation), are built by vector units with {ceil(unit.build_operations)} "
        "operations per activation"
        + (f"; {SCALE_GROUP} activations share a {SCALE_BITS}-bit scale (an assumption)" if unit.table_bits == 8 else "")
        + "; what quantised tables cost in accuracy is not part of it"
    )
    yield (
        f"look-ups of {name} keep the pipeline constants of multiplying kernels (efficiency, latency of a step, thread blocks), which were "
        "fitted on those; the board's power does not limit them"
    )

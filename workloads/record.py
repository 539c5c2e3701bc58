"""From executed tensor operations to operators: which values exist, who uses which part of them, and what is left to name.

The tracer records operations in execution order over `Value`s. A use of a value may be a view of a part of it (one of q, k, v in
a fused projection). `Recording.finish` turns parts that together make up a value into separate tensors, drops values
nobody reads, and settles formats: a cast is folded into the operator that produces or consumes the value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from workloads.format import parse_format
from workloads.graph import Operator, Tensor

Region = tuple[int, tuple[tuple[int, int], ...]]
"""Elements of a storage: offset and (size, stride) pairs, largest stride first, merged where contiguous."""


def region_of(offset: int, shape: Sequence[int], strides: Sequence[int]) -> Region:
    """The canonical region of a strided view; views that touch the same elements of a dense tensor have the same region.

    >>> region_of(0, (2, 3, 4), (12, 4, 1)) == region_of(0, (3, 2, 4), (4, 12, 1))
    True
    """
    dims = sorted(((n, s) for n, s in zip(shape, strides, strict=True) if n != 1 and s != 0), key=lambda d: (-d[1], d[0]))
    merged: list[tuple[int, int]] = []
    for size, stride in dims:
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return offset, tuple(merged)


def region_elements(region: Region) -> int:
    return prod(size for size, _ in region[1])


@dataclass(eq=False, slots=True)
class Value:
    """A tensor that one recorded operation produced, or that exists beforehand (weights, inputs, caches)."""

    shape: tuple[int, ...]
    format: str
    role: str
    name: str = ""

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(eq=False, slots=True)
class Use:
    """A value as one operation sees it: the region read (None: all of it), its shape, and the format it is read in."""

    value: Value
    region: Region | None
    shape: tuple[int, ...]
    format: str


@dataclass(eq=False, slots=True)
class Entry:
    """One recorded operation."""

    kind: str
    name: str
    module: str
    function: str
    inputs: list[Use]
    outputs: list[Value]
    attributes: dict[str, int]


def _unique(uses: Iterable[Use]) -> list[Use]:
    """Uses without repetition; parts that together cover a value become one use of the whole."""
    groups: dict[int, dict[Region | None, Use]] = {}
    for use in uses:
        groups.setdefault(id(use.value), {}).setdefault(use.region, use)
    result: list[Use] = []
    for group in groups.values():
        first = next(iter(group.values()))
        parts = [region for region in group if region is not None]
        if None in group or sum(region_elements(r) for r in parts) >= first.value.elements:
            result.append(Use(first.value, None, first.value.shape, first.format))
        else:
            result.extend(group.values())
    return result


class Recording:
    """Operations in execution order. Names of operators are unique; an output tensor is called like its operator."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.reserved: set[str] = set()  # names of parameters: no output may be called like one
        self._taken: set[str] = set()

    def unique_name(self, name: str) -> str:
        """`name`, or `name_1`, `name_2`, ... where it is taken."""
        candidate, i = name, 0
        while candidate in self._taken:
            i += 1
            candidate = f"{name}_{i}"
        self._taken.add(candidate)
        return candidate

    def emit(
        self,
        kind: str,
        module: str,
        inputs: Iterable[Use],
        outputs: Sequence[Value],
        attributes: dict[str, int],
        *,
        function: str = "",
        name: str = "",
    ) -> Entry:
        """Append one operation; inputs that are the same region of the same value are listed once."""
        name = self.unique_name(name or (f"{module}.{function}" if function and module else module or function or kind))
        uses = _unique(inputs)
        for i, value in enumerate(outputs):
            if not value.name:
                value.name = name if len(outputs) == 1 and name not in self.reserved else f"{name}:{i}"
        entry = Entry(kind, name, module, function, uses, list(outputs), attributes)
        self.entries.append(entry)
        return entry

    def merge_tail(self, start: int, kind: str, outputs: Sequence[Value], attributes: dict[str, int], module: str, function: str) -> None:
        """Replace the entries from `start` on by one that reads what they read from outside and produces `outputs`."""
        tail = self.entries[start:]
        del self.entries[start:]
        produced = {id(value) for entry in tail for value in entry.outputs}
        self._taken -= {entry.name for entry in tail}
        for value in outputs:
            value.name = ""
        reads = [
            use
            for entry in tail
            for use in entry.inputs
            if id(use.value) not in produced and (use.value.name or use.value.role != "constant")
        ]
        self.emit(kind, module, reads, outputs, attributes, function=function)

    def is_read(self, value: Value) -> bool:
        for entry in reversed(self.entries):
            if any(use.value is value for use in entry.inputs):
                return True
            if any(made is value for made in entry.outputs):
                return False
        return False

    def extend(self, entry: Entry, inputs: Sequence[Use], output: Value) -> None:
        """Let `entry`, whose output nobody has read yet, also read `inputs` and produce `output` instead; it runs last."""
        entry.inputs = _unique([*entry.inputs, *inputs])
        entry.outputs = [output]
        self.entries.remove(entry)
        self.entries.append(entry)

    def producer(self, value: Value) -> Entry | None:
        """The latest operation that produced `value`."""
        return next((entry for entry in reversed(self.entries) if any(v is value for v in entry.outputs)), None)

    def finish(self, final: Sequence[Use]) -> tuple[dict[str, Tensor], list[Operator], tuple[str, ...]]:
        """Tensors, operators and the names of the final outputs; `final` are the values that leave the graph."""
        uses: dict[int, list[Use]] = {}
        for entry in self.entries:
            for use in entry.inputs:
                uses.setdefault(id(use.value), []).append(use)
        for use in final:
            uses.setdefault(id(use.value), []).append(use)
        parts = self._settle(uses)
        tensors: dict[str, Tensor] = {}
        operators: list[Operator] = []

        def names(use: Use, reader: str = "") -> str:
            value = use.value
            split = parts.get(id(value))
            if split is not None and use.region in split:
                tensor = split[use.region]
            else:
                if not value.name:
                    value.name = self.unique_name(f"{reader}.constant" if reader else "constant")
                tensor = Tensor(value.name, value.shape, parse_format(value.format), value.role)
            if tensors.setdefault(tensor.name, tensor) != tensor:
                raise AssertionError(f"two tensors are called {tensor.name!r}")
            return tensor.name

        for entry in self._with_slices(parts):
            inputs = tuple(dict.fromkeys(names(use, entry.name) for use in entry.inputs))
            outputs: list[str] = []
            for value in entry.outputs:
                split = parts.get(id(value))
                if split is None:
                    outputs.append(names(Use(value, None, value.shape, value.format)))
                else:
                    for tensor in split.values():
                        tensors.setdefault(tensor.name, tensor)
                        outputs.append(tensor.name)
            operators.append(Operator(entry.name, entry.kind, inputs, tuple(outputs), entry.attributes, entry.module, entry.function))
        return tensors, operators, tuple(names(use) for use in final)

    def _settle(self, uses: dict[int, list[Use]]) -> dict[int, dict[Region | None, Tensor]]:
        """Narrow formats that every reader narrows anyway, and find the values that are read only in disjoint parts."""
        parts: dict[int, dict[Region | None, Tensor]] = {}
        for entry in self.entries:
            for value in entry.outputs:
                readers = uses.get(id(value), [])
                if not readers or value.role != "activation":
                    continue
                formats = {use.format for use in readers}
                if len(formats) == 1 and parse_format(candidate := formats.pop()).bits < parse_format(value.format).bits:
                    value.format = candidate
                regions: dict[Region | None, Use] = {}
                for use in readers:
                    regions.setdefault(use.region, use)
                if None in regions or sum(region_elements(r) for r in regions if r is not None) != value.elements:
                    continue
                base = entry.name if len(entry.outputs) == 1 else value.name
                ordered = sorted(regions, key=lambda region: region[0] if region else 0)
                parts[id(value)] = {
                    region: Tensor(f"{base}:{i}", regions[region].shape, parse_format(value.format), value.role)
                    for i, region in enumerate(ordered)
                }
        return parts

    def _with_slices(self, parts: dict[int, dict[Region | None, Tensor]]) -> list[Entry]:
        """The entries, with a `copy` called `slice` before the first reader of a lone part of an activation."""
        result: list[Entry] = []
        sliced: dict[tuple[int, Region], Value] = {}
        for entry in self.entries:
            for i, use in enumerate(entry.inputs):
                value = use.value
                if use.region is None or value.role != "activation" or id(value) in parts:
                    continue
                key = (id(value), use.region)
                if key not in sliced:
                    name = self.unique_name(f"{entry.module}.slice")
                    part = Value(use.shape, value.format, value.role, name)
                    whole = Use(value, None, value.shape, value.format)
                    elements = region_elements(use.region)
                    result.append(Entry("copy", name, entry.module, "slice", [whole], [part], {"elements": elements}))
                    sliced[key] = part
                entry.inputs[i] = Use(sliced[key], None, use.shape, use.format)
            result.append(entry)
        return result

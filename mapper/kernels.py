"""From operators to kernels: elementwise work and cache appends move into the kernel that produces their input.

A kernel is what one launch (or one run of an array) executes: a main operator, the operators fused behind it, and the
tensors that it really reads and writes. Intermediate values inside a kernel cost no traffic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from workloads import cost
from workloads.format import Format
from workloads.graph import Graph, Operator, Segment, Tensor

FUSIBLE = frozenset({"elementwise", "append", "copy"})
"""Kinds that may run behind the operator that produces their input."""

HOSTS = frozenset({"matmul", "grouped_matmul", "norm", "elementwise", "copy", "embedding", "softmax", "conv1d", "scan", "reduce"})
"""Kinds that may carry fused operators."""


@dataclass(frozen=True, slots=True)
class Operand:
    """What a kernel reads or writes of one tensor: `elements` of `format`, of a tensor of `total` elements."""

    tensor: str
    elements: int | Fraction
    total: int | Fraction
    format: Format
    role: str
    position: int = -1  # index among the main operator's inputs; -1 for operands of fused operators and outputs

    @property
    def bits(self) -> Fraction:
        return self.elements * self.format.bits

    @property
    def size(self) -> Fraction:
        """Bytes moved, exact."""
        return self.elements * self.format.bits / 8

    @property
    def whole(self) -> bool:
        return self.elements >= self.total


@dataclass(frozen=True)
class Kernel:
    """A main operator with the operators fused behind it. `operations` and `specials` are those of the fused operators, in
    all; `compulsory` lists operands that must come from or go to main memory however well everything else is reused."""

    operator: Operator
    fused: tuple[Operator, ...]
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    operations: int
    specials: int
    compulsory: tuple[Operand, ...]

    @property
    def name(self) -> str:
        return self.operator.name

    @property
    def kind(self) -> str:
        return self.operator.kind

    def input(self, position: int) -> Operand:
        """The operand at an input position of the main operator; a tensor that enters twice is one operand."""
        name = self.operator.inputs[position]
        return next(operand for operand in self.reads if operand.tensor == name)

    @property
    def multiplied(self) -> tuple[Format, Format] | None:
        """The stored formats of the two sides of its products (of attention: queries, and the last of keys and values); None for a
        kernel without products."""
        match self.kind:
            case "matmul" | "grouped_matmul":
                return self.input(0).format, self.input(1).format
            case "attention":
                names = self.operator.inputs[1:3]
                return self.input(0).format, [o for o in self.reads if o.tensor in names][-1].format
        return None

    @property
    def flops(self) -> int:
        return sum(cost.flops(op) for op in (self.operator, *self.fused))

    def __repr__(self) -> str:
        behind = f" + {', '.join(op.function or op.kind for op in self.fused)}" if self.fused else ""
        return f"Kernel({self.name}: {self.kind}{behind})"


def fuse(graph: Graph) -> list[tuple[Segment, list[Kernel]]]:
    """Kernels of every segment, in execution order."""
    consumers: dict[str, int] = {}
    for segment in graph.segments:
        for operator in segment.operators:
            for name in operator.inputs:
                consumers[name] = consumers.get(name, 0) + 1
    seen: dict[str, int | Fraction] = {}
    return [(segment, _fuse_segment(graph, segment, consumers, seen)) for segment in graph.segments]


def separate(graph: Graph) -> list[tuple[Segment, list[Kernel]]]:
    """Every operator as a kernel of its own: a machine without fusion."""
    consumers: dict[str, int] = {}
    for operator, _ in graph.operators():
        for name in operator.inputs:
            consumers[name] = consumers.get(name, 0) + 1
    seen: dict[str, int | Fraction] = {}
    return [(s, [_kernel(graph, [operator], [], consumers, seen) for operator in s.operators]) for s in graph.segments]


def _fuse_segment(graph: Graph, segment: Segment, consumers: dict[str, int], seen: dict[str, int | Fraction]) -> list[Kernel]:
    groups: list[list[Operator]] = []
    producer: dict[str, int] = {}
    for operator in segment.operators:
        host = _host(graph, operator, groups, producer, consumers)
        if host is None:
            groups.append([operator])
            host = len(groups) - 1
        else:
            groups[host].append(operator)
        for name in operator.outputs:
            producer[name] = host
    return [_kernel(graph, mains, fused, consumers, seen) for mains, fused in _merge(graph, groups)]


def _merge(graph: Graph, groups: list[list[Operator]]) -> list[tuple[list[Operator], list[Operator]]]:
    """Products of the same input become one (queries, keys and values; gate and up), as inference libraries run them: their
    weights stand side by side. Main operators and fused ones of every kernel.

    A product joins an earlier one when nothing that it or its fused operators need is produced in between.
    """
    merged: list[tuple[list[Operator], list[Operator]]] = []
    producer: dict[str, int] = {}
    for group in groups:
        main, own = group[0], {name for operator in group for name in operator.outputs}
        home = len(merged)
        for index, (mains, _) in enumerate(merged):
            needed = [producer.get(n, -1) for operator in group for n in operator.inputs if n not in own]
            if _side_by_side(graph, mains[0], main) and max(needed) <= index:
                home = index
                break
        if home == len(merged):
            merged.append(([], []))
        merged[home][0].append(main)
        merged[home][1].extend(group[1:])
        producer.update(dict.fromkeys(own, home))
    return merged


def _side_by_side(graph: Graph, first: Operator, other: Operator) -> bool:
    """Whether two operators are products of the same input by weights of one format."""
    if not first.kind == other.kind == "matmul" or first.inputs[0] != other.inputs[0]:
        return False
    left, right = graph.tensors[first.inputs[1]], graph.tensors[other.inputs[1]]
    same = all(first[d] == other[d] for d in ("batch", "m", "k")) and first["batch"] == 1 and left.format == right.format
    return same and left.role == right.role == "weight" and left.name != right.name


def _host(
    graph: Graph, operator: Operator, groups: list[list[Operator]], producer: dict[str, int], consumers: dict[str, int]
) -> int | None:
    """The group that `operator` joins: the last one that produces an input of it, when nothing else needs that input. One with the
    attribute `separate` stays by itself."""
    if operator.kind not in FUSIBLE or operator.attributes.get("separate"):
        return None
    produced = [(producer[name], name) for name in operator.inputs if name in producer]
    if not produced:
        return None
    host, name = max(produced)
    tensor = graph.tensors[name]
    sizes = {graph.tensors[n].elements for n in operator.outputs}
    private = consumers.get(name, 0) == 1 and name not in graph.outputs
    same_size = operator.kind == "append" or sizes == {tensor.elements}
    if groups[host][0].kind in HOSTS and private and same_size and tensor.role == "activation":
        return host
    return None


def _kernel(
    graph: Graph, mains: list[Operator], behind: list[Operator], consumers: dict[str, int], seen: dict[str, int | Fraction]
) -> Kernel:
    main, fused, group = mains[0], tuple(behind), [*mains, *behind]
    inside = {name for operator in group for name in operator.outputs}
    reads: dict[str, Operand] = {}
    for operator in group:
        for position, tensor in enumerate(graph.reads(operator)):
            if tensor.name in inside:
                continue
            elements = cost.read_elements(operator, tensor, position)
            index = position if operator is main else -1
            known = reads.get(tensor.name)
            if known is None:
                reads[tensor.name] = Operand(tensor.name, elements, tensor.elements, tensor.format, tensor.role, index)
            elif elements > known.elements:
                reads[tensor.name] = Operand(tensor.name, elements, tensor.elements, tensor.format, tensor.role, known.position)
    used = Counter(name for operator in fused for name in operator.inputs)
    private = {name for name, uses in used.items() if uses == consumers[name] and name not in graph.outputs}
    writes: dict[str, Operand] = {}
    for operator in group:
        for tensor in graph.writes(operator):
            if tensor.name in private and tensor.role == "activation":
                continue  # handed on inside the kernel, nobody else reads it
            elements = cost.write_elements(operator, tensor)
            writes[tensor.name] = Operand(tensor.name, elements, tensor.elements, tensor.format, tensor.role)
    if len(mains) > 1:
        main = _joined(mains)
        weights = [reads.pop(op.inputs[1]) for op in mains]
        total = sum(o.total for o in weights)
        reads[main.inputs[1]] = replace(weights[0], tensor=main.inputs[1], elements=total, total=total, position=1)
    outside = tuple(o for o in reads.values() if o.elements)
    return Kernel(
        operator=main,
        fused=fused,
        reads=outside,
        writes=tuple(writes.values()),
        operations=sum(op["elements"] * op["operations"] for op in fused if op.kind == "elementwise"),
        specials=sum(op["elements"] * op["specials"] for op in fused if op.kind == "elementwise"),
        compulsory=tuple(_compulsory(graph, outside, tuple(writes.values()), seen)),
    )


def _joined(mains: list[Operator]) -> Operator:
    """One product for several of the same input: `a.q_proj` and `a.k_proj` become `a.q_proj+k_proj`."""
    tails = "+".join(op.name.rpartition(".")[2] for op in mains[1:])
    return replace(
        mains[0],
        name=f"{mains[0].name}+{tails}",
        inputs=(mains[0].inputs[0], "+".join(op.inputs[1] for op in mains)),
        outputs=tuple(name for op in mains for name in op.outputs),
        attributes={**mains[0].attributes, "n": sum(op["n"] for op in mains)},
    )


def _compulsory(
    graph: Graph, reads: tuple[Operand, ...], writes: tuple[Operand, ...], seen: dict[str, int | Fraction]
) -> Iterator[Operand]:
    """Weights, the part of the KV cache that was there before, what enters the graph, and what leaves it or stays in the cache.

    What an earlier kernel has read may still be on the chip: only the elements beyond those `seen` count again.
    """
    for operand in reads:
        elements = operand.elements
        if operand.role == "kv_cache":
            elements = max(0, elements - operand.total * graph.tokens // graph.context)
        elif operand.role != "weight" and operand.tensor not in graph.inputs:
            continue
        fresh = elements - seen.get(operand.tensor, 0)
        seen[operand.tensor] = max(elements, seen.get(operand.tensor, 0))
        if fresh > 0:
            yield replace(operand, elements=fresh)
    for operand in writes:
        if operand.role == "kv_cache" or operand.tensor in graph.outputs:
            yield operand


def tensor_sizes(graph: Graph) -> list[tuple[Tensor, int]]:
    """Every stored tensor with the bytes of all its instances, largest first."""
    sizes = [(tensor, tensor.bytes * graph.multiplicity.get(name, 1)) for name, tensor in graph.tensors.items()]
    return sorted(sizes, key=lambda pair: (-pair[1], pair[0].name))

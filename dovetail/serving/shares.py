"""What one of several devices holds and computes of a model: tensor parallelism, and experts that are spread or sliced.

The template is a decode step of one sequence and one new token. `resized` makes it a step of many: every dimension that counts
tokens is theirs. `tensor_parallel` follows values through the graph: products of what all devices have are cut by columns (whole
heads), products of what is cut by rows, after which the devices add their sums up (all-reduce).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from dovetail.serving.errors import ServingError
from workloads import cost
from workloads.graph import Graph, Operator, Segment, Tensor

_ROWS = {"norm": "rows", "softmax": "rows", "topk": "rows", "embedding": "rows", "grouped_matmul": "rows"}
_ELEMENTS = ("elementwise", "append", "copy", "reduce")
EACH = ("attention", "conv1d", "scan")


def per_token(graph: Graph) -> frozenset[str]:
    """Tensors of which there is one for every token: all but weights and what is computed from constants alone."""
    fixed = {name for name, tensor in graph.tensors.items() if tensor.role in ("weight", "constant")}
    for operator, _ in graph.operators():
        if operator.kind != "embedding" and operator.inputs and all(name in fixed for name in operator.inputs):
            fixed |= set(operator.outputs)
    return frozenset(graph.tensors) - fixed


def _scaled(op: Operator, graph: Graph, factor: Fraction, mine: frozenset[str]) -> Operator:
    """An operator whose token dimensions are `factor` times as large."""
    if not any(name in mine for name in (*op.inputs, *op.outputs)):
        return op
    attributes = dict(op.attributes)

    def grow(key: str) -> None:
        attributes[key] = _whole(attributes[key] * factor, op)

    if op.kind == "matmul":
        grow("m" if graph.tensors[op.inputs[1]].role == "weight" else "batch")
    elif op.kind in EACH:
        grow("batch")
    elif op.kind in _ROWS:
        grow("rows")
    elif op.kind in _ELEMENTS:
        grow("elements")
    if op.kind == "grouped_matmul":
        attributes["active"] = min(cost.active_experts(attributes["rows"] // op["top_k"], op["experts"], op["top_k"]), attributes["rows"])
    return replace(op, attributes=attributes)


def _whole(value: Fraction | int, op: Operator) -> int:
    if Fraction(value).denominator != 1:
        raise ServingError(f"operator {op.name!r}: cannot be cut into equal whole parts ({value})")
    return int(value)


def resized(graph: Graph, tokens: int, per: int = 1) -> Graph:
    """The decode step `graph` of one token (`per` of them) for `tokens` tokens, each of a sequence of its own.

    Experts that are reached are those of uniform routing; contexts stay those of the template.
    """
    factor, mine = Fraction(tokens, per), per_token(graph)
    tensors = {}
    for name, tensor in graph.tensors.items():
        if name in mine and tensor.shape:
            first = Fraction(tensor.shape[0]) * factor
            tensor = replace(tensor, shape=(int(first), *tensor.shape[1:]))
        tensors[name] = tensor
    segments = tuple(replace(s, operators=tuple(_scaled(op, graph, factor, mine) for op in s.operators)) for s in graph.segments)
    return replace(graph, batch=int(graph.batch * factor), tensors=tensors, segments=segments)


@dataclass(frozen=True)
class Shared:
    """One device's share of a template. `reduced` and `gathered` are bytes per token of all-reduces and all-gathers, segment by
    segment, one entry for each."""

    graph: Graph
    reduced: Mapping[str, tuple[int, ...]]
    gathered: Mapping[str, tuple[int, ...]]


def tensor_parallel(graph: Graph, ranks: int) -> Shared:
    """The share of one of `ranks` devices in everything but experts. Raises `ServingError` where a dimension does not divide."""
    tensors = dict(graph.tensors)
    cut: set[str] = set()
    reduced: dict[str, list[int]] = {}
    gathered: dict[str, list[int]] = {}
    if ranks == 1:
        return Shared(graph, {}, {})
    routers = {op.module for op, _ in graph.operators() if op.kind == "topk"}
    normed = {op.inputs[0] for op, _ in graph.operators() if op.kind == "norm" and op["rows"] == graph.batch}
    segments = []
    for segment in graph.segments:
        operators = []
        for op in segment.operators:
            mine = _Cutter(tensors, cut, ranks, op)
            whole = [tensors[name] for name in op.outputs]
            if op.kind == "matmul" and tensors[op.inputs[1]].role == "weight":
                if op["batch"] > 1 and op.inputs[0] in cut:
                    op = mine.heads()
                    cut |= set(op.outputs)
                elif op.inputs[0] in cut:
                    op = mine.weight("k", whole[0])
                    reduced.setdefault(segment.name, []).append(sum(t.bytes for t in whole))
                elif op.module not in routers and not set(op.outputs) & normed:
                    op = mine.weight("n", whole[0])
                    cut |= set(op.outputs)
                    if set(op.outputs) & set(graph.outputs):
                        gathered.setdefault(segment.name, []).append(sum(t.bytes for t in whole))
            elif op.kind == "grouped_matmul":
                pass  # experts are shared by `Experts`
            elif op.kind == "reduce" and _after_experts(graph, op):
                reduced.setdefault(segment.name, []).append(sum(t.bytes for t in whole))
            elif any(name in cut for name in op.inputs):
                op = mine.follow()
                cut |= set(op.outputs)
            operators.append(op)
        segments.append(replace(segment, operators=tuple(operators)))
    shared = replace(graph, tensors=tensors, segments=tuple(segments))
    return Shared(shared, {n: tuple(v) for n, v in reduced.items()}, {n: tuple(v) for n, v in gathered.items()})


def _after_experts(graph: Graph, op: Operator) -> bool:
    """Whether an operator adds up what experts have computed."""
    made = {name for other, _ in graph.operators() if other.kind == "grouped_matmul" for name in other.outputs}
    return any(name in made for name in op.inputs)


@dataclass
class _Cutter:
    """Cuts one operator and its tensors to the share of a device."""

    tensors: dict[str, Tensor]
    cut: set[str]
    ranks: int
    op: Operator

    def _divide(self, what: str, size: int) -> int:
        if size % self.ranks:
            raise ServingError(
                f"operator {self.op.name!r}: its {what} of {size} cannot be cut over {self.ranks} devices; use a number of devices that "
                "divides it"
            )
        return size // self.ranks

    def _shrink(self, name: str, axis: int) -> None:
        tensor = self.tensors[name]
        shape = list(tensor.shape)
        shape[axis] = self._divide(f"{name} dimension", shape[axis])
        self.tensors[name] = replace(tensor, shape=tuple(shape))

    def weight(self, dimension: str, result: Tensor) -> Operator:
        """A product cut by columns (`n`) or rows (`k`) of its weight."""
        op, weight = self.op, self.tensors[self.op.inputs[1]]
        size = op[dimension]
        axis = next((i for i, s in enumerate(weight.shape) if s == size and (dimension == "n") == (i == 0)), None)
        if axis is None:
            axis = weight.shape.index(size)
        self._divide({"n": "columns", "k": "rows"}[dimension], size)
        self._shrink(weight.name, axis)
        if dimension == "n":
            for name in op.outputs:
                self._shrink(name, -1)
        return replace(op, attributes={**op.attributes, dimension: size // self.ranks})

    def heads(self) -> Operator:
        """A product per head with weights of its own."""
        op, size = self.op, self.op["batch"]
        for name in (op.inputs[1], *op.outputs):
            axis = next((i for i, s in enumerate(self.tensors[name].shape) if s == size), -1)
            self._shrink(name, axis)
        return replace(op, attributes={**op.attributes, "batch": self._divide("heads", size)})

    def follow(self) -> Operator:
        """An operator on values that are cut: heads, channels or elements."""
        op, attributes = self.op, dict(self.op.attributes)
        if op.kind == "attention":
            attributes["heads"] = self._divide("heads", op["heads"])
            shared = op["kv_heads"] >= self.ranks
            attributes["kv_heads"] = self._divide("key/value heads", op["kv_heads"]) if shared else 1
            for name in op.inputs[1:3]:
                if shared and name not in self.cut:
                    self.cut.add(name)
                    self._heads(name, op["kv_heads"])
                elif not shared and self.tensors[name].role == "kv_cache" and op["kv_heads"] > 1 and name not in self.cut:
                    self.cut.add(name)
                    self._one_head(name, op["kv_heads"])
        else:
            key = next((k for k in ("heads", "channels", "elements", "rows") if k in attributes), None)
            if key is not None:
                attributes[key] = self._divide(key, attributes[key])
        for name in op.outputs:
            tensor = self.tensors[name]
            if tensor.role == "activation":
                axis = next((i for i in range(len(tensor.shape) - 1, -1, -1) if tensor.shape[i] % self.ranks == 0), None)
                if op.kind == "attention":
                    axis = next((i for i, s in enumerate(tensor.shape) if s == op["heads"]), axis)
                elif len(tensor.shape) == 4:
                    axis = 1 if tensor.shape[1] % self.ranks == 0 else axis
                if axis is None:
                    raise ServingError(f"operator {op.name!r}: its result {tensor!r} cannot be cut over {self.ranks} devices")
                self._shrink(name, axis)
            elif tensor.role == "kv_cache" and name not in self.cut:
                self.cut.add(name)
                self._shrink(name, next(i for i, s in enumerate(tensor.shape) if i and s % self.ranks == 0))
        return replace(op, attributes=attributes)

    def _heads(self, name: str, heads: int) -> None:
        self._shrink(name, next(i for i, s in enumerate(self.tensors[name].shape) if i and s == heads))

    def _one_head(self, name: str, heads: int) -> None:
        tensor = self.tensors[name]
        axis = next(i for i, s in enumerate(tensor.shape) if i and s == heads)
        shape = tuple(1 if i == axis else s for i, s in enumerate(tensor.shape))
        self.tensors[name] = replace(tensor, shape=shape)


# Parts of a step -----------------------------------------------------------------------------------------------------------
def expert_span(segment: Segment) -> tuple[int, int] | None:
    """First and one past the last operator of a layer's experts; None for a body without."""
    places = [i for i, op in enumerate(segment.operators) if op.kind == "grouped_matmul"]
    return (places[0], places[-1] + 1) if places else None


def without(graph: Graph, segments: Iterable[Segment]) -> Graph:
    """`graph` with other segments; what they read and no longer compute enters from outside."""
    kept = tuple(s for s in segments if s.operators)
    names = [name for s in kept for op in s.operators for name in (*op.inputs, *op.outputs)]
    made = {name for s in kept for op in s.operators for name in op.outputs}
    inputs = tuple(dict.fromkeys(n for n in names if n not in made and graph.tensors[n].role == "activation"))
    tensors = {name: graph.tensors[name] for name in dict.fromkeys(names)}
    outputs = tuple(n for n in graph.outputs if n in tensors)
    return replace(graph, tensors=tensors, segments=kept, inputs=inputs, outputs=outputs)


def expert_graph(graph: Graph, segment: Segment, slices: int) -> Graph:
    """One expert of a layer for one row, cut into `slices` (gate and up by columns, down by rows). Raises `ServingError` where the
    width does not divide."""
    span = expert_span(segment)
    assert span is not None
    operators = segment.operators[span[0] : span[1]]
    top_k = next(op["top_k"] for op in operators if op.kind == "grouped_matmul")
    entered: set[str] = set()
    tensors: dict[str, Tensor] = {}
    made: list[Operator] = []
    for op in operators:
        hidden = bool(entered & set(op.inputs))
        if op.kind == "grouped_matmul":
            n, k = op["n"], op["k"]
            cut = k if hidden else n
            if cut % slices:
                raise ServingError(f"operator {op.name!r}: an expert of width {cut} cannot be sliced over {slices} devices")
            n, k = (n, k // slices) if hidden else (n // slices, k)
            weight = graph.tensors[op.inputs[1]]
            tensors[op.inputs[1]] = replace(weight, shape=(n, k))
            made.append(replace(op, kind="matmul", attributes={"batch": 1, "m": 1, "n": n, "k": k}))
            if not hidden:
                entered |= set(op.outputs)
            shapes = {name: (1, graph.tensors[name].shape[-1] // (1 if hidden else slices)) for name in op.outputs}
        else:
            if hidden:
                entered |= set(op.outputs)
            shapes = {name: (1, graph.tensors[name].elements // top_k // (slices if hidden else 1)) for name in op.outputs}
            elements = op["elements"] // top_k // (slices if hidden else 1)
            made.append(replace(op, attributes={**op.attributes, "elements": elements}))
        for name in (*op.inputs, *op.outputs):
            if name not in tensors:
                shape = shapes.get(name, (1, graph.tensors[name].shape[-1]))
                tensors[name] = replace(graph.tensors[name], shape=shape)
    outputs = tuple(made[-1].outputs)
    inside = {name for op in made for name in op.outputs}
    inputs = tuple(name for name in made[0].inputs if name not in inside and tensors[name].role == "activation")
    body = (Segment("expert", 1, tuple(made)),)
    return Graph(f"{graph.name} expert", "decode", 1, 1, 1, tensors, body, inputs, outputs)


def attention_graph(graph: Graph, op: Operator, batch: int, queries: int, keys: int) -> Graph:
    """The attention operator `op` for `batch` sequences with `queries` new tokens each that attend to `keys`."""
    tensors: dict[str, Tensor] = {}
    for position, name in enumerate((*op.inputs, *op.outputs)):
        tensor = graph.tensors[name]
        cached = position in (1, 2) and position < len(op.inputs)
        elements = tensor.elements // op["batch"] // (op["keys"] if cached else op["queries"])  # per token
        tensors[name] = replace(tensor, shape=(batch, keys if cached else queries, elements))
    attributes = {**op.attributes, "batch": batch, "queries": queries, "keys": keys}
    made = replace(op, attributes=attributes)
    inputs = (op.inputs[0],)
    return Graph(
        f"{graph.name} attention", "decode", batch, queries, keys, tensors, (Segment("attention", 1, (made,)),), inputs, op.outputs
    )

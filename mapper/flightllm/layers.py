"""From a traced graph to the layers that the machine runs: linear layers with what is fused to them, rows, attention.

Elementwise operators that read the result of a linear layer and nothing later join it: SiLU, a product, a sum with the
residual, rotary embedding, ReLU; a scale by one number joins the layer's requantisation. Norms run row by row. Attention
becomes scores (with softmax) and the weighted sum of values, per head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from mapper.errors import MappingError
from workloads.graph import Graph, Operator, Tensor


@dataclass(frozen=True)
class Linear:
    """`rows` x `k` times `k` x `n`. `fused` are (operation, operand) of MISC, in order; an operand of "" is none."""

    name: str
    rows: int
    k: int
    n: int
    source: str
    result: str
    weight: str
    bias: str = ""
    relu: bool = False
    fused: tuple[tuple[str, str], ...] = ()
    cache: str = ""  # the key or value cache that takes the result


@dataclass(frozen=True)
class Rows:
    """A MISC operation on each of `rows` rows of `width`; `operand` is the second input of a sum or a product.

    `exchange`: a sum with the halves of each 16 elements of the operand exchanged (the last step of a rotary embedding).
    """

    name: str
    operation: str
    rows: int
    width: int
    source: str
    result: str
    operand: str = ""
    exchange: bool = False
    cache: str = ""


@dataclass(frozen=True)
class Concatenate:
    """The new token joins a cache of `heads` x `tokens` x `width`."""

    name: str
    cache: str
    heads: int
    tokens: int
    width: int


@dataclass(frozen=True)
class Attention:
    """Per head, `rows` queries against `tokens` keys of `width`; `part` is `scores` or `values`."""

    name: str
    part: str
    heads: int
    kv_heads: int
    rows: int
    tokens: int
    width: int
    source: str
    cache: str
    result: str


Layer = Linear | Rows | Concatenate | Attention


@dataclass(frozen=True)
class Body:
    """Layers that run `count` times in a row, each time with weights and caches of its own."""

    name: str
    count: int
    layers: tuple[Layer, ...]


NORMS = {"rms_norm": "rmsnorm", "layer_norm": "layernorm"}
ELEMENTWISE = {"add": "add", "mul": "mul", "silu": "silu"}
ROPE = (("mul", "rope.sin"), ("mul", "rope.cos"), ("add", ""))
"""Rotary embedding as three operations on two tables; the third adds the first two's results, with halves exchanged.

The columns of the query and key projections are permuted so that an element's partner lies in the same block of 16, 8 apart;
attention does not change, as both are permuted alike. The table of sines holds +sin for the lower and -sin for the upper half.
"""


def bodies(graph: Graph, fuse: bool = True) -> tuple[Body, ...]:
    """The layers of a graph. Embedding tables are read by the host, and the rotary tables come with the input.

    With `fuse=False` every operator is a layer of its own. Raises `MappingError` for an operator that the machine lacks.
    """
    if graph.batch != 1:
        raise MappingError(f"{graph.name}: the machine runs one sequence at a time, found batch {graph.batch}")
    found = [Body(s.name, s.count, _Walk(graph, s.operators, fuse).layers()) for s in graph.segments]
    return tuple(body for body in found if body.layers)


class _Walk:
    """One pass over the operators of a body."""

    def __init__(self, graph: Graph, operators: tuple[Operator, ...], fuse: bool) -> None:
        self.graph = graph
        self.operators = operators
        self.fuse = fuse
        self.out: list[Layer] = []
        self.made: dict[str, int] = {}  # tensor -> index of the layer that makes it
        self.alias: dict[str, str] = {}  # tensor -> the one it is the same as
        self.readers: dict[str, int] = {}
        for operator in operators:
            for name in operator.inputs:
                self.readers[name] = self.readers.get(name, 0) + 1

    def layers(self) -> tuple[Layer, ...]:
        for operator in self.operators:
            self.visit(operator)
        return tuple(self.out)

    def emit(self, layer: Layer, result: str) -> None:
        self.made[result] = len(self.out)
        self.out.append(layer)

    def value(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def visit(self, op: Operator) -> None:
        match op.kind:
            case "embedding" | "copy":
                if op.kind == "copy" and op.outputs[0] != op.inputs[0]:
                    self.alias[op.outputs[0]] = op.inputs[0]
            case "matmul":
                self.matmul(op)
            case "norm" if op.function in NORMS:
                source, result = self.value(op.inputs[0]), op.outputs[0]
                self.emit(Rows(op.name, NORMS[op.function], op["rows"], op["width"], source, result), result)
            case "elementwise":
                self.elementwise(op)
            case "append":
                self.append(op)
            case "attention":
                self.attention(op)
            case _:
                what = f"{op.kind} {op.function}".strip()
                raise MappingError(f"operator {op.name!r} ({what}): the machine has no instruction for it; it runs dense decoders")

    def matmul(self, op: Operator) -> None:
        weight = self.graph.tensors[op.inputs[1]]
        if op["batch"] != 1 or weight.role != "weight":
            raise MappingError(f"operator {op.name!r}: a product of two activations outside attention has no instruction")
        biases = [name for name in op.inputs[2:] if self.graph.tensors[name].role == "weight"]
        source, result = self.value(op.inputs[0]), op.outputs[0]
        layer = Linear(op.name, op["m"], op["k"], op["n"], source, result, weight.name, biases[0] if biases else "")
        self.emit(layer, result)

    def elementwise(self, op: Operator) -> None:
        if op.function == "rope_table" or any(self.graph.tensors[o].role == "constant" for o in op.outputs):
            return
        sources = [self.value(name) for name in op.inputs if self.graph.tensors[name].role == "activation"]
        host = max((self.made[s] for s in sources if s in self.made), default=None)
        result = op.outputs[0]
        if host is None:  # what the host prepares with the embedding
            return
        target = self.out[host]
        own = next(s for s in sources if self.made.get(s) == host)
        rest = [s for s in sources if s != own]
        joins = isinstance(target, Linear) and target.result == own and self.readers[own] == 1
        if op.function == "relu" and joins and isinstance(target, Linear) and not target.fused:
            self.join(host, result, replace(target, relu=True, result=result))
        elif op.function == "mul" and not rest and joins and isinstance(target, Linear):
            self.join(host, result, replace(target, result=result))
        elif op.function == "rope":
            self.chain(op, host, joins, own, ROPE)
        elif op.function in ELEMENTWISE and len(rest) <= 1 and (rest or op.function == "silu"):
            self.chain(op, host, joins, own, ((ELEMENTWISE[op.function], rest[0] if rest else ""),))
        else:
            raise MappingError(f"operator {op.name!r} (elementwise {op.function}): the machine has no instruction for it")

    def chain(self, op: Operator, host: int, joins: bool, own: str, steps: tuple[tuple[str, str], ...]) -> None:
        target, result = self.out[host], op.outputs[0]
        if self.fuse and joins and isinstance(target, Linear) and not target.fused:
            self.join(host, result, replace(target, result=result, fused=steps))
            return
        shape = self.graph.tensors[own].shape
        width = shape[-1] if len(shape) < 4 else prod(shape[-3::2])
        rows = prod(shape) // width
        source = own
        for i, (operation, operand) in enumerate(steps):
            out = result if i == len(steps) - 1 else f"{result}.{i}"
            if len(steps) == 3:
                operand = operand or f"{result}.0"
                source = own if i < 2 else f"{result}.1"
            name = f"{op.name}.{i}" if len(steps) > 1 else op.name
            self.emit(Rows(name, operation, rows, width, source, out, operand, exchange=i == 2), out)

    def join(self, host: int, result: str, layer: Linear) -> None:
        self.out[host] = layer
        self.made[result] = host

    def append(self, op: Operator) -> None:
        value, cache = self.value(op.inputs[0]), self.graph.tensors[op.inputs[1]]
        _, heads, tokens, width = cache.shape
        host = self.made.get(value)
        layer = self.out[host] if host is not None else None
        if host is None or not isinstance(layer, Linear | Rows):
            raise MappingError(f"operator {op.name!r}: the cache takes results of linear layers, {value!r} is none")
        self.out[host] = replace(layer, cache=cache.name)
        if self.graph.phase == "decode":
            self.out.append(Concatenate(op.name, cache.name, heads, tokens, width))

    def attention(self, op: Operator) -> None:
        if op["window"] or op["head_dim"] != op["value_dim"]:
            raise MappingError(f"operator {op.name!r}: windowed attention and value heads of another width are not supported")
        caches: list[Tensor] = [t for t in self.graph.reads(op) if t.role == "kv_cache"]
        if len(caches) != 2:
            raise MappingError(f"operator {op.name!r}: expected a key and a value cache, found {len(caches)}")
        scores = f"{op.name}.scores"
        shape = (op["heads"], op["kv_heads"], op["queries"], op["keys"], op["head_dim"])
        self.emit(Attention(scores, "scores", *shape, self.value(op.inputs[0]), caches[0].name, scores), scores)
        self.emit(Attention(op.name, "values", *shape, scores, caches[1].name, op.outputs[0]), op.outputs[0])

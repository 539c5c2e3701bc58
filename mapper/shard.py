"""Tensor parallelism: the share of every layer that one of several equal chips has, with the collectives between them.

Products whose input every chip has are cut by outputs, products whose input is spread are cut by inputs and leave partial sums, so
that attention and feed-forward layers need one all-reduce each (Shoeybi et al., "Megatron-LM", 2019). Heads, tables of
embeddings, convolutions and scans are shared out likewise; norms over whole rows and routers of experts run on every chip.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Literal

from mapper.errors import MappingError
from workloads.graph import Graph, Operator, Segment, Tensor

State = Literal["whole", "spread", "partial"]
"""A tensor: every chip has all of it, a part of it, or terms of its sum."""

ROWWISE = frozenset({"softmax", "topk", "norm"})


def tensor_parallel(graph: Graph, ranks: int) -> Graph:
    """What one of `ranks` chips runs of a graph; dimensions that do not divide are rounded up.

    Raises `MappingError` for attention whose heads cannot be shared out evenly.
    """
    if ranks == 1:
        return graph
    return _Sharder(graph, ranks).run()


@dataclass
class _Sharder:
    graph: Graph
    ranks: int
    states: dict[str, State] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # a tensor by the name under which every chip has it
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> Graph:
        graph = self.graph
        self.tensors = dict(graph.tensors)
        self.consumers: dict[str, list[tuple[int, Operator]]] = {}
        for number, segment in enumerate(graph.segments):
            for operator in segment.operators:
                for name in operator.inputs:
                    self.consumers.setdefault(name, []).append((number, operator))
        segments = []
        for number, segment in enumerate(graph.segments):
            operators: list[Operator] = []
            for operator in segment.operators:
                operators += self._operator(operator)
            for name in dict.fromkeys(n for operator in segment.operators for n in operator.outputs):
                later = any(other > number for other, _ in self.consumers.get(name, []))
                if later and self.states.get(name) in ("spread", "partial") and self.tensors[name].role == "activation":
                    operators += self._whole(name)
            segments.append(Segment(segment.name, segment.count, tuple(operators)))
        note = (
            f"{self.ranks} chips share every layer (tensor parallel): times are those of all together, bytes, tasks and memories those of "
            "one chip"
        )
        return replace(
            graph,
            tensors=self.tensors,
            segments=tuple(segments),
            outputs=tuple(self.names.get(name, name) for name in graph.outputs),
            notes=(*graph.notes, note),
        )

    # Tensors ----------------------------------------------------------------------------------------------------------------
    def _state(self, name: str) -> State:
        return "whole" if name in self.names else self.states.get(name, "whole")

    def _shrink(self, name: str, ways: int | None = None) -> None:
        """Keeps one chip's part of a tensor; a tensor that several operators cut is cut once."""
        ways = ways or self.ranks
        old, now = self.graph.tensors[name], self.tensors[name]
        if now != old or ways == 1:
            return
        shape = list(old.shape)
        for index, size in enumerate(shape):
            if size % ways == 0:
                shape[index] = size // ways
                break
        else:
            shape = [ceil(old.elements / ways)]
        self.tensors[name] = replace(old, shape=tuple(shape))

    def _spread(self, names: Iterable[str], ways: int | None = None) -> None:
        for name in names:
            self.states[name] = "spread"
            self._shrink(name, ways)

    def _whole(self, name: str) -> list[Operator]:
        """The collective after which every chip has a tensor, if it needs one."""
        state = self._state(name)
        if state == "whole":
            return []
        full = self.graph.tensors[name]
        function = "all-reduce" if state == "partial" else "all-gather"
        made = f"{name}.{function.replace('-', '_')}"
        self.tensors[made] = replace(full, name=made)
        self.names[name] = made
        return [Operator(made, "collective", (name,), (made,), {"elements": full.elements, "ranks": self.ranks}, function=function)]

    # Operators --------------------------------------------------------------------------------------------------------------
    def _operator(self, op: Operator) -> list[Operator]:
        acts = [n for n in op.inputs if self.graph.tensors[n].role == "activation"]
        before: list[Operator] = []
        sums = op.kind == "reduce" or (op.kind == "elementwise" and op.function == "add")
        partial = [n for n in acts if self._state(n) == "partial"]
        if partial and not (sums and all(self._state(n) == "partial" or n not in self._wide(op) for n in acts)):
            for name in partial:
                before += self._whole(name)
        match op.kind:
            case "matmul" | "grouped_matmul":
                more, op = self._product(op)
                before += more
            case "attention":
                op = self._attention(op)
            case "embedding":
                self._shrink(op.inputs[0])
                self._mark(op.outputs, "partial")
            case _:
                more, op = self._rowwise(op)
                before += more
        return [*before, replace(op, inputs=tuple(self.names.get(n, n) for n in op.inputs))]

    def _wide(self, op: Operator) -> set[str]:
        """Inputs as large as the largest: not weights of a sum, nor indices."""
        most = max(self.graph.tensors[n].elements for n in op.inputs)
        return {n for n in op.inputs if self.graph.tensors[n].elements == most}

    def _mark(self, names: Iterable[str], state: State) -> None:
        for name in names:
            self.states[name] = state

    def _product(self, op: Operator) -> tuple[list[Operator], Operator]:
        left, right = op.inputs[:2]
        if self._routes(op):
            return self._whole(left), op
        ways = self._ways(op)
        weight = self.graph.tensors[right].role == "weight"
        if op.kind == "matmul" and op["batch"] > 1 and "spread" in (self._state(left), self._state(right)):  # a product per head
            if weight:
                self._shrink(right)
            self._spread(op.outputs)
            return [], replace(op, attributes={**op.attributes, "batch": ceil(op["batch"] / self.ranks)})
        if not weight:
            return [], op
        self._shrink(right, ways)
        if self._state(left) == "spread":
            self._mark(op.outputs, "partial")
            return [], replace(op, attributes={**op.attributes, "k": ceil(op["k"] / self.ranks)})
        for bias in op.inputs[2:]:
            if self.graph.tensors[bias].role == "weight":
                self._shrink(bias, ways)
        self._spread(op.outputs, ways)
        return [], replace(op, attributes={**op.attributes, "n": ceil(op["n"] / ways)})

    def _routes(self, op: Operator) -> bool:
        """Whether a product chooses experts: small, and needed whole on every chip."""
        users = [user for name in op.outputs for _, user in self.consumers.get(name, [])]
        return any(user.kind in ("softmax", "topk") and user["rows"] == op.attributes.get("m") for user in users)

    def _ways(self, op: Operator) -> int:
        """Over how many chips the outputs of a product are cut: keys and values of few heads are made more than once."""
        names, heads = list(op.outputs), 0
        for _ in range(8):  # through norms and rotations to the cache
            users = [user for name in names for _, user in self.consumers.get(name, [])]
            caches = {n for user in users if user.kind == "append" for n in user.outputs}
            if caches:
                reads = [user for name in caches for _, user in self.consumers.get(name, []) if user.kind == "attention"]
                heads = min((user["kv_heads"] for user in reads), default=0)
                break
            names = [n for user in users if user.kind in ("elementwise", "norm", "copy") for n in user.outputs]
        return min(self.ranks, heads) if heads else self.ranks

    def _attention(self, op: Operator) -> Operator:
        if self._state(op.inputs[0]) != "spread":
            return op
        if op["heads"] % self.ranks:
            raise MappingError(
                f"operator {op.name!r}: {op['heads']} heads cannot be shared by {self.ranks} chips evenly; "
                "use a number of chips (node.chips) that divides them"
            )
        own = min(self.ranks, op["kv_heads"])
        heads, kv = op["heads"] // self.ranks, max(1, op["kv_heads"] // own)
        if heads % kv:
            what = f"{op['kv_heads']} heads of keys and values"
            raise MappingError(f"operator {op.name!r}: {what} cannot be shared by {self.ranks} chips evenly")
        self._spread(op.outputs)
        return replace(op, attributes={**op.attributes, "heads": heads, "kv_heads": kv})

    def _rowwise(self, op: Operator) -> tuple[list[Operator], Operator]:
        """Everything that works element by element or row by row."""
        acts = [n for n in op.inputs if self.graph.tensors[n].role != "weight"]
        if any(self._state(n) == "partial" for n in acts):  # a sum of partial sums
            self._mark(op.outputs, "partial")
            return [], op
        spread = [n for n in acts if self._state(n) == "spread"]
        if not spread:
            return [], op
        if op.kind in ROWWISE and op["rows"] <= self.graph.batch * self.graph.tokens:
            return [more for name in spread for more in self._whole(name)], op
        ways = max(1, round(self.graph.tensors[spread[0]].elements / self.tensors[spread[0]].elements))
        dimension = {"conv1d": "channels", "scan": "heads"}.get(op.kind, "rows" if op.kind in ROWWISE else "elements")
        self._spread([n for n in op.outputs if self.graph.tensors[n].role in ("activation", "kv_cache")], ways)
        return [], replace(op, attributes={**op.attributes, dimension: ceil(op[dimension] / ways)})

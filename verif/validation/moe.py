"""A fused mixture-of-experts layer as inference libraries run it: which rows and experts fall to one device, and the kernels of a call."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import ceil

from workloads.format import parse_format
from workloads.graph import Graph, Operator, Segment, Tensor


@lru_cache(maxsize=4096)
def _preferences(experts: int, top_k: int, skew: int) -> tuple[float, ...]:
    """Probability that one token is sent to each expert, most popular first: no more than once to each."""
    weights = [(rank + 1) ** (-skew / 100) for rank in range(experts)]
    chosen = [0.0] * experts
    open_ = list(range(experts))
    left = float(top_k)
    while open_:
        total = sum(weights[i] for i in open_)
        full = [i for i in open_ if left * weights[i] / total >= 1]
        if not full:
            for i in open_:
                chosen[i] = left * weights[i] / total
            break
        for i in full:
            chosen[i] = 1.0
        left -= len(full)
        open_ = [i for i in open_ if i not in set(full)]
    return tuple(chosen)


def routed(shape: Mapping[str, int]) -> tuple[int, int]:
    """Rows that the most loaded of `ep` devices multiplies, and experts of its own that they go to.

    Experts are dealt out by rank, so that the first device has the most popular one.
    >>> routed({"tokens": 1, "top_k": 2, "experts": 8, "ep": 1})
    (2, 2)
    """
    chances = _preferences(shape["experts"], shape["top_k"], shape.get("skew", 0))[:: shape["ep"]]
    rows = max(1, round(shape["tokens"] * sum(chances)))
    active = sum(1 - (1 - p) ** shape["tokens"] for p in chances)
    return rows, max(1, min(rows, len(chances), round(active)))


def kernels(shape: Mapping[str, int], acts: str, weights: str, result: str) -> list[Graph]:
    """The kernels of one call: tokens are sorted by expert (two small kernels and the first weights), two grouped products with the
    activation between them, and the weighted sum over a token's experts."""
    rows, active = routed(shape)
    local = -(-shape["experts"] // shape["ep"])
    hidden, inner = shape["hidden"], -(-shape["inter"] // shape["tp"])
    tokens = shape["tokens"]
    return [
        _grouped(tokens, rows, local, active, 2 * inner, hidden, acts, weights, result),
        _elementwise(rows * inner, 2, 3, 1, result),
        _grouped(rows, rows, local, active, hidden, inner, acts, weights, result),
        _elementwise(tokens * hidden, max(1, ceil(rows / tokens)), 2, 0, result),
    ]


def _grouped(read: int, rows: int, experts: int, active: int, n: int, k: int, acts: str, weights: str, result: str) -> Graph:
    attributes = {"rows": rows, "experts": experts, "top_k": 1, "active": active, "n": n, "k": k, "fused_experts": 1}
    tensors = (
        Tensor("x", (min(read, rows), k), parse_format(acts), "activation"),
        Tensor("w", (experts, k, n), parse_format(weights), "weight"),
        Tensor("y", (rows, n), parse_format(result), "activation"),
    )
    return _graph("grouped_matmul", attributes, tensors)


def _elementwise(elements: int, inputs: int, operations: int, specials: int, fmt: str) -> Graph:
    tensors = [Tensor(f"x{i}", (elements,), parse_format(fmt), "activation") for i in range(inputs)]
    attributes = {"elements": elements, "operations": operations * inputs, "specials": specials}
    return _graph("elementwise", attributes, (*tensors, Tensor("y", (elements,), parse_format(fmt), "activation")))


def _graph(kind: str, attributes: dict[str, int], tensors: tuple[Tensor, ...]) -> Graph:
    operator = Operator(kind, kind, tuple(t.name for t in tensors[:-1]), (tensors[-1].name,), attributes)
    entering = tuple(t.name for t in tensors[:-1] if t.role == "activation")
    named = {t.name: t for t in tensors}
    return Graph(kind, "single", 1, 1, 1, named, (Segment(kind, 1, (operator,)),), entering, (tensors[-1].name,))

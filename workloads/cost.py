"""FLOPs and bytes of operators and graphs: the one place where they are derived.

A multiply-accumulate is two FLOPs. `matrix_flops` counts products (linear layers, attention, experts, convolutions and
scans), `vector_flops` everything elementwise; the field's "FLOPs of a model" is the first.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from workloads.graph import Graph, Operator, Tensor


def active_experts(tokens: int, experts: int, top_k: int) -> int:
    """Distinct experts that `tokens` tokens reach under uniform independent routing, rounded up to whole experts.

    The expectation is experts * (1 - (1 - top_k / experts) ** tokens).
    >>> active_experts(1, 8, 2)
    2
    >>> active_experts(128, 128, 1)
    82
    """
    expected = experts * (1 - (1 - Fraction(top_k, experts)) ** min(tokens, 4096))
    return min(experts, ceil(expected))


def attended_pairs(queries: int, keys: int, causal: bool, window: int) -> int:
    """Query-key pairs per head that are computed: query i (of the last `queries` positions) sees keys up to its own position.

    >>> attended_pairs(4, 4, causal=True, window=0)
    10
    >>> attended_pairs(1, 100, causal=True, window=0)
    100
    """
    if not causal:
        return queries * keys
    first = keys - queries + 1  # keys seen by the first query
    if not window or keys <= window:
        return queries * (first + keys) // 2
    if first >= window:
        return queries * window
    growing = window - first + 1  # queries that see first..window keys
    return growing * (first + window) // 2 + (queries - growing) * window


def attended_keys(op: Operator) -> int:
    """Keys that at least one query of an attention operator attends to: the last window + queries - 1 of a sliding window.
    A window belongs to causal attention; without `causal` every query attends to every key.

    >>> attended_keys(Operator("a", "attention", (), (), dict(batch=1, heads=1, kv_heads=1, queries=4, keys=100, head_dim=8,
    ...     value_dim=8, causal=1, window=16)))
    19
    """
    return min(op["keys"], op["window"] + op["queries"] - 1) if op["window"] and op["causal"] else op["keys"]


def macs(op: Operator) -> int:
    """Multiply-accumulates of one run of a matrix-type operator; 0 for the others."""
    match op.kind:
        case "matmul":
            return op["batch"] * op["m"] * op["n"] * op["k"]
        case "grouped_matmul":
            return op["rows"] * op["n"] * op["k"]
        case "attention":
            pairs = attended_pairs(op["queries"], op["keys"], bool(op["causal"]), op["window"])
            return op["batch"] * op["heads"] * pairs * (op["head_dim"] + op["value_dim"])
        case "conv1d":
            return op["batch"] * op["length"] * op["channels"] * op["taps"]
        case "scan":
            # decay*state, outer product into the state, contraction with C: three multiply-adds per state element
            return 3 * op["batch"] * op["length"] * op["heads"] * op["head_dim"] * op["state"]
    return 0


def vector_flops(op: Operator) -> int:
    """Elementwise arithmetic of one run; a transcendental function counts one."""
    match op.kind:
        case "norm":
            return 5 * op["rows"] * op["width"]  # square, sum, scale, weight, (mean or bias)
        case "softmax":
            return 5 * op["rows"] * op["width"]  # max, subtract, exp, sum, divide
        case "attention":
            pairs = attended_pairs(op["queries"], op["keys"], bool(op["causal"]), op["window"])
            return 5 * op["batch"] * op["heads"] * pairs
        case "topk":
            return op["rows"] * op["width"]
        case "elementwise":
            return op["elements"] * (op["operations"] + op["specials"])
        case "reduce":
            return op["elements"] * op["operations"]
    return 0


def matrix_flops(op: Operator) -> int:
    """Two FLOPs per multiply-accumulate."""
    return 2 * macs(op)


def flops(op: Operator) -> int:
    """All FLOPs of one run: matrix FLOPs for matrix-type operators, vector FLOPs for the rest."""
    return matrix_flops(op) or vector_flops(op)


def read_elements(op: Operator, tensor: Tensor, position: int) -> int:
    """Elements of the input at `position` that one run must read."""
    match op.kind:
        case "embedding" if position == 0:
            return op["rows"] * op["width"]
        case "grouped_matmul" if tensor.role == "weight":
            return tensor.elements * op["active"] // op["experts"]
        case "attention" if position in (1, 2):
            return tensor.elements * attended_keys(op) // op["keys"]
        case "append" if tensor.role == "kv_cache":
            return 0
        case "copy":
            return min(tensor.elements, op["elements"])
    return tensor.elements


def write_elements(op: Operator, tensor: Tensor) -> int:
    """Elements of an output that one run must write."""
    if op.kind == "append":
        return min(op["elements"], tensor.elements)
    return tensor.elements


def read_bytes(graph: Graph, op: Operator, roles: frozenset[str] | None = None) -> int:
    """Bytes of distinct inputs that one run reads at least once; `roles` restricts which tensors count."""
    seen: dict[str, int] = {}
    for position, tensor in enumerate(graph.reads(op)):
        if roles is None or tensor.role in roles:
            elements = read_elements(op, tensor, position)
            seen[tensor.name] = max(seen.get(tensor.name, 0), tensor.format.bytes(elements))
    return sum(seen.values())


def write_bytes(graph: Graph, op: Operator) -> int:
    """Bytes of outputs that one run writes."""
    return sum(t.format.bytes(write_elements(op, t)) for t in graph.writes(op))


def operator_bytes(graph: Graph, op: Operator) -> int:
    """Bytes read and written by one run when nothing stays on chip."""
    return read_bytes(graph, op) + write_bytes(graph, op)


def parameters(graph: Graph) -> int:
    """Weights of the model, each stored tensor counted once per instance (tied ones once)."""
    return sum(graph.tensors[name].elements * n for name, n in graph.multiplicity.items() if graph.tensors[name].role == "weight")


def role_bytes(graph: Graph, role: str) -> int:
    """Bytes of all instances of the tensors of a role."""
    return sum(graph.tensors[name].bytes * n for name, n in graph.multiplicity.items() if graph.tensors[name].role == role)


def kv_bytes_per_token(graph: Graph) -> Fraction:
    """Bytes of KV cache per token and sequence, over all layers."""
    return Fraction(role_bytes(graph, "kv_cache"), graph.batch * graph.context)


def total_flops(graph: Graph) -> int:
    """Matrix FLOPs of the whole graph, two per multiply-accumulate."""
    return sum(matrix_flops(op) * count for op, count in graph.operators())


def total_vector_flops(graph: Graph) -> int:
    """Vector FLOPs of the whole graph."""
    return sum(vector_flops(op) * count for op, count in graph.operators())

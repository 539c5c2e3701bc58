"""What is computed: `Graph` of `Operator` over `Tensor`, with identical layers stored once.

A graph is a sequence of `Segment`s. A segment is a list of operators in execution order and a `count`: the body of a
repeated decoder layer is stored once with its number of repetitions. Tensors of a repeated body are those of its first
instance; weights and KV caches exist once per repetition. FLOPs and bytes are derived in `workloads.cost`, nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import Any

import networkx as nx

from workloads.errors import WorkloadError
from workloads.format import Format, parse_format

SCHEMA = 1
ROLES = ("weight", "activation", "kv_cache", "constant")
"""`weight`: parameters; `activation`: produced or consumed per step; `kv_cache`: keys, values, latents and recurrent
state that live from step to step; `constant`: tables and buffers (rope tables, position ids)."""

KINDS: dict[str, tuple[str, ...]] = {
    "matmul": ("batch", "m", "n", "k"),
    "grouped_matmul": ("rows", "experts", "top_k", "active", "n", "k"),
    "attention": ("batch", "heads", "kv_heads", "queries", "keys", "head_dim", "value_dim", "causal", "window"),
    "norm": ("rows", "width"),
    "softmax": ("rows", "width"),
    "topk": ("rows", "width", "k"),
    "elementwise": ("elements", "operations", "specials"),
    "reduce": ("elements", "operations"),
    "embedding": ("rows", "width"),
    "append": ("elements",),
    "copy": ("elements",),
    "conv1d": ("batch", "length", "channels", "taps"),
    "scan": ("batch", "length", "heads", "head_dim", "state"),
    "collective": ("elements", "ranks"),
}
"""Operator kinds and the attributes that each must carry (integers; `causal` is a flag, `window` 0 means none).

matmul            `batch` products of [m, k] x [k, n]; the second operand is shared over the batch when it has no batch dimension
grouped_matmul    mixture of experts: `rows` = tokens x top_k rows of length k, each through one of `experts` [k, n] matrices,
                  of which `active` distinct ones are read (see `workloads.cost.active_experts`)
attention         fused scaled-dot-product attention, grouped K/V not repeated; `keys` tokens attended, the newest included;
                  `window` > 0 limits each query to the last `window` keys
norm              RMSNorm, LayerNorm or group norm over rows of `width`
elementwise       `operations` arithmetic operations and `specials` transcendental ones (exp, rsqrt, erf, ...) per element
embedding         gather of `rows` rows of `width` from a table
append            new keys, values or state written to the cache: `elements` written, nothing else moved
copy              a real copy in memory (concatenation, layout change) of `elements`
conv1d            depthwise causal convolution
scan              state-space scan: state of heads x head_dim x state per sequence, updated for `length` tokens
collective        among `ranks` chips that share the layer, over `elements` in all; `function` is all-reduce or all-gather
"""


COUNTERS = frozenset({"causal", "window", "operations", "specials"})
"""Attributes that may be 0; all others are dimensions."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value in the graph: `shape` in elements, `format`, `role`."""

    name: str
    shape: tuple[int, ...]
    format: Format
    role: str = "activation"

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Whole bytes in memory, group metadata included."""
        return self.format.bytes(self.elements)

    def __repr__(self) -> str:
        return f"Tensor({self.name}: {self.format}{list(self.shape)}, {self.role})"


@dataclass(frozen=True, slots=True)
class Operator:
    """One operation: `kind` and its `attributes` (see `KINDS`), input and output tensor names, and the `module` path it
    came from (`model.layers.0.self_attn.q_proj`). `function` is the name of what an elementwise operator computes."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int] = field(default_factory=dict)
    module: str = ""
    function: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise WorkloadError(f"operator {self.name!r}: unknown kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        if missing := [key for key in KINDS[self.kind] if key not in self.attributes]:
            raise WorkloadError(f"operator {self.name!r} ({self.kind}): missing attributes {', '.join(missing)}")
        values: Mapping[str, object] = self.attributes
        if bad := {k: v for k, v in values.items() if not isinstance(v, int) or v < 0}:
            raise WorkloadError(f"operator {self.name!r} ({self.kind}): attributes must be integers >= 0, found {bad}")
        if bad := {k: v for k, v in self.attributes.items() if v < 1 and k not in COUNTERS}:
            raise WorkloadError(f"operator {self.name!r} ({self.kind}): dimensions must be at least 1, found {bad}")
        for small, large in (("top_k", "experts"), ("active", "experts"), ("active", "rows"), ("kv_heads", "heads")):
            if small in self.attributes and large in self.attributes and self.attributes[small] > self.attributes[large]:
                raise WorkloadError(
                    f"operator {self.name!r} ({self.kind}): {small} must be at most {large}, found {self.attributes[small]} and "
                    f"{self.attributes[large]}"
                )
        if self.kind == "attention" and self.attributes["heads"] % self.attributes["kv_heads"]:
            raise WorkloadError(
                f"operator {self.name!r} (attention): heads must be a multiple of kv_heads, found {self.attributes['heads']} and "
                f"{self.attributes['kv_heads']}"
            )
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))

    def __getitem__(self, attribute: str) -> int:
        return self.attributes[attribute]

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            Operator,
            (self.name, self.kind, self.inputs, self.outputs, dict(self.attributes), self.module, self.function),
        )

    def __hash__(self) -> int:
        return hash((self.name, self.kind, self.inputs, self.outputs))

    def __repr__(self) -> str:
        dims = ", ".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"Operator({self.name}: {self.kind} {dims})"


@dataclass(frozen=True, slots=True)
class Segment:
    """A body of operators executed `count` times in a row, such as one decoder layer times 32."""

    name: str
    count: int
    operators: tuple[Operator, ...]

    def __repr__(self) -> str:
        return f"Segment({self.name} x{self.count}, {len(self.operators)} operators)"


@dataclass(frozen=True)
class Graph:
    """A workload: segments of operators over tensors, for one phase and one batch and length.

    `phase` is `prefill`, `decode` or `single` (a bare operator). `tokens` is the number of new tokens per sequence and
    `context` the number attended to, the newest included. `inputs` and `outputs` name the tensors that enter and leave.
    `notes` are assumptions made while the graph was built; reports repeat them.
    """

    name: str
    phase: str
    batch: int
    tokens: int
    context: int
    tensors: Mapping[str, Tensor]
    segments: tuple[Segment, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        for segment in self.segments:
            if segment.count < 1:
                raise WorkloadError(f"segment {segment.name!r}: count must be at least 1, found {segment.count}")
            for operator in segment.operators:
                for name in (*operator.inputs, *operator.outputs):
                    if name not in self.tensors:
                        raise WorkloadError(f"operator {operator.name!r}: tensor {name!r} is not in the graph")

    def operators(self) -> Iterator[tuple[Operator, int]]:
        """Every stored operator in execution order with the number of times it runs."""
        for segment in self.segments:
            for operator in segment.operators:
                yield operator, segment.count

    def reads(self, operator: Operator) -> tuple[Tensor, ...]:
        return tuple(self.tensors[name] for name in operator.inputs)

    def writes(self, operator: Operator) -> tuple[Tensor, ...]:
        return tuple(self.tensors[name] for name in operator.outputs)

    @cached_property
    def multiplicity(self) -> Mapping[str, int]:
        """How many instances of each stored tensor exist: the count of the only segment that uses it, else 1."""
        counts: dict[str, int] = {}
        for segment in self.segments:
            for operator in segment.operators:
                for name in (*operator.inputs, *operator.outputs):
                    counts[name] = segment.count if name not in counts else min(counts[name], segment.count)
        return counts

    def to_networkx(self) -> nx.DiGraph[str]:
        """Operators as nodes (attribute `operator`, `segment`, `count`), an edge per tensor from producer to consumer."""
        graph: nx.DiGraph[str] = nx.DiGraph(name=self.name)
        producer: dict[str, str] = {}
        for segment in self.segments:
            for operator in segment.operators:
                graph.add_node(operator.name, operator=operator, segment=segment.name, count=segment.count)
                for name in operator.inputs:
                    if name in producer:
                        graph.add_edge(producer[name], operator.name, tensor=name)
                for name in operator.outputs:
                    producer[name] = operator.name
        return graph

    def with_tensors(self, tensors: Mapping[str, Tensor], notes: tuple[str, ...] = ()) -> Graph:
        """The same graph over other tensors, such as quantised ones."""
        return replace(self, tensors=tensors, notes=(*self.notes, *notes))

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "type": "graph",
            "name": self.name,
            "phase": self.phase,
            "batch": self.batch,
            "tokens": self.tokens,
            "context": self.context,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "notes": list(self.notes),
            "tensors": [[t.name, list(t.shape), t.format.name, t.role] for t in self.tensors.values()],
            "segments": [
                {
                    "name": s.name,
                    "count": s.count,
                    "operators": [
                        [o.name, o.kind, list(o.inputs), list(o.outputs), dict(o.attributes), o.module, o.function]
                        for o in s.operators
                    ],
                }
                for s in self.segments
            ],
        }

    @classmethod
    def from_json(cls, document: Any, where: str = "trace") -> Graph:
        """The graph in a decoded JSON document; `where` names its place in messages."""
        if not isinstance(document, dict) or document.get("type") != "graph":
            raise WorkloadError(f"{where}: expected a saved graph (a JSON object with \"type\": \"graph\")")
        if document.get("schema") != SCHEMA:
            raise WorkloadError(
                f"{where}: schema {document.get('schema')!r} cannot be read, expected {SCHEMA}; trace the model again"
            )
        try:
            return cls(
                name=document["name"],
                phase=document["phase"],
                batch=document["batch"],
                tokens=document["tokens"],
                context=document["context"],
                inputs=tuple(document["inputs"]),
                outputs=tuple(document["outputs"]),
                notes=tuple(document["notes"]),
                tensors={n: Tensor(n, tuple(shape), parse_format(f), role) for n, shape, f, role in document["tensors"]},
                segments=tuple(
                    Segment(
                        s["name"],
                        s["count"],
                        tuple(Operator(n, k, tuple(i), tuple(o), a, m, f) for n, k, i, o, a, m, f in s["operators"]),
                    )
                    for s in document["segments"]
                ),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise WorkloadError(f"{where}: not a complete saved graph ({error!r})") from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the saved form: the identity of this workload."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        stored = sum(len(s.operators) for s in self.segments)
        runs = sum(count for _, count in self.operators())
        return f"Graph({self.name} {self.phase}, batch {self.batch}, {stored} operators stored, {runs} run)"

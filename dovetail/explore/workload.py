"""What a study runs on every design: a model's phase, or part of it, with formats that may follow the parameters."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from dovetail.explore import expression
from dovetail.explore.errors import ExploreError
from hw.errors import nearest

if TYPE_CHECKING:
    from workloads.graph import Graph

SWEEPABLE = ("phase", "batch", "seq", "context", "weights", "acts", "kv", "layers")
"""Fields that may take a value per point."""


@dataclass(frozen=True)
class Workload:
    """A workload as `estimate` takes it. `layers` keeps that many repetitions of the layer that repeats most and drops
    everything around it; `weight` multiplies it in sums over workloads; `label` names it in objectives (`decode.latency`).

    A field may be a text with `{parameter}` or, in Python, a function of the parameters that it names.
    """

    workload: str | Graph
    phase: Any = None
    batch: Any = None
    seq: Any = None
    context: Any = None
    weights: Any = None
    acts: Any = None
    kv: Any = None
    layers: Any = None
    label: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if type(self.weight) not in (int, float) or not 0 < self.weight < float("inf"):
            raise ExploreError(f"workload {self.name!r}: weight: expected a number above 0, not {self.weight!r}")

    @property
    def name(self) -> str:
        return self.workload if isinstance(self.workload, str) else self.workload.name

    def depends_on(self) -> frozenset[str]:
        """The parameters that its fields refer to."""
        out: set[str] = set()
        for field in SWEEPABLE:
            value = getattr(self, field)
            out |= set(_arguments(value)) if callable(value) else expression.template_names(value)
        return frozenset(out)

    def resolved(self, parameters: Mapping[str, Any]) -> Workload:
        """The workload of one point, with plain fields. A field whose parameters do not exist at this point is left out."""
        values: dict[str, Any] = {}
        for field in SWEEPABLE:
            value = getattr(self, field)
            needed = set(_arguments(value)) if callable(value) else expression.template_names(value)
            if not needed <= set(parameters):
                values[field] = None
            elif callable(value):
                values[field] = value(**{name: parameters[name] for name in needed})
            else:
                values[field] = expression.fill(value, parameters)
        return replace(self, **values)

    @property
    def request(self) -> tuple[Any, ...]:
        """What decides the graph of a resolved workload."""
        what = self.workload if isinstance(self.workload, str) else self.workload.digest
        return (what, *(getattr(self, field) for field in SWEEPABLE))

    def graph(self) -> Graph:
        """The graph of a resolved workload. Raises `WorkloadError` or `ExploreError` for what a user can get wrong."""
        import workloads

        if isinstance(self.workload, str):
            options = {name: getattr(self, name) for name in ("phase", "batch", "seq", "context")}
            graph = workloads.load(self.workload, **options)
        else:
            graph = self.workload
        if self.weights or self.acts or self.kv:
            graph = workloads.quantise(graph, weights=self.weights, acts=self.acts, kv=self.kv)
        return graph if self.layers is None else only_layers(graph, self.layers)

    def options(self) -> list[str]:
        """The arguments of `dovetail estimate` for a resolved workload, `layers` left out."""
        out = [self.name]
        for field in SWEEPABLE:
            value = getattr(self, field)
            if value is not None and field != "layers":
                out += [f"--{field}", str(value)]
        return out


def _arguments(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def only_layers(graph: Graph, layers: object) -> Graph:
    """`layers` repetitions of the segment that repeats most, without what surrounds it (embeddings, LM head).

    Raises `ExploreError` when there are fewer, or no layers at all.
    """
    from workloads.graph import Graph as GraphType

    assert isinstance(graph, GraphType)
    segment = max(graph.segments, key=lambda s: s.count)
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= segment.count:
        raise ExploreError(f"workload {graph.name!r}: layers: expected a whole number from 1 to {segment.count}, not {layers!r}")
    names = {name for op in segment.operators for name in (*op.inputs, *op.outputs)}
    made = {name for op in segment.operators for name in op.outputs}
    read = dict.fromkeys(name for op in segment.operators for name in op.inputs)
    inputs = tuple(n for n in read if n not in made and graph.tensors[n].role == "activation")
    inner = {name for op in segment.operators for name in op.inputs}
    outputs = tuple(n for n in dict.fromkeys(n for op in segment.operators for n in op.outputs) if n not in inner)
    return replace(
        graph,
        name=f"{graph.name}, {layers} layer{'s' if layers > 1 else ''}",
        tensors={name: tensor for name, tensor in graph.tensors.items() if name in names},
        segments=(replace(segment, count=layers),),
        inputs=inputs,
        outputs=tuple(n for n in outputs if graph.tensors[n].role == "activation"),
        notes=(*graph.notes, f"only {layers} of {segment.count} repeated layers, without what comes before and after them"),
    )


def labelled(given: Sequence[Workload]) -> tuple[Workload, ...]:
    """The workloads with a label each: the one given, else the phase, the model or both, whichever tells them apart.

    Raises `ExploreError` for a label that is used twice.
    """
    phases = [w.phase if isinstance(w.phase, str) and w.phase.isidentifier() else "" for w in given]
    models = ["".join(c if c.isalnum() else "_" for c in w.name) for w in given]
    out: list[Workload] = []
    for index, workload in enumerate(given):
        choices = (phases[index], models[index], f"{models[index]}_{phases[index]}")
        pools = (phases, models, [f"{m}_{p}" for m, p in zip(models, phases, strict=True)])
        fallback = next((c for c, pool in zip(choices, pools, strict=True) if c and pool.count(c) == 1), f"w{index + 1}")
        label = workload.label or fallback
        if not label.isidentifier():
            raise ExploreError(f"workload label {label!r}: expected letters, digits and underscores")
        out.append(replace(workload, label=label))
    labels = [w.label for w in out]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ExploreError(f"two workloads are labelled {twice[0]!r}; give each its own `label`")
    return tuple(out)


FIELDS = tuple(field.name for field in fields(Workload))


def workload(given: object, where: str = "workload") -> Workload:
    """The workload that a name, a graph or a mapping describes. Raises `ExploreError` with the nearest field."""
    from workloads.graph import Graph as GraphType

    if isinstance(given, Workload):
        return given
    if isinstance(given, (str, GraphType)):
        return Workload(given)
    if not isinstance(given, Mapping):
        raise ExploreError(f"{where}: expected a model's name, a graph or fields such as workload and phase, found {given!r}")
    for key in given:
        if key not in FIELDS:
            raise ExploreError(f"{where}: unknown field {key!r}, expected one of {', '.join(FIELDS)}{nearest(str(key), FIELDS)}")
    if not isinstance(given.get("workload"), (str, GraphType)):
        raise ExploreError(f"{where}: expected a model's name in `workload`, found {given.get('workload')!r}")
    return Workload(**given)


def digest_of(document: object) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

"""Graph to graph: the same computation over other number formats."""

from __future__ import annotations

from dataclasses import replace

from workloads.format import Format, parse_format
from workloads.graph import Graph, Operator, Segment, Tensor

_WEIGHTS = "weights of linear layers and experts in"
_INPUTS = "inputs of these linear layers in"
"""How the notes begin that a later format of the same tensors replaces."""


def quantise(
    graph: Graph, *, weights: str | Format | None = None, acts: str | Format | None = None, kv: str | Format | None = None
) -> Graph:
    """`graph` with other formats for the weights and inputs of its linear layers and for its key/value caches.

    `weights` applies to linear layers and experts. Embedding tables, norms, biases, convolutions, scan parameters and the
    routers of mixtures of experts keep their format, and so does an LM head that shares the embedding table. `acts` applies
    to the inputs of those same layers: where only such layers read a value, its producer writes it in that format; where
    others read it too, an elementwise operator `quantise` makes the copy they read. `kv` applies to caches that attention
    uses; recurrent states keep their format. `kivi2-r128` counts the newest 128 tokens in fp16.

    Raises `WorkloadError` for an unknown format.
    """
    weight_format, act_format, kv_format = (parse_format(f) if isinstance(f, str) else f for f in (weights, acts, kv))
    tensors = dict(graph.tensors)
    linear = linear_layers(graph)
    notes: list[str] = []
    former = [note for note in graph.notes if weight_format is None or not note.startswith(_WEIGHTS)]
    former = [note for note in former if act_format is None or not note.startswith(_INPUTS)]
    segments = graph.segments
    if weight_format is not None:
        for operator in linear.values():
            for name in operator.inputs[1:2]:
                tensors[name] = replace(tensors[name], format=weight_format)
        notes.append(f"{_WEIGHTS} {weight_format} ({float(weight_format.bits):g} bits each); {_kept(graph)}")
        if broken := [op.name for op in linear.values() if weight_format.group and op["k"] % weight_format.group]:
            notes.append(
                f"groups of {weight_format.group} do not divide the inputs of {len(broken)} linear layers such as {broken[0]}; their "
                "metadata is charged pro rata, as if the last group were shorter"
            )
    if act_format is not None:
        segments = tuple(_quantised_inputs(graph, segment, linear, tensors, act_format) for segment in graph.segments)
        notes.append(f"{_INPUTS} {act_format}; other activations keep their format")
    if kv_format is not None:
        kv_format = _at_context(kv_format, graph.context)
        states = {n for op, _ in graph.operators() if op.kind in ("scan", "conv1d") for n in (*op.inputs, *op.outputs)}
        caches = [t for t in graph.tensors.values() if t.role == "kv_cache" and t.name not in states]
        for cache in caches:
            tensors[cache.name] = replace(cache, format=kv_format)
        if caches:
            recent = "; the newest tokens, which KIVI keeps in fp16, are not counted (kivi2-r128 counts them)"
            uncounted = kv_format.scheme == "kivi" and "-r" not in kv_format.name
            notes.append(f"key/value cache in {kv_format} ({float(kv_format.bits):g} bits each){recent if uncounted else ''}")
        else:
            notes.append(f"there is no key/value cache to keep in {kv_format}")
    return replace(graph, tensors=tensors, segments=segments, notes=(*former, *notes))


def _at_context(format: Format, context: int) -> Format:
    """A cache format that keeps its newest tokens in fp16, as `context` tokens in all are stored."""
    if format.scheme == "kivi" and "-r" in format.name and "@" not in format.name:
        return parse_format(f"{format.name}@{context}")
    return format


def linear_layers(graph: Graph) -> dict[str, Operator]:
    """Products with a weight that quantisation schemes convert, by operator name."""
    tables = {op.inputs[0] for op, _ in graph.operators() if op.kind == "embedding"}
    routers = {op.module for op, _ in graph.operators() if op.kind == "topk"}
    return {
        op.name: op
        for op, _ in graph.operators()
        if op.kind in ("matmul", "grouped_matmul")
        and graph.tensors[op.inputs[1]].role == "weight"
        and op.inputs[1] not in tables
        and op.module not in routers
    }


def _kept(graph: Graph) -> str:
    tables = {op.inputs[0] for op, _ in graph.operators() if op.kind == "embedding"}
    tied = any(op.kind == "matmul" and op.inputs[1] in tables for op, _ in graph.operators())
    kept = "embeddings, norms, biases and routers keep their format"
    return kept + (", and so does the LM head, which is the embedding table" if tied else "")


def _quantised_inputs(graph: Graph, segment: Segment, linear: dict[str, Operator], tensors: dict[str, Tensor], format: Format) -> Segment:
    """`segment` with the inputs of its linear layers in `format`; `tensors` is updated."""
    produced = {name for op in segment.operators for name in op.outputs}
    elsewhere = {n for other in graph.segments if other is not segment for op in other.operators for n in (*op.inputs, *op.outputs)}
    shared = {n for op in segment.operators for n in (op.inputs[1:] if op.name in linear else op.inputs)}
    operators: list[Operator] = []
    copies: dict[str, str] = {}
    for op in segment.operators:
        if op.name in linear:
            name = op.inputs[0]
            value = graph.tensors[name]
            own = name in produced or name in graph.inputs
            if own and name not in shared | elsewhere | set(graph.outputs):
                tensors[name] = replace(value, format=format)
            elif value.format != format:
                if name not in copies:
                    copies[name] = f"{name}.quantised"
                    tensors[copies[name]] = replace(value, name=copies[name], format=format)
                    attributes = {"elements": value.elements, "operations": 2, "specials": 0}  # scale and round
                    operators.append(Operator(copies[name], "elementwise", (name,), (copies[name],), attributes, op.module, "quantise"))
                op = replace(op, inputs=(copies[name], *op.inputs[1:]))
        operators.append(op)
    return replace(segment, operators=tuple(operators))

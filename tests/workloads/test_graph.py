"""Graphs: saved and loaded, compared, checked."""

from __future__ import annotations

import json
import pickle

import pytest

from workloads.errors import WorkloadError
from workloads.format import parse_format
from workloads.graph import Graph, Operator, Segment, Tensor

MATMUL = {"batch": 1, "m": 2, "n": 3, "k": 4}


def small(**changes) -> Graph:
    fp16 = parse_format("fp16")
    tensors = (Tensor("x", (2, 4), fp16), Tensor("w", (3, 4), parse_format("int4-g128"), "weight"), Tensor("y", (2, 3), fp16))
    fields = {
        "name": "g",
        "phase": "decode",
        "batch": 1,
        "tokens": 1,
        "context": 1,
        "tensors": {t.name: t for t in tensors},
        "segments": (Segment("s", 2, (Operator("p", "matmul", ("x", "w"), ("y",), MATMUL, "m", "f"),)),),
        "inputs": ("x",),
        "outputs": ("y",),
        "notes": ("a note",),
    }
    return Graph(**{**fields, **changes})


def test_a_graph_survives_json():
    graph = small()
    again = Graph.from_json(json.loads(json.dumps(graph.to_json())))
    assert again == graph
    assert again.tensors["w"].format.bits == graph.tensors["w"].format.bits
    assert again.segments == graph.segments


def test_a_graph_survives_pickling():
    graph = small()
    operator = pickle.loads(pickle.dumps(graph.segments[0].operators[0]))
    assert operator == graph.segments[0].operators[0]


@pytest.mark.parametrize("change", [{"batch": 2}, {"phase": "prefill"}, {"notes": ()}, {"name": "h"}])
def test_graphs_that_differ_have_different_digests(change):
    assert small().digest == small().digest
    assert small(**change).digest != small().digest
    assert small(**change) != small()


def test_edges_lead_from_producers_to_consumers():
    producer = Operator("a", "elementwise", ("x",), ("t",), {"elements": 1, "operations": 1, "specials": 0})
    consumer = Operator("b", "elementwise", ("t",), ("y",), {"elements": 1, "operations": 1, "specials": 0})
    fp16 = parse_format("fp16")
    graph = small(
        tensors={n: Tensor(n, (1,), fp16) for n in "xty"}, segments=(Segment("s", 1, (producer, consumer)),)
    ).to_networkx()
    assert list(graph.edges(data="tensor")) == [("a", "b", "t")]


def test_a_missing_attribute_is_named():
    with pytest.raises(WorkloadError, match=r"operator 'p' \(matmul\): missing attributes k"):
        Operator("p", "matmul", (), (), {"batch": 1, "m": 1, "n": 1})


@pytest.mark.parametrize("value", [-1, 1.5, "4", None])
def test_an_attribute_is_a_whole_number_of_at_least_zero(value):
    with pytest.raises(WorkloadError, match="attributes must be integers >= 0"):
        Operator("p", "matmul", (), (), {**MATMUL, "k": value})


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(WorkloadError, match="unknown kind 'gemm', expected one of matmul, grouped_matmul"):
        Operator("p", "gemm", (), ())


def test_an_operator_reads_tensors_of_its_graph():
    with pytest.raises(WorkloadError, match="operator 'p': tensor 'w' is not in the graph"):
        small(tensors={n: t for n, t in small().tensors.items() if n != "w"})


def test_a_segment_runs_at_least_once():
    with pytest.raises(WorkloadError, match="count must be at least 1, found 0"):
        small(segments=(Segment("s", 0, ()),))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, 'expected a saved graph .* "type": "graph"'),
        ([], "expected a saved graph"),
        ({"type": "graph", "schema": 99}, "schema 99 cannot be read, expected 1; trace the model again"),
        ({"type": "graph", "schema": 1}, "not a complete saved graph"),
    ],
)
def test_a_document_that_is_no_graph_is_refused(document, message):
    with pytest.raises(WorkloadError, match=f"here: {message}"):
        Graph.from_json(document, where="here")


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("matmul", {"batch": 1, "m": 0, "n": 4, "k": 4}, "dimensions must be at least 1, found {'m': 0}"),
        (
            "attention",
            {"batch": 1, "heads": 6, "kv_heads": 4, "queries": 1, "keys": 8, "head_dim": 8, "value_dim": 8, "causal": 1, "window": 0},
            "heads must be a multiple of kv_heads, found 6 and 4",
        ),
        (
            "attention",
            {"batch": 1, "heads": 1, "kv_heads": 4, "queries": 1, "keys": 8, "head_dim": 8, "value_dim": 8, "causal": 1, "window": 0},
            "kv_heads must be at most heads, found 4 and 1",
        ),
        ("grouped_matmul", {"rows": 4, "experts": 8, "top_k": 2, "active": 9, "n": 4, "k": 4}, "active must be at most experts"),
    ],
)
def test_dimensions_that_make_no_sense_are_refused(kind, attributes, message):
    with pytest.raises(WorkloadError, match=message):
        Operator("o", kind, (), (), attributes)

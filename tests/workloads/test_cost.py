"""Laws of the cost functions, checked against counting one by one."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads import cost
from workloads.format import parse_format
from workloads.graph import Graph, Operator, Segment, Tensor


def mask(queries: int, keys: int, window: int):
    """The causal mask, row by row: the last `queries` of `keys` positions, each seeing itself and what came before."""
    for i in range(keys - queries, keys):
        yield sum(1 for j in range(keys) if j <= i and (not window or i - j < window))


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 50))
def test_attended_pairs_are_the_ones_in_the_mask(queries, past, window):
    keys = queries + past
    assert cost.attended_pairs(queries, keys, causal=True, window=window) == sum(mask(queries, keys, window))


@given(st.integers(1, 100), st.integers(1, 100))
def test_without_a_causal_mask_every_pair_counts(queries, keys):
    assert cost.attended_pairs(queries, keys, causal=False, window=0) == queries * keys


@given(st.integers(1, 60))
def test_prefill_in_two_chunks_attends_to_the_same_pairs_as_at_once(tokens):
    for first in range(1, tokens):
        chunks = cost.attended_pairs(first, first, True, 0) + cost.attended_pairs(tokens - first, tokens, True, 0)
        assert chunks == cost.attended_pairs(tokens, tokens, True, 0)


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 64))
def test_active_experts_are_at_least_one_tokens_and_at_most_all(tokens, experts, top_k):
    top_k = min(top_k, experts)
    active = cost.active_experts(tokens, experts, top_k)
    assert top_k <= active <= experts
    assert active <= tokens * top_k
    assert active <= cost.active_experts(tokens + 1, experts, top_k)


def test_active_experts_is_the_expectation_rounded_up():
    assert cost.active_experts(128, 128, 1) == ceil(128 * (1 - Fraction(127, 128) ** 128)) == 82


def graph_of(*operators: Operator, tensors: list[Tensor], count: int = 1) -> Graph:
    return Graph("g", "decode", 1, 1, 1, {t.name: t for t in tensors}, (Segment("s", count, operators),))


def tensor(name: str, *shape: int, role: str = "activation", format: str = "fp16") -> Tensor:
    return Tensor(name, shape, parse_format(format), role)


def test_a_product_counts_two_flops_per_multiply_accumulate():
    op = Operator("p", "matmul", (), (), {"batch": 3, "m": 4, "n": 5, "k": 6})
    assert cost.matrix_flops(op) == cost.flops(op) == 2 * 3 * 4 * 5 * 6


def test_a_tensor_read_twice_is_loaded_once():
    op = Operator("e", "elementwise", ("x", "x"), ("y",), {"elements": 8, "operations": 1, "specials": 0})
    graph = graph_of(op, tensors=[tensor("x", 8), tensor("y", 8)])
    assert cost.read_bytes(graph, op) == 16
    assert cost.operator_bytes(graph, op) == 32


def test_an_embedding_reads_its_rows_not_its_table():
    op = Operator("e", "embedding", ("table", "ids"), ("y",), {"rows": 3, "width": 10})
    tensors = [tensor("table", 1000, 10, role="weight"), tensor("ids", 3, format="int64"), tensor("y", 3, 10)]
    assert cost.read_bytes(graph_of(op, tensors=tensors), op) == 3 * 10 * 2 + 3 * 8


def test_a_copy_of_a_part_reads_the_part():
    op = Operator("c", "copy", ("x",), ("y",), {"elements": 10}, function="slice")
    graph = graph_of(op, tensors=[tensor("x", 100, 10), tensor("y", 1, 10)])
    assert cost.read_bytes(graph, op) == cost.write_bytes(graph, op) == 20


def test_weights_of_a_repeated_body_exist_once_per_repetition_and_shared_ones_once():
    op = Operator("p", "matmul", ("x", "w"), ("y",), {"batch": 1, "m": 1, "n": 4, "k": 4})
    head = Operator("h", "matmul", ("y", "table"), ("z",), {"batch": 1, "m": 1, "n": 9, "k": 4})
    embed = Operator("e", "embedding", ("table",), ("x",), {"rows": 1, "width": 4})
    tensors = [tensor("x", 4), tensor("y", 4), tensor("z", 9), tensor("w", 4, 4, role="weight"), tensor("table", 9, 4, role="weight")]
    graph = Graph(
        "g", "decode", 1, 1, 1, {t.name: t for t in tensors},
        (Segment("a", 1, (embed,)), Segment("b", 7, (op,)), Segment("c", 1, (head,))),
    )  # fmt: skip
    assert cost.parameters(graph) == 7 * 16 + 36
    assert cost.total_flops(graph) == 2 * (7 * 16 + 36)


@pytest.mark.parametrize("kind", ["norm", "softmax", "topk", "elementwise", "reduce", "embedding", "append", "copy"])
def test_only_products_have_matrix_flops(kind):
    attributes = dict.fromkeys(("rows", "width", "k", "elements", "operations", "specials"), 3)
    op = Operator("o", kind, (), (), attributes)
    assert cost.matrix_flops(op) == 0
    assert cost.flops(op) == cost.vector_flops(op)

"""Repeated layers are stored once, and only when they really are alike."""

from __future__ import annotations

from workloads.fold import fold
from workloads.format import parse_format
from workloads.graph import Operator, Tensor

FP16 = parse_format("fp16")


def chain(layers: int, *, widths: list[int] | None = None, late_reader: int | None = None, shared_weight: bool = False):
    """`layers` products in a row between an input and an output operator; each has a weight of its own."""
    tensors = {"x": Tensor("x", (4,), FP16)}
    operators = [Operator("in", "elementwise", ("x",), ("in",), {"elements": 4, "operations": 1, "specials": 0}, "embed")]
    tensors["in"] = Tensor("in", (4,), FP16)
    before = "in"
    for i in range(layers):
        width = widths[i] if widths else 4
        weight = "w" if shared_weight else f"w{i}"
        tensors[weight] = Tensor(weight, (width, 4), FP16, "weight")
        name = f"l{i}"
        tensors[name] = Tensor(name, (4,), FP16)
        attributes = {"batch": 1, "m": 1, "n": width, "k": 4}
        operators.append(Operator(name, "matmul", (before, weight), (name,), attributes, f"layers.{i}"))
        before = name
    reads = (before,) if late_reader is None else (before, f"l{late_reader}")
    operators.append(Operator("out", "elementwise", reads, ("out",), {"elements": 4, "operations": 1, "specials": 0}, "head"))
    tensors["out"] = Tensor("out", (4,), FP16)
    return operators, tensors


def counts(segments):
    return [(s.name, s.count, len(s.operators)) for s in segments]


def test_equal_layers_become_one_body():
    segments, _ = fold(*chain(6))
    assert counts(segments) == [("prologue", 1, 1), ("layers.0-5", 6, 1), ("epilogue", 1, 1)]


def test_the_consumer_after_a_body_reads_the_first_bodys_name():
    segments, renamed = fold(*chain(6))
    assert segments[2].operators[0].inputs == ("l0",)
    assert renamed["l5"] == "l0"


def test_a_layer_of_another_size_stands_on_its_own():
    segments, _ = fold(*chain(5, widths=[8, 4, 4, 4, 4]))
    assert counts(segments)[1:3] == [("layers.0", 1, 1), ("layers.1-4", 4, 1)]


def test_alternating_layers_fold_to_a_body_of_two():
    segments, _ = fold(*chain(6, widths=[4, 8] * 3))
    assert counts(segments)[1] == ("layers.0-5", 3, 2)


def test_the_layer_of_a_tensor_that_is_read_again_later_is_not_folded():
    segments, _ = fold(*chain(4, late_reader=1))
    assert counts(segments)[1:4] == [("layers.0", 1, 1), ("layers.1", 1, 1), ("layers.2-3", 2, 1)]
    assert segments[4].operators[0].inputs == ("l2", "l1")


def test_one_weight_in_several_layers_prevents_folding():
    segments, _ = fold(*chain(4, shared_weight=True))
    assert all(s.count == 1 for s in segments)


def test_one_layer_is_not_a_repetition():
    segments, renamed = fold(*chain(1))
    assert [s.count for s in segments] == [1, 1, 1]
    assert not renamed


def test_segment_names_are_unique():
    operators, tensors = chain(4, widths=[4, 4, 8, 8])
    middle = Operator("mid", "elementwise", ("l1",), ("mid",), {"elements": 4, "operations": 1, "specials": 0}, "bridge")
    tensors["mid"] = Tensor("mid", (4,), FP16)
    operators.insert(3, middle)
    segments, _ = fold(operators, tensors)
    found = [s.name for s in segments]
    assert len(set(found)) == len(found) == 5

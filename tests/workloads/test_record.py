"""Recorded operations: regions of views, parts of values, settled formats."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.record import Recording, Use, Value, region_elements, region_of

MATMUL = {"batch": 1, "m": 4, "n": 6, "k": 8}
ELEMENTWISE = {"elements": 1, "operations": 1, "specials": 0}


def view_region(view: np.ndarray, base: np.ndarray):
    offset = (view.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // base.itemsize
    return region_of(offset, view.shape, [s // base.itemsize for s in view.strides])


@given(st.permutations(range(4)), st.integers(0, 3), st.data())
def test_permuting_and_reshaping_a_view_does_not_change_its_region(order, axis, data):
    base = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    start = data.draw(st.integers(0, base.shape[axis] - 1))
    view = base[(slice(None),) * axis + (slice(start, None),)]
    assert view_region(view.transpose(order), base) == view_region(view, base)
    assert region_elements(view_region(view, base)) == view.size


def test_different_parts_have_different_regions():
    base = np.arange(24).reshape(4, 6)
    regions = {view_region(base[:, a:b], base) for a, b in ((0, 2), (2, 4), (4, 6), (0, 6))}
    assert len(regions) == 4


def test_a_broadcast_view_has_the_elements_behind_it():
    assert region_elements(region_of(0, (8, 3, 5), (0, 5, 1))) == 15


def whole(value: Value) -> Use:
    return Use(value, None, value.shape, value.format)


def part(value: Value, start: int, stop: int) -> Use:
    shape = (value.shape[0], stop - start)
    return Use(value, region_of(start, shape, (value.shape[1], 1)), shape, value.format)


@pytest.fixture
def recording() -> Recording:
    return Recording()


def product(recording: Recording, name: str = "p", format: str = "fp16") -> Value:
    x, y = Value((4, 8), "fp16", "activation", "x"), Value((4, 6), format, "activation")
    recording.emit("matmul", name, [whole(x)], [y], MATMUL, name=name)
    return y


def read(recording: Recording, *uses: Use, name: str = "r") -> Value:
    out = Value((1,), "fp16", "activation")
    recording.emit("elementwise", "m", uses, [out], ELEMENTWISE, name=name)
    return out


def test_names_are_unique_and_outputs_are_called_like_their_operator(recording):
    for _ in range(3):
        product(recording)
    _, operators, _ = recording.finish([])
    assert [op.name for op in operators] == ["p", "p_1", "p_2"]
    assert [op.outputs for op in operators] == [("p",), ("p_1",), ("p_2",)]


def test_an_output_is_never_called_like_a_parameter(recording):
    recording.reserved.add("p")
    product(recording)
    assert recording.finish([])[1][0].outputs == ("p:0",)


def test_disjoint_parts_that_make_up_a_value_become_its_outputs(recording):
    y = product(recording)
    read(recording, part(y, 2, 6))
    read(recording, part(y, 0, 2))
    tensors, operators, _ = recording.finish([])
    assert operators[0].outputs == ("p:0", "p:1")
    assert [tensors[n].shape for n in operators[0].outputs] == [(4, 2), (4, 4)]
    assert [op.inputs for op in operators[1:]] == [("p:1",), ("p:0",)]


def test_a_value_read_as_a_whole_stays_one(recording):
    y = product(recording)
    read(recording, part(y, 2, 6), part(y, 0, 2))
    _, operators, _ = recording.finish([])
    assert (operators[0].outputs, operators[1].inputs) == (("p",), ("p",))


def test_a_lone_part_is_copied_once_before_its_first_reader(recording):
    y = product(recording)
    read(recording, part(y, 0, 2))
    read(recording, part(y, 0, 2))
    _, operators, _ = recording.finish([])
    assert [(op.kind, op.function, op.inputs) for op in operators[1:]] == [
        ("copy", "slice", ("p",)), ("elementwise", "", ("m.slice",)), ("elementwise", "", ("m.slice",)),
    ]  # fmt: skip
    assert operators[1]["elements"] == 8


def test_a_value_that_every_reader_narrows_is_written_narrow(recording):
    y = product(recording, format="fp32")
    read(recording, Use(y, None, y.shape, "fp16"))
    tensors, _, _ = recording.finish([])
    assert tensors["p"].format.name == "fp16"


def test_a_value_that_one_reader_needs_wide_stays_wide(recording):
    y = product(recording, format="fp32")
    read(recording, Use(y, None, y.shape, "fp16"), name="a")
    read(recording, whole(y), name="b")
    tensors, _, _ = recording.finish([])
    assert tensors["p"].format.name == "fp32"


def test_a_merged_tail_reads_what_it_read_from_outside(recording):
    y = product(recording)
    start = len(recording.entries)
    inner = read(recording, whole(y))
    last = read(recording, whole(inner))
    recording.merge_tail(start, "topk", [last], {"rows": 1, "width": 6, "k": 2}, "m", "topk")
    _, operators, _ = recording.finish([whole(last)])
    assert [(op.name, op.kind, op.inputs, op.outputs) for op in operators[1:]] == [("m.topk", "topk", ("p",), ("m.topk",))]

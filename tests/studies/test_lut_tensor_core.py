"""The LUT Tensor Core study: what is claimed is reproduced, what is missed says why, and its graphs compute the same work."""

from __future__ import annotations

import time

import pytest

from studies import lut_tensor_core as study
from studies.lut_tensor_core import LAYERS, MACHINES, area_ratio, core_gates, gates, lut_unit, model, one_layer, precomputing, unfused
from workloads import cost


@pytest.fixture(scope="module")
def rows():
    start = time.process_time()
    found = study.rows()
    assert time.process_time() - start < 60
    return found


def test_all_published_latencies_are_there_and_a_miss_says_why(rows):
    ends = [row for row in rows if row.tolerance == 0.15]
    assert len(ends) == 2 * len(MACHINES)
    layers = [row for row in rows if row.tolerance == 0.05]
    assert len(layers) == 3 * len(LAYERS)
    for row in rows:
        assert row.ours > 0
        assert row.note or row.status == "reproduced"
        if row.status == "not reproduced":
            assert len(row.note) > 40


def test_what_rests_on_stated_parameters_alone_is_reproduced(rows):
    found = {row.experiment: row for row in rows}
    for name in (
        "a100-lut-4x: peak rate",
        "a100-lut-8x: peak rate",
        "area of fp16 dot products over a look-up core of the same rate, W1A16",
    ):
        assert found[name].status == "reproduced"
    classic = next(row for row in rows if "classic design" in row.experiment)
    assert classic.ours == 3072


def test_every_look_up_machine_is_faster_than_the_one_before_it(rows):
    for label in ("BS1 SEQ2048", "BS1024 SEQ1"):
        times = [row.ours for row in rows if row.experiment.endswith(f"{label}: latency")]
        assert times == sorted(times, reverse=True)
        assert len(times) == 5


def test_attention_through_memory_multiplies_as_much_as_attention_without_a_mask():
    graph = model("bitnet-3b", 1, 2048)
    (layer,) = [s for s in graph.segments if s.count > 1]
    op = next(op for op in layer.operators if op.kind == "attention")
    apart = {o.name: o for o, _ in unfused(graph).operators() if o.name.startswith(op.name)}
    products = [cost.macs(o) for o in apart.values() if o.kind == "matmul"]
    assert products == [op["heads"] * op["queries"] * op["keys"] * op["head_dim"]] * 2
    (softmax,) = [o for o in apart.values() if o.kind == "softmax"]
    assert softmax["rows"] * softmax["width"] == op["heads"] * op["queries"] * op["keys"]
    assert cost.total_flops(unfused(graph)) > cost.total_flops(graph)


@pytest.mark.parametrize("fused", [True, False])
def test_precomputing_adds_tables_and_no_products(fused):
    layer = one_layer(model("bitnet-3b", 1, 2048))
    tabled = precomputing(layer, lut_unit(), fused)
    assert cost.total_flops(tabled) == cost.total_flops(layer)
    assert sum(op.function == "tables" for op, _ in tabled.operators()) == 4  # queries to values, output, gate and up, down


def test_one_layer_is_one_of_the_repeated_ones():
    graph = model("bitnet-3b", 1, 2048)
    (body,) = [s for s in graph.segments if s.count > 1]
    assert [s.count for s in one_layer(graph).segments] == [1]
    assert sum(cost.macs(op) for op, _ in one_layer(graph).operators()) == sum(cost.macs(op) for op in body.operators)


def test_area_at_equal_rate_is_that_of_128_dot_products_over_the_core():
    assert area_ratio(1, False) == pytest.approx(128 * gates("int8_dot4") / core_gates(2, 64, False))
    assert area_ratio(2, True) == pytest.approx(area_ratio(1, True) / 2)  # two planes, two cycles

"""Tensor parallelism: each of the chips of a node has its share of every layer."""

from __future__ import annotations

import pytest

from dovetail import estimate
from hw.devices import load as load_device
from hw.errors import HardwareError
from hw.node import Node
from mapper.errors import MappingError
from mapper.shard import tensor_parallel
from workloads import cost, load
from workloads.graph import Graph


def decode(model: str, batch: int = 4, context: int = 64) -> Graph:
    return load(model, phase="decode", batch=batch, context=context)


def collectives(graph: Graph) -> list[str]:
    return [op.function for op, _ in graph.operators() if op.kind == "collective"]


@pytest.mark.parametrize("model", ["llama-2-7b", "mixtral-8x7b", "opt-13b"])
@pytest.mark.parametrize("ranks", [2, 8])
def test_products_and_caches_are_shared_out_evenly(model: str, ranks: int) -> None:
    graph = decode(model)
    part = tensor_parallel(graph, ranks)
    router = sum(cost.matrix_flops(op) * n for op, n in graph.operators() if op.name.endswith("mlp.gate"))  # runs on every chip
    assert cost.total_flops(part) - router == (cost.total_flops(graph) - router) // ranks
    assert cost.role_bytes(part, "kv_cache") * ranks == cost.role_bytes(graph, "kv_cache")
    assert cost.role_bytes(part, "weight") * ranks == pytest.approx(cost.role_bytes(graph, "weight"), rel=0.001)


def test_attention_and_feed_forward_layers_need_one_all_reduce_each() -> None:
    for model in ("llama-2-7b", "mixtral-8x7b", "opt-13b"):
        assert collectives(tensor_parallel(decode(model), 4)) == ["all-reduce"] * 3  # embedding, attention, feed-forward


def test_partial_sums_of_branches_beside_each_other_are_added_before_they_are_reduced() -> None:
    """Falcon adds attention and feed-forward of the same input: one all-reduce per layer."""
    assert collectives(tensor_parallel(decode("falcon-40b"), 8)) == ["all-reduce"] * 2


def test_keys_and_values_of_fewer_heads_than_chips_exist_more_than_once() -> None:
    graph = decode("yi-6b")  # four heads of keys and values
    part = tensor_parallel(graph, 8)
    assert cost.role_bytes(part, "kv_cache") * 4 == cost.role_bytes(graph, "kv_cache")


def test_one_chip_has_the_whole_graph() -> None:
    graph = decode("opt-1.3b")
    assert tensor_parallel(graph, 1) is graph


def test_heads_that_cannot_be_shared_are_refused_with_their_number() -> None:
    with pytest.raises(MappingError, match="12 heads cannot be shared by 8 chips"):
        tensor_parallel(load("bert-base", phase="prefill", batch=1, seq=32), 8)


def test_an_all_reduce_takes_the_textbook_time_of_the_best_algorithm() -> None:
    """Ring: 2 (n - 1) (step + size / n / rate); for short vectors a tree, 2 log2 n (step + size / rate)."""
    node = Node(chips=8, bandwidth="100 GB/s", step="1 us", launch="3 us")
    large, small = 8 * 10**8, 8
    assert node.collective_fs("all-reduce", large) == 3 * 10**9 + round(14 * (1e-6 + 1e8 / 1e11) * 1e15)
    assert node.collective_fs("all-reduce", small) == pytest.approx(3e9 + 2 * (1e-6 + 7 * 8 / 1e11) * 1e15, rel=1e-6)  # to one and back


def test_links_are_either_nvlink_or_stated() -> None:
    with pytest.raises(HardwareError, match="either nvlink and links, or a bandwidth"):
        Node(chips=8)
    with pytest.raises(HardwareError, match="either nvlink and links, or a bandwidth"):
        Node(chips=8, nvlink=3, links=12, bandwidth="1 GB/s")
    with pytest.raises(HardwareError, match="those of NVLink are known"):
        Node(chips=8, nvlink=3, links=12, step="1 us")


def test_a_node_of_gpus_is_faster_than_one_but_not_by_its_number_of_chips() -> None:
    def latency(device: str, **settings: object) -> float:
        return estimate("llama-2-7b", device=load_device(device).with_settings(settings), phase="decode", batch=1, context=256).latency_s

    one, node = latency("a100-80g"), latency("dgx-a100")
    assert one / 8 < node < one
    assert latency("dgx-a100", **{"node.chips": 4}) > node
    assert latency("dgx-h100") < node


def test_energy_of_a_node_is_that_of_all_its_chips() -> None:
    one = estimate("llama-2-7b", device="a100-80g", phase="decode", batch=1, context=256).energy_parts["hbm"]
    node = estimate("llama-2-7b", device="dgx-a100", phase="decode", batch=1, context=256).energy_parts["hbm"]
    assert one is not None
    assert node is not None
    assert node == pytest.approx(one, rel=0.05)  # the same weights, read once in all; vectors of every chip on top

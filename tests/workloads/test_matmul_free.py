"""MatMul-free models: dimensions to graph, against sums written out here."""

from __future__ import annotations

import json

import pytest

from workloads import catalogue, cost, load
from workloads.errors import WorkloadError
from workloads.matmul_free import macs_per_token, mlp_width

NAMES = {"matmul-free-370m": (24, 1024, 2816), "matmul-free-1.3b": (24, 2048, 5632), "matmul-free-2.7b": (32, 2560, 6912)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_parameters_are_matrices_embeddings_and_norms(name: str, phase: str):
    layers, d, ffn = NAMES[name]
    # per block: i, f, g, o; gate (twice ffn) and down; norms before both mixers and of the states; six norms of BitLinear layers
    block = 4 * d * d + d * 2 * ffn + ffn * d + 3 * d + (5 * d + ffn)
    stored = layers * block + 2 * 32000 * d + d + d
    graph = load(name, phase=phase, batch=2, context=32)
    assert cost.parameters(graph) == stored == catalogue.describe(name).parameters
    assert mlp_width(d) == ffn


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("phase", "batch", "length", "logits"), [("prefill", 2, 48, "last"), ("prefill", 1, 7, "all"), ("decode", 3, 100, "last")]
)
def test_flops_are_two_per_weight_and_token_and_six_per_state(name: str, phase: str, batch: int, length: int, logits: str):
    layers, d, ffn = NAMES[name]
    tokens = batch * (1 if phase == "decode" else length)
    heads = tokens if logits == "all" else batch
    graph = load(name, phase=phase, batch=batch, context=length, logits=logits)
    assert cost.total_flops(graph) == 2 * tokens * macs_per_token(layers, d, ffn) + 2 * heads * 32000 * d + 6 * tokens * layers * d


def test_published_weights_are_ternary_and_inputs_int8():
    graph = load("matmul-free-1.3b", phase="decode")
    matrices = [t for t in graph.tensors.values() if t.role == "weight" and len(t.shape) == 2 and "embeddings" not in t.name]
    assert len(matrices) == 7  # a block's six and the head
    assert {t.format.name for t in matrices} == {"ternary"}
    products = [op for op, _ in graph.operators() if op.kind == "matmul"]
    assert {graph.tensors[op.inputs[0]].format.name for op in products} == {"int8"}
    ternary = 24 * (4 * 2048**2 + 3 * 2048 * 5632) + 32000 * 2048
    assert cost.role_bytes(graph, "weight") == ternary // 4 + 2 * (cost.parameters(graph) - ternary)


def test_the_state_does_not_grow_and_keeps_its_format():
    short, long = (load("matmul-free-370m", phase="decode", batch=3, context=n) for n in (8, 4096))
    assert cost.role_bytes(short, "kv_cache") == cost.role_bytes(long, "kv_cache") == 24 * 3 * 1024 * 2
    assert cost.total_flops(short) == cost.total_flops(long)


def test_a_config_is_read_and_its_mistakes_are_named(tmp_path):
    config = {"model_type": "hgrn_bit", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 256, "vocab_size": 100}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    graph = load(str(path), phase="decode", context=4)
    assert cost.total_flops(graph) == 2 * (2 * (4 * 64**2 + 3 * 64 * 256) + 6400) + 6 * 2 * 64
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "vocab_size"}))
    with pytest.raises(WorkloadError, match=r"a hgrn_bit config needs num_hidden_layers.*missing: vocab_size"):
        load(str(path))
    path.write_text(json.dumps(config | {"num_heads": 4}))
    with pytest.raises(WorkloadError, match="with one head and an expansion of one, as released, not with num_heads 4"):
        load(str(path))
    path.write_text(json.dumps(config | {"expand_ratio": 2}))
    with pytest.raises(WorkloadError, match="not with expand_ratio 2"):
        load(str(path))


def test_the_nearest_name_is_offered():
    with pytest.raises(WorkloadError, match=r"did you mean `matmul-free-1.3b`"):
        load("matmulfree-1.3b")

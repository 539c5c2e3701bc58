"""Quantisation: which tensors change their format, and which do not."""

from __future__ import annotations

from fractions import Fraction

import pytest

from workloads import cost, load, quantise
from workloads.errors import WorkloadError
from workloads.format import parse_format


def formats(graph, role: str) -> dict[str, str]:
    return {t.name: t.format.name for t in graph.tensors.values() if t.role == role}


def test_weights_of_linear_layers_change_and_the_rest_keep_fp16(traced):
    graph = quantise(traced("llama-2-7b", "decode"), weights="int4-g128")
    for name, format in formats(graph, "weight").items():
        linear = "proj" in name or name == "lm_head.weight"
        assert format == ("int4-g128" if linear else "fp16"), name


def test_weight_bytes_after_quantisation_are_exact(traced):
    graph = quantise(traced("llama-2-7b", "decode"), weights="int4-g128")
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096
    kept = 6_738_415_616 - linear
    assert cost.role_bytes(graph, "weight") == linear * Fraction(33, 8) / 8 + 2 * kept


def test_flops_and_structure_do_not_change(traced):
    before = traced("llama-2-7b", "decode")
    after = quantise(before, weights="int4-g128", acts="int8", kv="int8")
    assert cost.total_flops(after) == cost.total_flops(before)
    assert cost.parameters(after) == cost.parameters(before)
    assert after.segments == before.segments


def test_inputs_of_linear_layers_change_and_other_activations_do_not(traced):
    graph = quantise(traced("llama-2-7b", "decode"), acts="int8")
    changed = {name for name, format in formats(graph, "activation").items() if format == "int8"}
    layer = "model.layers.0"
    assert changed == {
        f"{layer}.input_layernorm", f"{layer}.self_attn.attention", f"{layer}.post_attention_layernorm", f"{layer}.mlp.mul", "model.norm",
    }  # fmt: skip


def test_a_value_with_other_readers_is_quantised_into_a_copy(traced):
    """BERT normalises after the residual: the same value feeds q, k, v and the next addition."""
    before = traced("bert-base", "prefill", batch=2)
    graph = quantise(before, acts="int8")
    body = graph.segments[1].operators
    first = body[0]
    assert (first.function, first.inputs) == ("quantise", before.segments[1].operators[0].inputs[:1])
    assert {op.inputs[0] for op in body if op.name.endswith(("query", "key", "value"))} == set(first.outputs)
    assert graph.tensors[first.inputs[0]].format.name == "fp16"
    assert graph.tensors[first.outputs[0]].format.name == "int8"


def test_the_cache_changes_alone(traced):
    before = traced("llama-2-7b", "decode", length=64)
    after = quantise(before, kv="kivi2")
    assert cost.kv_bytes_per_token(after) == cost.kv_bytes_per_token(before) * 3 / 16 == 98_304
    assert cost.role_bytes(after, "weight") == cost.role_bytes(before, "weight")


def test_recurrent_states_are_no_key_value_cache(traced):
    before = traced("mamba-2-2.7b", "decode", batch=2)
    after = quantise(before, kv="int8")
    assert cost.role_bytes(after, "kv_cache") == cost.role_bytes(before, "kv_cache")
    assert "no key/value cache" in after.notes[-1]


def test_experts_change_and_routers_do_not(traced):
    graph = quantise(traced("mixtral-8x7b", "decode"), weights="int4-g128", acts="int8")
    weights = formats(graph, "weight")
    assert weights["model.layers.0.mlp.experts.gate_up_proj"] == weights["model.layers.0.mlp.experts.down_proj"] == "int4-g128"
    assert weights["model.layers.0.mlp.gate.weight"] == "fp16"
    (router,) = [op for op, _ in graph.operators() if op.name.endswith("mlp.gate")]
    assert graph.tensors[router.inputs[0]].format.name == "fp16"


def test_a_tied_head_stays_with_its_embedding_and_the_note_says_so(traced):
    graph = quantise(traced("opt-1.3b", "decode", batch=2), weights="int8")
    assert formats(graph, "weight")["model.decoder.embed_tokens.weight"] == "fp16"
    assert "LM head, which is the embedding table" in graph.notes[-1]


def test_the_halves_of_an_absorbed_projection_are_quantised(traced):
    weights = formats(quantise(traced("deepseek-v3", "decode", batch=2), weights="fp8"), "weight")
    assert weights["model.layers.3.self_attn.kv_b_proj.weight.k"] == weights["model.layers.3.self_attn.kv_b_proj.weight.v"] == "fp8"


def test_bitnet_comes_in_its_published_formats():
    graph = load("bitnet-3b", phase="decode", context=16)
    weights = formats(graph, "weight")
    assert {f for n, f in weights.items() if "proj" in n} == {"ternary"}
    assert weights["model.embed_tokens.weight"] == "fp16"
    linear = 26 * (4 * 3200**2 + 3 * 3200 * 8640)
    assert cost.role_bytes(graph, "weight") == linear * 2 // 8 + 2 * (cost.parameters(graph) - linear)
    assert graph.tensors["model.layers.0.input_layernorm"].format.name == "int8"


def test_a_gemm_keeps_its_output():
    graph = quantise(load("gemm:8x16x4"), weights="int4", acts="int8")
    assert {t.name: t.format.name for t in graph.tensors.values()} == {"a": "int8", "b": "int4", "c": "fp16"}


def test_quantising_twice_is_quantising_last(traced):
    before = traced("llama-2-7b", "decode")
    twice = quantise(quantise(before, weights="int8", acts="int8"), weights="int4", acts="fp8")
    once = quantise(before, weights="int4", acts="fp8")
    assert (twice.tensors, twice.segments) == (once.tensors, once.segments)


def test_without_formats_nothing_changes(traced):
    before = traced("llama-2-7b", "decode")
    assert quantise(before) == before


def test_a_format_may_be_given_as_an_object(traced):
    before = traced("llama-2-7b", "decode")
    assert quantise(before, kv=parse_format("int8")) == quantise(before, kv="int8")


@pytest.mark.parametrize("option", ["weights", "acts", "kv"])
def test_an_unknown_format_is_refused(option, traced):
    with pytest.raises(WorkloadError, match="format 'int44': unknown number format"):
        quantise(traced("llama-2-7b", "decode"), **{option: "int44"})

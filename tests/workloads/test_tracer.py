"""What a trace looks like: attention as one operator, appends, experts, scans, folded layers."""

from __future__ import annotations

import pytest

from workloads import cost
from workloads.cost import active_experts
from workloads.errors import WorkloadError
from workloads.graph import Graph

ARCHITECTURES = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 8},
    "phi": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 512},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True, "bias": False, "alibi": False},
    "bloom": {"n_layer": 4, "n_head": 4},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_key_value_heads": 4, "n_group": 2, "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "mamba2": {"expand": 2, "head_dim": 16, "num_heads": 8, "state_size": 16, "n_groups": 1},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip


def operators(graph: Graph, kind: str = "", function: str = ""):
    return [op for op, _ in graph.operators() if (not kind or op.kind == kind) and (not function or op.function == function)]


# --- every architecture -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_folding_layers_changes_no_total(model_type, phase, traced_config):
    folded = traced_config(model_type, phase, **ARCHITECTURES[model_type])
    flat = traced_config(model_type, phase, folded=False, **ARCHITECTURES[model_type])
    assert len(folded.segments) > len(flat.segments) == 1
    assert sum(len(s.operators) for s in folded.segments) < len(flat.segments[0].operators)
    for total in (cost.parameters, cost.total_flops, cost.total_vector_flops):
        assert total(folded) == total(flat)
    for role in ("weight", "kv_cache"):
        assert cost.role_bytes(folded, role) == cost.role_bytes(flat, role)
    for traffic in (cost.read_bytes, cost.write_bytes):
        assert sum(traffic(folded, op) * n for op, n in folded.operators()) == sum(traffic(flat, op) for op, _ in flat.operators())


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_all_parameters_of_the_module_are_in_the_graph(model_type, phase, traced_config, small_config):
    from workloads import tracer

    config = ARCHITECTURES[model_type]
    graph = traced_config(model_type, phase, **config)
    model, _ = tracer.build_model(small_config(model_type, **config), model_type)
    assert cost.parameters(graph) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_operators_read_only_what_exists(model_type, phase, traced_config):
    """Operators are in execution order: an activation is an input of the graph, or was produced before."""
    graph = traced_config(model_type, phase, **ARCHITECTURES[model_type])
    there = set(graph.inputs)
    for op, _ in graph.operators():
        for tensor in graph.reads(op):
            assert tensor.role != "activation" or tensor.name in there, (op, tensor)
        there.update(op.outputs)
    assert set(graph.outputs) <= there


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_nothing_is_copied_that_an_inference_engine_would_not_copy(model_type, traced_config):
    """Views, transposes and cache updates cost nothing in decode; experts gather their tokens."""
    graph = traced_config(model_type, "decode", **ARCHITECTURES[model_type])
    assert {op.function for op in operators(graph, "copy")} <= {"dispatch"}


# --- Llama, operator by operator --------------------------------------------------------------------------------------
def test_a_llama_layer_is_eighteen_operators_in_execution_order(traced):
    body = traced("llama-2-7b", "decode").segments[1]
    assert body.count == 32
    assert [op.name.removeprefix("model.layers.0.") for op in body.operators] == [
        "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.rope_q", "self_attn.rope_k",
        "self_attn.append_k", "self_attn.append_v", "self_attn.attention", "self_attn.o_proj", "add", "post_attention_layernorm",
        "mlp.gate_proj", "mlp.silu", "mlp.up_proj", "mlp.mul", "mlp.down_proj", "add_1",
    ]  # fmt: skip


def test_operators_know_their_module(traced):
    graph = traced("llama-2-7b", "decode")
    modules = {op.name: op.module for op, _ in graph.operators()}
    assert modules["model.layers.0.self_attn.q_proj"] == "model.layers.0.self_attn.q_proj"
    assert modules["model.layers.0.self_attn.attention"] == "model.layers.0.self_attn"
    assert modules["model.layers.0.add"] == "model.layers.0"


def test_the_body_starts_from_what_the_body_before_produced(traced):
    graph = traced("llama-2-7b", "decode")
    prologue, body, epilogue = graph.segments
    assert body.operators[0].inputs[0] == prologue.operators[0].outputs[0] == "model.embed_tokens"
    assert epilogue.operators[0].inputs[0] == body.operators[-1].outputs[0]
    carried, entering = (graph.tensors[n] for n in (body.operators[-1].outputs[0], body.operators[0].inputs[0]))
    assert (carried.shape, carried.format) == (entering.shape, entering.format)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_grouped_keys_and_values_are_not_repeated(phase, traced):
    graph = traced("llama-3-8b", phase, batch=2, length=64)
    (attention,) = operators(graph, "attention")
    assert dict(attention.attributes) == {
        "batch": 2, "heads": 32, "kv_heads": 8, "queries": 64 if phase == "prefill" else 1, "keys": 64, "head_dim": 128,
        "value_dim": 128, "causal": 1, "window": 0,
    }  # fmt: skip
    query, keys, values = graph.reads(attention)
    assert query.role == "activation"
    assert [(t.shape, t.role) for t in (keys, values)] == [((2, 8, 64, 128), "kv_cache")] * 2


@pytest.mark.parametrize(("phase", "new"), [("prefill", 64), ("decode", 1)])
def test_an_append_writes_the_new_tokens_and_moves_nothing_else(phase, new, traced):
    graph = traced("llama-3-8b", phase, batch=2, length=64)
    appends = operators(graph, "append")
    assert len(appends) == 2
    for op in appends:
        assert op["elements"] == 2 * new * 8 * 128
        assert cost.write_bytes(graph, op) == cost.read_bytes(graph, op) == 2 * op["elements"]


def test_attention_runs_after_the_append_it_needs(traced):
    order = [op.name for op in traced("llama-2-7b", "decode").segments[1].operators]
    attention = order.index("model.layers.0.self_attn.attention")
    assert max(order.index(f"model.layers.0.self_attn.append_{x}") for x in "kv") < attention


def test_the_lm_head_computes_the_last_position_unless_all_are_asked_for(traced):
    last, every = (traced("llama-2-7b", "prefill", batch=2, logits=kept) for kept in ("last", "all"))
    assert operators(last)[-1]["m"] == 2
    assert operators(every)[-1]["m"] == 2 * 64
    assert "last position only" in " ".join(last.notes)
    assert "all positions" in " ".join(every.notes)
    (pick,) = operators(last, "copy", "slice")
    assert cost.read_bytes(last, pick) == cost.write_bytes(last, pick) == 2 * 4096 * 2


def test_biases_are_weights_of_their_product(traced):
    graph = traced("opt-1.3b", "decode")
    products = [op for op in operators(graph, "matmul") if op.name != "lm_head"]
    assert all([t.role for t in graph.reads(op)] == ["activation", "weight", "weight"] for op in products)


def test_tied_embeddings_are_one_tensor_with_two_readers(traced):
    graph = traced("opt-1.3b", "decode")
    assert operators(graph, "embedding")[0].inputs[0] == operators(graph)[-1].inputs[1]


def test_parts_of_a_fused_projection_are_separate_outputs(traced):
    graph = traced("falcon-40b", "decode")
    (fused,) = [op for op in operators(graph, "matmul") if op.name.endswith("query_key_value")]
    assert [t.elements for t in graph.writes(fused)] == [128 * 64, 8 * 64, 8 * 64]
    assert sum(t.elements for t in graph.writes(fused)) == fused["m"] * fused["n"]


def test_a_rotation_of_a_part_takes_over_the_rest(traced):
    """Phi-2 rotates 32 of 80 values per head: one operator, no concatenation."""
    graph = traced("phi-2", "decode")
    rotations = operators(graph, "elementwise", "rope")
    assert [op["elements"] for op in rotations] == [2560, 2560]
    assert not operators(graph, "copy")


def test_qk_norm_is_one_norm_per_projection(traced):
    norms = [op for op in operators(traced("qwen3-8b", "decode"), "norm") if op.name.endswith(("q_norm", "k_norm"))]
    assert [(op["rows"], op["width"]) for op in norms] == [(32, 128), (8, 128)]


# --- alternating layers -----------------------------------------------------------------------------------------------
def test_layers_that_alternate_fold_to_a_body_of_two(traced):
    graph = traced("gemma-2-2b", "decode")
    body = graph.segments[1]
    assert (body.count, body.name) == (13, "model.layers.0-25")
    assert [op["window"] for op in body.operators if op.kind == "attention"] == [4096, 0]
    assert "soft-capped" in " ".join(graph.notes)


def test_a_window_limits_what_decode_reads_of_the_cache(traced):
    graph = traced("mistral-7b", "decode", length=16384)
    (attention,) = operators(graph, "attention")
    cache = frozenset({"kv_cache"})
    assert cost.read_bytes(graph, attention, cache) == 2 * 8 * 128 * 4096 * 2
    assert cost.kv_bytes_per_token(graph) == 131_072


# --- mixtures of experts ----------------------------------------------------------------------------------------------
def test_experts_are_router_top_k_and_grouped_products(traced):
    graph = traced("mixtral-8x7b", "prefill", length=4)
    names = [op.name for op in graph.segments[1].operators]
    moe = [name.rpartition("mlp.")[2] for name in names if ".mlp." in name]
    assert moe == [
        "gate", "gate.softmax", "gate.topk", "experts.dispatch", "experts.gate_up_proj", "experts.silu", "experts.mul",
        "experts.down_proj", "experts.combine",
    ]  # fmt: skip
    up, down = operators(graph, "grouped_matmul")
    expected = {"rows": 8, "experts": 8, "top_k": 2, "active": active_experts(4, 8, 2)}
    assert dict(up.attributes) == {**expected, "n": 2 * 14336, "k": 4096}
    assert dict(down.attributes) == {**expected, "n": 4096, "k": 14336}


def test_decode_reads_only_the_experts_it_reaches(traced):
    graph = traced("mixtral-8x7b", "decode")
    weights = frozenset({"weight"})
    read = sum(cost.read_bytes(graph, op, weights) for op in operators(graph, "grouped_matmul"))
    assert read == 2 * (3 * 4096 * 14336) * 2  # two experts of three matrices at fp16


def test_deepseek_v3_has_three_dense_layers_and_58_with_experts(traced):
    graph = traced("deepseek-v3", "decode", batch=2)
    assert [(s.name, s.count) for s in graph.segments] == [
        ("prologue", 1), ("model.layers.0-2", 3), ("model.layers.3-60", 58), ("epilogue", 1),
    ]  # fmt: skip
    assert not any(op.kind == "grouped_matmul" for op in graph.segments[1].operators)
    shared = [op.name for op in graph.segments[2].operators if "shared_experts" in op.name and op.kind == "matmul"]
    assert len(shared) == 3


def test_latent_attention_is_absorbed_in_decode(traced):
    graph = traced("deepseek-v3", "decode", batch=2, length=64)
    attention = operators(graph, "attention")[0]
    assert {k: attention[k] for k in ("heads", "kv_heads", "head_dim", "value_dim", "keys")} == {
        "heads": 128, "kv_heads": 1, "head_dim": 576, "value_dim": 512, "keys": 64,
    }  # fmt: skip
    query, latent = graph.reads(attention)
    assert (latent.role, latent.shape, query.shape) == ("kv_cache", (2, 1, 64, 576), (2, 128, 1, 576))
    absorbed = [op for op in graph.segments[1].operators if op.kind == "matmul" and op["batch"] == 128]
    assert [(op["m"], op["k"], op["n"]) for op in absorbed] == [(2, 128, 512), (2, 512, 128)]


def test_latent_attention_is_expanded_in_prefill(traced):
    graph = traced("deepseek-v3", "prefill", batch=2)
    attention = operators(graph, "attention")[0]
    assert (attention["kv_heads"], attention["head_dim"], attention["value_dim"]) == (128, 192, 128)
    assert [t.role for t in graph.reads(attention)] == ["activation"] * 3
    assert operators(graph, "append")[0]["elements"] == 2 * 64 * 576


# --- state spaces -----------------------------------------------------------------------------------------------------
def test_a_scan_is_one_operator_whatever_the_length(traced):
    for length in (64, 4096):
        scans = [op for op in traced("mamba-2-2.7b", "prefill", batch=2, length=length).segments[2].operators if op.kind == "scan"]
        assert [dict(op.attributes) for op in scans] == [{"batch": 2, "length": length, "heads": 80, "head_dim": 64, "state": 128}]


def test_decode_reads_and_writes_the_whole_state_and_prefill_only_writes_it(traced):
    state = 2 * 80 * 64 * 128 * 2
    for phase, read in (("prefill", 0), ("decode", state)):
        graph = traced("mamba-2-2.7b", phase, batch=2)
        scan = operators(graph, "scan")[0]
        assert cost.read_bytes(graph, scan, frozenset({"kv_cache"})) == read
        assert sum(t.bytes for t in graph.writes(scan) if t.role == "kv_cache") == state


def test_the_convolution_state_takes_one_column_per_step(traced):
    graph = traced("mamba-2-2.7b", "decode", batch=2)
    append = operators(graph, "append")[0]
    assert append["elements"] == 2 * (5120 + 2 * 128)
    assert operators(graph, "conv1d")[0]["taps"] == 4


# --- encoders and refusals --------------------------------------------------------------------------------------------
def test_an_encoder_attends_both_ways_and_keeps_no_cache(traced):
    graph = traced("bert-base", "prefill")
    (attention,) = operators(graph, "attention")
    assert attention["causal"] == 0
    assert not operators(graph, "append")


def test_an_encoder_has_no_decode_phase(traced):
    with pytest.raises(WorkloadError, match="bert-base is an encoder, it has no decode phase; expected phase prefill"):
        traced("bert-base", "decode")


@pytest.mark.parametrize(("name", "limit"), [("opt-1.3b", 2048), ("gpt-3-175b", 2048), ("bert-base", 512)])
def test_a_table_of_learned_positions_limits_the_length(name, limit, traced):
    with pytest.raises(WorkloadError, match=rf"learned positions for {limit} tokens .*; {limit + 1} were asked for"):
        traced(name, "prefill", length=limit + 1)


def test_an_operation_without_operator_kind_is_refused_by_name(traced_config):
    with pytest.raises(WorkloadError, match=r"backbone.layers.0.mixer: the tensor operation aten::convolution has no operator kind"):
        traced_config("mamba", "prefill", state_size=8)


def test_attention_outside_the_interface_is_refused(traced_config):
    with pytest.raises(WorkloadError, match="gptj: no attention was seen"):
        traced_config("gptj", "prefill", n_embd=64, n_layer=2, n_head=4, rotary_dim=8)


def test_layers_that_share_their_weights_are_not_folded(traced_config):
    graph = traced_config("albert", "prefill", embedding_size=32)
    attention = operators(graph, "attention")
    assert len(attention) == 4
    assert cost.parameters(graph) == cost.parameters(traced_config("albert", "prefill", embedding_size=32, folded=False))


def test_a_length_beyond_the_rotary_positions_is_traced_with_a_note(traced):
    assert not any("positions" in note for note in traced("llama-2-7b", "decode", length=4096).notes)
    assert "4097 tokens are more than the 4096 positions that the model was built for" in traced("llama-2-7b", "decode", length=4097).notes

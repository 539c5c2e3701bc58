"""Every catalogue model against closed forms: parameters, matrix FLOPs, weight, activation and KV-cache bytes.

The closed form of a model is its list of linear layers, written per family below from the papers' dimensions, plus attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from workloads import catalogue, cost

FP16 = 2  # bytes


@dataclass(frozen=True)
class Linear:
    """`count` linear layers of [k] -> [n] in the model; each token passes through `rows` of them where they are experts."""

    n: int
    k: int
    count: int
    copies: int = 1  # stored instances of which a token uses one row each in `rows` of them
    rows: int = 1


@dataclass(frozen=True)
class Closed:
    """A model in closed form."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    linears: tuple[Linear, ...]
    other: int  # norms, biases, embeddings and the untied head
    published: float  # parameters in 1e9, as published (0.5 % rounding)
    kv_bytes: int | None  # per token at fp16, as published
    window: tuple[int, int] = (0, 0)  # sliding window, and in how many of the layers
    tied: bool = False
    extra_linears: tuple[Linear, ...] = field(default=())  # after the layers, on all positions

    @property
    def parameters(self) -> int:
        stored = sum(x.n * x.k * x.count * x.copies for x in (*self.linears, *self.extra_linears))
        return stored + self.other

    @property
    def macs_per_token(self) -> int:
        return sum(x.n * x.k * x.count * x.rows for x in self.linears)

    def activation_values_per_token(self) -> int:
        return sum((x.n + x.k) * x.count * x.rows for x in self.linears)


def llama(layers, hidden, heads, kv_heads, ffn, vocabulary, published, kv_bytes, head_dim=0, norms=2, qk_norm=False, sub_norms=False,
          tied=False, window=(0, 0)) -> Closed:
    """q, k, v, o and a gated feed-forward of three matrices; RMSNorm weights only."""
    d = head_dim or hidden // heads
    linears = (
        Linear(heads * d, hidden, layers),
        Linear(kv_heads * d, hidden, 2 * layers),
        Linear(hidden, heads * d, layers),
        Linear(ffn, hidden, 2 * layers),
        Linear(hidden, ffn, layers),
    )
    per_layer = norms * hidden + (2 * d if qk_norm else 0) + (hidden + ffn if sub_norms else 0)
    other = layers * per_layer + hidden + vocabulary * hidden * (1 if tied else 2)
    return Closed(layers, hidden, heads, kv_heads, d, vocabulary, linears, other, published, kv_bytes, window, tied)


def moe(layers, hidden, heads, kv_heads, head_dim, experts, top_k, ffn, vocabulary, published, kv_bytes, qk_norm=False) -> Closed:
    """Llama attention; a router, and gated experts with gate and up stored as one matrix."""
    linears = (
        Linear(heads * head_dim, hidden, layers),
        Linear(kv_heads * head_dim, hidden, 2 * layers),
        Linear(hidden, heads * head_dim, layers),
        Linear(experts, hidden, layers),
        Linear(2 * ffn, hidden, layers, copies=experts, rows=top_k),
        Linear(hidden, ffn, layers, copies=experts, rows=top_k),
    )
    other = layers * (2 * hidden + (2 * head_dim if qk_norm else 0)) + hidden + 2 * vocabulary * hidden
    return Closed(layers, hidden, heads, kv_heads, head_dim, vocabulary, linears, other, published, kv_bytes)


def opt(layers, hidden, heads, published, kv_bytes) -> Closed:
    """Plain feed-forward of 4 h, biases everywhere, LayerNorm, 2048 + 2 learned positions, tied head."""
    vocabulary = 50272
    linears = (Linear(hidden, hidden, 4 * layers), Linear(4 * hidden, hidden, layers), Linear(hidden, 4 * hidden, layers))
    biases = layers * (4 * hidden + 4 * hidden + hidden)
    other = biases + layers * 4 * hidden + 2 * hidden + (vocabulary + 2050) * hidden
    return Closed(layers, hidden, heads, heads, hidden // heads, vocabulary, linears, other, published, kv_bytes, tied=True)


def fused_qkv(
    layers, hidden, heads, kv_heads, head_dim, vocabulary, bias, layer_norms, extra_norms, positions, published, kv_bytes
) -> Closed:
    """One q, k, v projection and a plain feed-forward of 4 h; tied head (GPT-3, BLOOM, Falcon)."""
    qkv = (heads + 2 * kv_heads) * head_dim
    linears = (
        Linear(qkv, hidden, layers),
        Linear(hidden, hidden, layers),
        Linear(4 * hidden, hidden, layers),
        Linear(hidden, 4 * hidden, layers),
    )
    biases = layers * (qkv + hidden + 4 * hidden + hidden) if bias else 0
    norms = (layers * layer_norms + extra_norms) * 2 * hidden
    other = biases + norms + (vocabulary + positions) * hidden
    return Closed(layers, hidden, heads, kv_heads, head_dim, vocabulary, linears, other, published, kv_bytes, tied=True)


def phi(layers, hidden, heads, ffn, vocabulary, published, kv_bytes) -> Closed:
    """Attention and feed-forward in parallel behind one LayerNorm; biases everywhere, the untied head included."""
    linears = (Linear(hidden, hidden, 4 * layers), Linear(ffn, hidden, layers), Linear(hidden, ffn, layers))
    other = layers * (4 * hidden + ffn + hidden + 2 * hidden) + 2 * hidden + 2 * vocabulary * hidden + vocabulary
    return Closed(layers, hidden, heads, heads, hidden // heads, vocabulary, linears, other, published, kv_bytes)


def bert(layers, hidden, heads, published) -> Closed:
    """Encoder with its masked-language-model head: a dense transform with LayerNorm, and the tied table with a bias."""
    vocabulary = 30522
    linears = (Linear(hidden, hidden, 4 * layers), Linear(4 * hidden, hidden, layers), Linear(hidden, 4 * hidden, layers))
    embeddings = (vocabulary + 512 + 2) * hidden + 2 * hidden
    per_layer = 4 * hidden + 2 * hidden + (4 * hidden + hidden) + 2 * hidden
    other = embeddings + layers * per_layer + hidden + 2 * hidden + vocabulary
    head = (Linear(hidden, hidden, 1),)
    return Closed(layers, hidden, heads, heads, hidden // heads, vocabulary, linears, other, published, None, tied=True, extra_linears=head)


MODELS = {
    "llama-2-7b": llama(32, 4096, 32, 32, 11008, 32000, 6.74, 524_288),
    "llama-2-13b": llama(40, 5120, 40, 40, 13824, 32000, 13.02, 819_200),
    "llama-2-70b": llama(80, 8192, 64, 8, 28672, 32000, 68.98, 327_680),
    "llama-3-8b": llama(32, 4096, 32, 8, 14336, 128256, 8.03, 131_072),
    "llama-3-70b": llama(80, 8192, 64, 8, 28672, 128256, 70.55, 327_680),
    "mistral-7b": llama(32, 4096, 32, 8, 14336, 32000, 7.24, 131_072, window=(4096, 32)),
    "yi-6b": llama(32, 4096, 32, 4, 11008, 64000, 6.06, 2 * 4 * 128 * 2 * 32),
    "qwen3-8b": llama(36, 4096, 32, 8, 12288, 151936, 8.19, 147_456, qk_norm=True),
    "gemma-2-2b": llama(26, 2304, 8, 4, 9216, 256000, 2.61, 106_496, head_dim=256, norms=4, tied=True, window=(4096, 13)),
    "bitnet-3b": llama(26, 3200, 32, 32, 8640, 32002, 3.32, 332_800, sub_norms=True, tied=True),
    "mixtral-8x7b": moe(32, 4096, 32, 8, 128, 8, 2, 14336, 32000, 46.70, 131_072),
    "qwen3-30b-a3b": moe(48, 2048, 32, 4, 128, 128, 8, 768, 151936, 30.53, 2 * 4 * 128 * 2 * 48, qk_norm=True),
    "opt-1.3b": opt(24, 2048, 32, 1.31, 196_608),
    "opt-6.7b": opt(32, 4096, 32, 6.65, 524_288),
    "opt-13b": opt(40, 5120, 40, 12.84, 819_200),
    "opt-30b": opt(48, 7168, 56, 29.96, 1_376_256),
    "opt-66b": opt(64, 9216, 72, 65.69, 2_359_296),
    "opt-175b": opt(96, 12288, 96, 174.56, 4_718_592),
    "gpt-3-175b": fused_qkv(96, 12288, 96, 96, 128, 50257, True, 2, 1, 2048, 174.6, 4_718_592),
    "bloom-176b": fused_qkv(70, 14336, 112, 112, 128, 250880, True, 2, 2, 0, 176.2, 4_014_080),
    "falcon-7b": fused_qkv(32, 4544, 71, 1, 64, 65024, False, 1, 1, 0, 6.92, 8_192),
    "falcon-40b": fused_qkv(60, 8192, 128, 8, 64, 65024, False, 2, 1, 0, 41.3, 122_880),
    "phi-2": phi(32, 2560, 32, 10240, 51200, 2.78, 327_680),
    "bert-base": bert(12, 768, 12, 0.1095),
    "bert-large": bert(24, 1024, 16, 0.3352),
}
# in the quick run: one model of each architecture
QUICK = {"llama-2-7b", "gemma-2-2b", "mixtral-8x7b", "opt-1.3b", "falcon-7b", "phi-2", "bert-base", "bitnet-3b", "qwen3-8b"}
DECODERS = [name for name in MODELS if not name.startswith("bert")]


def quick_or_slow(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def causal_pairs(tokens: int, window: int) -> int:
    """Keys seen by each query, one by one."""
    return sum(min(i + 1, window) if window else i + 1 for i in range(tokens))


def test_the_closed_forms_and_the_catalogue_name_the_same_models():
    special = {"deepseek-v3", "mamba-2-2.7b"}  # below
    special |= {"matmul-free-370m", "matmul-free-1.3b", "matmul-free-2.7b"}  # test_matmul_free.py
    assert set(catalogue.names()) == set(MODELS) | special


@pytest.mark.parametrize("name", MODELS)
def test_the_catalogue_row_is_the_closed_form(name):
    row, closed = catalogue.describe(name), MODELS[name]
    assert row.parameters == closed.parameters
    assert row.kv_bytes_per_token == closed.kv_bytes
    assert (row.layers, row.hidden, row.heads, row.kv_heads, row.vocabulary) == (
        closed.layers, closed.hidden, closed.heads, closed.kv_heads, closed.vocabulary,
    )


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_the_published_count_within_half_a_percent(name):
    assert catalogue.describe(name).parameters == pytest.approx(MODELS[name].published * 1e9, rel=0.005)


@pytest.mark.parametrize("name", quick_or_slow(MODELS))
def test_every_parameter_is_in_the_prefill_graph_once(name, traced):
    graph = traced(name, "prefill", batch=2)
    assert cost.parameters(graph) == MODELS[name].parameters
    assert cost.role_bytes(graph, "weight") == FP16 * MODELS[name].parameters


@pytest.mark.parametrize("name", quick_or_slow(DECODERS))
def test_every_parameter_is_in_the_decode_graph_once(name, traced):
    assert cost.parameters(traced(name, "decode", batch=2)) == MODELS[name].parameters


@pytest.mark.parametrize("name", quick_or_slow(DECODERS))
def test_prefill_flops_are_linear_layers_causal_half_and_head_of_the_last_position(name, traced):
    closed, batch, tokens = MODELS[name], 2, 64
    windowed = closed.window[1]
    pairs = windowed * causal_pairs(tokens, closed.window[0]) + (closed.layers - windowed) * causal_pairs(tokens, 0)
    macs = batch * tokens * closed.macs_per_token
    macs += batch * closed.heads * 2 * closed.head_dim * pairs
    macs += batch * closed.vocabulary * closed.hidden
    assert cost.total_flops(traced(name, "prefill", batch=batch, length=tokens)) == 2 * macs


@pytest.mark.parametrize("name", quick_or_slow(DECODERS))
def test_decode_flops_are_linear_layers_attention_over_the_context_and_head(name, traced):
    closed, batch, context = MODELS[name], 2, 64
    attention = closed.layers * closed.heads * 2 * closed.head_dim * context
    macs = batch * (closed.macs_per_token + attention + closed.vocabulary * closed.hidden)
    assert cost.total_flops(traced(name, "decode", batch=batch, length=context)) == 2 * macs


@pytest.mark.parametrize("name", ["bert-base", pytest.param("bert-large", marks=pytest.mark.slow)])
def test_encoder_flops_count_all_pairs_and_the_head_on_all_positions(name, traced):
    closed, batch, tokens = MODELS[name], 2, 64
    macs = batch * tokens * (closed.macs_per_token + closed.hidden**2 + closed.vocabulary * closed.hidden)
    macs += batch * closed.layers * closed.heads * 2 * closed.head_dim * tokens**2
    assert cost.total_flops(traced(name, "prefill", batch=batch, length=tokens)) == 2 * macs


@pytest.mark.parametrize("name", quick_or_slow(DECODERS))
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_linear_layers_read_and_write_their_activations_once(name, phase, traced):
    closed, batch, length = MODELS[name], 2, 64
    graph = traced(name, phase, batch=batch, length=length)
    rows = batch * (length if phase == "prefill" else 1)
    activations = frozenset({"activation"})
    moved = sum(
        (cost.read_bytes(graph, op, activations) + cost.write_bytes(graph, op)) * count
        for op, count in graph.operators()
        if op.kind in ("matmul", "grouped_matmul") and op.module != "lm_head" and not op.module.endswith(".gate")
    )
    routers = sum(x.n + x.k for x in closed.linears for _ in range(x.count) if is_router(closed, x))
    assert moved == rows * (closed.activation_values_per_token() - routers) * FP16


def is_router(closed: Closed, linear: Linear) -> bool:
    return any(x.copies > 1 and x.copies == linear.n for x in closed.linears) and linear.copies == 1


@pytest.mark.parametrize("name", quick_or_slow(DECODERS))
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_kv_bytes_per_token_are_the_published_ones(name, phase, traced):
    assert cost.kv_bytes_per_token(traced(name, phase, batch=2)) == MODELS[name].kv_bytes


@pytest.mark.parametrize("name", ["bert-base", "bert-large"])
def test_an_encoder_has_no_cache(name, traced):
    assert cost.role_bytes(traced(name, "prefill"), "kv_cache") == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mistral-7b", "gemma-2-2b"])
def test_a_sliding_window_limits_prefill_attention_in_its_layers(name, traced):
    closed, tokens = MODELS[name], 6000
    window, windowed = closed.window
    pairs = windowed * causal_pairs(tokens, window) + (closed.layers - windowed) * causal_pairs(tokens, 0)
    graph = traced(name, "prefill", length=tokens)
    macs = sum(cost.macs(op) * count for op, count in graph.operators() if op.kind == "attention")
    assert macs == closed.heads * 2 * closed.head_dim * pairs


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_llama_2_7b_at_full_length_by_hand(phase, traced):
    graph = traced("llama-2-7b", phase, length=2048)
    assert cost.parameters(graph) == 6_738_415_616
    assert cost.kv_bytes_per_token(graph) == 524_288
    layer = 4 * 4096**2 + 3 * 4096 * 11008
    head = 4096 * 32000
    if phase == "prefill":
        expected = 2 * (32 * (2048 * layer + 32 * 256 * 2048 * 2049 // 2) + head)
    else:
        expected = 2 * (32 * (layer + 32 * 256 * 2048) + head)
    assert cost.total_flops(graph) == expected


# --- DeepSeek-V3: latent attention, 3 dense layers, 58 with 256 experts of which 8 run, and one shared -----------------
H, LAYERS, DENSE, HEADS, VOCABULARY = 7168, 61, 3, 128, 129280
Q_RANK, KV_RANK, NOPE, ROPE, VALUE = 1536, 512, 128, 64, 128
DENSE_FFN, EXPERT_FFN, EXPERTS, TOP_K = 18432, 2048, 256, 8
MLA = H * Q_RANK + Q_RANK * HEADS * (NOPE + ROPE) + H * (KV_RANK + ROPE) + KV_RANK * HEADS * (NOPE + VALUE) + HEADS * VALUE * H
DEEPSEEK_NORMS = LAYERS * (2 * H + Q_RANK + KV_RANK) + H
DEEPSEEK_PARAMETERS = (
    LAYERS * MLA
    + DENSE * 3 * H * DENSE_FFN
    + (LAYERS - DENSE) * ((EXPERTS + 1) * 3 * H * EXPERT_FFN + EXPERTS * H)
    + DEEPSEEK_NORMS
    + 2 * VOCABULARY * H
)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_deepseek_v3_parameters_and_latent_cache(phase, traced):
    graph = traced("deepseek-v3", phase, batch=2)
    assert cost.parameters(graph) == DEEPSEEK_PARAMETERS == catalogue.describe("deepseek-v3").parameters
    assert pytest.approx(671.0e9, rel=0.005) == DEEPSEEK_PARAMETERS
    assert cost.kv_bytes_per_token(graph) == 61 * (512 + 64) * 2 == 70_272
    assert cost.role_bytes(graph, "weight") == FP16 * DEEPSEEK_PARAMETERS


def deepseek_macs_per_token() -> int:
    routed = (TOP_K + 1) * 3 * H * EXPERT_FFN + EXPERTS * H
    return LAYERS * MLA + DENSE * 3 * H * DENSE_FFN + (LAYERS - DENSE) * routed


def test_deepseek_v3_prefill_flops_are_those_of_the_expanded_form(traced):
    batch, tokens = 2, 64
    macs = batch * tokens * deepseek_macs_per_token()
    macs += batch * LAYERS * HEADS * (NOPE + ROPE + VALUE) * tokens * (tokens + 1) // 2
    macs += batch * VOCABULARY * H
    assert cost.total_flops(traced("deepseek-v3", "prefill", batch=batch, length=tokens)) == 2 * macs


def test_deepseek_v3_decode_flops_are_those_of_the_absorbed_form(traced):
    batch, context = 2, 64
    macs = batch * deepseek_macs_per_token()  # absorbing kv_b_proj uses each of its weights once per token, too
    macs += batch * LAYERS * HEADS * (KV_RANK + ROPE + KV_RANK) * context
    macs += batch * VOCABULARY * H
    assert cost.total_flops(traced("deepseek-v3", "decode", batch=batch, length=context)) == 2 * macs


def test_deepseek_v3_activates_37_billion_parameters_per_token():
    active = deepseek_macs_per_token() + DEEPSEEK_NORMS + 2 * VOCABULARY * H
    assert active == pytest.approx(37.6e9, rel=0.02)


# --- Mamba-2 2.7B -----------------------------------------------------------------------------------------------------
WIDTH, INNER, STATE, SSM_HEADS, TAPS, SSM_LAYERS, SSM_VOCABULARY = 2560, 5120, 128, 80, 4, 64, 50288
CHANNELS = INNER + 2 * STATE
SSM_LINEAR = WIDTH * (2 * INNER + 2 * STATE + SSM_HEADS) + INNER * WIDTH
MAMBA_PARAMETERS = (
    SSM_LAYERS * (SSM_LINEAR + CHANNELS * (TAPS + 1) + 3 * SSM_HEADS + INNER + WIDTH) + WIDTH + SSM_VOCABULARY * WIDTH
)


@pytest.mark.parametrize(("phase", "tokens"), [("prefill", 64), ("decode", 1)])
def test_mamba_2_parameters_and_flops(phase, tokens, traced):
    graph = traced("mamba-2-2.7b", phase, batch=2)
    assert cost.parameters(graph) == MAMBA_PARAMETERS == catalogue.describe("mamba-2").parameters
    assert pytest.approx(2.7e9, rel=0.005) == MAMBA_PARAMETERS
    per_token = SSM_LAYERS * (SSM_LINEAR + CHANNELS * TAPS + 3 * SSM_HEADS * 64 * STATE)
    assert cost.total_flops(graph) == 2 * 2 * (tokens * per_token + SSM_VOCABULARY * WIDTH)


def test_mamba_2_state_does_not_grow_with_the_context(traced):
    short, long = (traced("mamba-2-2.7b", "decode", batch=2, length=n) for n in (64, 6400))
    expected = 2 * SSM_LAYERS * (SSM_HEADS * 64 * STATE + CHANNELS * TAPS) * FP16
    assert cost.role_bytes(short, "kv_cache") == cost.role_bytes(long, "kv_cache") == expected
    assert expected / 2 == pytest.approx(86.6e6, rel=0.005)


# --- speed ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-2-7b", "deepseek-v3", "opt-175b"])
def test_a_trace_takes_seconds_of_cpu(name):
    import time

    from workloads import tracer

    config = catalogue.describe(name).hf_config()
    start = time.process_time()
    tracer.trace(config, name=name, where=name, phase="prefill", batch=1, length=2048)
    assert time.process_time() - start < (2 if name == "llama-2-7b" else 6)

"""Models by name: exact dimensions as plain data. Reading the catalogue imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from workloads import matmul_free
from workloads.errors import WorkloadError, nearest


@dataclass(frozen=True, slots=True)
class Model:
    """One catalogue row.

    `config` are the arguments of the Hugging Face config class of `model_type`. `parameters` counts stored values, tied
    embeddings once. `positions` is the longest sequence the model was built for (None: any). `kv_values` are cached values per
    token of one sequence over all layers (None: no cache that grows). `ffn` is the width of one expert for mixtures of experts.
    `weights` and `acts` are the formats the model is published in where they are not fp16.
    """

    name: str
    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    parameters: int
    kv_values: int | None
    source: str
    config: Mapping[str, Any]
    positions: int | None
    experts: int = 0
    top_k: int = 0
    weights: str | None = None
    acts: str | None = None

    @property
    def kv_bytes_per_token(self) -> int | None:
        """KV-cache bytes per token at fp16, all layers; None for encoders and recurrent models."""
        return None if self.kv_values is None else 2 * self.kv_values

    def hf_config(self) -> dict[str, Any]:
        """A Hugging Face config as a dictionary, `model_type` included."""
        return {"model_type": self.model_type, **self.config}

    def __repr__(self) -> str:
        return f"Model({self.name}: {self.layers} layers, hidden {self.hidden}, {self.parameters / 1e9:.2f}e9 parameters)"


def _row(
    name: str,
    model_type: str,
    config: dict[str, Any],
    *,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    vocabulary: int,
    parameters: int,
    source: str,
    positions: int | None,
    head_dim: int = 0,
    kv_values: int | None = -1,
    **more: Any,
) -> Model:
    head_dim = head_dim or hidden // heads
    if kv_values == -1:
        kv_values = 2 * kv_heads * head_dim * layers
    return Model(
        name, model_type, layers, hidden, heads, kv_heads, head_dim, ffn, vocabulary, parameters, kv_values, source,
        MappingProxyType(config), positions, **more,
    )


def _llama(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocabulary: int, parameters: int, positions: int, source: str,
    model_type: str = "llama", theta: float = 10000.0, **extra: Any,
) -> Model:
    """RMSNorm, rotary positions, gated feed-forward of three matrices."""
    more = {key: extra.pop(key) for key in ("experts", "top_k", "weights", "acts") if key in extra}
    row_ffn = extra.get("moe_intermediate_size", ffn)
    config = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "rope_theta": theta,
        **extra,
    }
    return _row(
        name, model_type, config, layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, ffn=row_ffn, vocabulary=vocabulary,
        parameters=parameters, source=source, positions=positions, head_dim=extra.get("head_dim", 0), **more,
    )


def _opt(name: str, layers: int, hidden: int, heads: int, parameters: int) -> Model:
    config = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": hidden,
    }
    return _row(
        name, "opt", config, layers=layers, hidden=hidden, heads=heads, kv_heads=heads, ffn=4 * hidden, vocabulary=50272,
        parameters=parameters, source="OPT: Open Pre-trained Transformer Language Models, table 1; released config", positions=2048,
    )


def _falcon(name: str, layers: int, hidden: int, heads: int, kv_heads: int, grouped: bool, parameters: int) -> Model:
    config = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_kv_heads": kv_heads,
        "new_decoder_architecture": grouped,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "vocab_size": 65024,
    }
    return _row(
        name, "falcon", config, layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, ffn=4 * hidden, vocabulary=65024,
        parameters=parameters, source="The Falcon Series of Open Language Models; released config", positions=2048,
    )


def _bert(name: str, layers: int, hidden: int, heads: int, parameters: int) -> Model:
    config = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    }
    return _row(
        name, "bert", config, layers=layers, hidden=hidden, heads=heads, kv_heads=heads, ffn=4 * hidden, vocabulary=30522,
        parameters=parameters, source="BERT: Pre-training of Deep Bidirectional Transformers, section 3; released config",
        positions=512, kv_values=None,
    )


def _matmul_free(name: str, layers: int, hidden: int) -> Model:
    ffn = matmul_free.mlp_width(hidden)
    config = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": ffn, "vocab_size": 32000}
    return _row(
        name, matmul_free.MODEL_TYPE, config, layers=layers, hidden=hidden, heads=1, kv_heads=0, head_dim=hidden, ffn=ffn, vocabulary=32000,
        parameters=matmul_free.parameters(layers, hidden, ffn, 32000),
        source="Scalable MatMul-free Language Modeling, arXiv:2406.02528; released code and configs", positions=None, kv_values=None,
        weights="ternary", acts="int8",
    )


_LLAMA2 = "Llama 2: Open Foundation and Fine-Tuned Chat Models; released config"
_LLAMA3 = "The Llama 3 Herd of Models, table 3; released config"

_ROWS = (
    _llama("llama-2-7b", 32, 4096, 32, 32, 11008, 32000, 6_738_415_616, 4096, _LLAMA2),
    _llama("llama-2-13b", 40, 5120, 40, 40, 13824, 32000, 13_015_864_320, 4096, _LLAMA2),
    _llama("llama-2-70b", 80, 8192, 64, 8, 28672, 32000, 68_976_648_192, 4096, _LLAMA2),
    _llama("llama-3-8b", 32, 4096, 32, 8, 14336, 128256, 8_030_261_248, 8192, _LLAMA3, theta=500000.0),
    _llama("llama-3-70b", 80, 8192, 64, 8, 28672, 128256, 70_553_706_496, 8192, _LLAMA3, theta=500000.0),
    _llama(
        "mistral-7b", 32, 4096, 32, 8, 14336, 32000, 7_241_732_096, 32768,
        "Mistral 7B, table 1 (v0.1: sliding window of 4096); released config", model_type="mistral", sliding_window=4096,
    ),
    _llama(
        "qwen3-8b", 36, 4096, 32, 8, 12288, 151936, 8_190_735_360, 40960, "Qwen3 Technical Report, table 1; released config",
        model_type="qwen3", theta=1e6, head_dim=128,
    ),
    _llama(
        "mixtral-8x7b", 32, 4096, 32, 8, 14336, 32000, 46_702_792_704, 32768, "Mixtral of Experts, table 1; released config",
        model_type="mixtral", theta=1e6, num_local_experts=8, num_experts_per_tok=2, sliding_window=None, experts=8, top_k=2,
    ),
    _llama(
        "qwen3-30b-a3b", 48, 2048, 32, 4, 6144, 151936, 30_532_122_624, 40960, "Qwen3 Technical Report, table 2; released config",
        model_type="qwen3_moe", theta=1e6, head_dim=128, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8,
        norm_topk_prob=True, experts=128, top_k=8,
    ),
    _row(
        "deepseek-v3",
        "deepseek_v3",
        {
            "num_hidden_layers": 61,
            "hidden_size": 7168,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
            "n_group": 8,
            "topk_group": 4,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
            "first_k_dense_replace": 3,
            "vocab_size": 129280,
            "max_position_embeddings": 163840,
        },
        layers=61, hidden=7168, heads=128, kv_heads=1, head_dim=576, ffn=2048, vocabulary=129280, parameters=671_026_404_352,
        source="DeepSeek-V3 Technical Report, section 4.2; released config, without the multi-token-prediction module",
        positions=163840, kv_values=61 * (512 + 64), experts=256, top_k=8,
    ),
    _opt("opt-1.3b", 24, 2048, 32, 1_315_758_080),
    _opt("opt-6.7b", 32, 4096, 32, 6_658_473_984),
    _opt("opt-13b", 40, 5120, 40, 12_853_473_280),
    _opt("opt-30b", 48, 7168, 56, 29_974_540_288),
    _opt("opt-66b", 64, 9216, 72, 65_719_701_504),
    _opt("opt-175b", 96, 12288, 96, 174_604_468_224),
    _row(
        "gpt-3-175b",
        "gpt2",
        {"n_layer": 96, "n_embd": 12288, "n_head": 96, "n_positions": 2048, "vocab_size": 50257},
        layers=96, hidden=12288, heads=96, kv_heads=96, ffn=49152, vocabulary=50257, parameters=174_604_259_328,
        source="Language Models are Few-Shot Learners, table 2.1; the GPT-2 code with dense attention in all layers", positions=2048,
    ),
    _falcon("falcon-7b", 32, 4544, 71, 1, False, 6_921_720_704),
    _falcon("falcon-40b", 60, 8192, 128, 8, True, 41_303_293_952),
    _row(
        "phi-2",
        "phi",
        {
            "num_hidden_layers": 32,
            "hidden_size": 2560,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "intermediate_size": 10240,
            "vocab_size": 51200,
            "max_position_embeddings": 2048,
            "partial_rotary_factor": 0.4,
        },
        layers=32, hidden=2560, heads=32, kv_heads=32, ffn=10240, vocabulary=51200, parameters=2_779_683_840,
        source="Phi-2 released config", positions=2048,
    ),
    _llama("yi-6b", 32, 4096, 32, 4, 11008, 64000, 6_061_035_520, 4096, "Yi: Open Foundation Models by 01.AI; released config", theta=5e6),
    _llama(
        "gemma-2-2b", 26, 2304, 8, 4, 9216, 256000, 2_614_341_888, 8192, "Gemma 2, table 1; released config", model_type="gemma2",
        head_dim=256, sliding_window=4096, query_pre_attn_scalar=256, tie_word_embeddings=True,
    ),
    _bert("bert-base", 12, 768, 12, 109_514_298),
    _bert("bert-large", 24, 1024, 16, 335_174_458),
    _row(
        "bloom-176b",
        "bloom",
        {"n_layer": 70, "hidden_size": 14336, "n_head": 112, "vocab_size": 250880},
        layers=70, hidden=14336, heads=112, kv_heads=112, ffn=57344, vocabulary=250880, parameters=176_247_271_424,
        source="BLOOM: A 176B-Parameter Open-Access Multilingual Language Model; released config", positions=2048,
    ),
    _row(
        "mamba-2-2.7b",
        "mamba2",
        {
            "num_hidden_layers": 64,
            "hidden_size": 2560,
            "expand": 2,
            "head_dim": 64,
            "num_heads": 80,
            "state_size": 128,
            "n_groups": 1,
            "conv_kernel": 4,
            "vocab_size": 50288,
            "use_bias": False,
            "tie_word_embeddings": True,
        },
        layers=64, hidden=2560, heads=80, kv_heads=0, head_dim=64, ffn=0, vocabulary=50288, parameters=2_702_599_680,
        source="Transformers are SSMs (Mamba-2); released config", positions=None, kv_values=None,
    ),
    _llama(
        "bitnet-3b", 26, 3200, 32, 32, 8640, 32002, 3_324_387_840, 2048,
        "The Era of 1-bit LLMs: ternary weights, int8 activations; released 3B reproduction config", model_type="bitnet",
        hidden_act="silu", tie_word_embeddings=True, weights="ternary", acts="int8",
    ),
    _matmul_free("matmul-free-370m", 24, 1024),
    _matmul_free("matmul-free-1.3b", 24, 2048),
    _matmul_free("matmul-free-2.7b", 32, 2560),
)

MODELS: Mapping[str, Model] = MappingProxyType({model.name: model for model in _ROWS})
ALIASES: Mapping[str, str] = MappingProxyType({"mamba-2": "mamba-2-2.7b"})


def names() -> tuple[str, ...]:
    """All catalogue names, sorted."""
    return tuple(sorted(MODELS))


def describe(name: str) -> Model:
    """The row called `name` (or an alias of it). Raises `WorkloadError` with the nearest name."""
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    if key not in MODELS:
        raise WorkloadError(
            f"workload {name!r}: no such model, expected one of {', '.join(names())}, a config.json, a saved trace or "
            f"gemm:MxKxN[:format]{nearest(key, (*MODELS, *ALIASES))}"
        )
    return MODELS[key]

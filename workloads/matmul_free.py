"""MatMul-free language models in closed form: the graph follows from the dimensions, without torch.

Zhu et al., "Scalable MatMul-free Language Modeling", arXiv:2406.02528, and its released code (model type `hgrn_bit`): transformers does not
know the architecture. A block has a token mixer (MLGRU: i = SiLU(W_i x), f = sigmoid(W_f x), h_t = f h_(t-1) + (1 - f) i, out of
W_o (RMSNorm(h) SiLU(W_g x))) and a channel mixer (W_down (SiLU(a) b) with [a, b] = W_gate x), each after an RMSNorm and around a residual
connection. Every dense layer, the head included, is a BitLinear: an RMSNorm of its own, int8 activations, ternary weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workloads.errors import WorkloadError
from workloads.format import parse_format
from workloads.graph import Graph, Operator, Segment, Tensor

MODEL_TYPE = "hgrn_bit"
DIMENSIONS = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
SILU = (2, 1)
"""Arithmetic operations and transcendental functions: x / (1 + exp(-x)); sigmoid has as many."""


def mlp_width(hidden: int, ratio: int = 4, multiple: int = 256) -> int:
    """Width of the channel mixer: two thirds of `ratio` times the hidden size, up to whole multiples.

    >>> [mlp_width(d) for d in (1024, 2048, 2560)]
    [2816, 5632, 6912]
    """
    return -(-(2 * ratio * hidden // 3) // multiple) * multiple


def parameters(layers: int, hidden: int, ffn: int, vocabulary: int) -> int:
    """Stored values of a model: ternary matrices, the embedding, and RMSNorm weights.

    Per block four matrices of hidden x hidden and three of hidden x ffn; norms of the block (3 hidden) and of its six BitLinear layers
    (5 hidden + ffn). The head has the size of the embedding and a norm, as has the end of the model.
    """
    block = 4 * hidden**2 + 3 * hidden * ffn + 8 * hidden + ffn
    return layers * block + 2 * vocabulary * hidden + 2 * hidden


def macs_per_token(layers: int, hidden: int, ffn: int) -> int:
    """Multiply-accumulates (additions, with ternary weights) of the blocks' dense layers for a token.

    >>> macs_per_token(24, 2048, 5632)
    1233125376
    """
    return layers * (4 * hidden**2 + 3 * hidden * ffn)


class _Builder:
    """Collects tensors and operators; everything is fp16 until it is quantised."""

    def __init__(self, batch: int, tokens: int) -> None:
        self.batch, self.rows = batch, batch * tokens
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.half = parse_format("fp16")

    def tensor(self, name: str, shape: tuple[int, ...], role: str = "activation", form: str = "fp16") -> str:
        self.tensors[name] = Tensor(name, shape, parse_format(form), role)
        return name

    def emit(self, name: str, kind: str, inputs: tuple[str, ...], shape: tuple[int, ...], function: str = "", **attributes: int) -> str:
        self.tensor(name, shape)
        self.operators.append(Operator(name, kind, inputs, (name,), attributes, name, function))
        return name

    def norm(self, name: str, x: str, rows: int, width: int) -> str:
        weight = self.tensor(f"{name}.weight", (width,), "weight")
        return self.emit(name, "norm", (x, weight), (rows, width), "rms_norm", rows=rows, width=width)

    def bit_linear(self, name: str, x: str, rows: int, k: int, n: int) -> str:
        normed = self.norm(f"{name}.norm", x, rows, k)
        weight = self.tensor(f"{name}.weight", (n, k), "weight")
        return self.emit(name, "matmul", (normed, weight), (rows, n), batch=1, m=rows, n=n, k=k)

    def elementwise(self, name: str, inputs: tuple[str, ...], width: int, function: str, operations: int, specials: int = 0) -> str:
        elements = self.rows * width
        return self.emit(
            name, "elementwise", inputs, (self.rows, width), function, elements=elements, operations=operations, specials=specials
        )

    def segment(self, name: str, count: int) -> Segment:
        operators, self.operators = tuple(self.operators), []
        return Segment(name, count, operators)


def build(config: Mapping[str, Any], *, name: str, where: str, phase: str, batch: int, length: int, logits: str) -> Graph:
    """The graph of a model; arguments as `workloads.load` has them. Raises `WorkloadError` for a config without a dimension."""
    if missing := [key for key in DIMENSIONS if not isinstance(config.get(key), int)]:
        raise WorkloadError(f"{where}: a {MODEL_TYPE} config needs {', '.join(DIMENSIONS)}; missing: {', '.join(missing)}")
    if (heads := config.get("num_heads", 1)) != 1 or (ratio := config.get("expand_ratio", 1)) != 1:
        what = f"num_heads {heads}" if heads != 1 else f"expand_ratio {ratio}"
        raise WorkloadError(f"{where}: {MODEL_TYPE} models are built with one head and an expansion of one, as released, not with {what}")
    layers, d, ffn, vocabulary = (int(config[key]) for key in DIMENSIONS)
    tokens = 1 if phase == "decode" else length
    b = _Builder(batch, tokens)
    ids = b.tensor("input_ids", (batch, tokens), form="int64")
    table = b.tensor("model.embeddings.weight", (vocabulary, d), "weight")
    x = b.emit("model.embeddings", "embedding", (table, ids), (b.rows, d), rows=b.rows, width=d)
    prologue = b.segment("prologue", 1)
    y = _block(b, x, d, ffn, tokens)
    body = b.segment(f"model.layers.0-{layers - 1}", layers)
    last = phase == "decode" or logits == "last"
    rows = batch if last else b.rows
    x = b.norm("model.norm", y, rows, d)
    out = b.bit_linear("lm_head", x, rows, d, vocabulary)
    notes = ["built from the dimensions, after the released code; recurrent states of one value per channel in fp16"]
    if phase == "prefill":
        notes.append(f"the LM head computes {'the last position only, as generation does' if last else 'all positions'}")
    return Graph(
        name=name,
        phase=phase,
        batch=batch,
        tokens=tokens,
        context=length,
        tensors=b.tensors,
        segments=(prologue, body, b.segment("epilogue", 1)),
        inputs=("input_ids",),
        outputs=(out,),
        notes=tuple(notes),
    )


def _block(b: _Builder, x: str, d: int, ffn: int, tokens: int) -> str:
    """Operators of one block; returns its output."""
    path, rows = "model.layers.0", b.rows
    mixer = f"{path}.attn"
    normed = b.norm(f"{path}.attn_norm", x, rows, d)
    i = b.bit_linear(f"{mixer}.i_proj", normed, rows, d, d)
    i = b.elementwise(f"{mixer}.silu", (i,), d, "silu", *SILU)
    f = b.bit_linear(f"{mixer}.f_proj", normed, rows, d, d)
    f = b.elementwise(f"{mixer}.sigmoid", (f,), d, "sigmoid", *SILU)
    state = b.tensor(f"{mixer}.state", (b.batch, d), "kv_cache")
    h = b.tensor(f"{mixer}.mlgru", (rows, d))
    sizes = {"batch": b.batch, "length": tokens, "heads": 1, "head_dim": d, "state": 1}
    b.operators.append(Operator(h, "scan", (i, f, state), (h, state), sizes, mixer, "mlgru"))
    g = b.bit_linear(f"{mixer}.g_proj", normed, rows, d, d)
    h = b.norm(f"{mixer}.g_norm", h, rows, d)
    h = b.elementwise(f"{mixer}.gate", (h, g), d, "gate", 1 + SILU[0], SILU[1])
    o = b.bit_linear(f"{mixer}.o_proj", h, rows, d, d)
    x = b.elementwise(f"{path}.add", (x, o), d, "add", 1)
    normed = b.norm(f"{path}.mlp_norm", x, rows, d)
    up = b.bit_linear(f"{path}.mlp.gate_proj", normed, rows, d, 2 * ffn)
    a = b.elementwise(f"{path}.mlp.swiglu", (up,), ffn, "swiglu", 1 + SILU[0], SILU[1])
    down = b.bit_linear(f"{path}.mlp.down_proj", a, rows, ffn, d)
    return b.elementwise(f"{path}.add_1", (x, down), d, "add", 1)

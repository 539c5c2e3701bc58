"""What is measured: operators at designed sizes, and how torch runs each of them.

Sizes are those of layers of well-known models, at the numbers of tokens of decoding and of prompts, and some that fit no tile. A case
is built several times over, each time with operands of its own, so that a cache can be kept warm or cold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Call = Callable[[], object]
"""Runs an operator once on operands of its own."""

SIZES = (
    *("m", "n", "k", "batch", "queries", "keys", "heads", "kv_heads", "head_dim"),
    *("rows", "columns", "elements", "tokens", "hidden", "inter"),
)
"""Columns of sizes, of all operators together."""

WIDTH = {"bf16": 2, "fp16": 2, "fp8": 1}
"""Bytes of an operand by data type."""


@dataclass(frozen=True)
class Case:
    """An operator at one size. `clocks` beside the kernel's: `launch` (calls in a row from the host) and `host` (one call waited for)."""

    operator: str
    dtype: str
    shape: Mapping[str, int]
    clocks: tuple[str, ...] = ()
    cold: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", MappingProxyType(dict(self.shape)))

    @property
    def label(self) -> str:
        return f"{self.operator} {self.dtype} {'x'.join(map(str, self.shape.values())) or '1'}"

    @property
    def size_bytes(self) -> int:
        """Bytes of all operands and results of one call."""
        s, width = self.shape, WIDTH[self.dtype]
        match self.operator:
            case "gemm":
                return (s["m"] + s["n"]) * s["k"] * width + 2 * s["m"] * s["n"]
            case "attention-prefill" | "attention-decode":
                rows = s["batch"] * s["queries"] * s["heads"] + s["batch"] * s["keys"] * s["kv_heads"]
                return 2 * rows * s["head_dim"] * width
            case "llama-layer":
                head = s["hidden"] // s["heads"]
                weights = s["hidden"] * (2 * s["heads"] + 2 * s["kv_heads"]) * head + 3 * s["hidden"] * s["inter"]
                return (weights + 2 * s["batch"] * s["keys"] * s["kv_heads"] * head) * width
            case "embedding":
                return (VOCABULARY + s["rows"]) * s["columns"] * width
            case "softmax" | "layernorm" | "rmsnorm":
                return 2 * s["rows"] * s["columns"] * width
            case "add":
                return 3 * s["elements"] * width
            case "empty":
                return 2 * width
            case _:
                return 2 * s["elements"] * width


VOCABULARY = 32000
"""Rows of the table that embeddings are gathered from, as Llama 2's."""

LAYERS = ((4096, 4096), (12288, 4096), (22016, 4096), (4096, 11008), (8192, 8192), (57344, 8192), (8192, 28672), (1024, 8192), (2048, 1024))
"""(n, k) of products of Llama 2 7B and 70B, whole or as one of eight devices has them, and a small one."""

TOKENS = (1, 16, 64, 256, 1024, 4096)

ODD = ((1000, 1000, 1000), (4095, 4097, 511), (333, 5120, 13824), (129, 257, 65536), (7, 50257, 768))
"""(m, n, k) that fit no tile."""


def designed() -> Iterator[Case]:
    """The full set: what is worth most comes first, so that a set cut short by its time is still of use."""
    every = ("launch", "host")
    yield Case("empty", "bf16", {}, every, cold=False)
    for elements in (1 << 16, 1 << 20, 1 << 24, 1 << 28):
        yield Case("copy", "bf16", {"elements": elements}, every if elements == 1 << 20 else ())
    yield from (Case("gemm", "bf16", {"m": m, "n": n, "k": k}, every if n == 4096 else ()) for m in TOKENS for n, k in LAYERS)
    yield from (Case("gemm", "bf16", {"m": m, "n": n, "k": k}) for m, n, k in ODD)
    yield from _attention()
    for tokens, past in ((1, 2048), (1, 128), (2048, 0), (256, 0)):
        llama = {"hidden": 4096, "inter": 11008, "heads": 32, "kv_heads": 32}
        yield Case("llama-layer", "bf16", {"batch": 1, "queries": tokens, "keys": tokens + past, **llama}, every)
    for rows, columns in ((1, 4096), (64, 4096), (2048, 4096), (4096, 8192), (16384, 1024), (32, 32768)):
        yield from (Case(name, "bf16", {"rows": rows, "columns": columns}) for name in ("rmsnorm", "layernorm", "softmax"))
    for elements in (1 << 12, 1 << 18, 1 << 22, 1 << 26):
        yield from (Case(name, "bf16", {"elements": elements}) for name in ("add", "gelu"))
    yield from (Case("embedding", "bf16", {"rows": rows, "columns": 4096}) for rows in (1, 64, 2048))
    yield from (Case("gemm", "fp8", {"m": m, "n": n, "k": k}) for m in TOKENS[1:] for n, k in LAYERS)


def _attention() -> Iterator[Case]:
    for heads, groups, head in ((32, 32, 128), (32, 8, 128), (64, 8, 128), (16, 16, 64)):
        shape = {"heads": heads, "kv_heads": groups, "head_dim": head}
        for batch, tokens in ((1, 128), (1, 1024), (4, 2048), (1, 8192)):
            yield Case("attention-prefill", "bf16", {"batch": batch, "queries": tokens, "keys": tokens, **shape})
        for batch, keys in ((1, 512), (1, 8192), (16, 2048), (64, 1024), (8, 16384)):
            yield Case("attention-decode", "bf16", {"batch": batch, "queries": 1, "keys": keys, **shape})


def tiny() -> Iterator[Case]:
    """One small case of every operator: for machines without a GPU, and to try the recorder out."""
    every = ("launch", "host")
    yield Case("empty", "bf16", {}, every, cold=False)
    yield Case("gemm", "bf16", {"m": 3, "n": 32, "k": 48}, every)
    heads = {"heads": 4, "kv_heads": 2, "head_dim": 16}
    yield Case("attention-prefill", "bf16", {"batch": 2, "queries": 5, "keys": 5, **heads}, every)
    yield Case("attention-decode", "bf16", {"batch": 2, "queries": 1, "keys": 7, **heads}, every)
    yield Case("llama-layer", "bf16", {"batch": 1, "queries": 1, "keys": 9, "hidden": 64, "inter": 96, "heads": 4, "kv_heads": 2}, every)
    yield from (Case(name, "bf16", {"rows": 3, "columns": 40}, every) for name in ("rmsnorm", "layernorm", "softmax", "embedding"))
    yield from (Case(name, "bf16", {"elements": 100}, every) for name in ("add", "gelu", "copy"))


NOT_RECORDED = (
    "weight-only int8 and int4 products, int8 products with a 16-bit result, rope and silu with a product as one kernel, top-k and "
    "mixtures of experts: torch alone has no kernel for them that inference uses; collectives: one device"
)


# How torch runs them --------------------------------------------------------------------------------------------------------------
def build(case: Case, torch: Any, where: str) -> Call:
    """Operands of a case on a device, and what runs it on them once. Raises what torch raises for what it cannot do there."""
    builders: dict[str, Callable[[Any, str, Case], Call]] = {
        "gemm": _gemm,
        "attention-prefill": _sdpa,
        "attention-decode": _sdpa,
        "llama-layer": _layer,
        "embedding": _embedding,
    }
    return builders.get(case.operator, _stream)(torch, where, case)


def _type(torch: Any, dtype: str) -> Any:
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}[dtype]


def _random(torch: Any, where: str, dtype: str, *shape: int) -> Any:
    """Normal numbers of moderate size: the power of products depends on what is multiplied."""
    return torch.randn(*shape, device=where, dtype=torch.float32).mul_(0.1).to(_type(torch, dtype))


def _gemm(torch: Any, where: str, case: Case) -> Call:
    s = case.shape
    x, w = _random(torch, where, case.dtype, s["m"], s["k"]), _random(torch, where, case.dtype, s["n"], s["k"])
    if case.dtype == "fp8":
        eight_x, eight_w = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
        one = torch.ones((), device=where, dtype=torch.float32)
        return lambda: torch._scaled_mm(eight_x, eight_w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    y = torch.empty(s["m"], s["n"], device=where, dtype=x.dtype)
    return lambda: torch.mm(x, w.t(), out=y)  # weights as a linear layer stores them


def _sdpa(torch: Any, where: str, case: Case) -> Call:
    s = case.shape
    q = _random(torch, where, case.dtype, s["batch"], s["heads"], s["queries"], s["head_dim"])
    k, v = (_random(torch, where, case.dtype, s["batch"], s["kv_heads"], s["keys"], s["head_dim"]) for _ in range(2))
    attend = torch.nn.functional.scaled_dot_product_attention
    causal, grouped = s["queries"] > 1, s["heads"] != s["kv_heads"]
    return lambda: attend(q, k, v, is_causal=causal, enable_gqa=grouped)


def _embedding(torch: Any, where: str, case: Case) -> Call:
    table = _random(torch, where, case.dtype, VOCABULARY, case.shape["columns"])
    index = torch.randint(0, VOCABULARY, (case.shape["rows"],), device=where)
    return lambda: torch.nn.functional.embedding(index, table)


def _stream(torch: Any, where: str, case: Case) -> Call:
    s, functional = case.shape, torch.nn.functional
    if "rows" in s:
        x = _random(torch, where, case.dtype, s["rows"], s["columns"])
        weight = torch.ones(s["columns"], device=where, dtype=x.dtype)
        calls: dict[str, Call] = {
            "rmsnorm": lambda: functional.rms_norm(x, (s["columns"],), weight),
            "layernorm": lambda: functional.layer_norm(x, (s["columns"],), weight),
            "softmax": lambda: functional.softmax(x, -1),
        }
        return calls[case.operator]
    x, other = (_random(torch, where, case.dtype, s.get("elements", 1)) for _ in range(2))
    out = torch.empty_like(x)
    flat: dict[str, Call] = {
        "add": lambda: torch.add(x, other, out=out),
        "empty": lambda: torch.add(x, other, out=out),
        "gelu": lambda: functional.gelu(x),
        "copy": lambda: out.copy_(x),
    }
    return flat[case.operator]


def _layer(torch: Any, where: str, case: Case) -> Call:
    """A layer of Llama as torch runs it operator by operator: rotary embedding with precomputed tables, keys and values of the past
    given, those of these tokens written behind them."""
    s, functional = case.shape, torch.nn.functional
    hidden, inter, heads, groups = s["hidden"], s["inter"], s["heads"], s["kv_heads"]
    batch, tokens, keys, head = s["batch"], s["queries"], s["keys"], s["hidden"] // s["heads"]

    def random(*shape: int) -> Any:
        return _random(torch, where, case.dtype, *shape)

    x, one, two = random(batch, tokens, hidden), random(hidden), random(hidden)
    qkv, out = random((heads + 2 * groups) * head, hidden), random(hidden, heads * head)
    up, down = random(2 * inter, hidden), random(hidden, inter)
    k_cache, v_cache = random(batch, groups, keys, head), random(batch, groups, keys, head)
    cosine, sine = random(tokens, head), random(tokens, head)

    def rotate(y: Any) -> Any:
        left, right = y.chunk(2, -1)
        return y * cosine + torch.cat((-right, left), -1) * sine

    def call() -> object:
        normed = functional.rms_norm(x, (hidden,), one)
        q, k, v = functional.linear(normed, qkv).split((heads * head, groups * head, groups * head), -1)
        q, k, v = (y.view(batch, tokens, -1, head).transpose(1, 2) for y in (q, k, v))
        k_cache[:, :, keys - tokens :] = rotate(k)
        v_cache[:, :, keys - tokens :] = v
        attended = functional.scaled_dot_product_attention(rotate(q), k_cache, v_cache, is_causal=tokens > 1, enable_gqa=heads != groups)
        after = x + functional.linear(attended.transpose(1, 2).reshape(batch, tokens, -1), out)
        gate, straight = functional.linear(functional.rms_norm(after, (hidden,), two), up).chunk(2, -1)
        return after + functional.linear(functional.silu(gate) * straight, down)

    return call

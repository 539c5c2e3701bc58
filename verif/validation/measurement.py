"""One measured latency: of what, on which device, by which clock, and how it was taken."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType

from workloads.cost import attended_pairs
from workloads.format import parse_format

CLOCKS = ("kernel", "launch", "host", "request")
"""`kernel`: device time of back-to-back kernels, the gap between two of them included; `launch`: time of kernels that a host issues
without waiting, the longer of what issuing and what executing them takes; `host`: wall clock of one call, its launch and
synchronisation included; `request`: wall clock of a request, its time in queues included. No two are ever compared with each other."""

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send-recv")

SHAPES: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "attention-prefill": ("batch", "queries", "keys", "heads", "kv_heads", "head_dim"),
    "attention-decode": ("batch", "queries", "keys", "heads", "kv_heads", "head_dim"),
    "grouped-gemm": ("rows", "experts", "n", "k"),
    "softmax": ("rows", "columns"),
    "top-k": ("rows", "columns", "top_k"),
    "layernorm": ("rows", "columns"),
    "rmsnorm": ("rows", "columns"),
    "gelu": ("elements",),
    "silu-mul": ("elements",),
    "add": ("elements",),
    "rope": ("rows", "columns"),
    "embedding": ("rows", "columns"),
    **dict.fromkeys(COLLECTIVES, ("ranks", "bytes")),
    "moe": ("tokens", "hidden", "inter", "top_k", "experts", "tp", "ep"),
    "copy": ("elements",),
    "empty": (),
    "llama-layer": ("batch", "queries", "keys", "hidden", "inter", "heads", "kv_heads"),
    "model-step": ("layers", "hidden", "inter", "heads", "kv_heads", "vocabulary", "gated", "tp", "batch", "queries", "keys"),
}
"""Operators that are predicted, and the sizes that each is stated by. `grouped-gemm` multiplies `rows` rows, dealt evenly over `experts`
matrices; `top-k` finds the `top_k` largest of each row; `empty` is a kernel that computes next to nothing; `llama-layer` a
layer as torch runs it operator by operator; `model-step` one step of a whole model on each of `tp` devices."""

MOST = {"queries": 1 << 24, "experts": 1 << 16, "layers": 1 << 12}
"""Sizes whose parts are gone through one by one: more are refused."""

WINDOW = "window"
"""A size that attention may have beside its own: the last so many keys that a query sees (0: all)."""

WHOLES = ("llama-layer", "model-step")
"""Operators that are many kernels."""

DTYPES = {
    "bf16": ("bf16", "bf16", "bf16"),
    "fp16": ("fp16", "fp16", "fp16"),
    "fp8": ("fp8-e4m3", "fp8-e4m3", "bf16"),
    "fp8_static": ("fp8-e4m3", "fp8-e4m3", "bf16"),
    "fp8_block": ("fp8-e4m3", "fp8-e4m3", "bf16"),
    "nvfp4": ("nvfp4", "nvfp4", "bf16"),
    "mxfp4": ("mxfp4", "mxfp4", "bf16"),
    "int8": ("int8", "int8", "bf16"),
    "w8a16": ("bf16", "int8", "bf16"),
    "w4a16": ("bf16", "int4-g128", "bf16"),
    "w4a16_mxfp4": ("bf16", "mxfp4", "bf16"),
    "w4a8": ("fp8-e4m3", "int4-g128", "bf16"),
    "bf16-kv8": ("bf16", "fp8-e4m3", "bf16"),
}
"""Formats of the activations, of the weights (or keys and values) and of the result, by the name of a data type. `fp8` has one scale per
tensor or row, `fp8_static` one that is known before the call, `fp8_block` one for each 128 activations of a row and each 128 x 128
weights (3 % more bytes of activations, not counted; the sums of blocks are taken to be scaled beside the products)."""


@dataclass(frozen=True)
class Measurement:
    """`shape` as `SHAPES` lists it; `dtype` of `DTYPES`.

    `copies` weights take turns, so that a copy is found in the cache only if all fit (0: nothing is ever found there); `before`
    are small kernels that each call runs first and that the latency includes; `host_s` what the host adds by the authors'
    own account, for latencies by the host's clock, and the time from one kernel's issue to the next for those by the launch's.
    `place` is the file and the row. `profiled` latencies are from the start of a
    kernel to its end, as a profiler states them: without the gap between two kernels. The latency is that of `calls` calls in a row;
    `part_of` names the whole that it is a part of, whose sum is scored too.
    """

    device: str
    operator: str
    dtype: str
    shape: Mapping[str, int]
    latency_s: float
    clock: str = "kernel"
    copies: int = 1
    before: tuple[str, ...] = ()
    host_s: float = 0.0
    place: str = ""
    profiled: bool = False
    calls: int = 1
    part_of: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", MappingProxyType(dict(self.shape)))

    @cached_property
    def fitted(self) -> bool:
        """Whether constants may be fitted on it: half of the shapes, by a hash of the shape alone. The other half is only ever
        scored, whatever the device, the data type or the file."""
        words = " ".join([self._family, *(str(self.shape[name]) for name in self._sizes)])
        return hashlib.sha256(words.encode()).digest()[0] % 2 == 0

    @property
    def _family(self) -> str:
        return "attention" if self.operator.startswith("attention") else self.operator

    @property
    def _sizes(self) -> tuple[str, ...]:
        if self.operator.startswith("attention"):
            return ("batch", "tokens", "step", "heads", "kv_heads", "head_dim")
        return SHAPES.get(self.operator, tuple(self.shape))

    @cached_property
    def work(self) -> tuple[int, float]:
        """Floating-point operations and the fewest bytes that must move."""
        acts, weights, result = (_bytes(name) for name in DTYPES[self.dtype])
        s = self.shape
        match self.operator:
            case "gemm":
                count = s.get("batch", 1) * self.calls
                size = s["m"] * s["k"] * acts + s["n"] * s["k"] * weights + s["m"] * s["n"] * result
                return 2 * s["m"] * s["n"] * s["k"] * count, size * count
            case "attention-prefill" | "attention-decode":
                window = s.get(WINDOW, 0)
                pairs = attended_pairs(s["queries"], s["keys"], causal=True, window=window)
                queries = s["batch"] * s["queries"] * s["heads"] * s["head_dim"]
                seen = min(s["keys"], window + s["queries"] - 1) if window else s["keys"]
                keys = s["batch"] * seen * s["kv_heads"] * s["head_dim"]
                return 4 * s["batch"] * s["heads"] * s["head_dim"] * pairs, 2 * queries * result + 2 * keys * weights
            case "grouped-gemm":
                used = min(s["rows"], s["experts"])
                size = s["rows"] * s["k"] * acts + used * s["n"] * s["k"] * weights + s["rows"] * s["n"] * result
                return 2 * s["rows"] * s["n"] * s["k"], size
            case name if name in COLLECTIVES:
                return 0, float(s["bytes"])
            case "moe":
                from verif.validation.moe import routed

                rows, active = routed(s)
                inner = -(-s["inter"] // s["tp"])
                moved = 2 * rows * (s["hidden"] + inner) * result + rows * inner * result
                return 6 * rows * s["hidden"] * inner, 3 * active * s["hidden"] * inner * weights + moved
            case "llama-layer" | "model-step":
                tp, rows, head = s.get("tp", 1), s["batch"] * s["queries"], s["hidden"] // s["heads"]
                kinds = 3 if s.get("gated", 1) else 2
                width = s["hidden"] * (2 * (s["heads"] + s["kv_heads"]) * head + kinds * s["inter"]) * s.get("layers", 1)
                width += s["hidden"] * s.get("vocabulary", 0)
                cached = 2 * s["batch"] * s["keys"] * s["kv_heads"] * head * s.get("layers", 1)
                return 2 * rows * width // tp, (width + cached) * weights / tp
            case "empty":
                return 0, 2 * acts
            case "copy":
                return 0, 2 * s["elements"] * acts
            case "top-k":
                return 0, s["rows"] * (s["columns"] + s["top_k"]) * acts
            case "softmax" | "layernorm" | "rmsnorm" | "rope":
                return 0, 2 * s["rows"] * s["columns"] * acts
            case "embedding":
                return 0, 2 * s["rows"] * s["columns"] * acts
            case "gelu":
                return 0, 2 * s["elements"] * acts
            case _:
                return 0, 3 * s["elements"] * acts

    @cached_property
    def size_class(self) -> str:
        """`small`, `medium` or `large`: by operations for products and prefill, by bytes for what only streams."""
        return size_class(self.operator, *self.work)


@lru_cache
def _bytes(name: str) -> float:
    return float(parse_format(name).bits) / 8


PRODUCTS = ("gemm", "grouped-gemm", "moe", "attention-prefill", "attention-decode")
"""Operators whose operands are multiplied in the data type's formats."""


def size_class(operator: str, flops: float, size: float) -> str:
    """`small`, `medium` or `large`: by operations for products and prefill, by bytes for what only streams."""
    return _class(flops, 1e9, 1e11) if operator in ("gemm", "grouped-gemm", "attention-prefill", "moe", *WHOLES) else _class(size, 1e6, 1e8)


def _class(value: float, small: float, large: float) -> str:
    return "small" if value < small else "medium" if value < large else "large"

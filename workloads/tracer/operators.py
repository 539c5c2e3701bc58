"""How tensor operations become operators, and the operators of our own that model code is led to call."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from workloads.cost import active_experts
from workloads.tracer.recorder import RULES, Recorder


# --- rules: how one operation becomes an operator ---------------------------------------------------------------------
def _matmul(rec: Recorder, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, outputs: list[torch.Tensor]) -> None:
    batch = a.shape[0] if a.dim() == 3 else 1
    attributes = {"batch": batch, "m": a.shape[-2], "n": b.shape[-1], "k": a.shape[-1]}
    inputs = [a, b] if bias is None else [a, b, bias]
    rec.emit("matmul", inputs, outputs, attributes, name=rec.module or "matmul")


def _layer_norm(rec: Recorder, args: Any, outputs: list[torch.Tensor]) -> None:
    x, shape, weight, bias = args[:4]
    width = prod(shape)
    inputs = [t for t in (x, weight, bias) if t is not None]
    rec.emit("norm", inputs, outputs[:1], {"rows": x.numel() // width, "width": width}, function="layer_norm", name=rec.module)


def _softmax(rec: Recorder, args: Any, outputs: list[torch.Tensor]) -> None:
    width = args[0].shape[args[1]]
    rec.emit("softmax", [args[0]], outputs, {"rows": args[0].numel() // width, "width": width}, function="softmax")


def _topk(rec: Recorder, args: Any, outputs: list[torch.Tensor]) -> None:
    dim = args[2] if len(args) > 2 else -1
    width = args[0].shape[dim]
    rec.emit("topk", [args[0]], outputs, {"rows": args[0].numel() // width, "width": width, "k": args[1]}, function="topk")


def _embedding(rec: Recorder, args: Any, outputs: list[torch.Tensor]) -> None:
    weight, ids = args[:2]
    rec.emit("embedding", [weight, ids], outputs, {"rows": ids.numel(), "width": weight.shape[1]}, name=rec.module or "embedding")


def _attention(rec: Recorder, args: Any, outputs: list[torch.Tensor]) -> None:
    query, key, value, causal, window, *sinks = args
    batch, heads, queries, head_dim = query.shape
    attributes = {
        "batch": batch,
        "heads": heads,
        "kv_heads": key.shape[1],
        "queries": queries,
        "keys": key.shape[2],
        "head_dim": head_dim,
        "value_dim": outputs[0].shape[-1],
        "causal": int(causal),
        "window": window,
    }
    inputs = [t for t in (query, key, value, *sinks) if t is not None]
    rec.emit("attention", inputs, outputs, attributes, function="attention")


def _grouped_linear(rec: Recorder, args: Any, outputs: list[torch.Tensor]) -> None:
    rows, weight, bias, top_k = args
    experts = weight.shape[0]
    attributes = {
        "rows": rows.shape[0],
        "experts": experts,
        "top_k": top_k,
        "active": active_experts(rows.shape[0] // top_k, experts, top_k),
        "n": outputs[0].shape[-1],
        "k": rows.shape[-1],
    }
    name = rec.use(weight).value.name.removesuffix(".weight")
    rec.emit("grouped_matmul", [rows, weight] if bias is None else [rows, weight, bias], outputs, attributes, name=name)


def _dispatch(rec: Recorder, args: Any, outputs: list[torch.Tensor]) -> None:
    rec.emit("copy", args[:2], outputs, {"elements": outputs[0].numel()}, function="dispatch")


def _combine(rec: Recorder, args: Any, outputs: list[torch.Tensor]) -> None:
    # every row is multiplied by its routing weight and added to its token
    rec.emit("reduce", args[:3], outputs, {"elements": args[0].numel(), "operations": 2}, function="combine")


def _conv1d(rec: Recorder, args: Any, outputs: list[torch.Tensor]) -> None:
    x, state, weight, bias = args
    batch, channels, length = outputs[0].shape
    source = x if state is None else state  # in decode the new token is in the state already
    inputs = [source, weight] if bias is None else [source, weight, bias]
    attributes = {"batch": batch, "length": length, "channels": channels, "taps": weight.shape[-1]}
    rec.emit("conv1d", inputs, outputs, attributes, name=f"{rec.module}.conv1d")


RULES |= {
    "mm": lambda rec, args, outputs: _matmul(rec, args[0], args[1], None, outputs),
    "bmm": lambda rec, args, outputs: _matmul(rec, args[0], args[1], None, outputs),
    "addmm": lambda rec, args, outputs: _matmul(rec, args[1], args[2], args[0], outputs),
    "native_layer_norm": _layer_norm,
    "_softmax": _softmax,
    "topk": _topk,
    "embedding": _embedding,
    "attention": _attention,
    "grouped_linear": _grouped_linear,
    "dispatch": _dispatch,
    "combine": _combine,
    "conv1d": _conv1d,
}

# --- operators of our own, called by the model code -------------------------------------------------------------------
_LIBRARY = torch.library.Library("dovetail", "DEF")  # type: ignore[no-untyped-call]
for _schema in (
    "attention(Tensor query, Tensor key, Tensor value, bool causal, int window, Tensor? sinks=None) -> Tensor",
    "grouped_linear(Tensor rows, Tensor weight, Tensor? bias, int top_k) -> Tensor",
    "dispatch(Tensor hidden, Tensor experts) -> Tensor",
    "combine(Tensor rows, Tensor weights, Tensor experts) -> Tensor",
    "conv1d(Tensor x, Tensor? state, Tensor weight, Tensor? bias) -> Tensor",
):
    _LIBRARY.define(_schema)  # type: ignore[no-untyped-call]


def _fake(name: str) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    def register(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        _LIBRARY.impl(name, function, "Meta")  # type: ignore[no-untyped-call]
        return function

    return register


@_fake("attention")
def _fake_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, window: int, sinks: torch.Tensor | None = None
) -> torch.Tensor:
    """(batch, heads, queries, head_dim) x (batch, kv_heads, keys, ...) -> (batch, queries, heads, value_dim)."""
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[-1])


@_fake("grouped_linear")
def _fake_grouped_linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, top_k: int) -> torch.Tensor:
    """(rows, k) through the experts' (experts, n, k) or (experts, k, n) -> (rows, n)."""
    return rows.new_empty(rows.shape[0], prod(weight.shape[1:]) // rows.shape[1])


@_fake("dispatch")
def _fake_dispatch(hidden: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """(tokens, width) and (tokens, top_k) -> (tokens * top_k, width), sorted by expert."""
    return hidden.new_empty(experts.numel(), hidden.shape[-1])


@_fake("combine")
def _fake_combine(rows: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """(tokens * top_k, width) -> (tokens, width)."""
    return rows.new_empty(experts.shape[0], rows.shape[-1])


@_fake("conv1d")
def _fake_conv1d(x: torch.Tensor, state: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(batch, channels, length) -> the same; `state` is (batch, channels, taps)."""
    return torch.empty_like(x)


def attention_interface(rec: Recorder) -> Callable[..., tuple[torch.Tensor, None]]:
    """What model code calls as its attention function."""

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        sliding_window: int | None = None,
        is_causal: bool | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
        if sliding_window and not causal:
            rec.notes["bidirectional sliding-window layers are counted with full attention"] = None
            sliding_window = None
        if sliding_window:
            rec.notes["sliding-window layers: the cache keeps the whole context, attention reads the window"] = None
        if softcap is not None:
            rec.notes["attention logits are soft-capped (tanh) inside the attention operator, which is not counted"] = None
        return torch.ops.dovetail.attention(query, key, value, causal, sliding_window or 0, s_aux), None

    return attend


def _experts_interface(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    ops, top_k = torch.ops.dovetail, top_k_index.shape[-1]

    def biases(name: str) -> torch.Tensor | None:
        return getattr(self, f"{name}_bias") if self.has_bias else None

    up = "gate_up_proj" if self.has_gate else "up_proj"
    rows = ops.dispatch(hidden_states, top_k_index)
    rows = ops.grouped_linear(rows, getattr(self, up), biases(up), top_k)
    rows = self._apply_gate(rows) if self.has_gate else self.act_fn(rows)
    rows = ops.grouped_linear(rows, self.down_proj, biases("down_proj"), top_k)
    if self.has_post_expert_norm:
        rows = self.post_expert_norm(rows)
    combined: torch.Tensor = ops.combine(rows, top_k_weights, top_k_index)
    return combined


type(ALL_EXPERTS_FUNCTIONS).register("dovetail", _experts_interface)


class TracedCache(Cache):
    """Keys, values and recurrent state of full length; an update is an append and hands back the whole cache."""

    def __init__(self, rec: Recorder) -> None:
        super().__init__(layers=[])
        self.rec = rec

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._extended("k", key_states), self._extended("v", value_states)

    def _extended(self, which: str, new: torch.Tensor) -> torch.Tensor:
        batch, heads, _, width = new.shape
        cache = self.rec.cache(f"{which}_cache", (batch, heads, self.rec.phase.context, width), new.dtype)
        self.rec.append(f"append_{which}", [new], cache, new.numel())
        return cache

    @property
    def past(self) -> int:
        return self.rec.phase.context - self.rec.phase.tokens

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return self.past

    def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[int, int]:
        return self.rec.phase.context, 0

    def get_max_length(self, *_: Any) -> int:
        return self.rec.phase.context

    def get_max_cache_shape(self, *_: Any) -> int:
        return self.rec.phase.context

    def has_previous_state(self, *_: Any, **__: Any) -> bool:
        return self.past > 0

    def is_recording_past(self, *_: Any) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return False

    # --- recurrent state: one state per layer, whatever the length ---
    def get_conv_state(self, layer: int, state_idx: int = 0) -> torch.Tensor | None:
        if self.rec.phase.name != "decode":
            return None
        mixer = self.rec.mixer
        return self.rec.cache("conv_state", (self.rec.phase.batch, mixer.conv_dim, mixer.conv_kernel_size), mixer.in_proj.weight.dtype)

    def get_recurrent_state(self, layer: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.rec.ssm_state() if self.rec.phase.name == "decode" else None

    def update_conv_state(self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> torch.Tensor:
        batch, channels, length = conv_states.shape
        taps = kwargs["conv_kernel_size"]
        state = self.rec.cache("conv_state", (batch, channels, taps), conv_states.dtype)
        self.rec.append("append_conv", [conv_states], state, batch * channels * min(length, taps))
        return conv_states

    def update_recurrent_state(self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> torch.Tensor:
        return recurrent_states  # written by the scan itself

"""Model code made traceable: module forwards wrapped or replaced, and functions of the modeling files replaced while tracing."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from math import ceil
from types import ModuleType
from typing import Any

import torch
from transformers.modeling_utils import AttentionInterface

from workloads.record import Use, Value
from workloads.tracer.operators import attention_interface
from workloads.tracer.recorder import FORMAT_OF, Recorder, flat, same_storage


# --- adapters: module forwards that are replaced, because the model code would hide or blow up what is computed --------
def _mla_forward(rec: Recorder, self: Any) -> Callable[..., Any]:
    """Multi-head latent attention: the cache holds the latent and the rotary key (kv_lora_rank + qk_rope_head_dim per token).

    Prefill expands keys and values (kv_b_proj on the latent); decode absorbs kv_b_proj into the query and the output, so that
    attention works on the latent itself with one shared key/value head (DeepSeek-V2, section 2.1).
    """
    rank, rope, nope = self.kv_lora_rank, self.qk_rope_head_dim, self.qk_nope_head_dim
    value_dim, heads = self.v_head_dim, self.num_heads

    def absorbed(x: torch.Tensor, half: str, n: int, k: int) -> torch.Tensor:
        """Per-head product of x (batch, heads, tokens, k) with one half of kv_b_proj, (heads, k, n)."""
        path = f"{rec.module}.kv_b_proj"
        weight = Value((heads, k, n), FORMAT_OF[x.dtype], "weight", f"{path}.weight.{half}")
        out = x.new_empty(x.shape[0], heads, x.shape[2], n)
        use = Use(weight, None, weight.shape, weight.format)
        attributes = {"batch": heads, "m": x.shape[0] * x.shape[2], "n": n, "k": k}
        rec.recording.emit("matmul", path, [rec.use(x), use], [rec.new(out)], attributes, name=f"{path}.{half}")
        return out

    def forward(hidden_states: torch.Tensor, position_embeddings: Any = None, past_key_values: Any = None, **unused: Any) -> Any:
        batch, tokens, _ = hidden_states.shape
        q = self.q_proj(hidden_states) if self.q_lora_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)))
        q = q.view(batch, tokens, heads, nope + rope).transpose(1, 2)
        q_nope, q_rope = torch.split(q, [nope, rope], dim=-1)
        latent, k_rope = torch.split(self.kv_a_proj_with_mqa(hidden_states), [rank, rope], dim=-1)
        latent = self.kv_a_layernorm(latent)
        tables = list(flat(position_embeddings))
        k_rope = rec.rotate("rope_k", k_rope, tables, hidden_states.new_empty(batch, 1, tokens, rope))
        cache = rec.cache("latent_cache", (batch, 1, rec.phase.context, rank + rope), hidden_states.dtype)
        rec.append("append_latent", [latent, k_rope], cache, batch * tokens * (rank + rope))
        if rec.phase.name == "decode":
            query = absorbed(q_nope, "k", rank, nope)
            query = rec.rotate("rope_q", q_rope, tables, q.new_empty(batch, heads, tokens, rank + rope), [query])
            out = torch.ops.dovetail.attention(query, cache, cache[..., :rank], True, 0)
            out = absorbed(out.transpose(1, 2), "v", value_dim, rank)
            out = out.transpose(1, 2)
        else:
            query = rec.rotate("rope_q", q_rope, tables, q.new_empty(batch, heads, tokens, nope + rope), [q_nope])
            expanded = self.kv_b_proj(latent).view(batch, tokens, heads, nope + value_dim).transpose(1, 2)
            k_nope, value = torch.split(expanded, [nope, value_dim], dim=-1)
            key = torch.cat((k_nope, k_rope.expand(-1, heads, -1, -1)), dim=-1)
            out = torch.ops.dovetail.attention(query, key, value, True, 0)
        # in the absorbed form `out` is laid out per head; the output projection reads it in place
        rows = out.new_empty(batch, tokens, heads * value_dim)
        use = rec.use(out)
        rec.bind(rows, use.value, use.region)
        return self.o_proj(rows), None

    rec.notes["multi-head latent attention: the cache holds the latent; prefill expands it, decode absorbs kv_b_proj"] = None
    return forward


def _falcon_forward(rec: Recorder, self: Any) -> Callable[..., Any]:
    """Falcon attention with its key/value heads kept as they are (the model code repeats them before it caches them)."""

    def forward(
        hidden_states: torch.Tensor, alibi: Any = None, layer_past: Any = None, position_embeddings: Any = None, **unused: Any
    ) -> Any:
        batch, tokens, _ = hidden_states.shape
        heads, dim = self.num_heads, self.head_dim
        kv_heads = self.num_kv_heads
        fused = self.query_key_value(hidden_states)
        if self.new_decoder_architecture or self.multi_query:
            grouped = fused.view(batch, tokens, kv_heads, heads // kv_heads + 2, dim)
            query, key, value = grouped[..., :-2, :], grouped[..., -2, :], grouped[..., -1, :]
        else:
            grouped = fused.view(batch, tokens, heads, 3, dim)
            query, key, value = grouped[..., 0, :], grouped[..., 1, :], grouped[..., 2, :]
        if alibi is None:
            tables = list(flat(position_embeddings))
            query = rec.rotate("rope_q", query, tables, fused.new_empty(batch, heads, tokens, dim))
            key = rec.rotate("rope_k", key, tables, fused.new_empty(batch, kv_heads, tokens, dim))
        else:
            query, key = query.reshape(batch, tokens, heads, dim).transpose(1, 2), key.transpose(1, 2)
            rec.notes["ALiBi: the bias is computed inside the attention operator and not counted"] = None
        key, value = layer_past.update(key, value.transpose(1, 2), self.layer_idx)
        out = torch.ops.dovetail.attention(query, key, value, True, 0)
        return self.dense(out.reshape(batch, tokens, heads * dim)), None

    return forward


def _bloom_forward(rec: Recorder, self: Any) -> Callable[..., Any]:
    """BLOOM attention as one operator; the ALiBi bias is computed inside it from the heads' slopes."""

    def forward(hidden_states: torch.Tensor, residual: torch.Tensor, layer_past: Any = None, **_: Any) -> Any:
        batch, tokens, width = hidden_states.shape
        grouped = self.query_key_value(hidden_states).view(batch, tokens, self.num_heads, 3, self.head_dim)
        query, key, value = (grouped[..., i, :].transpose(1, 2) for i in range(3))
        key, value = layer_past.update(key, value, self.layer_idx)
        out = torch.ops.dovetail.attention(query, key, value, True, 0)
        return residual + self.dense(out.reshape(batch, tokens, width)), None

    rec.notes["ALiBi: the bias is computed inside the attention operator and not counted"] = None
    return forward


def _adapter(module: torch.nn.Module) -> Callable[[Recorder, Any], Callable[..., Any]] | None:
    name = type(module).__name__
    if hasattr(module, "kv_b_proj") and hasattr(module, "kv_a_proj_with_mqa"):
        return _mla_forward
    if name.startswith("Falcon") and hasattr(module, "query_key_value"):
        return _falcon_forward
    if name == "BloomAttention":
        return _bloom_forward
    return None


# --- module scopes ----------------------------------------------------------------------------------------------------
_ACTIVATION = re.compile(r"gelu|silu|swish|relusquared|relu2|relu|sigmoid|tanh|mish", re.IGNORECASE)
_SKIPPED = (torch.nn.Dropout, torch.nn.Identity)


def _norm_scope(rec: Recorder, module: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        out, scope = rec.fused(lambda: forward(*args, **kwargs))
        inputs = [t for t in flat((args, kwargs)) if isinstance(t, torch.Tensor)]
        weights = list(module.parameters(recurse=False))
        x = inputs[0]
        if len(inputs) > 1:  # a gated norm: x * silu(gate) comes first
            gated = torch.empty_like(x)
            rec.emit_elementwise("gate", inputs[:2], gated, 1 + 2 * scope.gates, scope.gates)
            x = gated
        width = getattr(module, "group_size", None) or (weights[0].numel() if weights else x.shape[-1])
        attributes = {"rows": x.numel() // width, "width": width}
        rec.emit("norm", [x, *weights], [out], attributes, function=_norm_name(module), name=rec.module)
        return out

    return run


def _norm_name(module: Any) -> str:
    name = type(module).__name__.lower()
    return "rms_norm" if "rms" in name else "layer_norm" if "layer" in name else "norm"


def _activation_scope(rec: Recorder, module: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    match = _ACTIVATION.search(type(module).__name__)
    function = match.group(0).lower().replace("relusquared", "relu2") if match else type(module).__name__.lower()

    def run(*args: Any, **kwargs: Any) -> Any:
        out, scope = rec.fused(lambda: forward(*args, **kwargs))
        inputs = [t for t in flat((args, kwargs)) if isinstance(t, torch.Tensor)]
        if isinstance(out, torch.Tensor) and not any(same_storage(out, t) for t in inputs):
            elements = out.numel()
            path = rec.path.pop()  # named after the module that applies it
            try:
                rec.emit_elementwise(function, inputs, out, ceil(scope.operations / elements), ceil(scope.specials / elements))
            finally:
                rec.path.append(path)
        return out

    return run


def _rope_table_scope(rec: Recorder, module: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        out, scope = rec.fused(lambda: forward(*args, **kwargs))
        tables = [t for t in flat(out) if isinstance(t, torch.Tensor)]
        positions = [t for t in flat((args, kwargs)) if isinstance(t, torch.Tensor) and not t.is_floating_point()]
        elements = tables[0].numel()
        attributes = {
            "elements": elements,
            "operations": ceil(scope.operations / elements),
            "specials": ceil(scope.specials / elements),
        }
        frequencies = list(module.buffers(recurse=False))[:1]
        rec.emit("elementwise", [*positions, *frequencies], tables, attributes, function="rope_table", role="constant")
        return out

    return run


def _router_scope(rec: Recorder, module: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A router is a product, its score function (softmax or sigmoid) and one top-k, whatever the bookkeeping around it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        start = len(rec.recording.entries)
        out = forward(*args, **kwargs)
        entries = rec.recording.entries
        picks = [e for e in entries[start:] if e.kind == "topk"]
        if picks:
            tail = next(
                i for i in range(start, len(entries)) if entries[i].kind != "matmul" and entries[i].function not in ("softmax", "sigmoid")
            )
            produced = {id(v) for e in entries[tail:] for v in e.outputs}
            results = list(dict.fromkeys(
                known[0] for t in flat(out) if isinstance(t, torch.Tensor) and (known := rec.known(t)) and id(known[0]) in produced
            ))
            scores = next(e for e in reversed(entries[start:tail]) if e.kind != "copy")
            attributes = {"rows": picks[-1].attributes["rows"], "width": scores.outputs[0].shape[-1], "k": picks[-1].attributes["k"]}
            rec.recording.merge_tail(tail, "topk", results, attributes, rec.module, "topk")
        return out

    return run


def _scope_for(module: torch.nn.Module) -> Callable[[Recorder, Any, Callable[..., Any]], Callable[..., Any]] | None:
    name = type(module).__name__
    if next(module.children(), None) is not None or isinstance(module, _SKIPPED):
        return None
    if "RotaryEmbedding" in name:
        return _rope_table_scope
    if "Norm" in name and "BatchNorm" not in name:
        return _norm_scope
    if name.endswith(("Router", "Gate", "TopkRouter")):
        return _router_scope
    if next(module.parameters(recurse=False), None) is None and next(module.buffers(recurse=False), None) is None:
        return _activation_scope
    return None


def instrument(rec: Recorder, model: torch.nn.Module) -> None:
    """Wrap the forward of every module: it announces its path, and some become one operator."""
    for path, module in model.named_modules():
        adapter = _adapter(module)
        forward: Callable[..., Any] = adapter(rec, module) if adapter else module.forward
        scope = _scope_for(module)
        module.forward = _announced(rec, path, module, scope(rec, module, forward) if scope else forward)
    for path, parameter in model.named_parameters():
        rec.new(parameter, "weight", path)
        rec.recording.reserved.add(path)
    for path, buffer in model.named_buffers():
        rec.new(buffer, "constant", path)


def _announced(rec: Recorder, path: str, module: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    is_mixer = hasattr(module, "conv_kernel_size")

    def run(*args: Any, **kwargs: Any) -> Any:
        rec.path.append(path)
        if is_mixer:
            rec.mixer = module
        try:
            return forward(*args, **kwargs)
        finally:
            rec.path.pop()

    return run


# --- functions of the modeling files ----------------------------------------------------------------------------------
def _patched_functions(rec: Recorder, module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Replacements for functions of a modeling file: masks, rotary embeddings, convolution and scan."""
    ops = torch.ops.dovetail
    functional = torch.nn.functional

    def no_mask(*_: Any, **__: Any) -> None:
        return None

    def rope(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if rec.scope is not None:
                return original(*args, **kwargs)
            out, _ = rec.fused(lambda: original(*args, **kwargs))
            outputs = [t for t in flat(out) if isinstance(t, torch.Tensor)]
            inputs = [t for t in flat((args, kwargs)) if isinstance(t, torch.Tensor)]
            tables = inputs[len(outputs) :]
            suffixes = ("rope_q", "rope_k") if len(outputs) == 2 else ("rope",) * len(outputs)
            for suffix, before, after in zip(suffixes, inputs, outputs, strict=False):
                rec.rotate(suffix, before, tables, after)
            return out

        return run

    def activated(out: torch.Tensor, activation: str | None) -> torch.Tensor:
        return out if activation is None else functional.silu(out)

    def conv(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None, **_: Any
    ) -> torch.Tensor:
        return activated(ops.conv1d(x, None, weight, bias), activation)

    def conv_update(
        x: torch.Tensor, state: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
    ) -> torch.Tensor:
        rec.append("append_conv", [x], state, x.numel())
        return activated(ops.conv1d(x, state, weight, bias), activation)

    def scan(inputs: list[torch.Tensor | None], state: torch.Tensor, length: int, read: bool) -> torch.Tensor:
        """`inputs` are x, dt, A, B, C, D and the bias of dt; the state is always written, and read where there is a past."""
        given = [t for t in inputs if t is not None]
        out = torch.empty_like(given[0])
        batch, heads, head_dim, width = state.shape
        attributes = {"batch": batch, "length": length, "heads": heads, "head_dim": head_dim, "state": width}
        uses = rec.uses([*given, state] if read else given)
        rec.recording.emit("scan", rec.module, uses, [rec.new(out), rec.use(state).value], attributes, function="scan")
        return out

    def chunk_scan(x: torch.Tensor, *inputs: torch.Tensor, return_final_states: bool = False, **options: Any) -> Any:
        state = rec.ssm_state()
        out = scan([x, *inputs, options.get("D"), options.get("dt_bias")], state, x.shape[1], read=False)
        return (out, state) if return_final_states else out

    def state_update(state: torch.Tensor, *inputs: torch.Tensor, dt_bias: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        return scan([*inputs, dt_bias], state, 1, read=True)

    replaced: dict[str, Callable[..., Any]] = {}
    for name, function in vars(module).items():
        if not callable(function):
            continue
        if re.fullmatch(r"create_\w*mask", name):
            replaced[name] = no_mask
        elif name.startswith("apply_rotary"):
            replaced[name] = rope(function)
    if hasattr(module, "mamba2_chunk_scan"):
        replaced |= {"causal_conv1d_fn": conv, "causal_conv1d_update": conv_update}
        replaced |= {"mamba2_chunk_scan": chunk_scan, "mamba2_selective_state_update": state_update}
    return replaced


@contextlib.contextmanager
def patched(rec: Recorder, model: torch.nn.Module) -> Iterator[None]:
    saved: list[tuple[ModuleType, str, Any]] = []
    AttentionInterface.register("dovetail", attention_interface(rec))
    try:
        for name in sorted({type(m).__module__ for m in model.modules() if type(m).__module__.startswith("transformers.models")}):
            module = sys.modules[name]
            for function, replacement in _patched_functions(rec, module).items():
                saved.append((module, function, getattr(module, function)))
                setattr(module, function, replacement)
        yield
    finally:
        for module, function, original in reversed(saved):
            setattr(module, function, original)

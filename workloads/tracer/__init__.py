"""The tracer: Hugging Face model code runs on the meta device, and what it executes becomes a `Graph`.

No weights exist and nothing is downloaded. A `TorchDispatchMode` sees every tensor operation (`recorder`); the forward of each
module is wrapped, so that an operation knows its module path and norms, activations and rotary embeddings become one
operator each (`adapters`). Attention, grouped experts, convolutions and scans are operators of our own that the model code is
led to call (`operators`). This is the only package of `workloads` that imports torch and transformers.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a trace never needs the network
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from workloads.errors import WorkloadError, nearest
from workloads.fold import fold
from workloads.graph import Graph, Segment
from workloads.tracer.adapters import instrument, patched
from workloads.tracer.operators import TracedCache
from workloads.tracer.recorder import Phase, Recorder

__all__ = ["build_model", "trace"]

def build_model(config: dict[str, Any], where: str) -> tuple[Any, bool]:
    """The Hugging Face module for a config, on the meta device, in fp16, and whether it is an encoder.

    Raises `WorkloadError` naming `where` for a config that the library refuses.
    """
    settings = dict(config)
    model_type = settings.pop("model_type")
    if model_type not in CONFIG_MAPPING_NAMES:
        raise WorkloadError(
            f"{where}: model_type {model_type!r} is not an architecture that transformers {transformers.__version__} knows"
            f"{nearest(model_type, CONFIG_MAPPING_NAMES)}"
        )
    encoder = model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not settings.get("is_decoder", False)
    if not encoder and model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise WorkloadError(f"{where}: model_type {model_type!r} is neither a causal nor a masked language model, which are what is traced")
    try:
        hf_config = transformers.AutoConfig.for_model(model_type, **settings)
        auto = transformers.AutoModelForMaskedLM if encoder else transformers.AutoModelForCausalLM
        with torch.device("meta"):
            model = auto.from_config(hf_config, dtype=torch.float16, attn_implementation="eager")  # type: ignore[no-untyped-call]
    except Exception as error:  # the library raises many kinds for a bad config; all of them are the config's fault here
        raise WorkloadError(f"{where}: the model cannot be built from this config: {_summary(error)}") from error
    model.config._attn_implementation = "dovetail"
    model.config._experts_implementation = "dovetail"
    return model.eval(), encoder


def _summary(error: BaseException) -> str:
    """The message of an error on one line: its first line, and the second where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return " ".join(lines[:2])
    return lines[0] if lines else type(error).__name__


def _check_positions(model: torch.nn.Module, length: int, where: str) -> None:
    """A learned position table limits the length; rotary positions and ALiBi do not."""
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, torch.nn.Embedding) and (name == "wpe" or "position" in name):
            positions = module.num_embeddings - getattr(module, "offset", 0)
            if length > positions:
                raise WorkloadError(f"{where}: the model has learned positions for {positions} tokens ({path}); {length} were asked for")


def trace(
    config: dict[str, Any], *, name: str, where: str, phase: str, batch: int, length: int, logits: str = "last", folded: bool = True
) -> Graph:
    """Trace one forward pass.

    `config` is a Hugging Face config with its `model_type`. In prefill `length` tokens enter; in decode one token enters and
    attends to `length`, itself included. `logits` is `last` or `all` positions. Without `folded` every layer is stored on its
    own. Raises `WorkloadError` naming `where`.
    """
    model, encoder = build_model(config, where)
    if encoder and phase == "decode":
        raise WorkloadError(f"{where}: {name} is an encoder, it has no decode phase; expected phase prefill")
    _check_positions(model, length, where)
    tokens = 1 if phase == "decode" else length
    rec = Recorder(Phase(phase, batch, tokens, length))
    instrument(rec, model)
    ids = torch.empty(batch, tokens, dtype=torch.int64, device="meta")
    rec.new(ids, "activation", "input_ids")
    arguments: dict[str, Any] = {"input_ids": ids}
    if not encoder:
        accepted = inspect.signature(type(model).forward).parameters
        cache_argument = "cache_params" if "cache_params" in accepted else "past_key_values"
        arguments |= {cache_argument: TracedCache(rec), "use_cache": True}
        if "logits_to_keep" in accepted:
            arguments["logits_to_keep"] = 1 if logits == "last" else 0
    try:
        with torch.no_grad(), patched(rec, model), rec, torch.device("meta"):
            output = model(**arguments)
    except WorkloadError as error:
        raise WorkloadError(f"{where}: {error}") from error
    except Exception as error:  # model code that does something that the tracer does not foresee
        raise WorkloadError(
            f"{where}: the model code of {config['model_type']!r} cannot be traced ({type(error).__name__}: {_summary(error)})"
        ) from error
    notes = list(rec.notes)
    if encoder:
        notes.append("an encoder with its masked-language-model head on all positions; no key/value cache")
    elif phase == "prefill":
        last = logits == "last" and "logits_to_keep" in arguments
        notes.append(f"the LM head computes {'the last position only, as generation does' if last else 'all positions'}")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        notes.append(f"{length} tokens are more than the {positions} positions that the model was built for")
    return _assemble(rec, model, output.logits, name, where, notes, folded)


def _assemble(
    rec: Recorder, model: torch.nn.Module, logits: torch.Tensor, name: str, where: str, notes: list[str], folded: bool
) -> Graph:
    tensors, operators, outputs = rec.recording.finish([rec.use(logits)])
    if not any(op.kind in ("attention", "scan") for op in operators):
        raise WorkloadError(f"{where}: no attention was seen; this architecture does not call the attention interface of transformers")
    read = {n for op in operators for n in op.inputs}
    covered = {n.rpartition(".")[0] for n in read if n.endswith((".k", ".v"))}  # halves of an absorbed projection
    if unused := [path for path, _ in model.named_parameters() if path not in read and path not in covered]:
        notes.append(f"parameters that this phase does not use are not counted: {', '.join(unused)}")
    segments: tuple[Segment, ...] = (Segment("model", 1, tuple(operators)),)
    if folded:
        segments, renamed = fold(operators, tensors)
        outputs = tuple(renamed.get(n, n) for n in outputs)
    used = {n for segment in segments for op in segment.operators for n in (*op.inputs, *op.outputs)}
    return Graph(
        name=name,
        phase=rec.phase.name,
        batch=rec.phase.batch,
        tokens=rec.phase.tokens,
        context=rec.phase.context,
        tensors={n: t for n, t in tensors.items() if n in used},
        segments=segments,
        inputs=("input_ids",),
        outputs=outputs,
        notes=tuple(notes),
    )

"""Where graphs come from: catalogue names, `config.json`, saved traces, single matrix products and user-defined sources.

A model is traced once; the graph is kept on disk under a digest of everything that went into it, so that the next load needs
neither torch nor transformers.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import logging
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from workloads import catalogue, matmul_free
from workloads.errors import WorkloadError, nearest
from workloads.format import parse_format
from workloads.graph import SCHEMA, Graph, Operator, Segment, Tensor

PHASES = ("prefill", "decode")
LOGITS = ("last", "all")
DEFAULT_LENGTH = 2048
"""Tokens of the prompt or context when none is given; less where the model has fewer positions."""

TRACES = Path(__file__).parent / "traces"
"""Traces shipped with the package, so that the default examples need neither torch nor transformers."""

_TRACER_SOURCES = ("tracer/*.py", "record.py", "fold.py", "cost.py")
_LOG = logging.getLogger(__name__)
_GEMM = re.compile(r"gemm:(?P<dims>[^:]*)(?::(?P<format>.*))?$", re.IGNORECASE)

Source = Callable[..., Graph]
_SOURCES: dict[str, Source] = {}


def source(suffix: str) -> Callable[[Source], Source]:
    """Register a reader for files that end in `suffix`: `function(path, **options) -> Graph`.

    Options are `phase`, `batch`, `seq`, `context` and `logits`, None where the user gave none.
    """
    if not suffix.startswith("."):
        raise WorkloadError(f"source {suffix!r}: expected a file suffix with its dot, such as '.onnx'")

    def register(function: Source) -> Source:
        _SOURCES[suffix.lower()] = function
        return function

    return register


def load(
    workload: str,
    *,
    phase: str | None = None,
    batch: int | None = None,
    seq: int | None = None,
    context: int | None = None,
    logits: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Graph:
    """The graph of `workload` for one phase.

    `workload` is a catalogue name, a Hugging Face `config.json` (or its folder), a saved trace (`.json`, `.json.gz`),
    `gemm:MxKxN[:format]`, or a file for which a `source` is registered. `phase` is `prefill` (default; `seq` tokens enter) or
    `decode` (one token enters and attends to `context` tokens, itself included). `logits` is `last` (default) or `all`
    positions of the LM head in prefill. `cache_dir` overrides where traces are kept. `progress` is told what takes time.
    Raises `WorkloadError` with one message for everything a user can get wrong.
    """
    for label, value in (("batch", batch), ("seq", seq), ("context", context)):
        if value is not None and not _is_size(value):
            raise WorkloadError(f"{label}: expected a whole number of at least 1, not {value!r}")
    if phase is not None and phase not in PHASES:
        raise WorkloadError(f"phase: expected one of {', '.join(PHASES)}, not {phase!r}{nearest(phase, PHASES)}")
    if logits is not None and logits not in LOGITS:
        raise WorkloadError(f"logits: expected one of {', '.join(LOGITS)}, not {logits!r}{nearest(logits, LOGITS)}")
    options = {"phase": phase, "batch": batch, "seq": seq, "context": context, "logits": logits}
    if match := _GEMM.match(workload.strip()):
        return _gemm(workload.strip(), match["dims"], match["format"], options)
    path = Path(workload)
    for suffix in sorted(_SOURCES, key=len, reverse=True):
        if workload.lower().endswith(suffix):
            if not path.is_file():
                raise WorkloadError(f"{workload}: no such file")
            return _SOURCES[suffix](path, **options)
    key = workload.strip().lower()
    if key in catalogue.MODELS or key in catalogue.ALIASES or not _looks_like_path(workload, path):
        model = catalogue.describe(workload)
        request = _request(model.name, options, model.positions)
        graph = _model_graph(model.name, model.name, model.hf_config(), request, cache_dir, progress)
        return _published_formats(graph, model)
    return _from_file(workload, path, options, cache_dir, progress)


def save_graph(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write `graph` as JSON, compressed when `path` ends in `.gz`; the file appears complete or not at all.

    The same graph gives the same bytes. Raises `WorkloadError` when the place cannot be written.
    """
    target = Path(path)
    text = json.dumps(graph.to_json(), separators=(",", ":"), ensure_ascii=False) + "\n"
    data = text.encode()
    if target.suffix == ".gz":
        data = gzip.compress(data, compresslevel=9, mtime=0)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise WorkloadError(f"{target}: the trace cannot be written: {error.strerror or error}") from error


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where traces are kept: `cache_dir`, `$DOVETAIL_CACHE`, `$XDG_CACHE_HOME/dovetail` or `~/.cache/dovetail`."""
    if cache_dir is not None:
        return Path(cache_dir)
    if folder := os.environ.get("DOVETAIL_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dovetail"


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


# --- requests ---------------------------------------------------------------------------------------------------------
def _request(where: str, options: Mapping[str, Any], positions: int | None) -> dict[str, Any]:
    """Phase, batch, length and logits with defaults filled in; `positions` is what the model was built for."""
    phase = options["phase"] or "prefill"
    seq, context = options["seq"], options["context"]
    if phase == "decode":
        if seq is not None:
            raise WorkloadError(f"{where}: decode takes one new token per sequence; give `context`={seq} instead of `seq`")
        length = context
    else:
        if context is not None and seq is not None and context != seq:
            raise WorkloadError(f"{where}: prefill attends to the prompt itself: expected `context` equal to `seq`={seq}, not {context}")
        length = seq if seq is not None else context
    if length is None:
        length = min(DEFAULT_LENGTH, positions or DEFAULT_LENGTH)
    return {"phase": phase, "batch": options["batch"] or 1, "length": length, "logits": options["logits"] or "last"}


def _looks_like_path(workload: str, path: Path) -> bool:
    return path.exists() or os.sep in workload or workload.lower().endswith((".json", ".gz"))


# --- single products --------------------------------------------------------------------------------------------------
def _gemm(workload: str, dims: str, format_name: str | None, options: Mapping[str, Any]) -> Graph:
    """One product of [M, K] x [K, N]; activations, weights and output share the format."""
    match = re.fullmatch(r"\s*(-?\d+)\s*[xX]\s*(-?\d+)\s*[xX]\s*(-?\d+)\s*", dims)
    if not match:
        raise WorkloadError(f"workload {workload!r}: expected gemm:MxKxN[:format] with three whole numbers, such as gemm:128x256x64:int8")
    m, k, n = (int(d) for d in match.groups())
    for label, value in (("M", m), ("K", k), ("N", n)):
        if value < 1:
            raise WorkloadError(f"workload {workload!r}: {label} must be at least 1, not {value}")
    if given := [name for name, value in options.items() if value is not None and name != "batch" and name != "logits"]:
        raise WorkloadError(f"workload {workload!r}: a single product has no {' or '.join(given)}; all its sizes are in MxKxN")
    if options["batch"] not in (None, 1):
        raise WorkloadError(f"workload {workload!r}: a single product has no batch; multiply M by it")
    format = parse_format(format_name if format_name else "fp16")
    tensors = (Tensor("a", (m, k), format), Tensor("b", (k, n), format, "weight"), Tensor("c", (m, n), format))
    operator = Operator("gemm", "matmul", ("a", "b"), ("c",), {"batch": 1, "m": m, "n": n, "k": k}, "gemm")
    return Graph(
        name=f"gemm:{m}x{k}x{n}:{format.name}",
        phase="single",
        batch=1,
        tokens=m,
        context=m,
        tensors={t.name: t for t in tensors},
        segments=(Segment("gemm", 1, (operator,)),),
        inputs=("a",),
        outputs=("c",),
    )


# --- files ------------------------------------------------------------------------------------------------------------
def _from_file(
    workload: str, path: Path, options: Mapping[str, Any], cache_dir: str | os.PathLike[str] | None, progress: Callable[[str], None] | None
) -> Graph:
    if path.is_dir():
        path = path / "config.json"
    document = _read_json(path)
    if isinstance(document, dict) and document.get("type") == "graph":
        return _matching(Graph.from_json(document, where=str(path)), str(path), options)
    if not isinstance(document, dict) or "model_type" not in document:
        raise WorkloadError(
            f"{path}: expected a Hugging Face config (a JSON object with `model_type`) or a saved trace (with \"type\": \"graph\")"
        )
    config = {key: value for key, value in document.items() if key not in ("_name_or_path", "torch_dtype", "dtype", "transformers_version")}
    if not isinstance(config["model_type"], str):
        raise WorkloadError(f"{path}: model_type: expected a name such as \"llama\", not {config['model_type']!r}")
    _check_dimensions(path, config)
    positions = next((config[k] for k in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length") if config.get(k)), None)
    request = _request(str(path), options, positions)
    name = path.parent.name if path.name == "config.json" and path.parent.name else path.stem
    return _model_graph(name, str(path), config, request, cache_dir, progress)


def _read_json(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        hint = nearest(str(path), catalogue.MODELS)
        raise WorkloadError(f"{path}: no such file; expected a config.json, its folder or a saved trace{hint}") from None
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return json.loads(data.decode())
    except (OSError, EOFError, zlib.error) as error:
        raise WorkloadError(f"{path}: the compressed file is damaged or cut short ({error})") from error
    except json.JSONDecodeError as error:
        raise WorkloadError(f"{path}:{error.lineno}:{error.colno}: not valid JSON ({error.msg}); is the file cut short?") from error
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path}: not a text file ({error.reason} at byte {error.start})") from error


_DIMENSIONS = frozenset({
    "hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "num_key_value_heads",
    "num_kv_heads", "intermediate_size", "ffn_dim", "vocab_size", "head_dim", "moe_intermediate_size", "num_local_experts",
    "num_experts", "n_routed_experts", "num_experts_per_tok", "kv_lora_rank", "q_lora_rank", "v_head_dim", "state_size",
    "conv_kernel", "max_position_embeddings", "n_positions",
})  # fmt: skip


def _check_dimensions(path: Path, config: Mapping[str, Any]) -> None:
    for key in sorted(_DIMENSIONS & config.keys()):
        value = config[key]
        if value is not None and not _is_size(value):
            raise WorkloadError(f"{path}: {key}: expected a whole number of at least 1, not {value!r}")


def _matching(graph: Graph, where: str, options: Mapping[str, Any]) -> Graph:
    """`graph`, if it is what was asked for."""
    length = options["context"] if options["context"] is not None else options["seq"]
    asked = {"phase": options["phase"], "batch": options["batch"], "context": length}
    for key, value in asked.items():
        found = getattr(graph, key)
        if value is not None and value != found:
            raise WorkloadError(f"{where}: the saved trace has {key} {found!r}, not {value!r}; leave the option out or trace it again")
    return graph


# --- models: shipped traces, the cache on disk, the tracer ------------------------------------------------------------
@lru_cache(maxsize=1)
def _tracer_digest() -> str:
    """Identity of the code that makes traces: a trace made by other code is not used."""
    folder = Path(__file__).parent
    files = sorted(path for pattern in _TRACER_SOURCES for path in folder.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@lru_cache(maxsize=1)
def _library_version() -> str | None:
    """The installed version of transformers, or None when models cannot be traced here."""
    try:
        if importlib.util.find_spec("torch") is None:
            return None
        return metadata.version("transformers")
    except (metadata.PackageNotFoundError, ValueError):
        return None


def shipped_trace(name: str, request: Mapping[str, Any]) -> Path:
    """Where the trace of a catalogue model is shipped, if it is."""
    return TRACES / f"{name}.{request['phase']}.b{request['batch']}.{request['length']}.{request['logits']}.json.gz"


def _model_graph(
    name: str,
    where: str,
    config: dict[str, Any],
    request: dict[str, Any],
    cache_dir: str | os.PathLike[str] | None,
    progress: Callable[[str], None] | None,
) -> Graph:
    if config["model_type"] == matmul_free.MODEL_TYPE:
        return matmul_free.build(config, name=name, where=where, **request)
    is_catalogue = name in catalogue.MODELS and where == name
    if is_catalogue and (shipped := shipped_trace(name, request)).is_file():
        return Graph.from_json(_read_json(shipped), where=str(shipped))
    version = _library_version()
    key = {"name": name, "config": config, **request, "transformers": version, "tracer": _tracer_digest(), "schema": SCHEMA}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    cached = cache_folder(cache_dir) / "traces" / f"{digest}.json.gz"
    if (graph := _cached(cached)) is not None:
        return graph
    if version is None:
        raise WorkloadError(
            f"{where}: tracing needs torch and transformers, and no trace for phase {request['phase']}, batch {request['batch']}, "
            f"length {request['length']} is shipped; install them with: pip install torch transformers"
        )
    if progress is not None:
        progress(f"tracing {name}: loading torch and transformers")
    from workloads import tracer

    if progress is not None:
        progress(f"tracing {name}: {request['phase']}, batch {request['batch']}, length {request['length']}")
    graph = tracer.trace(config, name=name, where=where, **request)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        save_graph(graph, cached)
    except (OSError, WorkloadError) as error:
        _LOG.warning("the trace of %s is not kept: %s", name, error)
    return graph


def _cached(path: Path) -> Graph | None:
    """The graph kept at `path`; None when there is none or it is damaged (it is then written again)."""
    try:
        if not path.is_file():
            return None
        return Graph.from_json(_read_json(path), where=str(path))
    except (WorkloadError, OSError) as error:
        _LOG.warning("a damaged trace is made again: %s", error)
        return None


def _published_formats(graph: Graph, model: catalogue.Model) -> Graph:
    if model.weights is None and model.acts is None:
        return graph
    from workloads.transforms import quantise

    return quantise(graph, weights=model.weights, acts=model.acts)

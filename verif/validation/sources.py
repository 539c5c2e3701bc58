"""Readers of measurements: published sets as their folders are laid out, and our own CSV.

Our own format has the columns `device`, `operator`, `dtype`, one of `latency_s`, `latency_ms` and `latency_us`, and the sizes of
the operators in it; `clock` (kernel unless stated), `copies`, `before` (names joined by `+`) and `host_us` (what the host adds to a call,
or takes to issue a kernel) are optional. A row without a device, but with the name of a `card`, is counted and not predicted.
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from hw.devices import load, names
from hw.errors import nearest
from hw.memory import Cache
from verif.validation.errors import MeasurementError
from verif.validation.measurement import CLOCKS, COLLECTIVES, DTYPES, SHAPES, Measurement

UNITS = {"latency_s": 1.0, "latency_ms": 1e-3, "latency_us": 1e-6}

PLAUSIBLE_S = (1e-7, 1e3)
"""No kernel is launched in less than 100 ns, and none of a single operator takes a quarter of an hour."""

Row = Mapping[str, str]


def read(folder: Path) -> tuple[list[Measurement], dict[str, int]]:
    """Every measurement below `folder` (or in it, if it is a file), and the number of rows that are not predicted, by what they are.

    Raises `MeasurementError` for a folder without any file that is known, and for every mistake in a file.
    """
    found: list[Measurement] = []
    other: dict[str, int] = {}
    seen = False
    if not folder.exists():
        raise MeasurementError(f"--data: {folder}: no such folder")
    files = [folder] if folder.is_file() else folder.rglob("*")
    for path in sorted(p for p in files if p.name.endswith((".csv", ".csv.gz"))):
        reader = _reader(path)
        if reader is None:
            count = sum(1 for _ in _rows(path, ()))
            other[f"{path.name} (no operator of ours)"] = count
            continue
        seen = True
        for item in reader(path):
            if isinstance(item, Measurement):
                found.append(item)
            else:
                other[item] = other.get(item, 0) + 1
    if not seen:
        raise MeasurementError(
            f"--data: {folder}: expected measured CSV files with the columns device, operator, dtype and latency_s, found none"
        )
    return found, other


def _reader(path: Path) -> Callable[[Path], Iterator[Measurement | str]] | None:
    name, header = path.name, set(_header(path))
    if name.startswith("gemm_") and "gemm_dtype" in header:
        return _rotated_gemm
    if name.startswith("attention_") and "num_key_value_heads" in header:
        return _attention
    if name.startswith("moe_") and "moe_dtype" in header:
        return _moe
    if name.startswith("nccl_") and "op_name" in header:
        return _nccl
    if {"collective", "num_workers", "median_ms"} <= header:
        return _collectives
    if {"system", "bytes", "latency_us"} <= header:
        return _host_all_reduce
    if name == "gpt3_layer_tp4.csv":
        return _host_layer
    if name == "linear_and_pointwise_ops.csv":
        return _linear
    if {"rows", "cols", "latency_s"} <= header or {"elements", "gelem_per_s"} <= header:
        return _host_stream
    if {"prompt_time", "token_time", "tensor_parallel"} <= header:
        return _serving_steps
    if {"M", "N", "K", "latency_s"} <= header:
        return _host_matmul
    if len({"device", "operator", "dtype"} & header) >= 2:
        return own
    return None


# Rows and cells ---------------------------------------------------------------------------------------------------------
def _open(path: Path) -> Iterator[str]:
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
                yield from file
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from file
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise MeasurementError(f"{path}: cannot be read ({error})") from None


def _header(path: Path) -> list[str]:
    header = next(csv.reader(_open(path)), None)
    if header is None:
        raise MeasurementError(f"{path}: row 1: expected a header, found an empty file")
    return header


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    """Rows with their place. Raises `MeasurementError` for a missing column and for a row of another length."""
    reader = csv.DictReader(_open(path))
    header = reader.fieldnames or []
    for column in columns:
        if column not in header:
            found = ", ".join(header) or "an empty file"
            raise MeasurementError(f"{path}: row 1: column {column!r} is missing, found {found}{nearest(column, header)}")
    for number, row in enumerate(reader, 2):
        place = f"{path}: row {number}"
        if None in row or None in row.values():
            cells = len(row.get(None) or ()) + sum(row[name] is not None for name in header)
            raise MeasurementError(f"{place}: expected {len(header)} cells, found {cells}")
        yield place, row


def _number(place: str, row: Row, column: str, factor: float = 1.0) -> float:
    try:
        value = float(row[column])
    except ValueError:
        raise MeasurementError(f"{place}: column {column}: expected a number, found {row[column]!r}") from None
    if not math.isfinite(value) or value <= 0:
        raise MeasurementError(f"{place}: column {column}: expected a latency above 0, found {row[column]}")
    if not PLAUSIBLE_S[0] <= value * factor <= PLAUSIBLE_S[1]:
        raise MeasurementError(
            f"{place}: column {column}: {value * factor:.3g} s is no latency of one operator; is the unit right? "
            f"Columns are named {', '.join(UNITS)}"
        )
    return value * factor


def _size(place: str, row: Row, column: str, least: int = 1) -> int:
    try:
        value = int(row[column])
    except ValueError:
        raise MeasurementError(f"{place}: column {column}: expected a whole number, found {row[column]!r}") from None
    if value < least:
        raise MeasurementError(f"{place}: column {column}: expected at least {least}, found {value}")
    return value


def _known(place: str, column: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise MeasurementError(
            f"{place}: column {column}: unknown {column} {value!r}, expected one of {', '.join(known)}{nearest(value, known)}"
        )
    return value


# Our own format -----------------------------------------------------------------------------------------------------------
def own(path: Path) -> Iterator[Measurement | str]:
    """Rows of our own format."""
    header = _header(path)
    units = [column for column in header if column in UNITS]
    latency = [column for column in header if column.startswith("latency")]
    if len(units) != 1:
        what = f"found {', '.join(latency)}" if latency else "found none"
        raise MeasurementError(f"{path}: row 1: expected one latency column with its unit ({', '.join(UNITS)}), {what}")
    devices = tuple(names())
    for place, row in _rows(path, ("device", "operator", "dtype", units[0])):
        operator = _known(place, "operator", row["operator"], tuple(SHAPES))
        shape = {}
        for size in SHAPES[operator]:
            if size not in row:
                raise MeasurementError(f"{place}: column {size!r} is missing, which {operator} needs{nearest(size, header)}")
            shape[size] = _size(place, row, size, 2 if size == "ranks" else 1)
        if operator.startswith("attention"):
            if shape["queries"] > shape["keys"]:
                raise MeasurementError(f"{place}: column queries: expected at most keys = {shape['keys']}, found {shape['queries']}")
            shape |= {"tokens": shape["queries"], "step": shape["keys"] - shape["queries"]}
        clock = _known(place, "clock", row.get("clock") or "kernel", CLOCKS)
        if clock == "request":
            yield f"{path.name}: {operator} by the clock of requests, which depends on the load"
            continue
        if not row["device"] and row.get("card"):
            yield f"{path.name}: {row['card']}, which no device describes"
            continue
        yield Measurement(
            device=_known(place, "device", row["device"], devices),
            operator=operator,
            dtype=_known(place, "dtype", row["dtype"], tuple(DTYPES)),
            shape=shape,
            latency_s=_number(place, row, units[0], UNITS[units[0]]),
            clock=clock,
            copies=_size(place, row, "copies", 0) if row.get("copies") else 1,
            before=tuple(filter(None, (row.get("before") or "").split("+"))),
            host_s=_number(place, row, "host_us", 1e-6) if row.get("host_us") else 0.0,
            place=place,
        )


# Published sets -----------------------------------------------------------------------------------------------------------
_SYSTEMS = {"a100_sxm": "a100-80g", "h100_sxm": "h100-sxm", "h200_sxm": "h200-sxm", "b200_sxm": "b200", "l40s": "l40s", "b60": "b60"}

_GEMM_DTYPES = {"bfloat16": "bf16", "fp8": "fp8", "int8_wo": "w8a16", "int4_wo": "w4a16", "sq": "int8"}
_COPIES_MOST = 5


@lru_cache
def _cache_of(device: str) -> int:
    return next(memory.total for memory in load(device).memories.values() if isinstance(memory, Cache))


def _system(path: Path) -> str:
    for prefix, device in _SYSTEMS.items():
        if f"_{prefix}_" in path.name:
            return device
    raise MeasurementError(f"{path}: the name states no known system, expected one of {', '.join(_SYSTEMS)}")


def _copies(path: Path, device: str, dtype: str, weights: int) -> int:
    """Weights that take turns: the vLLM collector builds six layers, the TensorRT-LLM one five, since 1.1 as many of them
    as fill the L2."""
    if "_vllm" in path.name:
        return 6
    if "trtllm-1.0" in path.name:
        return _COPIES_MOST
    size = weights * {"bf16": 2, "fp8": 1, "w8a16": 1, "int8": 1, "w4a16": 0.5}[dtype]
    return max(1, min(_COPIES_MOST, math.ceil(_cache_of(device) / size)))


def _rotated_gemm(path: Path) -> Iterator[Measurement | str]:
    device = _system(path)
    for place, row in _rows(path, ("gemm_dtype", "m", "n", "k", "latency_ms")):
        dtype = _GEMM_DTYPES[_known(place, "gemm_dtype", row["gemm_dtype"], tuple(_GEMM_DTYPES))]
        shape = {size: _size(place, row, size) for size in "mnk"}
        copies = _copies(path, device, dtype, shape["n"] * shape["k"])
        before: tuple[str, ...] = ("maximum", "empty", "quantise") if dtype == "fp8" else ()
        if "trtllm-1.0" in path.name:  # every call between two events of its own, with the gaps before and after it
            before += ("empty", "empty")
        yield Measurement(device, "gemm", dtype, shape, _number(place, row, "latency_ms", 1e-3), "kernel", copies, before, 0.0, place)


def _attention(path: Path) -> Iterator[Measurement | str]:
    """Calls of a framework's attention layer: new keys and values are written to the cache first, by a kernel of its own in
    vLLM and in the prefill of TensorRT-LLM, which also rearranges the queries there."""
    device = _system(path)
    prefill = path.name.startswith("attention_context")
    columns = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "attn_dtype", "kv_cache_dtype", "latency_ms")
    dtypes = {("bfloat16", "bfloat16"): "bf16", ("bfloat16", "fp8"): "bf16-kv8", ("fp8", "fp8"): "fp8"}
    vllm = "_vllm" in path.name
    for place, row in _rows(path, columns):
        pair = (row["attn_dtype"], row["kv_cache_dtype"])
        if pair not in dtypes:
            yield f"{path.name}: attention in {pair[0]} with a cache in {pair[1]}"
            continue
        heads, tokens, step = _size(place, row, "num_heads"), _size(place, row, "isl"), _size(place, row, "step", 0)
        groups = _size(place, row, "num_key_value_heads", 0) or heads
        queries = tokens if prefill else 1
        shape = {"batch": _size(place, row, "batch_size"), "queries": queries, "keys": tokens + step, "heads": heads, "kv_heads": groups}
        shape |= {"head_dim": _size(place, row, "head_dim"), "tokens": tokens, "step": step}
        operator = "attention-prefill" if prefill else "attention-decode"
        if prefill and not vllm:
            shape["prompt"] = 1  # TensorRT-LLM has kernels of their own for prompts, of one token too
        if vllm and not prefill and heads == groups:
            shape["splits"] = 1  # FlashAttention 2 splits keys only where queries of a group are packed
        if not vllm and not prefill and heads // groups > _XQA_HEADS:
            shape["packed"] = 1
        before = _before_attention(vllm, prefill, dtypes[pair], shape)
        latency = _number(place, row, "latency_ms", 1e-3)
        yield Measurement(device, operator, dtypes[pair], shape, latency, "kernel", 0, before, 0.0, place)


_NCCL = {"all_reduce": "all-reduce", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter", "alltoall": "all-to-all"}
_NCCL_WIDTH = {"half": (2, "fp16"), "int8": (1, "int8")}


def _nccl(path: Path) -> Iterator[Measurement | str]:
    """Collectives of one node; sizes are stated in elements."""
    device = _system(path)
    for place, row in _rows(path, ("op_name", "nccl_dtype", "num_gpus", "message_elems", "latency_ms")):
        operator = _NCCL[_known(place, "op_name", row["op_name"], tuple(_NCCL))]
        width, dtype = _NCCL_WIDTH[_known(place, "nccl_dtype", row["nccl_dtype"], tuple(_NCCL_WIDTH))]
        shape = {"ranks": _size(place, row, "num_gpus"), "bytes": _size(place, row, "message_elems") * width}
        yield Measurement(device, operator, dtype, shape, _number(place, row, "latency_ms", 1e-3), place=place)


_NODES = {"a100_dgx": "a100-80g", "h100_dgx": "h100-sxm"}


def _collectives(path: Path) -> Iterator[Measurement | str]:
    """Collectives within a node with a switch; networks between nodes and pairs of bridged devices are not described by the data."""
    for place, row in _rows(path, ("network", "collective", "num_workers", "devices_per_node", "size", "median_ms")):
        workers, per_node = _size(place, row, "num_workers"), _size(place, row, "devices_per_node")
        if row["network"] not in _NODES or workers > per_node:
            yield f"{path.name}: {row['network']} {'across nodes' if workers > per_node else 'in one node'}"
            continue
        operator = _known(place, "collective", row["collective"].replace("_", "-"), COLLECTIVES)
        shape = {"ranks": workers, "bytes": _size(place, row, "size")}
        yield Measurement(_NODES[row["network"]], operator, "fp16", shape, _number(place, row, "median_ms", 1e-3), place=place, copies=2)


def _host_all_reduce(path: Path) -> Iterator[Measurement | str]:
    for place, row in _rows(path, ("system", "bytes", "latency_us")):
        _known(place, "system", row["system"], ("A100x4_NVLink3",))
        shape = {"ranks": 4, "bytes": _size(place, row, "bytes")}
        yield Measurement("a100-80g", "all-reduce", "fp16", shape, _number(place, row, "latency_us", 1e-6), "host", place=place)


def _moe(path: Path) -> Iterator[Measurement | str]:
    """Calls of a framework's fused mixture-of-experts layer, routing included: tokens are sorted by expert by three small kernels."""
    device = _system(path)
    columns = {"tokens": "num_tokens", "hidden": "hidden_size", "inter": "inter_size", "top_k": "topk", "experts": "num_experts"}
    columns |= {"tp": "moe_tp_size", "ep": "moe_ep_size"}
    for place, row in _rows(path, ("moe_dtype", *columns.values(), "distribution", "latency_ms")):
        dtype = _GEMM_DTYPES[_known(place, "moe_dtype", row["moe_dtype"], tuple(_GEMM_DTYPES))]
        shape = {name: _size(place, row, column) for name, column in columns.items()}
        if shape["experts"] % shape["ep"] or shape["top_k"] > shape["experts"]:
            yield f"{path.name}: experts that cannot be divided"
            continue
        law, _, exponent = row["distribution"].rpartition("_")
        shape["skew"] = round(float(exponent) * 100) if law == "power_law" else 0
        latency = _number(place, row, "latency_ms", 1e-3)
        yield Measurement(device, "moe", dtype, shape, latency, "kernel", 0, ("empty",) * 3, 0.0, place)


_XQA_HEADS = 32
"""Query heads of one key head that TensorRT-LLM's decoding kernels take together; with more of them each head reads its own keys."""


def _before_attention(vllm: bool, prefill: bool, dtype: str, shape: Mapping[str, int]) -> tuple[str, ...]:
    """Kernels of one call beside attention itself. Those of TensorRT-LLM but the writes to the cache are inferred from the latency of
    the smallest calls."""
    if vllm:
        # a group's queries become rows of one product: transposed before and after, which moves nothing for one sequence or one group
        transposed = shape["queries"] == 1 and shape["batch"] > 1 and 1 < shape["kv_heads"] < shape["heads"]
        return ("append", "pack", "pack") if transposed else ("append",)
    if prefill:
        return ("rearrange", "empty", "empty") + (("empty",) if dtype == "bf16-kv8" else ())
    alone = shape["heads"] == shape["kv_heads"] or "packed" in shape  # a head by itself: the kernel without tensor cores
    return ("empty", "overlapped") if dtype == "bf16" and alone else ("overlapped",)


_LINEAR_DEVICES = {"a100": "a100-80g", "h100": "h100-sxm"}


def _linear(path: Path) -> Iterator[Measurement | str]:
    """Layers of Llama-like models in fp16, weights divided over `tp` devices; medians of kernel time."""
    columns = ("device", "n_head", "n_kv_head", "n_embd", "n_expanded_embd", "use_gated_mlp", "num_tokens", "tp")
    for place, row in _rows(path, columns):
        device = _LINEAR_DEVICES[_known(place, "device", row["device"], tuple(_LINEAR_DEVICES))]
        tokens, width, tp = (_size(place, row, c) for c in ("num_tokens", "n_embd", "tp"))
        heads, groups, hidden = (_size(place, row, c) for c in ("n_head", "n_kv_head", "n_expanded_embd"))
        gated = row["use_gated_mlp"].lower() == "true"
        head = width // heads
        qkv = (heads + 2 * groups) * head
        ops: list[tuple[str, str, dict[str, int]]] = [
            ("attn_pre_proj_ms", "gemm", {"m": tokens, "n": qkv // tp, "k": width}),
            ("attn_post_proj_ms", "gemm", {"m": tokens, "n": width, "k": heads * head // tp}),
            ("mlp_up_proj_ms", "gemm", {"m": tokens, "n": hidden * (2 if gated else 1) // tp, "k": width}),
            ("mlp_down_proj_ms", "gemm", {"m": tokens, "n": width, "k": hidden // tp}),
            ("input_layernorm_ms", "rmsnorm", {"rows": tokens, "columns": width}),
            ("post_attention_layernorm_ms", "rmsnorm", {"rows": tokens, "columns": width}),
            ("attn_rope_ms", "rope", {"rows": tokens, "columns": (heads + groups) * head // tp}),
            ("mlp_act_ms", "silu-mul" if gated else "gelu", {"elements": tokens * (hidden // tp), "columns": hidden // tp}),
            ("add_ms", "add", {"elements": tokens * width}),
            ("emb_ms", "embedding", {"rows": tokens, "columns": width}),
        ]
        for column, operator, shape in ops:
            if not row.get(column) or float(row[column]) == 0:
                yield f"{path.name}: {column} not measured"
                continue
            latency = _number(place, row, column, 1e-3)
            copies = 0 if operator in ("gemm", "embedding") else 1  # what the kernel before has written is still in the cache
            yield Measurement(device, operator, "fp16", shape, latency, "kernel", copies, (), 0.0, f"{place} {column}", profiled=True)


_HOST_S = {"gemm": 21e-6, "softmax": 12e-6, "layernorm": 45e-6, "gelu": 45e-6}
"""What the authors of the LLMCompass measurements add per call on their A100 host, by operator (its published configuration)."""


def _host_matmul(path: Path) -> Iterator[Measurement | str]:
    for place, row in _rows(path, ("device", "M", "N", "K", "latency_s")):
        _known(place, "device", row["device"], ("A100",))
        shape = {"m": _size(place, row, "M"), "n": _size(place, row, "N"), "k": _size(place, row, "K")}
        latency = _number(place, row, "latency_s")
        yield Measurement("a100-80g", "gemm", "bf16", shape, latency, "host", 1, (), _HOST_S["gemm"], place)


_LAYER = {"prefill": (2048, 2048), "decode": (1, 3072)}
"""Queries and keys of each sequence in the two phases of the measured GPT-3 layer."""


def _host_layer(path: Path) -> Iterator[Measurement | str]:
    """A layer of GPT-3 175B, operator by operator, on one of four devices: batch 8, width 12288, 24 of 96 heads of 128. Queries, keys
    and values are three calls (inferred from their latency, three times that of one)."""
    width, heads, head, batch, tp = 12288, 24, 128, 8, 4
    for place, row in _rows(path, ("system", "phase", "operator", "latency_s")):
        _known(place, "system", row["system"], ("A100x4_TP4",))
        queries, keys = _LAYER[_known(place, "phase", row["phase"], tuple(_LAYER))]
        tokens = batch * queries
        products = {
            "Q_K_V": ({"m": tokens, "n": width // tp, "k": width}, 3),
            "Q_mul_K": ({"m": queries, "n": keys, "k": head, "batch": batch * heads}, 1),
            "A_mul_V": ({"m": queries, "n": head, "k": keys, "batch": batch * heads}, 1),
            "Wo_proj": ({"m": tokens, "n": width, "k": width // tp}, 1),
            "W1_proj": ({"m": tokens, "n": 4 * width // tp, "k": width}, 1),
            "W2_proj": ({"m": tokens, "n": width, "k": 4 * width // tp}, 1),
        }
        others = {
            "Softmax": ("softmax", {"rows": tokens * heads, "columns": keys}),
            "LayerNorm_MHA": ("layernorm", {"rows": tokens, "columns": width}),
            "LayerNorm_FFN": ("layernorm", {"rows": tokens, "columns": width}),
            "GeLU": ("gelu", {"elements": tokens * 4 * width // tp}),
            "AllReduce_MHA": ("all-reduce", {"ranks": tp, "bytes": 2 * tokens * width}),
            "AllReduce_FFN": ("all-reduce", {"ranks": tp, "bytes": 2 * tokens * width}),
        }
        what = _known(place, "operator", row["operator"], (*products, *others))
        operator, shape = ("gemm", products[what][0]) if what in products else others[what]
        yield Measurement(
            device="a100-80g",
            operator=operator,
            dtype="fp16",
            shape=shape,
            latency_s=_number(place, row, "latency_s"),
            clock="host",
            host_s=_HOST_S.get(operator, 0.0),
            place=place,
            calls=products[what][1] if what in products else 1,
            part_of=f"GPT-3 layer, {row['phase']}",
        )


_SERVED = {
    "llama2-70b": {"layers": 80, "hidden": 8192, "inter": 28672, "heads": 64, "kv_heads": 8, "vocabulary": 32000, "gated": 1},
    "bloom-176b": {"layers": 70, "hidden": 14336, "inter": 57344, "heads": 112, "kv_heads": 112, "vocabulary": 250880, "gated": 0},
}

_SERVERS = {"a100-80gb": "a100-80g", "h100-80gb": "h100-sxm"}

ISSUE_S = {"a100-80g": 46e-6, "h100-sxm": 33e-6}
"""From one kernel's issue to the next in the serving stack of the Splitwise measurements, framework included: fitted on steps of one
token on eight devices, the half of the shapes called fitted."""


def _serving_steps(path: Path) -> Iterator[Measurement | str]:
    """Prompts and later tokens of whole models as a serving stack without graphs runs them: the host issues every kernel. Tokens are
    generated with the prompt and half of the tokens before them."""
    columns = ("model", "hardware", "prompt_size", "batch_size", "token_size", "prompt_time", "token_time", "tensor_parallel")
    for place, row in _rows(path, columns):
        model = _SERVED[_known(place, "model", row["model"], tuple(_SERVED))]
        if row["hardware"] not in _SERVERS:
            yield f"{path.name}: {row['hardware']}, which no device describes"
            continue
        device = _SERVERS[row["hardware"]]
        batch, tokens, made, tp = (_size(place, row, c) for c in ("batch_size", "prompt_size", "token_size", "tensor_parallel"))
        for column, queries, keys in (("prompt_time", tokens, tokens), ("token_time", 1, tokens + made // 2)):
            shape = {**model, "tp": tp, "batch": batch, "queries": queries, "keys": keys}
            latency = _number(place, row, column, 1e-3)
            where = f"{place} {column}"
            yield Measurement(device, "model-step", "fp16", shape, latency, "launch", 1, (), ISSUE_S[device], where)


def _host_stream(path: Path) -> Iterator[Measurement | str]:
    operator = path.name.partition(".")[0]
    if operator not in _HOST_S:
        raise MeasurementError(f"{path}: the name states no operator, expected one of {', '.join(_HOST_S)}.csv")
    sizes = {"rows": "rows", "columns": "cols"} if operator != "gelu" else {"elements": "elements"}
    for place, row in _rows(path, ("device", *sizes.values(), "latency_s")):
        _known(place, "device", row["device"], ("A100",))
        shape = {name: _size(place, row, column) for name, column in sizes.items()}
        latency = _number(place, row, "latency_s")
        yield Measurement("a100-80g", operator, "fp16", shape, latency, "host", 1, (), _HOST_S[operator], place)

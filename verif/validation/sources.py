"""Readers of measurements: published sets as their folders are laid out, and our own CSV.

Our own format has the columns `device`, `operator`, `dtype`, one of `latency_s`, `latency_ms` and `latency_us`, and the sizes of
the operators in it; `clock` (kernel unless stated), `copies`, `before` (names joined by `+`) and `host_us` (what the host adds to a call,
or takes to issue a kernel) are optional, and so is `window` for attention. A row without a device, but with the name of a `card`, is
counted and not predicted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from hw.devices import names
from hw.errors import nearest
from verif.validation import cells
from verif.validation.attention_protocol import attention_protocol
from verif.validation.cells import ENDINGS, UNITS, Row
from verif.validation.errors import MeasurementError
from verif.validation.measurement import CLOCKS, COLLECTIVES, DTYPES, MOST, SHAPES, WINDOW, Measurement
from verif.validation.protocols import FRAMEWORKS, GEMM_DTYPES, Framework, attention_dtype, device_of, framework_of, gemm_protocol
from workloads.format import parse_format


def read(folder: Path) -> tuple[list[Measurement], dict[str, int]]:
    """Every measurement below `folder` (or in it, if it is a file), and the number of rows that are not predicted, by what they are.

    Raises `MeasurementError` for a folder without any file that is known, and for every mistake in a file.
    """
    found: list[Measurement] = []
    other: dict[str, int] = {}
    seen = False
    if not folder.exists():
        raise MeasurementError(f"--data: {folder}: no such folder")
    if not os.access(folder, os.R_OK | (0 if folder.is_file() else os.X_OK)):
        raise MeasurementError(f"--data: {folder}: cannot be read (permission denied)")
    files = [folder] if folder.is_file() else [path for path in folder.rglob("*") if path.is_file()]
    for path in sorted(p for p in files if p.name.endswith(ENDINGS)):
        reader = _reader(path)
        if reader is None:
            count = sum(1 for _ in cells.rows(path))
            other[f"{path.name} (no operator of ours)"] = count
            continue
        seen = True
        for item in reader(path):
            if isinstance(item, Measurement):
                found.append(item)
            else:
                other[item] = other.get(item, 0) + 1
    if not seen:
        unknown = "".join(f"; {path.name} has {', '.join(cells.header(path)[:8])}" for path in files if path.name.endswith(ENDINGS))
        raise MeasurementError(
            f"--data: {folder}: expected measured CSV files with the columns device, operator, dtype and latency_s, found none{unknown}"
        )
    return found, other


def _reader(path: Path) -> Callable[[Path], Iterator[Measurement | str]] | None:
    name, header = path.name, set(cells.header(path))
    if "gemm_dtype" in header:
        return _rotated_gemm
    if {"num_key_value_heads", "attn_dtype"} <= header:
        return _attention
    if {"moe_dtype", "num_experts"} <= header:
        return _moe
    if {"nccl_dtype", "num_gpus"} <= header:
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


# Our own format -----------------------------------------------------------------------------------------------------------
def own(path: Path) -> Iterator[Measurement | str]:
    """Rows of our own format."""
    header = cells.header(path)
    units = [column for column in header if column in UNITS]
    latency = [column for column in header if column.startswith("latency")]
    if len(units) != 1:
        what = f"found {', '.join(latency)}" if latency else "found none"
        raise MeasurementError(f"{path}: row 1: expected one latency column with its unit ({', '.join(UNITS)}), {what}")
    devices = tuple(names())
    for place, row in cells.rows(path, ("device", "operator", "dtype", units[0])):
        operator = cells.known(place, "operator", row["operator"], tuple(SHAPES))
        shape = {}
        for size in SHAPES[operator]:
            if size not in row:
                raise MeasurementError(f"{place}: column {size!r} is missing, which {operator} needs{nearest(size, header)}")
            shape[size] = cells.size(place, row, size, 2 if size == "ranks" else 1, MOST.get(size, cells.LARGEST))
        _check(place, operator, shape)
        if operator.startswith("attention"):
            shape |= {"tokens": shape["queries"], "step": shape["keys"] - shape["queries"]}
            if row.get(WINDOW) and (window := cells.size(place, row, WINDOW, 0)):
                shape[WINDOW] = window
        clock = cells.known(place, "clock", row.get("clock") or "kernel", CLOCKS)
        if clock == "request":
            yield f"{path.name}: {operator} by the clock of requests, which depends on the load"
            continue
        if not row["device"] and row.get("card"):
            yield f"{path.name}: {row['card']}, which no device describes"
            continue
        yield Measurement(
            device=cells.known(place, "device", row["device"], devices),
            operator=operator,
            dtype=cells.known(place, "dtype", row["dtype"], tuple(DTYPES)),
            shape=shape,
            latency_s=cells.seconds(place, row, units[0], UNITS[units[0]]),
            clock=clock,
            copies=cells.size(place, row, "copies", 0) if row.get("copies") else 1,
            before=tuple(filter(None, (row.get("before") or "").split("+"))),
            host_s=cells.seconds(place, row, "host_us", 1e-6) if row.get("host_us") else 0.0,
            place=place,
        )


_AT_MOST = (("queries", "keys"), ("top_k", "columns"), ("top_k", "experts"))
_DIVIDES = (("kv_heads", "heads"), ("heads", "hidden"), ("ep", "experts"), ("tp", "heads"), ("tp", "inter"))


def _check(place: str, operator: str, shape: Mapping[str, int]) -> None:
    """Raises `MeasurementError` for sizes that do not go together."""
    for small, large in _AT_MOST:
        if small in shape and large in shape and shape[small] > shape[large]:
            raise MeasurementError(f"{place}: column {small}: expected at most {large} = {shape[large]}, found {shape[small]}")
    for part, whole in _DIVIDES:
        if part in shape and whole in shape and shape[whole] % shape[part]:
            raise MeasurementError(f"{place}: column {part}: {operator} needs a divisor of {whole} = {shape[whole]}, found {shape[part]}")


# Published sets -----------------------------------------------------------------------------------------------------------
def _stated(path: Path) -> tuple[str, Framework]:
    """The system and the framework in a file's name, `<operator>_<system>_<framework>-<version>`, or in those of its folders,
    `<system>/.../<framework>/<version>`; empty where there are none."""
    words = _OPERATOR.sub("", path.name.partition(".csv")[0].removesuffix(".parquet")).split("_")
    for length in range(len(words), 0, -1):
        if device_of("_".join(words[:length])):
            return "_".join(words[:length]), framework_of("-".join(words[length:]))
    if words != ["perf"] and any(words):
        cut = -1 if len(words) > 1 and (words[-1].partition("-")[0] in FRAMEWORKS or words[-1][0].isdigit()) else len(words)
        return "_".join(words[:cut]), framework_of("-".join(words[cut:]))
    folders = [parent.name for parent in path.parents]
    framework = next((f"{name}-{version}" for version, name in pairwise(folders) if name in FRAMEWORKS), "")
    return next((name for name in folders if device_of(name)), ""), framework_of(framework)


_OPERATOR = re.compile(r"^(gemm|moe|nccl|attention_(context|generation)|(context|generation)_attention)(_|$)")


def _origin(path: Path, row: Row, stated: tuple[str, Framework]) -> tuple[str, Framework] | str:
    """Device and framework of a row, by its columns `system` or `device`, `framework` and `version`, else as `stated`; or why it is
    not predicted."""
    system = row.get("system") or row.get("device") or stated[0]
    if not system:
        raise MeasurementError(f"{path}: states no system: neither its name nor a column system or device does")
    device = device_of(system)
    if device is None:
        return f"{path.name}: {system}, which no device describes"
    framework = framework_of(f"{row['framework']}-{row.get('version', '')}") if row.get("framework") else stated[1]
    return device, framework


def _published(path: Path, columns: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, dict[str, str], str, Framework] | str]:
    """Rows with their place, device and framework, by the first name of every column; `latency_s` in seconds is among them. Where a
    latency has no unit it is in milliseconds, as the set's collectors write it."""
    names = cells.header(path)
    latency = [name for name in UNITS if name in names] or [name for name in ("latency",) if name in names]
    if len(latency) != 1:
        raise MeasurementError(f"{path}: row 1: expected one latency column ({', '.join(UNITS)}), found {', '.join(latency) or 'none'}")
    used = {known[0]: next((name for name in known if name in names), known[0]) for known in columns}
    stated = _stated(path)
    for place, row in cells.rows(path, used.values()):
        origin = _origin(path, row, stated)
        if isinstance(origin, str):
            yield origin
            continue
        seconds = cells.seconds(place, row, latency[0], UNITS.get(latency[0], 1e-3))
        named = {first: row[name] for first, name in used.items()}
        yield place, {**row, **named, "latency_s": str(seconds)}, *origin


def _rotated_gemm(path: Path) -> Iterator[Measurement | str]:
    for found in _published(path, (("gemm_dtype",), ("m",), ("n",), ("k",))):
        if isinstance(found, str):
            yield found
            continue
        place, row, device, framework = found
        shape = {name: cells.size(place, row, name) for name in "mnk"}
        protocol = gemm_protocol(framework, device, row["gemm_dtype"], shape)
        if isinstance(protocol, str):
            yield f"{path.name}: {protocol}"
            continue
        dtype, copies, before = protocol
        yield Measurement(device, "gemm", dtype, shape, float(row["latency_s"]), "kernel", copies, before, 0.0, place)


_ATTENTION = (("batch_size", "batch"), ("isl", "seq_len"), ("num_heads",), ("num_key_value_heads",), ("head_dim",))


def _attention(path: Path) -> Iterator[Measurement | str]:
    """Calls of a framework's attention layer, with the kernels that run around it."""
    for found in _published(path, (*_ATTENTION, ("attn_dtype",), ("kv_cache_dtype",))):
        if isinstance(found, str):
            yield found
            continue
        place, row, device, framework = found
        phase = row.get("op_name") or path.name
        if "context" not in phase and "generation" not in phase:
            raise MeasurementError(f"{place}: expected context or generation in the file's name or in a column op_name")
        prefill = "context" in phase
        dtype = attention_dtype(framework, row["attn_dtype"], row["kv_cache_dtype"])
        if dtype is None:
            yield f"{path.name}: attention in {row['attn_dtype']} with a cache in {row['kv_cache_dtype']}"
            continue
        heads, tokens = cells.size(place, row, "num_heads"), cells.size(place, row, "isl", most=MOST["queries"])
        step = cells.size(place, row, "step", 0) if row.get("step") else 0
        groups = cells.size(place, row, "num_key_value_heads", 0) or heads
        if heads % groups or row.get("beam_width", "1") not in ("", "1"):
            yield f"{path.name}: {'several beams' if not heads % groups else 'heads that share no whole number of keys'}"
            continue
        vllm = framework.name in ("vllm", "sglang")
        queries = tokens if prefill else 1
        shape = {
            "batch": cells.size(place, row, "batch_size"),
            "queries": queries,
            "keys": tokens + step,
            "heads": heads,
            "kv_heads": groups,
        }
        shape |= {"head_dim": cells.size(place, row, "head_dim"), "tokens": tokens, "step": step}
        if (window := cells.size(place, row, "window_size", -1) if row.get("window_size") else 0) > 0:
            shape[WINDOW] = window
        operator = "attention-prefill" if prefill else "attention-decode"
        added, before = attention_protocol(device, dtype, shape, vllm=vllm, prefill=prefill)
        shape |= added
        yield Measurement(device, operator, dtype, shape, float(row["latency_s"]), "kernel", 0, before, 0.0, place)


_NCCL = {"all_reduce": "all-reduce", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter", "alltoall": "all-to-all"}
_NCCL_WIDTH = {"half": (2, "fp16"), "float16": (2, "fp16"), "bfloat16": (2, "bf16"), "int8": (1, "int8"), "fp8": (1, "fp8")}


def _nccl(path: Path) -> Iterator[Measurement | str]:
    """Collectives of one node; sizes are stated in elements."""
    for found in _published(path, (("op_name",), ("nccl_dtype",), ("num_gpus",), ("message_elems", "message_size"))):
        if isinstance(found, str):
            yield found
            continue
        place, row, device, _ = found
        operator, format_ = _NCCL.get(row["op_name"]), _NCCL_WIDTH.get(row["nccl_dtype"])
        if operator is None or format_ is None:
            yield f"{path.name}: {row['op_name']} of {row['nccl_dtype']}, which is not described"
            continue
        shape = {"ranks": cells.size(place, row, "num_gpus", 2), "bytes": cells.size(place, row, "message_elems") * format_[0]}
        yield Measurement(device, operator, format_[1], shape, float(row["latency_s"]), place=place)


_NODES = {"a100_dgx": "a100-80g", "h100_dgx": "h100-sxm"}


def _collectives(path: Path) -> Iterator[Measurement | str]:
    """Collectives within a node with a switch; networks between nodes and pairs of bridged devices are not described by the data."""
    for place, row in cells.rows(path, ("network", "collective", "num_workers", "devices_per_node", "size", "median_ms")):
        workers, per_node = cells.size(place, row, "num_workers"), cells.size(place, row, "devices_per_node")
        if row["network"] not in _NODES or workers > per_node:
            yield f"{path.name}: {row['network']} {'across nodes' if workers > per_node else 'in one node'}"
            continue
        operator = row["collective"].replace("_", "-")
        if operator not in COLLECTIVES:
            yield f"{path.name}: {operator}, which is not described"
            continue
        shape = {"ranks": workers, "bytes": cells.size(place, row, "size")}
        yield Measurement(
            _NODES[row["network"]], operator, "fp16", shape, cells.seconds(place, row, "median_ms", 1e-3), place=place, copies=2
        )


def _host_all_reduce(path: Path) -> Iterator[Measurement | str]:
    for place, row in cells.rows(path, ("system", "bytes", "latency_us")):
        if row["system"] != "A100x4_NVLink3":
            yield f"{path.name}: {row['system']}, which is not described"
            continue
        shape = {"ranks": 4, "bytes": cells.size(place, row, "bytes")}
        yield Measurement("a100-80g", "all-reduce", "fp16", shape, cells.seconds(place, row, "latency_us", 1e-6), "host", place=place)


def _moe(path: Path) -> Iterator[Measurement | str]:
    """Calls of a framework's fused mixture-of-experts layer, routing included: tokens are sorted by expert by three small kernels.
    Activations of fewer than 16 bits are quantised before by one kernel, and again by the one that activates them."""
    columns = {"tokens": "num_tokens", "hidden": "hidden_size", "inter": "inter_size", "top_k": "topk", "experts": "num_experts"}
    columns |= {"tp": "moe_tp_size", "ep": "moe_ep_size"}
    for found in _published(path, (("moe_dtype",), *((column,) for column in columns.values()), ("distribution",))):
        if isinstance(found, str):
            yield found
            continue
        place, row, device, _ = found
        shape = {name: cells.size(place, row, column, most=MOST.get(name, cells.LARGEST)) for name, column in columns.items()}
        if shape["experts"] % shape["ep"] or shape["top_k"] > shape["experts"]:
            yield f"{path.name}: experts that cannot be divided"
            continue
        dtype = GEMM_DTYPES.get(row["moe_dtype"])
        skew = _skew(row["distribution"])
        if dtype is None or skew is None:
            what = f"experts in {row['moe_dtype']}" if dtype is None else f"routing by {row['distribution']}"
            yield f"{path.name}: {what}, which is not described"
            continue
        shape["skew"] = skew
        quantised = parse_format(DTYPES[dtype][0]).element_bits < 16
        before = ("empty",) * 3 + (("quantise",) if quantised else ())
        yield Measurement(device, "moe", dtype, shape, float(row["latency_s"]), "kernel", 0, before, 0.0, place)


def _skew(distribution: str) -> int | None:
    """Hundredths of the exponent of a power law of experts' popularity; 0 for equal ones, None for what is not known."""
    law, _, exponent = distribution.rpartition("_")
    if law != "power_law":
        return 0 if distribution in ("", "balanced", "uniform") else None
    try:
        return max(0, round(float(exponent) * 100))
    except (ValueError, OverflowError):
        return None


_LINEAR_DEVICES = {"a100": "a100-80g", "h100": "h100-sxm"}


def _linear(path: Path) -> Iterator[Measurement | str]:
    """Layers of Llama-like models in fp16, weights divided over `tp` devices; medians of kernel time."""
    columns = ("device", "n_head", "n_kv_head", "n_embd", "n_expanded_embd", "use_gated_mlp", "num_tokens", "tp")
    for place, row in cells.rows(path, columns):
        device = _LINEAR_DEVICES.get(row["device"], "")
        if not device:
            yield f"{path.name}: {row['device']}, which no device describes"
            continue
        tokens, width, tp = (cells.size(place, row, c) for c in ("num_tokens", "n_embd", "tp"))
        heads, groups, hidden = (cells.size(place, row, c) for c in ("n_head", "n_kv_head", "n_expanded_embd"))
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
            if not (row.get(column) or "").strip("0."):  # empty, or zero
                yield f"{path.name}: {column} not measured"
                continue
            latency = cells.seconds(place, row, column, 1e-3)
            copies = 0 if operator in ("gemm", "embedding") else 1  # what the kernel before has written is still in the cache
            yield Measurement(device, operator, "fp16", shape, latency, "kernel", copies, (), 0.0, f"{place} {column}", profiled=True)


_HOST_S = {"gemm": 21e-6, "softmax": 12e-6, "layernorm": 45e-6, "gelu": 45e-6}
"""What the authors of the LLMCompass measurements add per call on their A100 host, by operator (its published configuration)."""


def _host_matmul(path: Path) -> Iterator[Measurement | str]:
    for place, row in cells.rows(path, ("device", "M", "N", "K", "latency_s")):
        if row["device"] != "A100":
            yield f"{path.name}: {row['device']}, of whose host nothing is known"
            continue
        shape = {"m": cells.size(place, row, "M"), "n": cells.size(place, row, "N"), "k": cells.size(place, row, "K")}
        latency = cells.seconds(place, row, "latency_s")
        yield Measurement("a100-80g", "gemm", "bf16", shape, latency, "host", 1, (), _HOST_S["gemm"], place)


_LAYER = {"prefill": (2048, 2048), "decode": (1, 3072)}
"""Queries and keys of each sequence in the two phases of the measured GPT-3 layer."""


def _host_layer(path: Path) -> Iterator[Measurement | str]:
    """A layer of GPT-3 175B, operator by operator, on one of four devices: batch 8, width 12288, 24 of 96 heads of 128. Queries, keys
    and values are three calls (inferred from their latency, three times that of one)."""
    width, heads, head, batch, tp = 12288, 24, 128, 8, 4
    for place, row in cells.rows(path, ("system", "phase", "operator", "latency_s")):
        if row["system"] != "A100x4_TP4":
            yield f"{path.name}: {row['system']}, which is not described"
            continue
        queries, keys = _LAYER[cells.known(place, "phase", row["phase"], tuple(_LAYER))]
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
        what = cells.known(place, "operator", row["operator"], (*products, *others))
        operator, shape = ("gemm", products[what][0]) if what in products else others[what]
        yield Measurement(
            device="a100-80g",
            operator=operator,
            dtype="fp16",
            shape=shape,
            latency_s=cells.seconds(place, row, "latency_s"),
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
    for place, row in cells.rows(path, columns):
        model = _SERVED.get(row["model"])
        if model is None or row["hardware"] not in _SERVERS:
            yield f"{path.name}: {row['hardware'] if model else row['model']}, which no {'device' if model else 'model here'} describes"
            continue
        device = _SERVERS[row["hardware"]]
        batch, tokens, made, tp = (cells.size(place, row, c) for c in ("batch_size", "prompt_size", "token_size", "tensor_parallel"))
        for column, queries, keys in (("prompt_time", tokens, tokens), ("token_time", 1, tokens + made // 2)):
            shape = {**model, "tp": tp, "batch": batch, "queries": queries, "keys": keys}
            latency = cells.seconds(place, row, column, 1e-3)
            where = f"{place} {column}"
            yield Measurement(device, "model-step", "fp16", shape, latency, "launch", 1, (), ISSUE_S[device], where)


def _host_stream(path: Path) -> Iterator[Measurement | str]:
    operator = path.name.partition(".")[0]
    if operator not in _HOST_S:
        raise MeasurementError(f"{path}: the name states no operator, expected one of {', '.join(_HOST_S)}.csv")
    sizes = {"rows": "rows", "columns": "cols"} if operator != "gelu" else {"elements": "elements"}
    for place, row in cells.rows(path, ("device", *sizes.values(), "latency_s")):
        if row["device"] != "A100":
            yield f"{path.name}: {row['device']}, of whose host nothing is known"
            continue
        shape = {name: cells.size(place, row, column) for name, column in sizes.items()}
        latency = cells.seconds(place, row, "latency_s")
        yield Measurement("a100-80g", operator, "fp16", shape, latency, "host", 1, (), _HOST_S[operator], place)

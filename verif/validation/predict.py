"""A measurement's prediction: the same kernels, under the protocol of the measurement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property, lru_cache

from hw.collectives import Fabric, fabric_of
from hw.device import Device
from hw.errors import nearest
from hw.work import sides
from mapper.compile import choose_space
from mapper.errors import MappingError
from mapper.kernels import fuse
from mapper.residency import NOTHING, Found
from mapper.search import search
from mapper.target import Target
from verif.validation import moe
from verif.validation.clocks import launched
from verif.validation.errors import MeasurementError
from verif.validation.layer import Part, eager, fused
from verif.validation.measurement import COLLECTIVES, DTYPES, PRODUCTS, WINDOW, Measurement
from workloads.format import Format, parse_format
from workloads.graph import Graph, Operator, Segment, Tensor

FS = 1e-15

GAP_S = 1.25e-6
"""Part of a launch that lies between the end of one kernel and the start of the next: a profiler leaves it out, and a host that
waits for each call has its own time instead. Inferred: the least kernels of profiled sets take 1 to 2 us, of graph replays 2.7 to 2.9."""

BEFORE = ("append", "rearrange", "pack", "maximum", "quantise", "empty", "overlapped", "early")
"""Small kernels that a framework may run before the one of interest: `append` writes new keys and values to the cache, `rearrange`
moves queries, keys and values, `pack` copies queries or results into another order; `empty` is a launch that moves nothing,
`overlapped` one of which the gap before it is hidden (programmatic dependent launch); `early` is none, but says so of the kernel of
interest itself."""


_LEFT = (("m", "tokens", "rows"), ("k", "hidden"))
_HEADS = (("batch",), ("queries",), ("heads",), ("kv_heads",), ("head_dim",))
_NEEDED = {"maximum": _LEFT, "quantise": _LEFT, "append": _HEADS, "rearrange": _HEADS, "pack": _HEADS}
"""Sizes that each of them is stated by, under one of the names of each."""

_BEFORE_SIZES = (*dict.fromkeys(name for sizes in _NEEDED.values() for size in sizes for name in size), "aliased")


LEFT_OUT_S = 0.82e-6
"""Part of a launch that lies outside of what a profiler states. Fitted on the smallest additions of an A100 and an H100 (microsoft/vidur),
the half of the shapes called fitted."""

STATED_S = 1e-6
"""What a profiler's durations are whole multiples of: less than one is dropped (PyTorch's before 2.4: Kineto divides nanoseconds by 1000
as integers). `GAP_S` was inferred from such durations, and holds about half of one more than lies between two kernels."""


def stated(seconds: float) -> float:
    """What a profiler states for a kernel that takes so many seconds with its launch.

    >>> stated(2.3e-6), stated(2.9e-6), stated(0.9e-6)
    (1e-06, 2e-06, 1e-06)
    """
    return max(1, int((seconds - LEFT_OUT_S) / STATED_S)) * STATED_S


class Predictor:
    """Kernel times on one device, each shape predicted once. With a `lender` its links take the constants of that device's."""

    def __init__(self, device: Device, lender: str = "") -> None:
        self.target = Target(device)
        self.lender = lender
        self._known: dict[tuple[object, ...], list[float]] = {}
        self._small: dict[tuple[object, ...], float] = {}
        self._fabrics: dict[str, Fabric] = {}

    def seconds(self, measurement: Measurement) -> float:
        """Predicted latency by the measurement's clock. Raises `MappingError` for what the device cannot execute."""
        kernels = self.kernels(measurement)
        match measurement.clock:
            case "launch" if measurement.operator == "model-step":
                return launched(kernels, measurement.host_s).total_s
            case "launch":  # calls in a row: the queue is as long as it gets
                return max(sum(kernels), len(kernels) * measurement.host_s) * measurement.calls
            case "host" if measurement.operator in COLLECTIVES:
                return sum(kernels)
            case "host":
                return (sum(kernels) - GAP_S + measurement.host_s) * measurement.calls
        if measurement.profiled and measurement.operator not in COLLECTIVES:
            return stated(sum(kernels)) * measurement.calls
        return sum(kernels) * measurement.calls

    def kernels(self, measurement: Measurement) -> list[float]:
        """Seconds of each kernel of one call, in order."""
        if measurement.operator in COLLECTIVES:
            return [self._fabric(measurement.device).seconds(measurement.operator, measurement.shape["ranks"], measurement.shape["bytes"])]
        if measurement.operator == "llama-layer":
            return self._parts(measurement, eager(measurement.shape))
        if measurement.operator == "model-step":
            return self._step(measurement)
        shape = tuple(sorted(measurement.shape.items()))
        key = (measurement.operator, measurement.dtype, shape, measurement.copies, measurement.before, measurement.profiled)
        if key not in self._known:
            self._check_rate(measurement)
            found = [self._before(name, measurement) for name in measurement.before if name != "early"]
            found += [self._kernel(graph, measurement) for graph in _graphs(measurement, self._rates)]
            found[-1] -= GAP_S * sum(name in ("overlapped", "early") for name in measurement.before)
            self._known[key] = found
        return self._known[key]

    @cached_property
    def _rates(self) -> frozenset[str]:
        """Formats of left operands that some unit multiplies as they are."""
        device = self.target.device
        return frozenset(sides(name)[0] for unit in device.units_for("gemm") for name in device.units[unit].formats())

    def _check_rate(self, measurement: Measurement) -> None:
        """Raises `MappingError` for activations of fewer than 16 bits that no unit multiplies as they are: nobody would quantise them
        only to convert them back."""
        acts = DTYPES[measurement.dtype][0]
        if measurement.operator in PRODUCTS and _format(acts).element_bits < 16 and acts not in self._rates:
            rates = ", ".join(sorted(self._rates)) or "none"
            raise MappingError(f"no rate for products of activations in {acts}, only in {rates}")

    def _fabric(self, device: str) -> Fabric:
        if device not in self._fabrics:
            own = fabric_of(device)
            self._fabrics[device] = replace(fabric_of(self.lender), link=own.link) if self.lender else own
        return self._fabrics[device]

    def _before(self, name: str, measurement: Measurement) -> float:
        """Seconds of a small kernel before the one of interest: the same for all with the same left operand, keys and values."""
        used = tuple(measurement.shape.get(size, 0) for size in _BEFORE_SIZES)
        key = (name, measurement.dtype, measurement.copies, measurement.profiled, *used)
        if key not in self._small:
            self._small[key] = self._kernel(_before(name, measurement), measurement)
        return self._small[key]

    def _step(self, measurement: Measurement) -> list[float]:
        """The embedding, all layers, the last norm and the scores of the last position of each sequence."""
        s = measurement.shape
        rows = s["batch"] * s["queries"]
        ends: list[list[Part]] = [
            [("embedding", {"rows": rows, "columns": s["hidden"]}, 0)],
            [
                ("rmsnorm", {"rows": rows, "columns": s["hidden"]}, 1),
                ("gemm", {"m": s["batch"], "n": -(-s["vocabulary"] // s["tp"]), "k": s["hidden"]}, 0),
            ],
        ]
        first, last = (self._parts(measurement, part) for part in ends)
        return [*first, *self._parts(measurement, fused(s)) * s["layers"], *last]

    def _parts(self, whole: Measurement, parts: Iterable[Part]) -> list[float]:
        found: list[float] = []
        for operator, shape, copies in parts:
            if operator.startswith("attention"):
                shape = shape | {"tokens": shape["queries"], "step": shape["keys"] - shape["queries"]}
            part = Measurement(whole.device, operator, whole.dtype, shape, whole.latency_s, copies=copies)
            found += self.kernels(part)
        return found

    def _kernel(self, graph: Graph, measurement: Measurement) -> float:
        ((_, (kernel,)),) = fuse(graph)
        resident = NOTHING
        if measurement.copies and self.target.cache is not None:
            # weights take turns, everything else is used by every call
            cache = self.target.cache[1]
            sizes = {o.tensor: int(o.size) for o in (*kernel.reads, *kernel.writes)}
            weights = {o.tensor for o in kernel.reads if o.role == "weight"}
            once = sum(sizes.values())
            turns = sum(sizes[name] for name in weights) * (measurement.copies - 1)
            shares = {o.tensor: cache.found(once + (turns if o.tensor in weights else 0)) for o in (*kernel.reads, *kernel.writes)}
            if measurement.profiled:  # until this kernel ends; what it wrote last leaves the cache while later ones run
                shares |= {o.tensor: max(shares[o.tensor], cache.kept(once)) for o in kernel.writes}
            resident = Found(shares)
        space, _ = choose_space(self.target, kernel, resident)
        return search(space, kernel.name).plan.latency_fs * FS


def _graphs(measurement: Measurement, rates: frozenset[str]) -> list[Graph]:
    if measurement.operator == "moe":
        return moe.kernels(measurement.shape, *DTYPES[measurement.dtype])
    return [_graph(measurement, rates)]


def _graph(measurement: Measurement, rates: frozenset[str]) -> Graph:
    acts, weights, result = DTYPES[measurement.dtype]
    s = measurement.shape
    tensors: tuple[tuple[str, tuple[int, ...], str, str], ...]
    match measurement.operator:
        case "gemm" if s.get("batch", 1) > 1:
            tensors = tuple(
                (name, (s["batch"], s[a], s[b]), fmt, "")
                for name, a, b, fmt in (("x", "m", "k", acts), ("w", "k", "n", weights), ("y", "m", "n", result))
            )
            return single("matmul", {name: s[name] for name in ("batch", "m", "n", "k")}, tensors)
        case "gemm":
            tensors = (("x", (s["m"], s["k"]), acts, ""), ("w", (s["k"], s["n"]), weights, "weight"), ("y", (s["m"], s["n"]), result, ""))
            return single("matmul", {"batch": 1, "m": s["m"], "n": s["n"], "k": s["k"]}, tensors)
        case "grouped-gemm":
            experts, used = s["experts"], min(s["experts"], s["rows"])
            tensors = (
                ("x", (s["rows"], s["k"]), acts, ""),
                ("w", (experts, s["k"], s["n"]), weights, "weight"),
                ("y", (s["rows"], s["n"]), result, ""),
            )
            routed = {"rows": s["rows"], "experts": experts, "top_k": 1, "active": used, "n": s["n"], "k": s["k"]}
            return single("grouped_matmul", routed, tensors)
        case "attention-prefill" | "attention-decode":
            rows, keys = (s["batch"], s["heads"], s["queries"], s["head_dim"]), (s["batch"], s["kv_heads"], s["keys"], s["head_dim"])
            narrow = measurement.operator == "attention-prefill" and weights in rates
            computed = weights if acts == weights or narrow else acts
            tensors = (
                ("q", rows, computed, ""),
                ("k", keys, weights, "kv_cache"),
                ("v", keys, weights, "kv_cache"),
                ("o", rows, result, ""),
            )
            names = ("batch", "heads", "kv_heads", "queries", "keys", "head_dim", "splits", "packed", "prompt", "aliased")
            attributes = {name: s[name] for name in names if name in s}
            return single("attention", {**attributes, "value_dim": s["head_dim"], "causal": 1, "window": s.get(WINDOW, 0)}, tensors)
        case "softmax":
            return _rows("softmax", s, acts, 0)
        case "top-k":
            tensors = (("x", (s["rows"], s["columns"]), acts, ""), ("y", (s["rows"], s["top_k"]), acts, ""))
            return single("topk", {"rows": s["rows"], "width": s["columns"], "k": s["top_k"]}, tensors)
        case "layernorm" | "rmsnorm":
            return _rows("norm", s, acts, s["columns"], measurement.operator)
        case "embedding":
            tensors = (("table", (s["rows"], s["columns"]), acts, "weight"), ("y", (s["rows"], s["columns"]), acts, ""))
            return single("embedding", {"rows": s["rows"], "width": s["columns"]}, tensors)
        case "rope":
            return stream(s["rows"] * s["columns"], 1, 3, 0, acts, function="rope", width=s["columns"])
        case "gelu":
            return stream(s["elements"], 1, 8, 1, acts)
        case "copy":
            return stream(s["elements"], 1, 0, 0, acts)
        case "empty":
            return stream(1, 2, 1, 0, acts)
        case "silu-mul":
            return stream(s["elements"], 2, 3, 1, acts, function="silu-mul", width=s.get("columns", 0))
        case _:
            return stream(s["elements"], 2, 1, 0, acts)


def _before(name: str, measurement: Measurement) -> Graph:
    """Small kernels that a framework runs before the one of interest; they depend on `_BEFORE_SIZES` alone."""
    s = measurement.shape
    acts, weights, _ = DTYPES[measurement.dtype]
    missing = [size for size in _NEEDED.get(name, ()) if not any(known in s for known in size)]
    if missing:
        raise MeasurementError(f"{measurement.place}: column before: {name!r} does not go before {measurement.operator}")
    if name in ("maximum", "quantise"):
        rows, width = (s[next(known for known in size if known in s)] for size in _NEEDED[name])
        if name == "maximum":
            return single(
                "reduce", {"elements": rows * width, "operations": 1}, [("x", (rows * width,), "bf16", ""), ("y", (1,), "fp32", "")]
            )
        return stream(rows * width, 1, 2, 0, "bf16", acts, function="quantise", width=width)
    if name in ("append", "rearrange"):
        return _cache_write(name, s, weights)
    if name == "pack":
        return stream(s["batch"] * s["queries"] * s["heads"] * s["head_dim"], 1, 0, 0, "bf16")
    if name in ("empty", "overlapped"):
        return stream(1, 1, 1, 0, "bf16")
    raise MeasurementError(
        f"{measurement.place}: column before: unknown kernel {name!r}, expected one of {', '.join(BEFORE)}{nearest(name, BEFORE)}"
    )


COUNTED_KEYS = 1024
"""Elements of a token's keys and values that the threads of vLLM's kernel are counted by: one thread for two of them, at most 512."""


def _cache_write(name: str, s: Mapping[str, int], cached: str) -> Graph:
    """New keys and values on their way to the cache, and with them the queries in `rearrange`: a thread block per token whose threads
    find their places with long divisions, however little each of them moves."""
    tokens, width = s["batch"] * s["queries"], 2 * s["kv_heads"] * s["head_dim"]
    queries = s["heads"] * s["head_dim"] if name == "rearrange" else 0
    kept = width // 2 if s.get("aliased") else width
    tensors = [("x", (tokens, width + queries), "bf16", ""), ("y", (tokens, kept + queries), "bf16" if queries else cached, "")]
    counts = {"elements": tokens * (width + queries), "width": width + queries, "counted": queries or min(width, COUNTED_KEYS)}
    return single("elementwise", {**counts, "operations": 0, "specials": 0}, tensors, name)


def single(kind: str, attributes: dict[str, int], tensors: Iterable[tuple[str, tuple[int, ...], str, str]], function: str = "") -> Graph:
    """A graph of one operator; the last tensor is its output."""
    made = [Tensor(name, shape, _format(fmt), role or "activation") for name, shape, fmt, role in tensors]
    inputs = tuple(t.name for t in made[:-1])
    operator = Operator(kind, kind, inputs, (made[-1].name,), attributes, function=function)
    entering = tuple(t.name for t in made[:-1] if t.role == "activation")
    context = attributes.get("keys", 1)
    tokens = attributes.get("queries", 1)
    named = {t.name: t for t in made}
    return Graph(kind, "single", 1, tokens, context, named, (Segment(kind, 1, (operator,)),), entering, (made[-1].name,))


def stream(
    elements: int, inputs: int, operations: int, specials: int, fmt: str, result: str | None = None, *, function: str = "", width: int = 0
) -> Graph:
    """An elementwise kernel of so many inputs of `elements` each, in rows of `width` where it goes row by row."""
    tensors = [(f"x{i}", (elements,), fmt, "") for i in range(inputs)] + [("y", (elements,), result or fmt, "")]
    attributes = {"elements": elements, "operations": operations, "specials": specials, **({"width": width} if width else {})}
    return single("elementwise", attributes, tensors, function)


def _rows(kind: str, s: Mapping[str, int], fmt: str, weights: int, function: str = "") -> Graph:
    rows, columns = s["rows"], s["columns"]
    scale = [("w", (weights,), fmt, "weight")] if weights else []
    tensors = [("x", (rows, columns), fmt, ""), *scale, ("y", (rows, columns), fmt, "")]
    return single(kind, {"rows": rows, "width": columns}, tensors, function)


@lru_cache
def _format(name: str) -> Format:
    return parse_format(name)

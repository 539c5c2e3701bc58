"""LUT Tensor Core (Mo et al., ISCA 2025): latencies of GPUs with look-up cores, the cost of building tables, and area at equal rate.

The authors' end-to-end figures come from a simulator that is not released, and much that it assumed is not stated. Here the
devices are the A100 and the H100 as measured kernels make them (nothing is fitted on this paper), with the look-up arrays that the
paper states beside their multipliers, and what is not stated is chosen as follows:

- the A100 is the 80 GB board (2039 GB/s), the clock its boost clock;
- attention is two products and a softmax through memory, in fp16 on the multipliers: the authors compile with TVM, Roller and Welder
  and name no fused attention (fused attention stands beside it, reported);
- "BS1024 SEQ1" is one token of each of 1024 sequences without a past, since no context is stated;
- BitNet-3B has the layers of its released code (with two more norms per layer), LLaMA-3B its dimensions;
- 2-bit weights on the multipliers are stored as such and converted to int8 by the vector units;
- the layers in fp16 with tables build 16-bit ones, as the artifact has them; their products stay fp16 products.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import workloads
from dovetail import estimate
from hw.area import characterisation
from hw.device import Device
from hw.devices import load as load_device
from hw.units.lmma_core import LmmaCore
from mapper.lmma import TABLES, table_format, tabled
from studies.row import StudyRow
from workloads.graph import Graph, Operator, Segment, Tensor

SOURCE = "Mo et al., LUT Tensor Core, ISCA 2025, arXiv:2408.06003"
SYNTHESIS = "generic two-input gates by Yosys of the look-up core's own RTL against the paper's 28 nm synthesis"

LLAMA_3B = {
    "model_type": "llama",
    "num_hidden_layers": 26,
    "hidden_size": 3200,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 8640,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
"""Dimensions of the LLaMA of 3 billion parameters in "The Era of 1-bit LLMs", that BitNet-3B is compared with."""


def _row(experiment: str, published: float, ours: float, unit: str, tolerance: float | None, note: str) -> StudyRow:
    return StudyRow("lut_tensor_core", experiment, published, ours, unit, tolerance, "certain", SOURCE, note)


# Workloads -----------------------------------------------------------------------------------------------------------------
@cache
def llama_3b(batch: int, seq: int) -> Graph:
    """One forward pass over `batch` sequences of `seq` tokens."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "llama-3b.json")
        path.write_text(json.dumps(LLAMA_3B), encoding="utf-8")
        return workloads.load(str(path), phase="prefill", batch=batch, seq=seq)


@cache
def model(name: str, batch: int, seq: int) -> Graph:
    return llama_3b(batch, seq) if name == "llama-3b" else workloads.load(name, phase="prefill", batch=batch, seq=seq)


def unfused(graph: Graph) -> Graph:
    """`graph` with attention as scores, softmax and values that pass through memory; every score is computed, masked or not."""
    tensors = dict(graph.tensors)

    def apart(op: Operator) -> Iterator[Operator]:
        if op.kind != "attention":
            yield op
            return
        query, keys, values = op.inputs[:3]
        count, rows = op["batch"] * op["kv_heads"], op["queries"] * op["heads"] // op["kv_heads"]
        scores, shares = f"{op.name}.scores", f"{op.name}.softmax"
        for name in (scores, shares):
            tensors[name] = Tensor(name, (count, rows, op["keys"]), tensors[op.outputs[0]].format)
        sizes = {"batch": count, "m": rows}
        yield Operator(scores, "matmul", (query, keys), (scores,), {**sizes, "n": op["keys"], "k": op["head_dim"]}, op.module)
        yield Operator(shares, "softmax", (scores,), (shares,), {"rows": count * rows, "width": op["keys"]}, op.module, "softmax")
        yield Operator(op.name, "matmul", (shares, values), op.outputs, {**sizes, "n": op["value_dim"], "k": op["keys"]}, op.module)

    segments = tuple(replace(s, operators=tuple(new for op in s.operators for new in apart(op))) for s in graph.segments)
    return replace(graph, tensors=tensors, segments=segments)


def one_layer(graph: Graph) -> Graph:
    """The first of the repeated layers by itself."""
    body = max(graph.segments, key=lambda segment: segment.count)
    made = {name for op in body.operators for name in op.outputs}
    used = [name for op in body.operators for name in op.inputs]
    inputs = tuple(dict.fromkeys(n for n in used if n not in made and graph.tensors[n].role == "activation"))
    outputs = tuple(sorted(n for n in made if n not in used and graph.tensors[n].role == "activation"))
    names = made | set(used)
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in names}
    return replace(graph, tensors=tensors, segments=(replace(body, count=1),), inputs=inputs, outputs=outputs)


def precomputing(graph: Graph, unit: LmmaCore, fused: bool) -> Graph:
    """`graph` with tables built for every linear layer, behind the kernel that writes its input or by a kernel of their own; the
    products stay as they are, so that the difference is what building tables costs."""
    tensors = dict(graph.tensors)
    segments: list[Segment] = []
    quantised = workloads.quantise(graph, weights="int2")
    wanted = {(one.segment, one.activations): one for one in tabled(quantised, unit)}
    for number, segment in enumerate(graph.segments):
        operators: list[Operator] = []
        renamed: dict[str, str] = {}
        for op in segment.operators:
            inputs = tuple(renamed.get(name, name) for name in op.inputs)
            operators.append(replace(op, inputs=inputs) if inputs != op.inputs else op)
            for name in op.outputs:
                if (number, name) not in wanted:
                    continue
                value, tables = tensors[name], f"{name}.{TABLES}"
                tensors[tables] = replace(value, name=tables, format=table_format(unit, value.format))
                attributes = {"elements": value.elements, "operations": int(unit.build_operations), "specials": 0}
                if fused:  # the value goes on under another name, so that the tables alone read what the kernel computes
                    renamed[name] = f"{name}.kept"
                    tensors[renamed[name]] = replace(value, name=renamed[name])
                    outputs: tuple[str, ...] = (renamed[name], tables)
                else:
                    outputs, attributes = (tables,), {**attributes, "separate": 1}
                operators.append(Operator(tables, "elementwise", (name,), outputs, attributes, op.module, TABLES))
        segments.append(replace(segment, operators=tuple(operators)))
    return replace(graph, tensors=tensors, segments=tuple(segments))


# Target A: end to end ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Machine:
    """One column of the paper's end-to-end table: prefill of 2048 tokens, and 1024 sequences of one token, in milliseconds."""

    name: str
    device: str
    model: str
    weights: str | None
    acts: str | None
    prefill_ms: float
    batch_ms: float


MACHINES = (
    Machine("A100, LLaMA-3B W16A16", "a100-80g", "llama-3b", None, None, 106.71, 41.15),
    Machine("A100 int8 tensor cores, BitNet-3B W2A8", "a100-80g", "bitnet-3b", "int2", "int8", 67.06, 21.70),
    Machine("A100-LUT-4x, BitNet-3B W2A8", "a100-lut-4x", "bitnet-3b", "int2", "int8", 42.49, 11.41),
    Machine("A100-LUT-8x, BitNet-3B W2A8", "a100-lut-8x", "bitnet-3b", "int2", "int8", 38.02, 7.47),
    Machine("H100-LUT-8x, BitNet-3B W2 with fp8 activations", "h100-lut-8x", "bitnet-3b", "int2", "fp8", 23.48, 5.97),
)
PHASES = (("BS1 SEQ2048", 1, 2048), ("BS1024 SEQ1", 1024, 1))


REST = "norms, attention and the LM head take longer here (library kernels, as measured) than the authors' simulator leaves for them"


@cache
def latency_ms(device: str, name: str, weights: str | None, acts: str | None, batch: int, seq: int, apart: bool = True) -> float:
    graph = model(name, batch, seq)
    return estimate(unfused(graph) if apart else graph, device=device, weights=weights, acts=acts).latency_s * 1e3


def _published(machine: Machine, seq: int) -> float:
    return machine.batch_ms if seq == 1 else machine.prefill_ms


def _ours(machine: Machine, batch: int, seq: int, apart: bool = True) -> float:
    return latency_ms(machine.device, machine.model, machine.weights, machine.acts, batch, seq, apart)


def _missed(machine: Machine, batch: int, seq: int) -> str:
    """Why a row is off, from the parts of our figure and from what the published ones imply between them."""
    if machine.model == "llama-3b":
        layers, hidden, ffn = 26, 3200, 8640
        products = 2 * batch * seq * layers * (4 * hidden**2 + 3 * hidden * ffn)
        other = MACHINES[1]
        slope = 2 * (_published(machine, seq) - _published(other, seq)) / 1e3  # what halves from fp16 to int8 products
        return (
            f"the published fp16 and int8 latencies put products at {products / slope / 1e12:.0f} TFLOP/s in fp16 "
            f"({products / slope / 312e12:.0%} of the peak) between them; kernels measured on the A100 reach 250 to 280, which ours are "
            "held to, and the paper's own single layers (below) need as much"
        )
    if machine.device == "a100-lut-8x":
        four = MACHINES[2]
        ours, theirs = (f(four, seq) - f(machine, seq) for f in (lambda m, s: _ours(m, batch, s), _published))
        return f"from 4x to 8x ours falls by {ours:.2f} ms, theirs by {theirs:.2f}; {REST}"
    return REST


def end_to_end() -> Iterator[StudyRow]:
    for label, batch, seq in PHASES:
        for machine in MACHINES:
            published, ours = _published(machine, seq), _ours(machine, batch, seq)
            fused = _ours(machine, batch, seq, apart=False)
            beside = f"{fused:.2f} ms with fused attention" if seq > 1 else "context not stated, none assumed"
            note = beside if abs(ours / published - 1) <= 0.15 else f"{_missed(machine, batch, seq)}; {beside}"
            yield _row(f"{machine.name}, {label}: latency", published, ours, "ms", 0.15, note)
    for label, batch, seq in PHASES:
        base = MACHINES[0]
        for machine in MACHINES[1:]:
            published = _published(base, seq) / _published(machine, seq)
            ours = _ours(base, batch, seq) / _ours(machine, batch, seq)
            note = "ratio of two rows above"
            if seq == 1 and machine.device == "a100-lut-8x":
                note += "; the paper's headline 5.51"
            yield _row(f"{machine.name}, {label}: speed-up over the A100 in fp16", published, ours, "x", None, note)


# Target B: what building tables costs -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Layer:
    """One layer in fp16 on the A100: published milliseconds without tables, with a kernel for them, and with tables fused."""

    model: str
    batch: int
    seq: int
    base_ms: float
    separate_ms: float
    fused_ms: float

    def graph(self, tables: str) -> Graph:
        graph = unfused(one_layer(model(self.model, self.batch, self.seq)))
        return graph if tables == "none" else precomputing(graph, wide_tables(), tables == "fused")


LAYERS = (
    Layer("llama-2-70b", 1, 4096, 34.68, 37.60, 35.65),
    Layer("bloom-176b", 1024, 1, 20.99, 26.05, 21.31),
)


def lut_unit(name: str = "a100-lut-4x") -> LmmaCore:
    unit = load_device(name).units["tensor"]
    assert isinstance(unit, LmmaCore)
    return unit


def wide_tables() -> LmmaCore:
    """The array of the paper's artifact, whose tables of fp16 activations have fp16 entries."""
    return lut_unit().model_copy(update={"table_bits": 16})


@cache
def layer_ms(layer: Layer, tables: str) -> float:
    return estimate(layer.graph(tables), device="a100-80g").latency_s * 1e3


def _layer_note(layer: Layer, tables: str, published: float) -> str:
    extra = layer_ms(layer, tables) - layer_ms(layer, "none")
    stated = published - layer.base_ms
    if tables == "none":
        return "" if layer.seq > 1 else "what runs beside the four products (positions, casts, separate biases) is not stated"
    graph = layer.graph("none")
    elements = sum(graph.tensors[one.activations].elements for one in tabled(workloads.quantise(graph, weights="int2"), lut_unit()))
    rate = elements / (stated * 1e-3) / 1e9
    note = f"tables add {extra:.2f} ms here and {stated:.2f} ms there"
    if tables == "separate":
        return f"{note}, {rate:.0f} activations per ns: slower than their traffic asks for; that kernel is not released"
    return f"{note}: ours are computed and written while the product or the norm before runs, and hardly anything waits for them"


def fusion() -> Iterator[StudyRow]:
    """Single layers with tables for all linear layers."""
    for layer in LAYERS:
        for tables, label, published in (
            ("none", "without tables", layer.base_ms),
            ("separate", "tables by kernels of their own", layer.separate_ms),
            ("fused", "tables fused into the kernels before", layer.fused_ms),
        ):
            what = f"one layer of {layer.model}, BS{layer.batch} SEQ{layer.seq}, {label}: latency"
            note = _layer_note(layer, tables, published)
            yield _row(what, published, layer_ms(layer, tables), "ms", 0.05, note)
    for layer, phase, values in zip(LAYERS, ("prefill", "decode"), ((16.47, 2.62), (24.41, 2.52)), strict=True):
        for tables, published in zip(("separate", "fused"), values, strict=True):
            ours = 100 * (layer_ms(layer, tables) / layer_ms(layer, "none") - 1)
            note = f"published as a mean over models that are not all named; ours is {layer.model}"
            what = f"mean overhead of tables, {tables}, {phase}"
            yield _row(what, published, ours, "%", None, note)
    what = "times that a classic design with 4 columns builds each table, OPT-175B [4096x12288] x [12288x12288]"
    yield _row(what, 3072, 12288 / 4, "times", 0.0, "output columns over the columns that share a table")


# Target C: area and energy ------------------------------------------------------------------------------------------------
def gates(name: str) -> int:
    """Generic gates of a design that units are compared with."""
    return int(next(r["cells"] for r in characterisation("references") if r["parameters"] == {"name": name}))


def core_gates(rows: int, columns: int, fp16: bool) -> float:
    """Gates of a look-up core with `rows` tables shared by `columns` multiplexers each; the integer core is synthesised as a whole."""
    if not fp16:
        records = characterisation("lut_tensor_core")
        wanted = {"rows": rows, "columns": columns}
        return float(next(r["cells"] for r in records if {k: r["parameters"][k] for k in wanted} == wanted))
    return float(rows * gates("lookup_table_fp16") + rows * columns * gates("lookup_element_fp16"))


def area_ratio(bits: int, fp16: bool) -> float:
    """Gates of dot products of four at the rate of a 2 x 64 look-up core by `bits`-bit weights, over those of the core."""
    rows, columns = 2, 64
    per_dot = gates("fp16_dot4" if fp16 else "int8_dot4")
    return rows * columns * per_dot / (bits * core_gates(rows, columns, fp16))


def area() -> Iterator[StudyRow]:
    for fp16, label in ((True, "fp16"), (False, "int8")):
        for bits in (1, 2):
            what = f"area of {label} dot products over a look-up core of the same rate, W{bits}A{16 if fp16 else 8}"
            stated = fp16 and bits == 1
            note = f"{SYNTHESIS}: published as 4 to 6" if stated else f"{SYNTHESIS}; published (4 to 6) for W1A16 only"
            yield _row(what, 5.0, area_ratio(bits, fp16), "x", 0.2 if stated else None, note)
    note = f"{SYNTHESIS}; published as about 6, beyond which multiplying takes less area"
    yield _row("weight bits up to which look-ups take less area than fp16 dot products", 6.0, area_ratio(1, True), "bits", None, note)
    note = f"{SYNTHESIS}; the paper's figures are of dot products by themselves, ours have fp32 sums on both sides, which do not shrink"
    yield _row("density of W1A16 look-ups over W16A16 dot products", 61.55 / 3.39, area_ratio(1, True), "x", None, note)
    density = 2 * 64 * gates("fp16_dot4") / (2 * core_gates(2, 64, False))
    note = f"{SYNTHESIS}; the paper's tensor core holds more than its dot products"
    yield _row("density of the W2A8 look-up core over fp16 tensor cores", 20.9, density, "x", None, note)
    look_up, multiply = (lut_unit().mac_energy[name] for name in ("table8-k4xint2", "fp16"))
    note = "not independent: the look-up's energy is the paper's, at 28 nm; the multiplier's is that of 7 nm units"
    yield _row("energy per product and sum, fp16 tensor cores over W2A8 look-ups", 11.2, float(multiply / look_up), "x", None, note)
    for name, published in (("a100-lut-4x", 4.0), ("a100-lut-8x", 8.0), ("h100-lut-8x", 8.0)):
        a100 = load_device("a100-80g")
        device = load_device(name)
        ours = _rate(device, "table8-k4xint2") / _rate(a100, "fp16")
        note = "2-bit look-ups per SM over fp16 multiply-accumulates per SM of the A100: area times density of the paper's table"
        note += ", which gives the H100 8 times the A100's rate at 1.41 GHz; ours has the H100's clock" if name.startswith("h100") else ""
        tolerance = None if name.startswith("h100") else 0.0
        yield _row(f"{name}: peak rate", published, ours, "x", tolerance, note)


def _rate(device: Device, number_format: str) -> float:
    return device.units["tensor"].macs_per_cycle(number_format) * device.unit_clock("tensor")


# Single kernels ------------------------------------------------------------------------------------------------------------
def kernels() -> Iterator[StudyRow]:
    note = "shape and arrays of the published kernel are not stated; ours is the artifact's example of 4096 x 5120 by 5120 x 27648"
    for name in ("a100-lut-4x", "a100-lut-8x"):
        report = estimate("gemm:4096x5120x27648", device=name, weights="int1", acts="fp16")
        rate = 2 * 4096 * 5120 * 27648 / report.latency_s / 1e12
        what = f"W1A16 product on {name}"
        yield _row(what, 1104.0, rate, "TFLOP/s", None, note)
    report = estimate("gemm:4096x5120x27648", device="a100-80g")
    rate = 2 * 4096 * 5120 * 27648 / report.latency_s / 1e12
    yield _row("fp16 product on the A100 (CUTLASS)", 288.9, rate, "TFLOP/s", None, note)


def rows() -> list[StudyRow]:
    """Latencies of target models, single layers with tables, area and energy, and single kernels."""
    return [*end_to_end(), *fusion(), *area(), *kernels()]

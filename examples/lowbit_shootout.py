"""Low-bit machines side by side on Llama-2-7B and BitNet-3B, decode and prefill: latency, energy, area and error in a table and a picture.

    python examples/lowbit_shootout.py [--picture FILE.png] [--json FILE] [--machines NAME,...]
                                          [--bandwidth "32 GB/s"] [--tokens 256] [--strategy heuristic]

Every machine computes the same graphs in the format it was made for; Llama's weights have four bits where it can do with them. Arrays
share one memory (32 GB/s) and the buffers of the fp16 baseline; GPUs, CPUs and FPGAs have their own, unless `--bandwidth` gives all of
them the same. An array that multiplies nothing but quantised weights gets 192 fp16 multipliers for attention and heads that stay fp16.

Latency and energy are estimates. Energies are those that each device states, of its own node and memory, and leave out what it states none
for (marked >=). Area counts two-input gates of the arithmetic from one synthesis flow, without memories (ternary rows: 1440 units of eight
lanes, without the adders that join them); a CPU is there anyway. Error is what the machine does to the output of one linear
layer with random weights (relative, of the norm), against the model as trained: real weights for Llama, ternary ones and int8
activations for BitNet.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout that is not installed

import numpy as np

from dovetail import estimate
from hw import UNITS, Device, devices
from hw.lowbit.bitlinear import CODES, quantised
from hw.lowbit.lmul import linear
from hw.lowbit.lookup import lut_gemm, tmac, uniform_as_binary
from hw.lowbit.shiftadd import shift_add
from hw.mac import reference_cells
from hw.units.ternary_row import TernaryRow
from workloads.quantisers import quantiser

MODELS = ("llama-2-7b", "bitnet-3b")
PHASES = ("decode", "prefill")
TOKENS, INPUTS, OUTPUTS = 8, 1024, 128
"""Of the layer whose error is measured."""
MULTIPLIERS = {"kind": "dot_array", "rows": 48, "columns": 1, "lanes": 4, "steps": {"fp16xfp16": 1}, "mac_energy": {"fp16xfp16": "1.5 pJ"}}
"""48 dot products of four; fp16 multiply 1.1 pJ and add 0.4 pJ: Horowitz, ISSCC 2014, 45 nm."""

Floats = np.ndarray[Any, np.dtype[Any]]
Layer = Callable[[Floats, Floats], Floats]
"""What a machine makes of activations [tokens, inputs] and weights [outputs, inputs]."""


@dataclass(frozen=True)
class Machine:
    """`weights` and `acts` by model; `gates` of the arithmetic (0: runs on what is there, None: not synthesised); `layers` by model."""

    name: str
    device: str
    weights: tuple[str, str]
    acts: tuple[str, str]
    gates: int | None
    layers: tuple[Layer, Layer]
    multipliers: str = ""  # the unit beside which fp16 multipliers are put


@dataclass(frozen=True)
class Result:
    """One machine, model and phase. `energy_j` leaves out parts where `partial`; `error` is relative to the exact layer."""

    machine: str
    device: str
    model: str
    phase: str
    weights: str
    memory_gb_s: float
    latency_s: float
    bound: float
    energy_j: float | None
    partial: bool
    gates: int | None
    error: float


# Layers: what the arithmetic does ------------------------------------------------------------------------------------------
def stored(form: str) -> Layer:
    """fp16 activations and weights that are stored in a format; the products themselves are exact."""
    return lambda acts, weights: acts.astype(np.float16).astype(np.float64) @ quantiser(form).round_trip(weights).astype(np.float64).T


def exact(acts: Floats, weights: Floats) -> Floats:
    """Ternary weights by activations that are whole numbers of 8 bits: fp16 products and their fp32 sums are exact too."""
    return TernaryRow().golden(acts.astype(np.int64), CODES[weights.astype(np.int64)].T)


def by_lmul(acts: Floats, weights: Floats) -> Floats:
    return linear(acts, weights, "bf16").astype(np.float64)


def by_tmac(form: str) -> Layer:
    """int8 tables of fp16 activations; symmetric integers as codes above zero."""

    def layer(acts: Floats, weights: Floats) -> Floats:
        known = quantiser(form)
        packed = known.quantise(weights)
        bits = known.format.element_bits
        half = 1 << (bits - 1)
        codes = packed.fields["code"].values.reshape(weights.shape).astype(np.int64) ^ half  # two's complement to an offset of 2^(bits-1)
        scales = packed.fields["scale"].values.view(np.float16).astype(np.float32).reshape(len(weights), -1)
        return np.stack([tmac(codes, bits, scales, row.astype(np.float16).astype(np.float32)) for row in acts])

    return layer


def ternary_by_tmac(acts: Floats, weights: Floats) -> Floats:
    ones = np.ones((len(weights), 1), np.float32)
    return np.stack([tmac(weights.astype(np.int64) + 2, 2, ones, row.astype(np.float32)) for row in acts])


def by_lut_gemm(acts: Floats, weights: Floats) -> Floats:
    known = quantiser("bcq4-g128")
    packed = known.quantise(weights)
    scales = packed.fields["scale"].values.view(np.float16).astype(np.float32).reshape(len(weights), -1, 4)
    return np.stack([lut_gemm(packed.fields["code"].values.reshape(weights.shape), 4, scales, row) for row in acts])


def ternary_by_lut_gemm(acts: Floats, weights: Floats) -> Floats:
    one = np.ones((len(weights), 1), np.float32)
    scales, offsets = uniform_as_binary(2, one, one)
    return np.stack([lut_gemm(weights.astype(np.int64) + 1, 2, scales, row, offsets) for row in acts])


def by_shift_add(acts: Floats, weights: Floats) -> Floats:
    known = quantiser("shiftadd4-g128")
    packed = known.quantise(weights)
    exponents = packed.fields["scale"].values.astype(np.int64).reshape(len(weights), -1, 4) - 120
    least = exponents.min()  # a common factor keeps the shifts within six bits
    sums = [shift_add(packed.fields["code"].values.reshape(weights.shape), 4, exponents - least, row / 16) for row in acts]
    return np.asarray(np.stack(sums).astype(np.float64) * 16 * 2.0**least)


def ternary_by_shift_add(acts: Floats, weights: Floats) -> Floats:
    """A ternary weight is half of two signs: +1/2 and +1/2, of one sign, or of both."""
    codes = np.array([0, 1, 3])[weights.astype(np.int64) + 1]
    halves = np.full((len(weights), 1, 2), -1)
    return np.stack([shift_add(codes, 2, halves, row) for row in acts])


# Machines -------------------------------------------------------------------------------------------------------------------
def cells(kind: str, **parameters: Any) -> int | None:
    """Gates of a synthesised unit."""
    area = UNITS[kind](**parameters).area()
    return None if area is None else area.cells


def times(count: int, each: int | None) -> int | None:
    return None if each is None else count * each


def machines() -> tuple[Machine, ...]:
    """Everything that is compared; gates of GPUs are those of their multipliers, and of look-up arrays beside them."""
    half = ("fp16", "fp16")
    mac = reference_cells("fp16_mac")
    arrays, beside = cells("lut_tensor_core", rows=2, columns=64, weight_bits=2), 192 * mac

    def gpu(name: str) -> int | None:
        """fp16 multipliers of all SMs, and look-up arrays where there are any."""
        tensor = devices.load(name).units["tensor"]
        own = getattr(tensor, "arrays", 0)
        if own and arrays is None:
            return None
        return tensor.count * (tensor.macs_per_cycle("fp16") * mac + own * (arrays or 0))

    def plus(gates: int | None) -> int | None:
        return None if gates is None else gates + beside

    tables = (by_tmac("int4-g128"), ternary_by_tmac)  # the look-up cores quantise tables in the same way
    entries = (
        Machine("fp16 array", "bitmod-fp16", ("fp16", "ternary"), half, 32 * 24 * mac, (stored("fp16"), exact)),
        Machine("L-Mul", "lmul", ("bf16", "ternary"), half, times(144, cells("lmul_dot8")), (by_lmul, by_lmul)),
        Machine(
            "BitMoD", "bitmod", ("bitmod4", "ternary"), half, plus(times(1024, cells("bitmod_pe"))), (stored("bitmod4"), exact), "array",
        ),
        Machine("OliVe", "bitmod-olive", ("olive4", "ternary"), half, None, (stored("olive4"), exact), "array"),
        Machine(
            "ShiftAdd", "shiftadd", ("shiftadd4-g128", "shiftadd2"), half, plus(768 * reference_cells("shift_add_element")),
            (by_shift_add, ternary_by_shift_add),
        ),
        Machine(
            "ternary rows", "tereffic-hbm", ("ternary-dense",) * 2, ("int8",) * 2, plus(times(36 * 40, cells("ternary_row"))),
            (stored("ternary"), exact), "tmatmul",
        ),
        Machine("A100", "a100-80g", ("int4-g128", "ternary"), half, gpu("a100-80g"), (stored("int4-g128"), exact)),
        Machine("LUT-GEMM", "lut-gemm-a100", ("bcq4-g128", "ternary"), half, gpu("a100-80g"), (by_lut_gemm, ternary_by_lut_gemm)),
        Machine("LUT core 4x", "a100-lut-4x", ("int4-g128", "ternary"), half, gpu("a100-lut-4x"), tables),
        Machine("LUT core 8x", "a100-lut-8x", ("int4-g128", "ternary"), half, gpu("a100-lut-8x"), tables),
        Machine("LUT core H100 8x", "h100-lut-8x", ("int4-g128", "ternary"), half, gpu("h100-lut-8x"), tables),
        Machine("T-MAC M2 Ultra", "t-mac-m2-ultra", ("int4-g128", "ternary"), ("fp16", "int8"), 0, tables),
        Machine("T-MAC AGX Orin", "t-mac-agx-orin", ("int4-g128", "ternary"), ("fp16", "int8"), 0, tables),
    )  # fmt: skip
    found = set(devices.names())
    return tuple(m for m in entries if m.device in found)


def described(machine: Machine, bandwidth: str) -> Device:
    """The device of a machine, with multipliers beside its array and another memory bandwidth where asked for."""
    device = devices.load(machine.device)
    data = device.to_dict()
    if machine.multipliers:
        data["units"]["multipliers"] = MULTIPLIERS
        ends = [link["source"] for link in data["links"] if link["sink"] == machine.multipliers]
        data["links"] = [*data["links"], *({"source": end, "sink": "multipliers"} for end in ends)]
    if bandwidth:
        memory = data["memories"][device.main_memory]
        memory["bandwidth"] = bandwidth
        for name in ("timing", "channels"):
            memory.pop(name, None)
    return Device.from_dict(data, where=machine.device)


def error(machine: Machine, model: str, seed: int = 0) -> float:
    """Relative error of the layer of a machine, of the norm."""
    rng = np.random.default_rng(seed)
    acts = rng.standard_normal((TOKENS, INPUTS)).astype(np.float16).astype(np.float32)
    if model == "bitnet-3b":
        weights: Floats = rng.integers(-1, 2, (OUTPUTS, INPUTS)).astype(np.float64)
        acts = quantised(acts)[0].astype(np.float32)
        reference = exact(acts, weights).astype(np.float64)
    else:
        weights = rng.standard_normal((OUTPUTS, INPUTS)) * 0.02
        reference = acts.astype(np.float64) @ weights.T
    found = machine.layers[MODELS.index(model)](acts, weights)
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def run(machine: Machine, model: str, phase: str, tokens: int, bandwidth: str, strategy: str | None = None) -> Result:
    """Estimates one machine on one model and phase."""
    number = MODELS.index(model)
    device = described(machine, bandwidth)
    length = {"context": tokens} if phase == "decode" else {"seq": tokens}
    weights, acts = machine.weights[number], machine.acts[number]
    report = estimate(model, device=device, phase=phase, weights=weights, acts=acts, strategy=strategy, **length)  # type: ignore[arg-type]
    known = [v for v in report.energy_parts.values() if v is not None]
    partial = any(v is None for name, v in report.energy_parts.items() if name != "static power")
    return Result(
        machine.name, machine.device, model, phase, machine.weights[number], device.dram.bandwidth / 1e9, report.latency_s,
        report.lower_bound_fs / 1e15, sum(known) if known else None, partial, machine.gates, error(machine, model),
    )  # fmt: skip


# What is shown --------------------------------------------------------------------------------------------------------------
def digits(value: float | None, unit: str = "", mark: str = "") -> str:
    if value is None:
        return "-"
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n")):
        if abs(value) >= size or size == 1e-9:
            return f"{mark}{value / size:.3g} {prefix}{unit}" if value else f"0 {unit}"
    return ""


def table(results: list[Result], tokens: int) -> str:
    """Text: one block per model and phase."""
    lines = []
    for model in MODELS:
        for phase in PHASES:
            chosen = [r for r in results if (r.model, r.phase) == (model, phase)]
            if not chosen:
                continue
            what = f"one token, context {tokens}" if phase == "decode" else f"{tokens} tokens"
            lines += ["", f"{model}, {phase} ({what})"]
            heads = (("memory", 10), ("latency", 10), ("/bound", 6), ("energy", 12), ("area", 12), ("error", 8))
            lines.append(" ".join([f"{'machine':17} {'weights':15}", *(f"{head:>{width}}" for head, width in heads)]))
            for r in sorted(chosen, key=lambda r: r.latency_s):
                area = "as it is" if r.gates == 0 else digits(r.gates, "gates")
                energy = digits(r.energy_j, "J", ">= " if r.partial else "")
                lines.append(
                    f"{r.machine:17} {r.weights:15} {r.memory_gb_s:>5.4g} GB/s {digits(r.latency_s, 's'):>10} "
                    f"{r.latency_s / r.bound:>5.2f}x {energy:>12} {area:>12} {100 * r.error:>7.2g}%"
                )
    return "\n".join(lines[1:])


def picture(results: list[Result], path: Path, tokens: int) -> None:
    """Bars of latency and energy by machine, and area and error beside them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(r.machine for r in results))
    colours = {"llama-2-7b": "#3b6ea5", "bitnet-3b": "#d98032"}
    figure, axes = plt.subplots(1, 5, figsize=(17, 0.45 * len(names) + 2.0), sharey=True, constrained_layout=True)
    place = np.arange(len(names))
    panels: list[tuple[str, str, Callable[[Result], float | None]]] = [
        (f"decode, context {tokens}: s per token", "decode", lambda r: r.latency_s),
        (f"prefill of {tokens} tokens: s", "prefill", lambda r: r.latency_s),
        ("decode: J per token", "decode", lambda r: r.energy_j),
        ("arithmetic: gates", "decode", lambda r: r.gates or None),
        ("error of a layer: %", "decode", lambda r: 100 * r.error),
    ]
    for axis, (title, phase, value) in zip(axes, panels, strict=True):
        for shift, model in ((-0.2, MODELS[0]), (0.2, MODELS[1])):
            found = {r.machine: r for r in results if (r.model, r.phase) == (model, phase)}
            values = [value(found[n]) if n in found else None for n in names]
            if "gates" in title and model == MODELS[1]:
                continue
            offset = 0.0 if "gates" in title else shift
            hatch = ["//" if "J per" in title and n in found and found[n].partial else "" for n in names]
            colour = "#777777" if "gates" in title else colours[model]
            known = [(p, v, h) for p, v, h in zip(place + offset, values, hatch, strict=True) if v]
            marks = [h for _, _, h in known]
            axis.barh([p for p, _, _ in known], [v for _, v, _ in known], 0.38, color=colour, label=model, hatch=marks, edgecolor="white")
            for p, v, _ in known:
                axis.annotate(f"{v:.2g}", (v, p), (2, 0), textcoords="offset points", va="center", fontsize=7)
            at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            for p in [p for p, v in zip(place + offset, values, strict=True) if v == 0]:
                axis.annotate("exact", (0, p), (3, 0), va="center", fontsize=7, **at)
        axis.set_xscale("log")
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        low, high = axis.get_xlim()
        axis.set_xlim(low / 1.5, high * 4)
    axes[0].set_yticks(place, names)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    title = "Low-bit machines on the same graphs (hatched: part of the energy is not modelled; no bar: not known)"
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="write the picture here (PNG, SVG or PDF)")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--machines", default="", help="names, separated by commas; all of them without")
    parser.add_argument("--bandwidth", default="", help='bandwidth of every main memory, such as "32 GB/s"')
    parser.add_argument("--tokens", type=int, default=256, help="context of decode and length of prefill")
    parser.add_argument("--strategy", help="how mappings are chosen: `heuristic` takes seconds, a search (without) some minutes in all")
    given = parser.parse_args(arguments)
    every = machines()
    wanted = [name.strip() for name in given.machines.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in {m.name for m in every}]:
        parser.error(f"unknown machine {unknown[0]!r}, expected of {', '.join(m.name for m in every)}")
    if given.tokens < 1:
        parser.error(f"--tokens: expected 1 or more, not {given.tokens}")
    results = []
    for machine in every:
        if wanted and machine.name not in wanted:
            continue
        for model in MODELS:
            for phase in PHASES:
                start = time.process_time()
                try:
                    results.append(run(machine, model, phase, given.tokens, given.bandwidth, given.strategy))
                except ValueError as problem:
                    parser.error(f"{machine.name} on {model}, {phase}: {problem}")
                print(f"{machine.name}, {model}, {phase}: {time.process_time() - start:.1f} s", file=sys.stderr)
    print(table(results, given.tokens))
    if given.json:
        given.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n", encoding="utf-8")
    if given.picture:
        picture(results, given.picture, given.tokens)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""ShiftAddLLM (You et al., NeurIPS 2024): memory, energy and error of weights that are sums of shifted signs.

Energies are those of the released code's model (an Eyeriss-like machine at 45 nm): per 16 bits 200 pJ from DRAM, 22.2 pJ from the global
buffer, 7.4 pJ over the network and 3.7 pJ from registers (7.4 pJ of weights); fp16 multiply 1.1, add 0.4, look-up 0.37, shift 0.15 pJ.
A decoded token reads every weight of the linear layers once.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

from hw.lowbit.lookup import MU
from hw.mac import mac_type
from studies.row import StudyRow
from workloads.catalogue import Model, describe
from workloads.format import parse_format
from workloads.quantisers.base import Array
from workloads.quantisers.binary import assign, greedy, power_of_two, refine, signs_of

SOURCE = "You et al., ShiftAddLLM, NeurIPS 2024, arXiv:2406.05981"
CODE = f"{SOURCE}; energy model of the released code"
# picojoules per 16-bit word, and per operation
DRAM, BUFFER, NETWORK, REGISTER, WEIGHT_REGISTER = 200.0, 22.2, 7.4, 3.7, 7.4
MULTIPLY, ADD, LOOKUP, SHIFT = 1.1, 0.4, 0.37, 0.15
FORMATS = {"per channel": "shiftadd3", "groups of 128": "shiftadd3-g128"}
MODELS = ("opt-6.7b", "llama-2-7b")


def layers(model: Model) -> list[tuple[int, int, int]]:
    """(inputs, outputs, count) of the linear layers; the LM head stays in fp16, as in the paper."""
    keys, gated = model.kv_heads * model.head_dim, model.model_type != "opt"
    hidden, ffn = model.hidden, model.ffn
    up = 2 if gated else 1
    shapes = [(hidden, hidden, 2), (hidden, keys, 2), (hidden, ffn, up), (ffn, hidden, 1)]
    return [(k, n, count * model.layers) for k, n, count in shapes]


@dataclass(frozen=True)
class Energy:
    """Picojoules of the linear layers for one token: arithmetic, and moving weights through the hierarchy; `macs` of the dense layer."""

    arithmetic: float
    weights: float
    macs: int

    @property
    def total(self) -> float:
        return self.arithmetic + self.weights


def moved(bits: float) -> float:
    """Picojoules to bring `bits` of weights from DRAM to the elements, once."""
    return bits / 16 * (DRAM + BUFFER + NETWORK + WEIGHT_REGISTER)


def dense(model: Model) -> Energy:
    """fp16 weights and multiply-accumulates."""
    macs = sum(k * n * count for k, n, count in layers(model))
    return Energy(macs * (MULTIPLY + ADD), moved(16.0 * macs), macs)


def shifted(model: Model, form: str, additions: str = "every lookup") -> Energy:
    """Tables, lookups, shifts and additions; `additions` of every lookup, or one for eight inputs as the released model counts."""
    known = parse_format(form)
    bits, macs, picojoules = known.element_bits, 0, 0.0
    for k, n, count in layers(model):
        tables = ceil(k / MU)
        build = tables * (MU * MULTIPLY + (MU + (1 << MU) - 1) * ADD)
        looked_up = tables * n * bits
        added = looked_up if additions == "every lookup" else tables * n
        picojoules += count * (build + looked_up * (LOOKUP + SHIFT) + added * ADD)
        macs += count * k * n
    return Energy(picojoules, moved(float(stored_bits(form, model)) * macs), macs)


def stored_bits(form: str, model: Model) -> Fraction:
    """Bits per weight with scales: those per channel are 8 bits for every bit of a row."""
    known = parse_format(form)
    if known.group:
        return known.bits
    shapes = layers(model)
    channels, weights = sum(n * c for _, n, c in shapes), sum(k * n * c for k, n, c in shapes)
    return known.bits + Fraction(8 * known.element_bits * channels, weights)


def errors(bits: int, outputs: int = 256, inputs: int = 1024, seed: int = 0) -> dict[str, float]:
    """Mean square error of unit-variance normal weights per channel, scales free or sums of 1 to 3 powers of two."""
    rows: Array = np.random.default_rng(seed).standard_normal((outputs, inputs)).astype(np.float32)
    scales = np.abs(refine(rows, greedy(rows, bits)))
    found = {}
    for name, kept in (("free", scales), *((f"{n}", power_of_two(scales, n).astype(np.float32)) for n in (1, 2, 3))):
        levels = kept @ signs_of(bits).T
        values = np.take_along_axis(levels, assign(rows, kept).astype(np.int64), axis=1)
        found[name] = float(((values - rows) ** 2).mean())
    return found


def rows() -> list[StudyRow]:
    """Savings in memory and energy (claimed), arithmetic (reported)."""
    return [*_savings(), *_arithmetic()]


def _row(experiment: str, published: float, ours: float, unit: str, tolerance: float | None, note: str, source: str = SOURCE) -> StudyRow:
    return StudyRow("shiftadd", experiment, published, ours, unit, tolerance, "certain", source, note)


def _savings() -> list[StudyRow]:
    out = []
    for name in MODELS:
        model = describe(name)
        base = dense(model)
        for grouping, form in FORMATS.items():
            own, bits = shifted(model, form), stored_bits(form, model)
            claimed = 0.03 if grouping == "per channel" else None
            note = f"published: more than 80 % over fp16; {float(bits):.3f} bits per weight, scales included; {grouping}"
            saved = float(100 * (1 - bits / 16))
            out.append(_row(f"{name}, memory saved, 3 bits, {grouping}", 80, saved, "%", claimed, note))
            note = "published: more than 80 % over fp16; one decoded token, linear layers, weights from DRAM; " + grouping
            saved = 100 * (1 - own.total / base.total)
            out.append(_row(f"{name}, energy saved, 3 bits, {grouping}", 80, saved, "%", claimed, note, CODE))
    return out


def _arithmetic() -> list[StudyRow]:
    model = describe("llama-2-7b")
    base = float(mac_type("ieee-fp16").step_pj)
    out = []
    for additions in ("every lookup", "eight inputs"):
        for bits in (2, 3):
            own = shifted(model, f"shiftadd{bits}", additions)
            note = f"beside an fp16 multiply-accumulate of {base:g} pJ in Horowitz's table; an addition for {additions}; tables included"
            out.append(_row(f"arithmetic per weight, {bits} bits, {additions}", base, own.arithmetic / own.macs, "pJ", None, note, CODE))
    return out

"""BitMoD (Chen et al., HPCA 2025): cycles and DRAM energy of six models on four accelerators of equal area, by the authors' cost model.

An accelerator runs the matrix products of a model one after the other, each as long as the slower of its array and its DRAM:

- array: ceil(K / lanes) ceil(N / rows) ceil(tokens / columns) steps, of as many cycles as the weight's data type has bit-serial terms;
- DRAM: weights at their stored bits (rows rounded up to bytes), inputs and outputs in fp16, 32 bytes per cycle. Where neither
  weights nor inputs fit the 512 KiB buffer of their own, one of them is fetched again for every buffer-full of the other, whichever
  is less.

Attention is two products per layer in the revision that the paper's figures were made with (`figures`): scores contract over the
whole hidden size although the traffic of grouped keys is that of the key heads, and the values' product writes a column per context token.
It runs at the cycles of the weights' data type, with 16-bit traffic. The released revision (`per_head`) takes every head by
itself, with the keys and values in the bits of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from statistics import mean
from typing import Literal

from studies.row import StudyRow
from workloads.catalogue import Model, describe

SOURCE = "Chen et al., BitMoD: Bit-serial Mixture-of-Datatype LLM Acceleration, HPCA 2025, arXiv:2411.11745"
ARRAYS = f"{SOURCE}; cycles and energies in the plots of the released code"

BUFFER = 512 * 1024  # bytes, one for weights and one for inputs
BYTES_PER_CYCLE = 32  # 256 bits: a 128-bit bus, double data rate
DRAM_PJ_PER_CYCLE = 1200 * BYTES_PER_CYCLE * 8 / 64  # 1200 pJ per 64 bits
CONTEXT = 256
GENERATED = 20
ATTENTION_BITS = 16

Revision = Literal["figures", "per_head"]


@dataclass(frozen=True)
class Accelerator:
    """Rows x columns cells of `lanes`; `cell_pj` is the energy of a cell per cycle after place and route (1.5 times synthesis)."""

    name: str
    rows: int
    columns: int
    lanes: int
    bit_serial: bool
    cell_pj: float

    def decoding(self) -> Accelerator:
        """The array that the authors use to decode: twice the rows, half the columns."""
        return replace(self, rows=2 * self.rows, columns=self.columns // 2)

    def steps(self, bits: Fraction) -> int:
        """Cycles per step: two bits of the weight per cycle, group metadata aside, on a bit-serial array."""
        return ceil(Fraction(int(bits), 2)) if self.bit_serial else 1


FP16 = Accelerator("fp16", 32, 24, 1, False, 0.77 * 1.5)
BITMOD = Accelerator("BitMoD", 32, 32, 4, True, 0.56 * 1.5)
ANT = Accelerator("ANT", 32, 32, 1, False, 0.56 * 1.5)
OLIVE = Accelerator("OliVe", 36, 32, 1, False, 0.613 * 1.5)

LOSSLESS = Fraction(97, 16)  # INT6 in groups of 128 with an 8-bit scale
LOSSY_4, LOSSY_3 = Fraction(65, 16), Fraction(49, 16)


@dataclass(frozen=True)
class Product:
    """`batch` products of `n` output channels over `k` inputs for `tokens`, `count` times; sizes are bytes of all the batch."""

    k: int
    n: int
    tokens: int
    weights: int
    inputs: int
    outputs: int
    batch: int = 1
    count: int = 1


@dataclass(frozen=True)
class Cost:
    """Cycles in all (each product as long as its slower side), and of the array and of the DRAM by themselves."""

    total: int
    array: int
    dram: int

    @property
    def dram_uj(self) -> float:
        return self.dram * DRAM_PJ_PER_CYCLE * 1e-6

    def cells_uj(self, accelerator: Accelerator) -> float:
        """Energy of the array's cells."""
        return self.array * accelerator.rows * accelerator.columns * accelerator.cell_pj * 1e-6


def refetched(weights: int, inputs: int, buffer: int = BUFFER) -> int:
    """Bytes of weights and inputs that cross the DRAM interface.

    >>> refetched(4 << 20, 2 << 20) >> 20
    18
    """
    if weights <= buffer or inputs <= buffer:
        return weights + inputs
    return min(ceil(inputs / buffer) * weights + inputs, ceil(weights / buffer) * inputs + weights)


def cost(products: list[Product], accelerator: Accelerator, bits: Fraction) -> Cost:
    """The cost of products in a row."""
    total = array = dram = 0
    for p in products:
        blocks = ceil(p.k / accelerator.lanes) * ceil(p.n / accelerator.rows) * ceil(p.tokens / accelerator.columns)
        busy = blocks * p.batch * accelerator.steps(bits)
        moved = (refetched(p.weights, p.inputs) + p.outputs) // BYTES_PER_CYCLE
        total, array, dram = total + p.count * max(busy, moved), array + p.count * busy, dram + p.count * moved
    return Cost(total, array, dram)


def linear(model: Model, tokens: int, bits: Fraction) -> list[Product]:
    """The linear layers, and the LM head over all tokens."""
    hidden, keys, ffn = model.hidden, model.kv_heads * model.head_dim, model.ffn
    shapes = [(hidden, hidden), (hidden, keys), (hidden, keys), (hidden, hidden)]
    gated = model.model_type not in ("opt", "phi")
    shapes += [(hidden, ffn)] * (2 if gated else 1) + [(ffn, hidden)]

    def product(k: int, n: int, count: int) -> Product:
        return Product(k, n, tokens, ceil(k * bits / 8) * n, k * 2 * tokens, n * 2 * tokens, count=count)

    return [*(product(k, n, model.layers) for k, n in shapes), product(hidden, model.vocabulary, 1)]


def attention(model: Model, tokens: int, context: int, revision: Revision, cache_bits: int) -> list[Product]:
    """Scores and weighted values of all layers."""
    heads, hidden, keys, layers = model.heads, model.hidden, model.kv_heads * model.head_dim, model.layers
    if revision == "figures":
        rows = heads * tokens
        scores = Product(hidden, tokens, rows, tokens * hidden * 2, rows * keys * 2, tokens * 2 * rows, count=layers)
        values = Product(
            tokens, rows, context, ceil(tokens * ATTENTION_BITS / 8) * rows, tokens * keys * 2, rows * 2 * context, count=layers
        )
        return [scores, values]
    size = model.head_dim
    cached = ceil(size * cache_bits / 8) * context * heads
    scores = Product(size, context, tokens, cached, size * 2 * tokens * heads, context * 2 * tokens * heads, heads, layers)
    cached = ceil(context * cache_bits / 8) * size * heads
    values = Product(context, size, tokens, cached, context * 2 * tokens * heads, size * 2 * tokens * heads, heads, layers)
    return [scores, values]


def run(
    name: str, phase: str, accelerator: Accelerator, bits: Fraction, revision: Revision = "figures", cache_bits: int = ATTENTION_BITS
) -> Cost:
    """The cost of a prefill of 256 tokens, or of one decoded token, of a catalogue model."""
    model, tokens = describe(name), CONTEXT if phase == "prefill" else 1
    products = [*linear(model, tokens, bits), *attention(model, tokens, CONTEXT, revision, cache_bits)]
    return cost(products, accelerator if phase == "prefill" else accelerator.decoding(), bits)


# What was published ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Series:
    """Cycles of the six models, and total less on-chip energy in microjoules, as published; `bits` per weight, one for each model."""

    name: str
    accelerator: Accelerator
    phase: str
    bits: tuple[Fraction, ...]
    cycles: tuple[int, ...]
    dram_uj: tuple[int, ...]
    inferred: bool = False

    def run(self, index: int) -> Cost:
        return run(MODELS[index], self.phase, self.accelerator, self.bits[index])


MODELS = ("opt-1.3b", "phi-2", "yi-6b", "llama-2-7b", "llama-2-13b", "llama-3-8b")


def _same(bits: int | Fraction) -> tuple[Fraction, ...]:
    return (Fraction(bits),) * len(MODELS)


def _bits(*texts: str) -> tuple[Fraction, ...]:
    return tuple(Fraction(text) for text in texts)


PREFILL = (
    Series(
        "fp16", FP16, "prefill", _same(16),
        (669255680, 1399816192, 2878668800, 3156574208, 6676111360, 3969089536),
        (1892831, 4979097, 10400603, 12582538, 30622187, 15249329),
    ),
    Series(
        "BitMoD lossless", BITMOD, "prefill", _same(LOSSLESS),
        (336236544, 693780480, 1414209536, 1649680384, 3537397760, 1901133824),
        (954156, 2404977, 4196922, 5776309, 13901391, 6154819),
    ),
    Series(
        "BitMoD lossy", BITMOD, "prefill", _same(LOSSY_4),
        (233070592, 515194880, 946937856, 1202921472, 2601461760, 1273233408),
        (765241, 1886915, 2948383, 4406501, 10536199, 4324476),
    ),
    Series(
        "ANT", ANT, "prefill", _same(Fraction(11, 2)),
        (440975360, 847773696, 1734868992, 1949564928, 4076584960, 2266234880),
        (901023, 2259272, 3844512, 5391050, 12954931, 5640034),
    ),
    Series(
        "OliVe", OLIVE, "prefill", _same(Fraction(9, 2)),
        (403718144, 779268096, 1575157760, 1768062976, 3648512000, 2008645632),
        (806565, 2000241, 3221501, 4706147, 11272335, 4724864),
    ),
)  # fmt: skip
DECODE = (
    Series(
        "fp16", FP16, "decode", _same(16),
        (82153718, 165841248, 362970848, 413518608, 804330080, 469624976),
        (394117, 795670, 1740569, 1984299, 3859372, 2252666),
    ),
    Series(
        "BitMoD lossless", BITMOD, "decode", _same(LOSSLESS),
        (31220054, 62986912, 137681120, 156919888, 305157360, 178109840),
        (149856, 302338, 660122, 753215, 1464755, 854338),
    ),
    Series(
        "BitMoD lossy", BITMOD, "decode", _same(LOSSY_3),
        (15857750, 31959712, 69662944, 79493200, 154552560, 90099088),
        (76118, 153406, 333950, 381567, 741853, 432200),
    ),
    Series(
        "ANT", ANT, "decode", _bits("5", "5", "5.25", "5", "5", "4.5"),
        (25779238, 51998112, 119342816, 129497936, 251907680, 132370576),
        (123740, 249591, 571784, 621590, 1208727, 634475),
        inferred=True,
    ),
    Series(
        "OliVe", OLIVE, "decode", _bits("3.875", "4", "4.25", "3.75", "3.75", "3.5"),
        (20018374, 41655712, 96691936, 97236816, 189155680, 105031744),
        (96089, 199947, 463060, 466737, 907518, 493763),
        inferred=True,
    ),
)  # fmt: skip
STATED_BITS = "llama-2-7b"
"""The model whose bits per weight of ANT and OliVe in decode are stated."""


def rows() -> list[StudyRow]:
    """Cycles and DRAM energy per model, the other attention revision, and the means that the paper states."""
    found: list[StudyRow] = []
    for series in (*PREFILL, *DECODE):
        for index, model in enumerate(MODELS):
            own = series.run(index)
            what = f"{model}, {series.name}, {'prefill of 256 tokens' if series.phase == 'prefill' else 'one decoded token'}"
            circular = series.inferred and model != STATED_BITS
            note = f"{float(series.bits[index]):g} bits per weight"
            note += ": not stated, inferred from these cycles" if circular else ""
            found.append(_row(f"{what}: cycles", series.cycles[index], own.total, "cycles", None if circular else 0.0, note))
            found.append(_row(f"{what}: DRAM energy", series.dram_uj[index], own.dram_uj, "uJ", None if circular else 0.005, note))
    return [*found, *_per_head(), *_means(), *_energies()]


def _row(experiment: str, published: float, ours: float, unit: str, tolerance: float | None, note: str, source: str = ARRAYS) -> StudyRow:
    return StudyRow("bitmod", experiment, published, ours, unit, tolerance, "certain", source, note)


def _per_head() -> list[StudyRow]:
    note = "attention of the code's released revision, each head by itself with its cache at {} bits; the plots were made with the other"
    out = []
    for series, bits in zip(PREFILL[:3], (16, 8, 8), strict=True):
        own = run("llama-2-7b", "prefill", series.accelerator, series.bits[3], "per_head", bits)
        what = f"llama-2-7b, {series.name}, prefill of 256 tokens, attention per head: cycles"
        out.append(_row(what, series.cycles[3], own.total, "cycles", None, note.format(bits)))
    return out


def speedups(number: int, generate: bool) -> list[float]:
    """Speed-ups over fp16 of the accelerator at `number` in the series, per model; generation is a prefill and 20 decoded tokens."""
    out = []
    for index in range(len(MODELS)):
        base, own = (PREFILL[i].run(index).total for i in (0, number))
        if generate:
            base, own = (c + GENERATED * DECODE[i].run(index).total for c, i in ((base, 0), (own, number)))
        out.append(base / own)
    return out


def _means() -> list[StudyRow]:
    """Arithmetic means over the models; ratios to ANT and OliVe are ratios of such means, rounded as printed before they are averaged."""
    average = [[mean(speedups(number, generate)) for number in range(5)] for generate in (False, True)]
    tasks = ("prefill", f"prefill and {GENERATED} tokens")
    rivals = "; bits per weight of ANT and OliVe in decode are inferred from their cycles for five of the six models"
    out = []
    for (task, by), published in zip(zip(tasks, average, strict=True), (1.99, 2.41), strict=True):
        out.append(
            _row(f"mean speed-up of BitMoD lossless over fp16, {task}", published, by[1], "x", 0.005, "arithmetic mean of six", SOURCE)
        )
    for rival, number, stated in (("ANT", 3, (1.72, 1.66, 1.69)), ("OliVe", 4, (1.56, 1.39, 1.48))):
        ratios = [by[2] / by[number] for by in average]
        for task, ratio, published, note in zip(tasks, ratios, stated, ("", rivals), strict=False):
            what = f"speed-up of BitMoD lossy over {rival}, {task}"
            out.append(_row(what, published, ratio, "x", 0.005, f"ratio of arithmetic means over fp16{note}", SOURCE))
        both = mean(round(ratio, 2) for ratio in ratios)
        out.append(
            _row(
                f"speed-up of BitMoD lossy over {rival}, mean of both",
                stated[2],
                both,
                "x",
                0.005,
                f"of the two figures as printed{rivals}",
                SOURCE,
            )
        )
    return out


def _energies() -> list[StudyRow]:
    """Energy ratios from DRAM and array cells alone: the SRAM part rests on CACTI runs that are not published."""

    def energy(number: int, generate: bool, index: int) -> float:
        parts = [(PREFILL[number], 1)] + ([(DECODE[number], GENERATED)] if generate else [])
        return sum(times * (series.run(index).dram_uj + series.run(index).cells_uj(series.accelerator)) for series, times in parts)

    def ratio(number: int, base: int) -> float:
        found = [mean(energy(base, g, i) / energy(number, g, i) for i in range(len(MODELS))) for g in (False, True)]
        return mean(found)

    note = "DRAM and cells; SRAM not modelled (its CACTI figures are not published); mean over models of both tasks"
    stated = (("BitMoD lossless over fp16", 1, 0, 2.31), ("BitMoD lossy over ANT", 2, 3, 1.48), ("BitMoD lossy over OliVe", 2, 4, 1.31))
    return [
        _row(f"energy efficiency of {what}", value, ratio(number, base), "x", None, note, SOURCE) for what, number, base, value in stated
    ]

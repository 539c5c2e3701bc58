"""L-Mul (Luo and Sun, 2024): what additions in the place of products save in energy and area, and what they cost in error.

- Energy: the paper's table is Horowitz's for 45 nm; its headlines compare fp32 products (and products with their sums) with one
  int32 addition, which takes the two magnitude codes and the constant.
- Error: of single products, for fractions of 2 to 10 bits, against the exact product of the same operands and against small floats.
- Area: of the multipliers alone, in gates of one synthesis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hw.bits import Array
from hw.lowbit.lmul import adder, formula, fraction_format
from hw.mac import INTEGER_ADD, mac_type, reference_cells, saving
from hw.number import FLOATS
from studies.row import StudyRow

SOURCE = "Luo and Sun, Addition is All You Need for Energy-efficient Language Models, arXiv:2410.00907, 2024"
MITCHELL = "Mitchell, Computer Multiplication and Division Using Binary Logarithms, IRE Trans. Electronic Computers, 1962"
STUDENT = "public student project: L-Mul and IEEE bf16 multiplier with Yosys and the Nangate 45 nm cells at 1 ns"
FRACTIONS = tuple(range(2, 11))
PAIRS = 1 << 18


@dataclass(frozen=True)
class ProductError:
    """Relative errors of single products in percent, operands uniform over their fractions: means, and the root of the mean square."""

    adder_mean: float
    adder_rms: float
    mitchell_mean: float
    formula_mean: float


def product_error(bits: int, pairs: int = PAIRS, seed: int = 0) -> ProductError:
    """Errors against the exact product of the same operands, which have fractions of `bits`."""
    form, rng = fraction_format(bits), np.random.default_rng(seed)
    x, y = (127 << bits) + rng.integers(0, 1 << bits, (2, pairs))
    exact = form.decode(x) * form.decode(y)
    own, plain, stated = (100 * (value / exact - 1) for value in (adder(form, x, y), adder(form, x, y, "none"), formula(form, x, y)))
    return ProductError(float(own.mean()), float(np.sqrt((own**2).mean())), float(plain.mean()), float(stated.mean()))


def _normal(pairs: int, seed: int) -> tuple[Array, Array]:
    values: Array = np.random.default_rng(seed).standard_normal((2, pairs)).astype(np.float16).astype(np.float64)
    return values[0], values[1]


def lmul_mse(bits: int, pairs: int = PAIRS, seed: int = 0) -> float:
    """Mean square error of L-Mul of normal fp16 numbers, rounded to fractions of `bits`, against their exact product."""
    (a, b), form = _normal(pairs, seed), fraction_format(bits)
    return float(((adder(form, form.encode(a), form.encode(b)) - a * b) ** 2).mean())


def float_mse(name: str, pairs: int = PAIRS, seed: int = 0) -> float:
    """The same of a small float's multiplication: operands and product rounded to nearest even."""
    (a, b), form = _normal(pairs, seed), FLOATS[name]
    operands = [form.decode(form.encode(v, saturate=True)) for v in (a, b)]
    return float(((form.decode(form.encode(operands[0] * operands[1], saturate=True)) - a * b) ** 2).mean())


def rows() -> list[StudyRow]:
    """Energy and the error of Mitchell's product (claimed), area (claimed against a synthesis like ours), errors (reported)."""
    return [*_energies(), *_errors(), *_areas()]


def _row(
    experiment: str, published: float, ours: float, unit: str, tolerance: float | None, note: str, source: str = SOURCE, sure: bool = True
) -> StudyRow:
    return StudyRow("lmul", experiment, published, ours, unit, tolerance, "certain" if sure else "probable", source, note)


def _energies() -> list[StudyRow]:
    fp32, own = mac_type("ieee-fp32"), mac_type("lmul-fp32")
    half, own_half = mac_type("ieee-fp16"), mac_type("lmul-fp16")
    twice = 2 * INTEGER_ADD[32]
    table = "Horowitz, ISSCC 2014, 45 nm: fp32 multiply 3.7 pJ, add 0.9 pJ, int32 add 0.1 pJ"
    one = f"{table}; one three-operand addition per product, as in our RTL"
    two = "the same with a second addition for the constant"
    note = "no headline for this width; fp16 multiply 1.1 pJ, add 0.4 pJ, int16 add 0.05 pJ; beside the fp32 one"
    dot = twice + own.accumulate_pj
    return [
        _row("energy saved by element-wise products, fp32", 95, saving(own.multiply_pj, fp32.multiply_pj), "%", 0.03, one),
        _row("energy saved by dot products, fp32", 80, saving(own.step_pj, fp32.step_pj), "%", 0.03, one),
        _row("element-wise products, constant added separately", 95, saving(twice, fp32.multiply_pj), "%", None, two),
        _row("dot products, constant added separately", 80, saving(dot, fp32.step_pj), "%", None, two),
        _row("dot products, fp16", 80, saving(own_half.step_pj, half.step_pj), "%", None, note),
    ]


def _errors() -> list[StudyRow]:
    mitchell = product_error(10).mitchell_mean
    classical = "without the offset L-Mul is Mitchell's product: between 0 and -11.1 %; uniform fractions of 10 bits"
    found = [_row("mean relative error without the offset", -3.85, mitchell, "%", 0.01, classical, MITCHELL)]
    for bits in FRACTIONS:
        error = product_error(bits)
        below = "below" if abs(error.adder_mean) < abs(error.mitchell_mean) else "not below"
        note = (
            f"beside Mitchell's, which the constant is to correct; the magnitude is {below} it (root mean square {error.adder_rms:.2f} %; "
            f"the equation without the carry has a mean of {error.formula_mean:+.2f} %)"
        )
        found.append(_row(f"mean relative error, {bits}-bit fractions", -3.85, error.adder_mean, "%", None, note, MITCHELL))
    ratio = lmul_mse(4) / float_mse("fp8-e4m3")
    note = "published: comparable; of normal fp16 numbers, the float product rounded too"
    found.append(_row("mean square error of 4-bit L-Mul over e4m3 products", 1, ratio, "x", None, note))
    ratio = lmul_mse(3) / float_mse("fp8-e5m2")
    found.append(_row("mean square error of 3-bit L-Mul over e5m2 products", 1, ratio, "x", None, "published: better (below 1); as above"))
    return found


def _areas() -> list[StudyRow]:
    own = reference_cells("lmul_bf16_multiplier")
    out = []
    for name, tolerance, note in (
        ("flush_bf16_multiplier", 0.1, "both flush subnormals and saturate; generic gates against Nangate cells"),
        ("ieee_bf16_multiplier", None, "our IEEE multiplier keeps subnormals, which theirs does not say"),
    ):
        kind = "a flushing" if name.startswith("flush") else "an IEEE"
        ratio = reference_cells(name) / own
        out.append(_row(f"cells of {kind} bf16 multiplier over L-Mul's", 489 / 181, ratio, "x", tolerance, note, STUDENT))
    ratio = reference_cells("flush_bf16_multiplier") / own
    note = "their area in square micrometres at 1 ns, ours in gates without timing"
    out.append(_row("area of a bf16 multiplier over L-Mul's", 545.03 / 180.88, ratio, "x", None, note, STUDENT))
    for small, gates in (("fp8-e4m3", 325), ("fp8-e5m2", 296)):
        short = small.replace("-", "_")
        ratio = reference_cells(f"flush_{short}_multiplier") / reference_cells(f"lmul_{short}_multiplier")
        note = "the paper counts gates of adders and multipliers by hand (L-Mul 157), with rounding; ours are after optimisation"
        out.append(_row(f"gates of an {small} multiplier over L-Mul's", gates / 157, ratio, "x", None, note, sure=False))
    return out

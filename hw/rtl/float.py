"""IEEE 754 arithmetic as combinational logic, for any width: round to nearest even, subnormals kept, one quiet NaN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Elaboratable, Module, Mux, Signal, Value

from hw.number import Float
from hw.rtl.proof import Theorem


def signal(m: Module, value: Any, name: str | None = None) -> Signal:
    """A name for `value`, so that it is evaluated once."""
    held = Signal.like(Value.cast(value), name=name or "t")
    m.d.comb += held.eq(value)
    return held


@dataclass(frozen=True, slots=True)
class Parts:
    """An unpacked operand: value = (-1)^sign * significand * 2^(exponent - bias - fraction); `exponent` is at least 1."""

    sign: Value
    exponent: Signal
    significand: Signal
    zero: Value
    infinite: Value
    nan: Value


def unpack(m: Module, code: Any, form: Float) -> Parts:
    code = Value.cast(code)
    fraction, field = code[: form.fraction], code[form.fraction : form.width - 1]
    normal = signal(m, field.any(), "normal")
    magnitude = code[: form.width - 1]
    top = field.all()
    match form.specials:
        case "ieee":
            infinite, nan = top & ~fraction.any(), top & fraction.any()
        case "fn":
            infinite, nan = Const(0), magnitude.all()
        case _:
            infinite, nan = Const(0), Const(0)
    return Parts(
        sign=code[form.width - 1],
        exponent=signal(m, Mux(normal, field, 1), "exponent"),
        significand=signal(m, Cat(fraction, normal), "significand"),
        zero=~magnitude.any(),
        infinite=signal(m, infinite, "infinite"),
        nan=signal(m, nan, "nan"),
    )


def shift_right_sticky(m: Module, value: Signal, amount: Any) -> Signal:
    """`value >> amount`, with the bits that fall off joined (or-ed) into the lowest bit."""
    width = len(value)
    amount = Value.cast(amount)
    current: Value = value
    for step in range(min(len(amount), width.bit_length())):
        lost = current[: min(1 << step, width)].any()
        moved = current >> (1 << step)
        current = signal(m, Mux(amount[step], Cat(moved[0] | lost, moved[1:width]), current)[:width], "sticky")
    beyond = amount[width.bit_length() :]
    if len(beyond):
        current = Mux(beyond.any(), value.any(), current)
    return signal(m, current, "aligned")


def normalise(m: Module, value: Signal) -> tuple[Signal, Signal]:
    """`value` shifted left until its top bit is one, and by how many bits; a zero is shifted by the width minus one at most."""
    width = len(value)
    current: Value = value
    steps: list[Value] = []
    for step in reversed(range((width - 1).bit_length())):
        empty = signal(m, ~current[max(width - (1 << step), 0) :].any(), "empty")
        current = signal(m, Mux(empty, current << (1 << step), current)[:width], "shifted")
        steps.insert(0, empty)
    return signal(m, current, "normal"), signal(m, Cat(*steps), "shift")


def round_pack(m: Module, form: Float, sign: Any, magnitude: Any, exponent: Any) -> Signal:
    """The code nearest to (-1)^sign * magnitude * 2^exponent, ties to even, infinity beyond the largest value.

    `exponent` is signed. The lowest bit of `magnitude` may be a sticky bit if at least two bits lie between it and the
    result's last one. `form` has IEEE specials.
    """
    spare = max(form.fraction + 3 - len(Value.cast(magnitude)), 0)
    wide = signal(m, Cat(Const(0, spare), magnitude) if spare else magnitude, "wide")
    width = len(wide)
    normal, shift = normalise(m, wide)
    # exponent field of the leading one, were it normal
    field = signal(m, Value.cast(exponent) + (width - 1 + form.bias - spare) - shift, "field")
    below = signal(m, 1 - field, "below")
    subnormal = signal(m, field < 1, "subnormal")
    limit = form.fraction + 3
    amount = Mux(subnormal, Mux(below > limit, limit, below[: limit.bit_length()]), 0)
    shifted = shift_right_sticky(m, normal, signal(m, amount, "amount")[: limit.bit_length()])
    cut = width - 1 - form.fraction
    kept = shifted[cut:]
    up = shifted[cut - 1] & (shifted[: cut - 1].any() | kept[0])
    base = Mux(subnormal, 0, field - 1)
    code = signal(m, (base << form.fraction) + kept + up, "rounded")
    infinity = form.largest + 1
    clipped = Mux(code > form.largest, infinity, code)
    return signal(m, Cat(Mux(wide.any(), clipped, 0)[: form.width - 1], sign), "packed")


def multiply(m: Module, form: Float, a: Any, b: Any) -> Signal:
    """The correctly rounded product of two codes."""
    x, y = unpack(m, a, form), unpack(m, b, form)
    sign = x.sign ^ y.sign
    exponent = Cat(x.exponent + y.exponent, 0).as_signed() - 2 * (form.bias + form.fraction)
    rounded = round_pack(m, form, sign, signal(m, x.significand * y.significand), signal(m, exponent))
    nan = x.nan | y.nan | (x.infinite & y.zero) | (y.infinite & x.zero)
    infinite = x.infinite | y.infinite
    special = Mux(nan, form.nan, Cat(Const(form.largest + 1, form.width - 1), sign))
    return signal(m, Mux(nan | infinite, special, rounded), "product")


def add(m: Module, form: Float, a: Any, b: Any) -> Signal:
    """The correctly rounded sum of two codes; an exact zero from unlike signs is +0."""
    a, b = Value.cast(a), Value.cast(b)
    magnitude = form.width - 1
    swap = signal(m, b[:magnitude] > a[:magnitude], "swap")
    large, small = unpack(m, signal(m, Mux(swap, b, a)), form), unpack(m, signal(m, Mux(swap, a, b)), form)
    distance = signal(m, (large.exponent - small.exponent)[: form.exponent], "distance")
    guarded = signal(m, Cat(Const(0, 3), small.significand), "guarded")
    aligned = shift_right_sticky(m, guarded, distance)
    unlike = large.sign ^ small.sign
    head = Cat(Const(0, 3), large.significand)
    sum_ = signal(m, Mux(unlike, head - aligned, head + aligned)[: form.fraction + 5], "sum")
    sign = Mux(sum_.any(), large.sign, large.sign & small.sign)
    exponent = Cat(large.exponent, 0).as_signed() - (form.bias + form.fraction + 3)
    rounded = round_pack(m, form, sign, sum_, signal(m, exponent))
    nan = large.nan | small.nan | (large.infinite & small.infinite & unlike)
    special = Mux(nan, form.nan, Cat(Const(form.largest + 1, magnitude), large.sign))
    return signal(m, Mux(nan | large.infinite, special, rounded), "total")


def signed_magnitude(m: Module, value: Any) -> tuple[Value, Signal]:
    """Sign and absolute value of a signed integer."""
    value = Value.cast(value)
    negative = value[-1]
    return negative, signal(m, Mux(negative, -value, value)[: len(value)], "absolute")




class Operation(Elaboratable):  # type: ignore[misc]
    """One operation on the ports `a` and `b`, for proofs and for synthesis beside the units."""

    def __init__(self, form: Float, operation: Any) -> None:
        self.form, self.operation = form, operation
        self.a, self.b, self.result = (Signal(form.width, name=name) for name in ("a", "b", "result"))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += self.result.eq(self.operation(m, self.form, self.a, self.b))
        return m


def _ieee(form: Float, operation: Any, name: str) -> Theorem:
    design = Operation(form, operation)
    sort = f"(_ to_fp {form.exponent} {form.fraction + 1})"
    claim = f"(= ({sort} {{result}}) ({name} RNE ({sort} {{a}}) ({sort} {{b}})))"
    return Theorem(design, {"a": design.a, "b": design.b, "result": design.result}, claim)


def sum_theorem(form: Float) -> Theorem:
    """`add` is the IEEE 754 sum of SMT-LIB's theory of floating point, rounded to nearest even, for every pair of codes.

    The same description serves every format; fp16 is decided in seconds, fp32 not within minutes.
    """
    return _ieee(form, add, "fp.add")


def product_theorem(form: Float) -> Theorem:
    """`multiply` is the IEEE 754 product of SMT-LIB's theory of floating point, for every pair of codes."""
    return _ieee(form, multiply, "fp.mul")


class _Rounding(Elaboratable):  # type: ignore[misc]
    """`round_pack` of what multiplication gives it: a product of two significands and the sum of two exponents."""

    def __init__(self, form: Float) -> None:
        self.form = form
        self.magnitude = Signal(2 * (form.fraction + 1), name="magnitude")
        self.exponents = Signal(form.exponent + 1, name="exponents")
        self.sign, self.result = Signal(name="sign"), Signal(form.width, name="result")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        exponent = Cat(self.exponents, 0).as_signed() - 2 * (self.form.bias + self.form.fraction)
        m.d.comb += self.result.eq(round_pack(m, self.form, self.sign, self.magnitude, signal(m, exponent)))
        return m


def rounding_theorem(form: Float) -> Theorem:
    """Every exact product of two significands is rounded as IEEE 754 asks, ties to even, subnormals and overflow included.

    The product itself is the solver's own multiplication; proving it together with the rounding takes hours from fp16 on.
    """
    design = _Rounding(form)
    wide = "(_ to_fp 11 53)"
    constant = 1023 - 2 * (form.bias + form.fraction)
    power = f"(fp #b0 (bvadd ((_ zero_extend {11 - form.exponent - 1}) {{exponents}}) (_ bv{constant} 11)) (_ bv0 52))"
    exact = f"(fp.mul RNE ({wide} RNE (concat #b0 {{magnitude}})) {power})"
    signed_exact = f"(ite (= {{sign}} #b1) (fp.neg {exact}) {exact})"
    narrow = f"(_ to_fp {form.exponent} {form.fraction + 1})"
    ports = {"magnitude": design.magnitude, "exponents": design.exponents, "sign": design.sign, "result": design.result}
    return Theorem(design, ports, f"(= ({narrow} {{result}}) ({narrow} RNE {signed_exact}))")

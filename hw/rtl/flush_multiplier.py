"""A floating-point multiplier with the range rules of L-Mul, so that areas compare products alone.

Subnormal operands and results count as zero, results saturate: what a multiplier in an inference accelerator usually does.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value

from hw.number import Float
from hw.rtl.float import signal


def flush_multiply(m: Module, form: Float, x: Any, y: Any) -> Signal:
    """The product of two codes rounded to nearest even as if exponents had no end, then flushed or saturated."""
    x, y = Value.cast(x), Value.cast(y)
    top, bits = form.width - 1, form.fraction
    a, b = x[:top], y[:top]
    zero = ~a[bits:].any() | ~b[bits:].any()
    if form.specials == "ieee":
        infinite = (a == form.largest + 1) | (b == form.largest + 1)
        nan = (a > form.largest + 1) | (b > form.largest + 1) | (zero & infinite)
    else:
        infinite, nan = Const(0), (a > form.largest) | (b > form.largest)
    exact = signal(m, Cat(a[:bits], Const(1)) * Cat(b[:bits], Const(1)), "exact")  # 2 bits + 2 wide, its leading one in the top two
    long = exact[2 * bits + 1]
    shifted = signal(m, Mux(long, exact, exact << 1)[: 2 * bits + 2], "shifted")
    kept, half, rest = shifted[bits + 1 : 2 * bits + 1], shifted[bits], shifted[:bits].any()
    up = half & (rest | kept[0])
    field = a[bits:] + b[bits:] + long
    code = signal(m, Cat(Cat(kept, field) + up, 0).as_signed() - Const(form.bias << bits), "code")
    saturated = Mux(infinite | (code > form.largest), form.largest, code[:top])
    finite = Mux(zero | ((code < (1 << bits)) & ~infinite), 0, saturated)
    return signal(m, Mux(nan, form.nan, Cat(finite[:top], x[top] ^ y[top])), "flushed")

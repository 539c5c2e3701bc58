"""Number formats as storage: how many bits one value costs, metadata included.

A `Format` is about bytes: its arithmetic belongs to the golden kernels. Group metadata (scales, zero points, shared
exponents, selectors) is part of `bits`, so that a 4-bit weight in groups of 128 with an fp16 scale costs 4.125 bits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from workloads.errors import WorkloadError, nearest


@dataclass(frozen=True, slots=True)
class Format:
    """A number format.

    `bits` is the storage of one value in bits, exact, group metadata included. `element_bits` is the width of one
    stored code. `family` is the arithmetic it belongs to: `float`, `int`, `block` (shared scale), `ternary` or `lossless`.
    """

    name: str
    bits: Fraction
    element_bits: int
    family: str
    source: str = ""

    def bytes(self, elements: int) -> int:
        """Whole bytes that `elements` values occupy.

        >>> parse_format("int4-g128").bytes(256)
        132
        """
        return ceil(elements * self.bits / 8)

    def __repr__(self) -> str:
        return f"Format({self.name}, {float(self.bits):g} bits)"

    def __str__(self) -> str:
        return self.name


def _plain(name: str, bits: int, family: str, source: str) -> Format:
    return Format(name, Fraction(bits), bits, family, source)


_MX = "OCP Microscaling Formats v1.0: blocks of 32 share one 8-bit E8M0 scale"
_KIVI = "KIVI: asymmetric groups of 32, an fp16 scale and an fp16 minimum each"

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        _plain("fp64", 64, "float", "IEEE 754"),
        _plain("fp32", 32, "float", "IEEE 754"),
        _plain("fp16", 16, "float", "IEEE 754"),
        _plain("bf16", 16, "float", "bfloat16"),
        _plain("fp8", 8, "float", "OCP FP8 E4M3"),
        _plain("fp8-e4m3", 8, "float", "OCP FP8 E4M3"),
        _plain("fp8-e5m2", 8, "float", "OCP FP8 E5M2"),
        _plain("fp6-e3m2", 6, "float", "OCP MX element format"),
        _plain("fp6-e2m3", 6, "float", "OCP MX element format"),
        _plain("fp4", 4, "float", "OCP E2M1"),
        _plain("bool", 8, "int", "one byte per flag, as frameworks store it"),
        *(_plain(f"int{b}", b, "int", "two's complement") for b in (1, 2, 3, 4, 5, 6, 8, 16, 32, 64)),
        Format("mxfp8", Fraction(33, 4), 8, "block", _MX),
        Format("mxint8", Fraction(33, 4), 8, "block", _MX),
        Format("mxfp6", Fraction(25, 4), 6, "block", _MX),
        Format("mxfp4", Fraction(17, 4), 4, "block", _MX),
        Format("nvfp4", Fraction(9, 2), 4, "block", "blocks of 16 share one 8-bit E4M3 scale"),
        Format("bfp12", Fraction(9, 2), 4, "block", "MSFP12: blocks of 16 share one 8-bit exponent, sign and 3 bits each"),
        Format("ternary", Fraction(2), 2, "ternary", "{-1,0,1} packed four to a byte"),
        Format("ternary-dense", Fraction(8, 5), 2, "ternary", "{-1,0,1} packed five to a byte, 3^5 = 243 <= 256"),
        Format("kivi2", Fraction(3), 2, "int", _KIVI),
        Format("kivi4", Fraction(5), 4, "int", _KIVI),
        Format("bitmod3", Fraction(3) + Fraction(10, 128), 3, "block", "groups of 128: 8-bit scale and 2-bit selector"),
        Format("bitmod4", Fraction(4) + Fraction(10, 128), 4, "block", "groups of 128: 8-bit scale and 2-bit selector"),
    )
}

_GROUPED = re.compile(r"(?:int|w)(?P<bits>[1-8])-?g(?P<group>[1-9][0-9]*)(?P<asymmetric>a?)$")
_PRUNED = re.compile(r"(?P<base>.+)-(?P<kept>[0-9]+(?:\.[0-9]+)?)of(?P<window>[1-9][0-9]*)$")


def parse_format(name: str) -> Format:
    """The format called `name`; `int4-g128` is 4 bits in groups of 128 with an fp16 scale, `int4-g128a` adds an fp16 zero point,
    and `int4-8of16` keeps 8 of every 16 values (N:M sparsity) with their indices.

    Raises `WorkloadError` for a name that no format has.

    >>> parse_format("int4-g128").bits
    Fraction(33, 8)
    """
    key = name.strip().lower()
    if key in FORMATS:
        return FORMATS[key]
    if match := _PRUNED.match(key):
        base, kept, window = parse_format(match["base"]), Fraction(match["kept"]), int(match["window"])
        if not 0 < kept <= window or window & (window - 1):
            raise WorkloadError(f"format {name!r}: expected N of M with 0 < N <= M and M a power of two")
        index = window.bit_length() - 1
        note = f"{match['kept']} of {window} values kept, a {index}-bit index each and one byte per block of {window} x {window}"
        return Format(key, kept / window * (base.bits + index) + Fraction(8, window**2), base.element_bits, base.family, note)
    if match := _GROUPED.match(key):
        bits, group = int(match["bits"]), int(match["group"])
        metadata = Fraction(32 if match["asymmetric"] else 16, group)
        note = f"groups of {group} with an fp16 scale" + (" and an fp16 zero point" if match["asymmetric"] else "")
        return Format(key, bits + metadata, bits, "int", note)
    raise WorkloadError(
        f"format {name!r}: unknown number format, expected one of {', '.join(FORMATS)} or a grouped integer such as "
        f"int4-g128{nearest(key, FORMATS)}"
    )


def kept_of(format: Format) -> tuple[Fraction, int] | None:
    """(N, M) of a pruned format; None for a dense one.

    >>> kept_of(parse_format("int4-8of16"))
    (Fraction(8, 1), 16)
    """
    match = _PRUNED.match(format.name)
    return (Fraction(match["kept"]), int(match["window"])) if match else None

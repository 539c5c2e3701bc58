"""Number formats as storage: how many bits one value costs, metadata included.

A `Format` is about bytes; the arithmetic of quantising real tensors is in `workloads.quantisers`, whose packers produce exactly these
bytes. What is stored per group (scales, zero points, shared exponents, selectors) is part of `bits`, so that a 4-bit weight
in groups of 128 with an fp16 scale costs 4.125 bits. What is stored once per output channel or once per tensor is not: it is
below 0.1 % of a weight matrix.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from workloads.errors import WorkloadError, nearest


@dataclass(frozen=True, slots=True)
class Format:
    """A number format.

    `bits` is the storage of one value in bits, exact, group metadata included. `element_bits` is the width of one
    stored code. `family` is the arithmetic it belongs to: `float`, `int`, `block` (shared scale), `ternary`, `lossless`, `binary`
    (sums of scaled signs) or `outlier` (codes whose value depends on a neighbour or a data type per tensor).
    `scheme` names the quantiser and `group` the values that share metadata (0: the whole channel or tensor).
    """

    name: str
    bits: Fraction
    element_bits: int
    family: str
    source: str = ""
    scheme: str = ""
    group: int = 0

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


def _plain(name: str, bits: int, family: str, source: str, scheme: str = "") -> Format:
    return Format(name, Fraction(bits), bits, family, source, scheme)


def _block(name: str, element_bits: int, group: int, shared_bits: int, scheme: str, source: str, family: str = "block") -> Format:
    return Format(name, element_bits + Fraction(shared_bits, group), element_bits, family, source, scheme, group)


MX_BLOCK = 32
BITMOD_GROUP = 128
KIVI_GROUP = 32
_MX = "OCP Microscaling Formats v1.0: blocks of 32 share one 8-bit E8M0 scale"
_KIVI = "KIVI (Liu et al., ICML 2024): asymmetric groups of 32, an fp16 scale and an fp16 minimum each; keys per channel, values per token"
_BITMOD = "BitMoD (Chen et al., HPCA 2025): groups of 128 with an 8-bit scale and a 2-bit selector of the special value"
_ANT = "ANT (Guo et al., MICRO 2022): one data type per tensor"
_SMOOTH = "SmoothQuant (Xiao et al., ICML 2023): int8 per channel, activation outliers moved into the weights"
_DFLOAT = "DFloat11 (Zhang et al., 2025): bf16 with Huffman-coded exponents, about 11 bits by the data"
_GOBO = "GOBO (Zadeh et al., MICRO 2020): indices of representatives; 0.1 % outliers in fp32 with a 32-bit place, by the data"
_OLACCEL = "OLAccel (Park et al., ISCA 2018): 4 bits; 3 % outliers of 8 bits with 8-bit places, counted per 256 values, by the data"
_QMOE = "QMoE (Frantar and Alistarh, 2023): ternary runs in 16-bit codewords, about 0.8 bits by the data"
_OLIVE = "OliVe (Guo et al., ISCA 2023): outlier-victim pairs, aligned, without an index"

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        _plain("fp64", 64, "float", "IEEE 754"),
        _plain("fp32", 32, "float", "IEEE 754", "cast"),
        _plain("fp16", 16, "float", "IEEE 754", "cast"),
        _plain("bf16", 16, "float", "bfloat16", "cast"),
        _plain("fp8", 8, "float", "OCP FP8 E4M3, one scale per tensor", "float"),
        _plain("fp8-e4m3", 8, "float", "OCP FP8 E4M3, one scale per tensor", "float"),
        _plain("fp8-e5m2", 8, "float", "OCP FP8 E5M2, one scale per tensor", "float"),
        _plain("fp6", 6, "float", "OCP MX element format E3M2, one scale per tensor", "float"),
        _plain("fp6-e3m2", 6, "float", "OCP MX element format, one scale per tensor", "float"),
        _plain("fp6-e2m3", 6, "float", "OCP MX element format, one scale per tensor", "float"),
        _plain("fp4", 4, "float", "OCP E2M1, one scale per tensor", "float"),
        _plain("bool", 8, "int", "one byte per flag, as frameworks store it"),
        _plain("int1", 1, "int", "the sign, times the mean magnitude of a channel", "binary"),
        *(_plain(f"int{b}", b, "int", "two's complement, one scale per tensor", "int") for b in range(2, 9)),
        *(_plain(f"int{b}", b, "int", "two's complement") for b in (16, 32, 64)),
        *(_block(n, b, MX_BLOCK, 8, "mx", _MX) for n, b in (("mxfp8", 8), ("mxfp8-e4m3", 8), ("mxfp8-e5m2", 8), ("mxint8", 8))),
        *(_block(n, b, MX_BLOCK, 8, "mx", _MX) for n, b in (("mxfp6", 6), ("mxfp6-e3m2", 6), ("mxfp6-e2m3", 6), ("mxfp4", 4))),
        _block("nvfp4", 4, 16, 8, "nvfp", "blocks of 16 share one 8-bit E4M3 scale, and the tensor one fp32 scale"),
        _plain("ternary", 2, "ternary", "{-1,0,1} packed four to a byte; BitNet b1.58: one scale per tensor", "ternary"),
        Format("ternary-dense", Fraction(8, 5), 2, "ternary", "{-1,0,1} packed five to a byte, 3^5 = 243 <= 256", "ternary"),
        _block("kivi2", 2, KIVI_GROUP, 32, "kivi", _KIVI, "int"),
        _block("kivi4", 4, KIVI_GROUP, 32, "kivi", _KIVI, "int"),
        _block("bitmod3", 3, BITMOD_GROUP, 10, "bitmod", _BITMOD),
        _block("bitmod4", 4, BITMOD_GROUP, 10, "bitmod", _BITMOD),
        _plain("ant4", 4, "outlier", f"{_ANT} of int, flint, power of two and float", "ant"),
        _plain("flint4", 4, "outlier", f"{_ANT}: flint", "ant"),
        _plain("pot4", 4, "outlier", f"{_ANT}: powers of two", "ant"),
        _plain("olive4", 4, "outlier", f"{_OLIVE}; int4 or flint4 with E2M1 abfloat outliers", "olive"),
        _plain("olive8", 8, "outlier", f"{_OLIVE}; int8 with E4M3 abfloat outliers", "olive"),
        Format("gobo3", 3 + Fraction(64, 1000), 3, "outlier", _GOBO, "gobo"),
        Format("gobo4", 4 + Fraction(64, 1000), 4, "outlier", _GOBO, "gobo"),
        Format("olaccel4", 4 + Fraction(16, 256) + Fraction(16 * 3, 100), 4, "outlier", _OLACCEL, "olaccel"),
        _plain("smoothquant8", 8, "int", _SMOOTH, "smooth"),
        Format("dfloat11", Fraction(11), 16, "lossless", _DFLOAT, "dfloat"),
        Format("qmoe", Fraction(4, 5), 2, "ternary", _QMOE, "qmoe"),
    )
}


def _integer(match: re.Match[str]) -> Format:
    """Groups along the reduction, or one scale per output channel or tensor; asymmetric ones have zero points too."""
    bits, group, asymmetric = int(match["bits"]), int(match["group"] or 0), bool(match["asymmetric"])
    scheme = "int" + ("-channel" if match["channel"] else "") + ("-asym" if asymmetric else "")
    scheme = "binary" if bits == 1 and not asymmetric else scheme
    if not group:
        per = "output channel" if match["channel"] else "tensor"
        note = f"one fp32 scale{' and zero point' if asymmetric else ''} per {per}"
        return Format(match[0], Fraction(bits), bits, "int", note, scheme)
    note = f"groups of {group} with an fp16 scale" + (" and an fp16 zero point" if asymmetric else "")
    return Format(match[0], bits + Fraction(32 if asymmetric else 16, group), bits, "int", note, scheme, group)


def _bipolar(match: re.Match[str]) -> Format:
    bits, group = int(match["bits"]), int(match["group"] or 0)
    metadata = Fraction(16, group) if group else Fraction(0)
    note = "bipolar integers (odd, without a sign bit), " + (f"groups of {group} with an fp16 scale" if group else "one scale per channel")
    return Format(match[0], bits + metadata, bits, "int", note, "bipolar", group)


def _bfp(match: re.Match[str]) -> Format:
    element, group = int(match["width"]) - 8, int(match["block"] or 16)
    note = f"block floating point: blocks of {group} share one 8-bit exponent, sign and {element - 1} bits each"
    return _block(match[0], element, group, 8, "bfp", note)


def _bcq(match: re.Match[str]) -> Format:
    """q binary matrices, each with a scale per group: fp16 (LUT-GEMM), or 8 bits of sign and exponent (ShiftAddLLM)."""
    bits, group, shifts = int(match["bits"]), int(match["group"] or 0), match["name"] == "shiftadd"
    metadata = Fraction(bits * (8 if shifts else 16), group) if group else Fraction(0)
    note = "ShiftAddLLM (You et al., NeurIPS 2024): signs and power-of-two scales"
    note = note if shifts else "LUT-GEMM (Park et al., ICLR 2024): signs and fp16 scales"
    note += f", groups of {group}" if group else ", one set of scales per channel"
    return Format(match[0], bits + metadata, bits, "binary", note, match["name"], group)


def _kivi(match: re.Match[str]) -> Format:
    """KIVI at a given context: the newest tokens stay in fp16."""
    base, newest, context = FORMATS[f"kivi{match['bits']}"], int(match["newest"]), int(match["context"] or 0)
    if not context:
        note = f"{_KIVI}; the newest {newest} tokens in fp16 (not counted without a context)"
        return Format(match[0], base.bits, base.element_bits, "int", note, "kivi", base.group)
    kept = min(context, newest)
    bits = (base.bits * (context - kept) + 16 * kept) / context
    return Format(match[0], bits, base.element_bits, "int", f"{_KIVI}; {kept} of {context} tokens in fp16", "kivi", base.group)


def _minifloat(match: re.Match[str]) -> Format:
    exponent, mantissa = int(match["exponent"]), int(match["mantissa"])
    note = f"{exponent} bits of exponent, {mantissa} of mantissa, no infinities or NaNs, one scale per tensor"
    return Format(match[0], Fraction(1 + exponent + mantissa), 1 + exponent + mantissa, "float", note, "float")


_SIZE = "[1-9][0-9]{0,5}"
_PATTERNS: tuple[tuple[str, Callable[[re.Match[str]], Format]], ...] = (
    (rf"(?:int|w)(?P<bits>[1-8])(?:-?g(?P<group>{_SIZE})(?P<asymmetric>a|-asym)?)(?P<channel>)", _integer),
    (r"int(?P<bits>[2-8])(?P<channel>-channel)?(?P<asymmetric>-asym)?(?P<group>)", _integer),
    (rf"bipolar(?P<bits>[1-8])(?:-g(?P<group>{_SIZE}))?", _bipolar),
    (rf"bfp(?P<width>1[0-9]|2[0-3])(?:-b(?P<block>{_SIZE}))?", _bfp),
    (rf"(?P<name>bcq|shiftadd)(?P<bits>[1-4])(?:-g(?P<group>{_SIZE}))?", _bcq),
    (rf"kivi(?P<bits>[24])-r(?P<newest>{_SIZE})(?:@(?P<context>{_SIZE}))?", _kivi),
    (r"e(?P<exponent>[2-7])m(?P<mantissa>[1-9])", _minifloat),
)
_PRUNED = re.compile(r"(?P<base>.+)-(?P<kept>[0-9]+(?:\.[0-9]+)?)of(?P<window>[1-9][0-9]*)$")
_EXAMPLES = (
    "int4-g128",
    "int4-g128a",
    "int4-channel",
    "int8-asym",
    "bipolar4",
    "bfp12",
    "bcq3-g128",
    "shiftadd3-g128",
    "kivi2-r128",
    "e4m3",
)


def parse_format(name: str) -> Format:
    """The format called `name`.

    Besides the names in `FORMATS`: `int4-g128` is 4 bits in groups of 128 with an fp16 scale and `int4-g128a` adds an fp16 zero point;
    `int4-channel` and `int4-asym` have their scales once per output channel or tensor; `bipolar4`, `bfp12`, `bcq3-g128` (LUT-GEMM),
    `shiftadd3-g128`, `kivi2-r128` (newest 128 tokens in fp16), `e4m3` (a small float without specials); and `int4-8of16` keeps 8 of
    every 16 values (N:M sparsity) with their indices.

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
    for pattern, build in _PATTERNS:
        if match := re.fullmatch(pattern, key):
            return build(match)
    raise WorkloadError(
        f"format {name!r}: unknown number format, expected one of {', '.join(FORMATS)} or one such as "
        f"{', '.join(_EXAMPLES)}{nearest(key, (*FORMATS, *_EXAMPLES))}"
    )


def kept_of(format: Format) -> tuple[Fraction, int] | None:
    """(N, M) of a pruned format; None for a dense one.

    >>> kept_of(parse_format("int4-8of16"))
    (Fraction(8, 1), 16)
    """
    match = _PRUNED.match(format.name)
    return (Fraction(match["kept"]), int(match["window"])) if match else None

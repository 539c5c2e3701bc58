"""Number formats applied to real tensors: quantise, dequantise, pack, unpack, and what is lost.

>>> import numpy as np
>>> from workloads.quantisers import quantiser
>>> quantiser("int4-g32").round_trip(np.arange(32.0)).max()
np.float32(31.007812)

`quantiser(name)` knows every storage format of `workloads.parse_format` that quantises; `report` measures the error on a tensor.
"""

from __future__ import annotations

from collections.abc import Callable

from workloads.errors import WorkloadError, nearest
from workloads.format import FORMATS, Format, parse_format
from workloads.quantisers.ant import Ant
from workloads.quantisers.base import Packed, Quantised, Quantiser, pack, unpack
from workloads.quantisers.binary import BinaryCoding, ShiftAdd
from workloads.quantisers.bitmod import BitMod
from workloads.quantisers.dfloat import DFloat11
from workloads.quantisers.floats import Cast, Scaled
from workloads.quantisers.integer import Asymmetric, Binary, Bipolar, Symmetric, Ternary
from workloads.quantisers.kivi import Kivi
from workloads.quantisers.olive import Olive
from workloads.quantisers.outliers import Gobo, OlAccel
from workloads.quantisers.qmoe import QMoe
from workloads.quantisers.report import ErrorReport, distribution, errors, report
from workloads.quantisers.shared import BlockFloat, Mx, NvFp4
from workloads.quantisers.smooth import SmoothQuant

SCHEMES: dict[str, Callable[[Format], Quantiser]] = {
    "cast": Cast,
    "float": Scaled,
    "int": Symmetric,
    "int-channel": Symmetric,
    "int-asym": Asymmetric,
    "int-channel-asym": Asymmetric,
    "bipolar": Bipolar,
    "binary": Binary,
    "ternary": Ternary,
    "mx": Mx,
    "nvfp": NvFp4,
    "bfp": BlockFloat,
    "bitmod": BitMod,
    "ant": Ant,
    "olive": Olive,
    "kivi": Kivi,
    "bcq": BinaryCoding,
    "shiftadd": ShiftAdd,
    "smooth": SmoothQuant,
    "dfloat": DFloat11,
    "qmoe": QMoe,
    "gobo": Gobo,
    "olaccel": OlAccel,
}


def quantiser(format: str | Format) -> Quantiser:
    """The quantiser of a format. Raises `WorkloadError` for one that none exists for."""
    known = parse_format(format) if isinstance(format, str) else format
    if known.scheme not in SCHEMES:
        named = [f.name for f in FORMATS.values() if f.scheme in SCHEMES]
        raise WorkloadError(
            f"format {known}: no quantiser makes it from real numbers, expected one of {', '.join(named)}{nearest(known.name, named)}"
        )
    return SCHEMES[known.scheme](known)


def quantisable() -> tuple[str, ...]:
    """Names of the formats that have a quantiser, one of each kind of grouped format included."""
    examples = ("int4-channel", "int4-g128", "int4-g128a", "int8-asym", "int3-g64", "bipolar4", "bfp12", "bcq3-g128", "shiftadd3-g128")
    return tuple(f.name for f in FORMATS.values() if f.scheme in SCHEMES) + examples


__all__ = [
    "ErrorReport",
    "Packed",
    "Quantised",
    "Quantiser",
    "distribution",
    "errors",
    "pack",
    "quantisable",
    "quantiser",
    "report",
    "unpack",
]

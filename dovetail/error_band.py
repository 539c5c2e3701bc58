"""How far measurements may lie from an estimate: from the errors of validated work of the same kind, per operator and in total."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hw.device import Device
    from mapper.compile import Placed
    from mapper.kernels import Kernel

NOT_VALIDATED = "not validated"

COVERED = 0.8
"""Share of the time that must be of validated kinds of work for a total to have a band."""


@dataclass(frozen=True)
class ErrorBand:
    """Nine of ten measurements of such work lie between `low_fs` and `high_fs`, as far as is known; both are None where nothing of
    the kind was measured. `basis` says what was, or why there is none; `devices` on which."""

    low_fs: int | None
    high_fs: int | None
    basis: str
    devices: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """`low_s`, `high_s` (null where not validated), `basis` and `devices`."""
        low, high = (None if fs is None else fs / 10**15 for fs in (self.low_fs, self.high_fs))
        return {"low_s": low, "high_s": high, "basis": self.basis, "devices": list(self.devices)}

    @classmethod
    def from_json(cls, document: Any) -> ErrorBand:
        low, high = (None if document[key] is None else round(document[key] * 10**15) for key in ("low_s", "high_s"))
        return cls(low, high, document["basis"], tuple(document.get("devices", ())))


UNKNOWN = ErrorBand(None, None, NOT_VALIDATED)


def of_operators(kernels: Iterable[Placed], device: Device) -> list[ErrorBand]:
    """The band of one run of each kernel."""
    from verif.validation.bands import band

    found = []
    for placed in kernels:
        if (unit := unmeasured(placed, device)) is not None:
            found.append(ErrorBand(None, None, f"{NOT_VALIDATED}: no kernel on {unit} of {device.name} or its like was measured"))
            continue
        known = work_of(placed.kernel)
        what = band(device, *known) if known else None
        if what is None:
            named = f"{known[0]} {known[1]}" if known else placed.kernel.kind
            found.append(ErrorBand(None, None, f"{NOT_VALIDATED}: no measured {named} on {device.name} or its generation"))
        else:
            fs = placed.plan.latency_fs
            found.append(ErrorBand(int(fs * what.low), int(fs * what.high), what.basis, (what.device,)))
    return found


def unmeasured(placed: Placed, device: Device) -> str | None:
    """What a kernel runs on that no measurement of a GPU says anything about: a unit in or near a memory or with scratchpads of its
    own, or products of unlike formats. None for a kernel on the GPU's own units."""
    from mapper.target import mixed

    for part in placed.parts:
        unit = device.units.get(part.site.unit)
        if unit is None:
            continue
        if device.own_way(part.site.unit) is not None or ("gemm" in unit.executes and unit.execution != "waves"):
            return f"unit {part.site.unit!r}"
        if mixed(part.site.format):
            return f"unit {part.site.unit!r} in {part.site.format}"
    return None


def of_total(kernels: Iterable[Placed], bands: Iterable[ErrorBand], total_fs: int) -> ErrorBand:
    """The sum of the operators' bands, as if all errors had one sign. What is not validated takes the widest ratio of the rest; with
    more of it than `COVERED` leaves, there is no band."""
    covered = low = high = everything = 0
    basis: dict[str, int] = {}
    devices: dict[str, None] = {}
    for placed, found in zip(kernels, bands, strict=True):
        fs = placed.plan.latency_fs * placed.count
        everything += fs
        if found.low_fs is not None and found.high_fs is not None:
            covered += fs
            low, high = low + found.low_fs * placed.count, high + found.high_fs * placed.count
            basis[found.basis] = basis.get(found.basis, 0) + fs
            devices |= dict.fromkeys(found.devices)
    share = covered / everything if everything else 0.0
    if not covered or share < COVERED:
        return ErrorBand(None, None, f"{NOT_VALIDATED}: {share:.0%} of the time is of kinds of work that were measured on such a device")
    scale = total_fs / covered
    main = max(basis, key=lambda text: basis[text])
    more = len(basis) - 1
    text = f"{share:.0%} of the time is validated; most of it by {main}" + (f", and {more} more classes" if more else "")
    return ErrorBand(int(low * scale), int(high * scale), text, tuple(devices))


def work_of(kernel: Kernel) -> tuple[str, str, str] | None:
    """Operator, data type and size class of a kernel as measurements name them; None for kinds that no measurement has."""
    from verif.validation.measurement import DTYPES, size_class

    op = kernel.operator
    result = kernel.writes[0].format.name if kernel.writes else ""
    sizes = float(sum((o.size for o in (*kernel.reads, *kernel.writes)), start=0))
    match op.kind:
        case "matmul" | "grouped_matmul":
            name = "gemm" if op.kind == "matmul" else "moe"
            acts, weights = kernel.input(0).format.name, kernel.input(1).format.name
            flops = float(kernel.flops)
        case "attention":
            few = op["queries"] == 1
            name = "attention-decode" if few else "attention-prefill"
            acts, weights = kernel.input(0).format.name, kernel.input(1).format.name
            flops = float(kernel.flops)
        case "norm":
            name = "layernorm" if "layer" in op.function else "rmsnorm"
            acts = weights = kernel.input(0).format.name
            flops = 0.0
        case "softmax" | "embedding":
            name, flops = op.kind, 0.0
            acts = weights = result
        case "elementwise":
            name = {"gelu": "gelu", "rope": "rope", "silu-mul": "silu-mul"}.get(op.function, "add")
            acts = weights = result
            flops = 0.0
        case _:
            return None
    aliases = {"fp8": "fp8-e4m3"}
    acts, weights = aliases.get(acts, acts), aliases.get(weights, weights)
    wanted = [dtype for dtype, (a, w, _) in DTYPES.items() if (a, w) == (acts, weights)]
    return (name, wanted[0], size_class(name, flops, sizes)) if wanted else None

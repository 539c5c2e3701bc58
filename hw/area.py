"""Area as synthesis found it: committed figures that `Unit.area()` reads, never an estimate of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "units" / "characterisation"


@dataclass(frozen=True, slots=True)
class Area:
    """Size of one unit from open-source synthesis: an estimate for comparisons, not a vendor's figure.

    `cells` are generic two-input gates, multiplexers and flip-flops; `depth` their longest path in gates. `targets` gives
    look-up tables, flip-flops and multiplier blocks by FPGA family (`xcup` UltraScale+, `xc7` 7-series, `ecp5`).
    """

    cells: int
    flip_flops: int
    depth: int
    targets: Mapping[str, Mapping[str, int]]
    date: str
    tool: str


@cache
def characterisation(kind: str) -> tuple[dict[str, Any], ...]:
    """Every synthesis record of a unit kind; empty when there is none."""
    path = FOLDER / f"{kind}.json"
    return tuple(json.loads(path.read_text(encoding="utf-8"))["records"]) if path.is_file() else ()


def characterised(unit: Any) -> Area | None:
    """The record whose parameters are exactly those of `unit`."""
    wanted = parameters(unit)
    for record in characterisation(type(unit).kind):
        if record["parameters"] == wanted:
            return Area(**{name: record[name] for name in ("cells", "flip_flops", "depth", "targets", "date", "tool")})
    return None


def parameters(unit: Any) -> dict[str, Any]:
    """The fields that shape a unit's hardware, as JSON; names, clocks and energies do not change the netlist."""
    left_out = {"source", "count", "clock", "mac_energy", "operation_energy"}
    fields: dict[str, Any] = unit.model_dump(mode="json", exclude=left_out)
    return fields

"""Synthesis with Yosys: gate counts and FPGA resources as data that `Unit.area()` reads.

    python -m verif.synthesis [UNIT ...]     writes hw/units/characterisation/*.json

The figures are open-source estimates. They are for comparisons within one tool: no vendor's packing, no routing, no clock.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hw import UNITS, HardwareError, Unit
from hw.area import FOLDER, parameters
from verif.conformance import units_with_rtl, verilog
from verif.tools import yosys, yosys_version

REFERENCES = "references"
"""The file of designs that units are compared with."""
FAMILIES = {
    "xcup": ("synth_xilinx -family xcup -flatten -noiopad -noclkbuf", 6, r"FD[RCSP]E", r"DSP48E2"),
    "xc7": ("synth_xilinx -family xc7 -flatten -noiopad -noclkbuf", 6, r"FD[RCSP]E", r"DSP48E1"),
    "ecp5": ("synth_ecp5", 4, r"TRELLIS_FF", r"MULT18X18D"),
}
"""Flow, inputs of a look-up table, and the cell names of flip-flops and multiplier blocks.

Look-up tables are mapped with classic `abc -lut`: Yosys' own `abc9` step ends without a message on some of the designs.
"""
DATAPATH = "synth -flatten -top dut; abc -g AND,OR,XOR,MUX; opt_clean; tee -o stat.json stat -json; tee -o depth.txt ltp -noff"


def synthesise(text: str) -> dict[str, Any]:
    """`cells`, `flip_flops`, `depth` and per-family resources of Verilog with the top module `dut`.

    Raises `VerificationError` when Yosys does not take it.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "dut.v").write_text(text, encoding="utf-8")
        yosys(f"read_verilog dut.v; {DATAPATH}", folder)
        cells = _cells(folder)
        longest = re.search(r"length=(\d+)", Path(folder, "depth.txt").read_text(encoding="utf-8"))
        record: dict[str, Any] = {
            "cells": sum(cells.values()),
            "flip_flops": sum(n for name, n in cells.items() if "DFF" in name),
            "depth": int(longest[1]) if longest else 0,
            "targets": {},
        }
        for family, (flow, inputs, flip_flop, multiplier) in FAMILIES.items():
            mapping = f"opt_expr -mux_undef; abc -lut {inputs}; opt_clean; tee -o stat.json stat -json"
            yosys(f"read_verilog dut.v; {flow} -top dut -run begin:map_luts; {mapping}", folder)
            cells = _cells(folder)
            counts = {
                kind: sum(n for name, n in cells.items() if re.fullmatch(pattern, name))
                for kind, pattern in (("lut", r"\$lut"), ("ff", flip_flop), ("dsp", multiplier))
            }
            counts["lut"] += 2 * cells.get("CCU2C", 0)  # an ECP5 carry cell is two look-up tables with their carry chain
            record["targets"][family] = counts
    return record


def _cells(folder: str) -> dict[str, int]:
    text = Path(folder, "stat.json").read_text(encoding="utf-8")
    statistics = json.loads(text[text.index("{") :])
    found: dict[str, int] = statistics["design"]["num_cells_by_type"]
    return found


def stamp() -> dict[str, str]:
    return {"date": datetime.now(UTC).date().isoformat(), "tool": yosys_version()}


def characterise(kind: str) -> list[dict[str, Any]]:
    """Records of the first sample of a kind and of its defaults."""
    units: list[Unit] = [UNITS[kind].samples()[0]]
    try:
        default = UNITS[kind]()
        if default != units[0]:
            units.append(default)
    except HardwareError:  # a kind without defaults
        pass
    return [{"parameters": parameters(unit), **synthesise(verilog(unit)), **stamp()} for unit in units]


def characterise_references() -> list[dict[str, Any]]:
    from amaranth.back import verilog as backend

    from hw.rtl.reference import references

    records = []
    for name, design in references().items():
        ports = None if hasattr(design, "signature") else [design.a, design.b, design.result]
        text = backend.convert(design, name="dut", ports=ports, emit_src=False)
        records.append({"parameters": {"name": name}, **synthesise(text), **stamp()})
    return records


def write(kinds: Iterable[str], folder: Path = FOLDER) -> None:
    """Writes one file per kind; `references` is the one of designs to compare with."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        start = time.perf_counter()
        records = characterise_references() if kind == REFERENCES else characterise(kind)
        (folder / f"{kind}.json").write_text(json.dumps({"schema": 1, "records": records}, indent=1) + "\n", encoding="utf-8")
        for record in records:
            print(f"{kind} {record['parameters']}: {record['cells']} cells, depth {record['depth']}, {record['targets']}", file=sys.stderr)
        print(f"{kind}: {time.perf_counter() - start:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    write(sys.argv[1:] or [REFERENCES, *units_with_rtl()])

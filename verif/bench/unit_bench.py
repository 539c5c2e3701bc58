"""The cocotb test of one unit: its recorded words under every stall pattern. Run by `verif.gate`, inside the simulator."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotb_coverage.coverage import CoverCross, CoverPoint, coverage_db

from verif.bench.streams import Driver, Monitor, Scoreboard, Stream
from verif.stalls import STALLS

PATIENCE = 2000
TASK = json.loads(Path(os.environ["DOVETAIL_BENCH"]).read_text(encoding="utf-8"))
NAME = TASK["unit"]


@CoverPoint(f"{NAME}.operands", xf=lambda operands, result, stalls: operands, bins=["moved", "refused", "idle"])  # type: ignore[untyped-decorator]
@CoverPoint(f"{NAME}.result", xf=lambda operands, result, stalls: result, bins=["moved", "waits", "idle"])  # type: ignore[untyped-decorator]
@CoverPoint(f"{NAME}.stalls", xf=lambda operands, result, stalls: stalls, bins=list(STALLS))  # type: ignore[untyped-decorator]
@CoverCross(f"{NAME}.streams", items=[f"{NAME}.operands", f"{NAME}.result"])  # type: ignore[untyped-decorator]
def cycle_seen(operands: str, result: str, stalls: str) -> None:
    """Samples the coverage of one clock cycle."""


@cocotb.test()
@cocotb.parametrize(stalls=list(STALLS))
async def results_are_golden(dut: Any, stalls: str) -> None:
    """Every result word equals the golden one, in order, whatever stalls; nothing follows the last."""
    words, expected = ([int(word, 16) for word in TASK[name]] for name in ("words", "expected"))
    rng = np.random.default_rng(TASK["seed"])
    state = {"operands": "idle"}
    scoreboard = Scoreboard(expected)
    driver = Driver(Stream.of(dut, "operands"), STALLS[stalls](rng), lambda what: state.update(operands=what))
    monitor = Monitor(
        Stream.of(dut, "result"), STALLS[stalls](rng), lambda what: cycle_seen(state["operands"], what, stalls), scoreboard.see
    )
    Clock(dut.clk, 2, unit="ns").start()
    # reset has to recover from anything: random words come first
    payload = driver.stream.payload
    for cycle in range(16):
        dut.rst.value = cycle < 2 or cycle >= 14
        driver.stream.valid.value = monitor.stream.ready.value = 2 <= cycle < 14
        payload.value = int.from_bytes(rng.bytes(len(payload) // 8 + 1), "little") >> (8 - len(payload) % 8)
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    driver.stream.valid.value = 0
    watching = cocotb.start_soon(monitor.watch())
    sending = cocotb.start_soon(driver.send(words))
    idle, position = 0, 0
    while not scoreboard.complete and idle < PATIENCE:
        await RisingEdge(dut.clk)
        idle = idle + 1 if scoreboard.position == position else 0
        position = scoreboard.position
    assert scoreboard.complete, f"stuck after {position} of {len(expected)} results"
    await ClockCycles(dut.clk, 64)
    sending.cancel()
    watching.cancel()
    coverage_db.export_to_xml(filename=TASK["coverage"])
    assert not scoreboard.mismatches, scoreboard.mismatches[0]
    assert not monitor.breaches, monitor.breaches[0]

"""Long runs: operand words and stalls come from a test bench in Verilog, so that nothing crosses into Python per cycle.

The bench reads all words from a file, offers and takes with the stalls asked for, watches the stream protocol and writes the
results to a file. It compiles with Icarus Verilog and with Verilator.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hw import Unit
from hw.work import Case
from verif.conformance import batches, describe, differences, verilog
from verif.errors import VerificationError
from verif.tools import missing_simulator, simulator_environment

BENCH = """`timescale 1ns/1ps
module bench;
  reg clk = 0, rst = 1;
  reg [{word_top}:0] words [0:{last_word}];
  wire [{result_top}:0] payload;
  wire accepts, offers;
  reg [63:0] noise = 64'h{seed:016x};
  integer position = 0, taken = 0, cycle = 0, idle = 0, first = 0, last = 0, quiet = 0, breaches = 0, file;
  reg offering = 0, taking = 1, waited = 0, done = 0;
  reg [{result_top}:0] held;
  wire [{word_top}:0] word = words[position < {words} ? position : {last_word}];
  // what is not on offer must not matter
  dut dut(.clk(clk), .rst(rst), .operands__payload(offering ? word : ~word), .operands__valid(offering), .operands__ready(accepts),
          .result__payload(payload), .result__valid(offers), .result__ready(taking));
  initial begin
    $readmemh("words.hex", words);
    file = $fopen("results.hex", "w");
  end
  always #1 clk = ~clk;
  always @(posedge clk) if (!done) begin
    cycle <= cycle + 1;
    noise <= {{noise[62:0], noise[63] ^ noise[62] ^ noise[60] ^ noise[59]}};
    if (cycle == 3) rst <= 0;
    if (!rst && cycle > 4) begin
      idle <= idle + 1;
      if (offering && accepts) begin
        if (position == 0) first <= cycle;
        position <= position + 1;
        idle <= 0;
      end
      // a word that is on offer stays there until it is taken
      if (!offering || accepts) offering <= (position + (offering && accepts) < {words}) && !({stalls} && noise[5]);
      if (waited && (!offers || payload !== held)) breaches = breaches + 1;
      if (offers && taking) begin
        $fwrite(file, "%h\\n", payload);
        taken <= taken + 1;
        last <= cycle;
        idle <= 0;
      end
      waited <= offers && !taking;
      held <= payload;
      taking <= !({stalls} && noise[23]);
      quiet <= (position >= {words} && taken >= {results}) ? quiet + 1 : 0;
      if (quiet > 64 || idle > {patience} || taken > {results}) begin
        done <= 1;
        $display("RUN first=%0d last=%0d words=%0d results=%0d breaches=%0d", first, last, position, taken, breaches);
        $fclose(file);
        $finish;
      end
    end
  end
endmodule
"""
PATIENCE = 4000
SEED = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class LongRun:
    """`words` that went in, how many of them `distinct`, cycles from the first to the last result, and what was wrong, in words."""

    unit: str
    words: int
    distinct: int
    cycles: int
    failures: tuple[str, ...]


def run_long(unit: Unit, cases: Sequence[Case], *, stalls: bool = True, simulator: str = "icarus", source: str | None = None) -> LongRun:
    """RTL = golden over all of `cases`, sent as one stream. `source` replaces the unit's Verilog.

    Raises `VerificationError` when the simulator is missing or does not take the Verilog.
    """
    if reason := missing_simulator(simulator):
        raise VerificationError(reason)
    groups = batches(unit, cases)
    words = [word for group in groups for word in group.words]
    results = sum(group.results for group in groups)
    text = source or verilog(unit)
    tops = [re.search(rf"\[(\d+):0\] {port}\b", text) for port in ("operands__payload", "result__payload")]
    word_top, result_top = (int(top[1]) if top else 0 for top in tops)
    bench = BENCH.format(
        word_top=word_top,
        result_top=result_top,
        words=len(words),
        last_word=len(words) - 1,
        results=results,
        stalls=int(stalls),
        patience=PATIENCE,
        seed=SEED,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "words.hex").write_text("".join(f"{word:x}\n" for word in words), encoding="utf-8")
        (folder / "bench.v").write_text(bench, encoding="utf-8")
        (folder / "dut.v").write_text("`timescale 1ns/1ps\n" + text, encoding="utf-8")
        said = _simulate(unit, folder, simulator)
        found = [int(line, 16) if re.fullmatch(r"[0-9a-f]+\n?", line) else None for line in (folder / "results.hex").open(encoding="utf-8")]
    report = re.search(r"RUN first=(\d+) last=(\d+) words=(\d+) results=(\d+) breaches=(\d+)", said)
    if report is None:
        raise VerificationError(f"{describe(unit)}: the simulation ended without a report:\n{said.strip()[-500:]}")
    first, last, sent, taken, breaches = map(int, report.groups())
    failures = []
    if sent < len(words) or taken != results:
        failures.append(f"{describe(unit)}: {sent} of {len(words)} words went in and {taken} of {results} results came out")
    elif None in found:
        failures.append(f"{describe(unit)}: result {found.index(None)} has undefined bits")
    else:
        parts, position = [], 0
        for group in groups:
            parts.append([word for word in found[position : position + group.results] if word is not None])
            position += group.results
        failures += differences(unit, cases, parts)
    if breaches:
        failures.append(f"{describe(unit)}: {breaches} results changed or vanished while they waited to be taken")
    return LongRun(unit.kind, len(words), len(set(words)), last - first, tuple(failures))


def _simulate(unit: Unit, folder: Path, simulator: str) -> str:
    if simulator == "icarus":
        # not as SystemVerilog: there initial values cause no event, and logic that depends on constants alone would stay undefined
        build, run = ["iverilog", "-g2005", "-o", "bench", "bench.v", "dut.v"], ["vvp", "-n", "bench"]
    else:
        options = ["--binary", "--timing", "-Wno-fatal", "-O3", "--x-assign", "0", "-CFLAGS", "-std=c++20 -fcoroutines", "-o", "bench"]
        build, run = ["verilator", *options, "bench.v", "dut.v"], ["obj_dir/bench"]
    with simulator_environment(simulator):
        built = subprocess.run(build, cwd=folder, capture_output=True, text=True, check=False)
        if built.returncode:
            said = (built.stdout + built.stderr).strip()
            raise VerificationError(f"{describe(unit)}: {simulator} does not take the Verilog:\n{said[-500:]}")
        return subprocess.run(run, cwd=folder, capture_output=True, text=True, check=False).stdout

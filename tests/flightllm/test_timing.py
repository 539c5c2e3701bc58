"""Instruction timing: the authors' log of the VHK158, closed forms, and laws."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from hw import devices
from mapper.errors import MappingError
from mapper.flightllm import isa
from mapper.flightllm.compile import PREFILL_STEP, Compiler, Stream, aligned
from mapper.flightllm.emit import AS_RELEASED
from mapper.flightllm.memory import MemoryMap
from sim import simulate
from sim.flightllm import bursts, generate, program, run, timing
from studies import flightllm as study
from workloads import load, quantise

from .conftest import LLAMA

# The log files of the released profiler to six digits: milliseconds busy by queue, and in all; instructions by queue.
LOG = {
    144: ({"LD": 6.704711, "ST": 0.031453, "MV": 8.810382, "MISC": 0.225422, "SYS": 0.000581}, 9.281941, (89554, 418, 0, 8830, 4545, 418)),
    2048: (
        {"LD": 8.794599, "ST": 0.063118, "MV": 10.437404, "MISC": 0.563911, "SYS": 0.000581},
        12.226162,
        (114130, 418, 0, 11902, 4545, 418),
    ),
}


@pytest.mark.parametrize("context", sorted(LOG))
def test_a_decode_token_is_the_log_to_a_millionth_and_instruction_by_instruction(context: int) -> None:
    busy, total, counts = LOG[context]
    found = study.decoded(context)
    assert found.seconds * 1e3 == pytest.approx(total, rel=1e-6)
    for queue, milliseconds in busy.items():
        assert found.busy[queue] * 1e3 == pytest.approx(milliseconds, rel=1e-6, abs=1e-6)
    table = isa.decode(found.stream.words)
    assert tuple(np.bincount(table[:, 0], minlength=6).tolist()) == counts


@pytest.mark.parametrize("context", [16, 144, 640, 2048])
def test_mv_time_is_its_closed_form(context: int) -> None:
    def pad(n: int) -> int:
        return aligned(n, 512)

    h, f, v, layers, heads = 4096, 11008, 32000, 32, 32
    linear = 2 * Fraction(7, 10) * h * h + 2 * h * h + 2 * h * pad(f) + f * h
    attention = layers * heads * (pad(context) * 128 + 512 * context)
    cycles = (layers * linear + h * pad(v) + attention) / 1024
    assert study.decoded(context).busy["MV"] == pytest.approx(
        float(cycles / 225_000_000 / Fraction("3.2")), rel=2e-6
    )  # 0.7 as 8 and 16 of 16


def test_mm_time_of_a_prefill_is_its_closed_form() -> None:
    h, f, v, tokens = 4096, 11008, 32000, 128
    linear = 32 * (2 * 0.7 * h * h + 2 * h * h + 3 * h * f) * tokens + h * v * tokens
    cycles = (linear + 32 * 32 * 2 * tokens * tokens * 128) / 4096  # at 128 tokens every tile of 128 rows needs every block
    made = study.compiler(phase="prefill")
    found = run(made.compile(128), made.device)
    assert found.busy["MM"] == pytest.approx(cycles / 225e6 / 3.2, rel=2e-6)
    assert found.seconds * 1e3 == pytest.approx(289.882369, rel=1e-5)  # the released log


def test_compiling_and_running_a_decode_token_takes_less_than_two_cpu_seconds() -> None:
    made = study.compiler()
    start = time.process_time()
    run(made.compile(1024), made.device)
    assert time.process_time() - start < 2


@pytest.mark.slow
def test_a_whole_generation_takes_less_than_twenty_cpu_seconds_and_gives_the_published_rate() -> None:
    decode, prefill = study.compiler(), study.compiler(phase="prefill")
    start = time.process_time()
    found = generate(decode, 128, 512, prefill)
    assert time.process_time() - start < 20
    assert found.tokens_per_s == pytest.approx(103.5, rel=1e-3)
    assert found.prefill_s == pytest.approx(0.28988, rel=1e-3)


def hand(*rows: list[int]) -> Stream:
    memory = MemoryMap()
    memory.add("w", "weight", 1 << 20, 8, bits=4)
    memory.add("v", "value", 1 << 20, 8)
    return Stream("hand", "decode", 1, 16, (isa.encode(np.array(rows, np.int64)),), memory)


def ld(mode: str, channel: int, address: int = 0, length: int = 4096, **more: Any) -> list[int]:
    fields = {"loop1": 1, "loop2": 1, "loop3": 1, "memory": 1, **{k: v for k, v in more.items() if k not in ("wait", "release")}}
    return isa.row(
        isa.LD,
        more.get("wait", ()),
        more.get("release", ()),
        mode=isa.MODES.index(mode),
        channel=channel,
        address=address,
        length=length,
        **fields,
    )


def fs(stream: Stream, device: Any) -> list[int]:
    return timing(isa.decode(stream.words), stream, device).duration.tolist()


def test_a_load_takes_its_stored_bytes_over_the_bandwidth_of_its_channels(vhk158: Any) -> None:
    peak = Fraction(vhk158.dram.bandwidth, 32) * Fraction("3.2")
    one, four_bit = ld("global", 0, 1 << 20), ld("A", 0)
    found = fs(hand(one, four_bit, ld("B", 0, 1 << 20), ld("bias", 0), ld("A", 1, zero=1)), vhk158)
    same = 4096 / (peak * Fraction(7, 10)) * 10**15
    cycle = Fraction(10**15, 225_000_000) / Fraction("3.2")
    expected = [same, same / 2, 2 * same, same, 16 * cycle]  # int8; int4; across channels; side channel; zeros: 256 B a cycle
    assert found == [-(-e.numerator // e.denominator) for e in expected]


def test_loads_of_a_burst_share_its_channels_and_tokens_end_a_burst() -> None:
    eight = [ld("A", c) for c in range(8)]
    eight[-1][2] = isa.mask(isa.LD, [isa.MV])
    rows = np.array([ld("B", 0), *eight, ld("A", 0), ld("A", 1), ld("A", 1), ld("A", 0, wait=[isa.MV])])
    assert bursts(rows).tolist() == [1, *[8] * 8, 2, 2, 2, 1]


def test_a_sparse_product_takes_the_weights_loaded_for_it(vhk158: Any) -> None:
    dense = isa.row(isa.MV, [isa.LD], k=4, output=1)
    sparse = isa.row(isa.MV, [isa.LD], k=4, output=1, sparse=1)
    stream = hand(ld("A", 0, length=4096, release=[isa.MV]), sparse, ld("A", 0, length=2048, release=[isa.MV]), sparse, ld("A", 0), dense)
    cycle = Fraction(10**15, 225_000_000) / Fraction("3.2")
    durations = fs(stream, vhk158)
    assert [durations[i] for i in (1, 3, 5)] == [-(-(n * cycle).numerator // (n * cycle).denominator) for n in (4, 2, 512 * 4 * 16 // 1024)]


def test_ddr_is_slower_and_only_where_there_is_some(vhk158: Any) -> None:
    stream = hand(ld("global", 0, 1 << 20, memory=0))
    board = devices.load("flightllm-u280")
    assert fs(stream, board) == [-(-4096 * 10**15 // 38_000_000_000)]
    with pytest.raises(MappingError, match="moves data in DDR, but there is no memory of kind 'instruction_memory'"):
        fs(stream, vhk158)


def test_tokens_that_never_come_are_named(vhk158: Any) -> None:
    with pytest.raises(MappingError, match="'part 0 MV' on 'MV' waits for LD>MV"):
        run(hand(isa.row(isa.MV, [isa.LD], k=1)), vhk158)


def test_both_engines_agree_on_a_folded_stream(graph_of: Any, vhk158: Any) -> None:
    made = program(Compiler(graph_of(LLAMA), vhk158, AS_RELEASED).compile(), vhk158)
    fast, reference = simulate(made, "fast"), simulate(made, "simpy")
    assert (fast.makespan, dict(fast.busy), fast.stalls) == (reference.makespan, dict(reference.busy), reference.stalls)
    assert sorted((s.on, s.start, s.end) for s in fast.spans()) == sorted((s.on, s.start, s.end) for s in reference.spans())


def test_a_model_of_many_layers_folds(vhk158: Any) -> None:
    found = study.decoded(144)
    assert found.trace.simulated + found.trace.skipped == found.instructions == 103765
    assert found.trace.simulated < 0.1 * found.instructions


@pytest.mark.parametrize(
    ("change", "faster"),
    [
        ({"units.core.speedup": "4"}, True),
        ({"units.core.same_channel": "0.5"}, False),
        ({"memories.hbm.bandwidth": "460 GB/s"}, False),
        ({"units.core.mv_columns": "32"}, False),
        ({"units.core.lanes": "8"}, False),
    ],
)
def test_more_of_a_resource_is_never_slower(vhk158: Any, change: dict[str, str], faster: bool) -> None:
    made = study.compiler()
    other = vhk158.with_settings(change)
    found = run(replace(made, device=other).compile(144), other).seconds
    assert (found < study.decoded(144).seconds) == faster


@pytest.mark.parametrize(
    ("options", "sign"),
    [
        ({"boundary": "on_chip"}, -1),
        ({"concatenate": "append"}, -1),
        ({"fuse": False}, 1),
        ({"sparse": False}, 1),
        ({"index": "streamed"}, 1),
    ],
)
def test_each_choice_moves_the_time_in_its_direction(options: dict[str, Any], sign: int) -> None:
    changed = study.decoded(512, options=replace(AS_RELEASED, **options)).seconds
    assert (changed - study.decoded(512).seconds) * sign > 0


def test_bytes_read_are_at_least_the_weights_and_the_caches() -> None:
    found = study.decoded(512)
    weights = (32 * (2 * Fraction(7, 10) * 4096**2 + 2 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32000) / 2
    assert float(weights) + 2 * 32 * 4096 * 512 < found.read < 1.1 * float(weights) + 4 * 32 * 4096 * 512
    assert found.seconds > found.read / study.compiler().device.dram.bandwidth


def test_opt_compiles_and_runs_from_its_trace(vhk158: Any) -> None:
    graph = quantise(load("opt-6.7b", phase="decode", batch=1, context=512), weights="int4", kv="int8")
    made = Compiler(graph, vhk158, bits={"model.decoder.embed_tokens.weight": 4})
    found = run(made.compile(), vhk158)
    h, f, v = 4096, 16384, 50272
    macs = 32 * (4 * h * h + 2 * h * f) + h * aligned(v, 512) + 32 * 32 * (512 * 128 + 512 * 512)
    assert found.busy["MV"] == pytest.approx(macs / 1024 / 225e6 / 3.2, rel=1e-6)
    assert found.seconds > found.busy["MV"]


def test_streams_of_prefill_grow_quadratically_with_their_steps() -> None:
    made = study.compiler(phase="prefill")
    a, b, c, d = (made.size(n * PREFILL_STEP) for n in (1, 2, 3, 4))
    assert d - 3 * c + 3 * b - a == 0
    assert made.size(128) == made.compile(128).size


def test_a_generation_counts_each_context_as_often_as_tokens_use_it(graph_of: Any, vhk158: Any) -> None:
    made = Compiler(graph_of(LLAMA), vhk158)
    found = generate(made, 10, 20)  # tokens 11..16 with the stream of 16, 17..30 with that of 32
    short, long = (run(made.compile(context), vhk158) for context in (16, 32))
    assert found.decode_s == pytest.approx(6 * short.seconds + 14 * long.seconds)
    assert found.instruction_bytes == short.stream.size + long.stream.size
    with pytest.raises(MappingError, match="a generation needs a prompt and tokens"):
        generate(made, 0, 5)

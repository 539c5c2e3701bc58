"""The instruction stream computes what the model computes: bit for bit, for whole generations of small models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mapper.errors import MappingError
from mapper.flightllm import isa
from mapper.flightllm.compile import Compiler
from mapper.flightllm.emit import AS_RELEASED, Options
from sim import flightllm_arithmetic as arithmetic
from sim.flightllm import program, timing
from sim.flightllm_interpreter import Interpreter, Memory, keep, load_model, pack, schedule, unpack
from sim.simpy_engine import simulate as reference

from .conftest import LLAMA, OPT, TIED

WIDE = {**LLAMA, "intermediate_size": 2304}  # two tiles along K and five groups of outputs
HEADS = {**LLAMA, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256}  # two blocks of a head per channel


def agrees(model: Any, tokens: int, scheduled: bool = False) -> None:
    rng = np.random.default_rng(3)
    for position in range(tokens):
        found, expected = model.token(position, rng, scheduled)
        assert np.array_equal(found, expected), f"position {position}"
        assert np.unique(expected).size > 8  # the comparison means something


@pytest.mark.parametrize("kept", [None, 2, 4, 8, 16, "mixed"])
def test_a_generation_equals_the_golden_model_for_every_n_of_m(model_of: Any, kept: Any) -> None:
    agrees(model_of(LLAMA, kept), 18)  # crosses from the stream for 16 tokens to the one for 32


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_mixed_precision_weights_equal_the_golden_model(model_of: Any, bits: int) -> None:
    names = {f"model.decoder.layers.0.{part}.weight": width for part, width in (("self_attn.q_proj", 3), ("fc1", 5), ("fc2", bits))}
    agrees(model_of(OPT, "mixed", bits={**names, TIED: bits}), 4)


@pytest.mark.parametrize("config", [WIDE, HEADS], ids=["wide", "long heads"])
def test_tiles_groups_and_long_heads_equal_the_golden_model(model_of: Any, config: dict[str, Any]) -> None:
    agrees(model_of(config, 8), 3)


@pytest.mark.parametrize(
    "options",
    [Options(index="interleaved"), Options(fuse=False), Options(concatenate="reload", attention_bias=True)],
    ids=["interleaved", "unfused", "as released"],
)
def test_every_choice_of_the_compiler_computes_the_same(model_of: Any, options: Options) -> None:
    agrees(model_of(LLAMA, "mixed", options), 3)


@pytest.mark.parametrize("config", [LLAMA, WIDE, OPT], ids=["llama", "wide", "opt"])
def test_tokens_protect_every_buffer_when_loads_come_early_and_reads_late(model_of: Any, cramped: Any, config: dict[str, Any]) -> None:
    agrees(model_of(config, "mixed", bits={TIED: 4} if config is OPT else {}, device=cramped), 3, scheduled=True)


def test_without_its_waits_a_load_destroys_what_a_product_still_needs(model_of: Any, cramped: Any) -> None:
    model = model_of(WIDE, None, device=cramped)
    inputs = (np.arange(64) - 32, np.full(8, 127), np.zeros(8, np.int64))
    logits = []
    for guarded in (True, True, False):
        stream = model.place(0, *inputs)
        machine = Interpreter(stream, cramped, model.memory)
        if not guarded:
            table = machine.table
            table[table[:, 0] == isa.LD, 1] &= ~isa.mask(isa.LD, [isa.MV])
            table[table[:, 0] == isa.MV, 2] &= ~isa.mask(isa.MV, [isa.LD])
        machine.run(0, scheduled=True)
        logits.append(model.memory.vector("lm_head", 256))
    assert np.array_equal(logits[0], logits[1])
    assert not np.array_equal(logits[0], logits[2])


def test_the_interpreters_schedule_is_the_engines(model_of: Any) -> None:
    model = model_of(WIDE, "mixed")
    stream = model.stream(0)
    table = isa.decode(stream.words)
    spans = schedule(table, timing(table, stream, model.compiler.device).duration)
    trace = reference(program(stream, model.compiler.device))
    assert max(end for _, end in spans) == trace.makespan
    for queue, name in enumerate(isa.QUEUES):
        mine = [span for span, q in zip(spans, table[:, 0].tolist(), strict=True) if q == queue and span[1] > span[0]]
        assert mine == [(s.start, s.end) for s in trace.spans() if s.on == name]


def test_the_same_words_serve_every_position_of_their_step(model_of: Any) -> None:
    model = model_of(LLAMA, None)
    assert model.stream(0) is model.stream(15)
    assert model.stream(16) is not model.stream(15)


def test_streams_that_cannot_be_run_are_refused(model_of: Any, graph_of: Any, vhk158: Any) -> None:
    omitted = model_of(LLAMA, 8, AS_RELEASED)
    with pytest.raises(MappingError, match="compiled with index='omitted'; it can be timed, not run"):
        omitted.token(0, np.random.default_rng(0))
    prefill = Compiler(graph_of(LLAMA, phase="prefill", context=None, seq=128, logits="all"), vhk158)
    stream = prefill.compile()
    with pytest.raises(MappingError, match="runs decode streams, found a prefill stream"):
        Interpreter(stream, vhk158, Memory(stream.memory, 8))
    model = model_of(LLAMA, None)
    stream = model.stream(0)
    interpreter = Interpreter(stream, vhk158, load_model(model.compiler, stream, model.weights))
    with pytest.raises(MappingError, match="position 16 is outside the 16 tokens"):
        interpreter.run(16)


def test_weights_that_the_format_cannot_hold_are_refused(model_of: Any) -> None:
    model = model_of(LLAMA, 2)
    model.weights["lm_head.weight"][0][0, 0] = 8
    with pytest.raises(MappingError, match="values do not fit 4 bits"):
        load_model(model.compiler, model.stream(0), model.weights)
    with pytest.raises(MappingError, match="keeps 16 of 16 weights in a column, but is stored with 4"):
        keep(np.ones((16, 16), np.int64), 4)


@pytest.mark.parametrize("bits", [3, 4, 5, 8, 9])
def test_packing_is_exact(bits: int) -> None:
    values = np.random.default_rng(bits).integers(-(1 << bits - 1), 1 << bits - 1, 64)
    assert np.array_equal(unpack(pack(values, bits), bits, 64), values)
    assert len(pack(values, bits)) == 64 * bits // 8


def test_arithmetic_rules_at_their_corners() -> None:
    extremes = np.array([-128, -1, 0, 1, 127])
    assert arithmetic.add(extremes, extremes).tolist() == [-128, -2, 0, 2, 127]
    assert arithmetic.mul(extremes, np.full(5, 64)).tolist() == [-64, -1, 0, 1, 64]  # 0.5 x 127 = 63.5, away from zero
    assert arithmetic.exchange(np.arange(16)).tolist() == [*range(8, 16), *range(8)]
    assert arithmetic.softmax(np.zeros(4, np.int64), 4).tolist() == [32] * 4  # 127 / 4 = 31.75
    assert arithmetic.softmax(np.array([5, 5, 90]), 2).tolist() == [64, 64, 0]  # 63.5 up; the third does not count
    assert arithmetic.rmsnorm(np.full(8, 3)).tolist() == [32] * 8
    assert arithmetic.layernorm(np.array([1, -1] * 4)).tolist() == [32, -32] * 4
    assert arithmetic.rmsnorm(np.zeros(4, np.int64)).tolist() == arithmetic.layernorm(np.full(4, 9)).tolist() == [0] * 4
    assert arithmetic.silu(np.array([-128, 0, 127])).tolist() == [0, 0, 127]

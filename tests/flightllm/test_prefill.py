"""Prefill streams compute what the model computes, and the caches they leave serve the decode that follows: bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from mapper.errors import CapacityError, MappingError
from mapper.flightllm import isa
from mapper.flightllm.compile import Compiler
from mapper.flightllm.emit import AS_RELEASED, Options
from sim.flightllm_golden import Golden
from sim.flightllm_interpreter import Interpreter, load_model
from sim.flightllm_prefill import PrefillInterpreter, move_caches

from .conftest import LLAMA, OPT, TIED

WIDE = {**LLAMA, "intermediate_size": 2304}
HEADS = {**LLAMA, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256}  # two blocks of a head per channel
ATTENTION = "model.layers.0.self_attn.attention"


@dataclass
class Prompt:
    """A model's prompt: random embeddings with their rotary factors, and the machine that reads them."""

    model: Any
    compiler: Compiler
    golden: Golden
    hidden: Any
    factors: tuple[Any, Any]

    @property
    def tokens(self) -> int:
        return len(self.hidden)

    def machine(self) -> PrefillInterpreter:
        stream = self.compiler.compile(self.tokens)
        memory = load_model(self.compiler, stream, self.model.weights, self.model.biases)
        memory.put_matrix(getattr(self.compiler.bodies[0].layers[0], "source", ""), self.hidden)
        cosines, sines = self.factors
        for name, table in (("rope.cos", [cosines, cosines]), ("rope.sin", [sines, -sines])):
            if name in stream.memory.regions:
                memory.put_matrix(name, np.tile(np.concatenate(table, axis=1), stream.memory[name].width // 16))
        return PrefillInterpreter(stream, self.compiler.device, memory, self.compiler.masks)

    def found(self, machine: PrefillInterpreter) -> Any:
        return machine.memory.matrix(getattr(self.compiler.bodies[-1].layers[-1], "result", ""), self.tokens)

    def expected(self) -> Any:
        cosines, sines = self.factors
        return np.stack([self.golden.step(*row) for row in zip(self.hidden, cosines, sines, strict=True)])


@pytest.fixture
def prompt_of(model_of: Any, graph_of: Any) -> Any:
    def make(
        config: dict[str, Any], tokens: int = 128, kept: Any = None, masks: Any = None, logits: str = "all", **how: Any
    ) -> Prompt:
        model = model_of(config, kept, **how)
        plan = model.compiler
        graph = graph_of(config, phase="prefill", context=None, seq=tokens, logits=logits)
        compiler = Compiler(
            graph, plan.device, plan.options, plan.counts, plan.bits, masks or {}, plan.shifts, max_tokens=plan.max_tokens
        )
        golden = Golden(graph, model.weights, model.biases, plan.shifts, masks or {})
        angles = np.arange(tokens)[:, None] / 10.0 ** np.arange(8)
        factors = tuple(np.rint(127 * f(angles)).astype(np.int64) for f in (np.cos, np.sin))
        hidden = np.random.default_rng(5).integers(-128, 128, (tokens, 64))
        return Prompt(model, compiler, golden, hidden, factors)

    return make


def agrees(prompt: Prompt, scheduled: bool = False) -> Any:
    machine = prompt.machine()
    machine.run(scheduled=scheduled)
    expected = prompt.expected()
    assert np.array_equal(prompt.found(machine), expected)
    assert np.unique(expected).size > 8  # the comparison means something
    return expected


@pytest.mark.parametrize("kept", [None, 2, 8, "mixed"])
@pytest.mark.parametrize("tokens", [128, 256])
def test_a_prompt_equals_the_golden_model_for_every_n_of_m(prompt_of: Any, kept: Any, tokens: int) -> None:
    agrees(prompt_of(LLAMA, tokens, kept))


@pytest.mark.parametrize("kept", [None, "mixed"])
def test_the_last_tokens_logits_alone_equal_those_of_the_golden_model(prompt_of: Any, kept: Any) -> None:
    prompt = prompt_of(LLAMA, 256, kept, logits="last")
    machine = prompt.machine()
    machine.run(scheduled=True)
    prompt.golden.graph = prompt_of(LLAMA, 256, kept).compiler.graph
    assert np.array_equal(machine.memory.vector("lm_head", 256), prompt.expected()[-1])


@pytest.mark.parametrize("config", [WIDE, HEADS], ids=["wide", "long heads"])
def test_tiles_along_k_and_long_heads_equal_the_golden_model(prompt_of: Any, config: dict[str, Any]) -> None:
    agrees(prompt_of(config))


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_mixed_precision_biases_and_relu_equal_the_golden_model(prompt_of: Any, bits: int) -> None:
    names = {f"model.decoder.layers.0.{part}.weight": width for part, width in (("self_attn.q_proj", 3), ("fc1", 5), ("fc2", bits))}
    agrees(prompt_of({**OPT, "max_position_embeddings": 512}, 128, "mixed", bits={**names, TIED: bits}))


@pytest.mark.parametrize(
    "options",
    [Options(index="interleaved"), Options(fuse=False), Options(attention_bias=True)],
    ids=["interleaved", "unfused", "biases"],
)
def test_every_choice_of_the_compiler_computes_the_same(prompt_of: Any, options: Options) -> None:
    agrees(prompt_of(LLAMA, 128, "mixed", options=options))


@pytest.mark.parametrize("config", [LLAMA, WIDE], ids=["llama", "wide"])
@pytest.mark.parametrize("tokens", [128, 384])
def test_tokens_protect_every_buffer_when_loads_come_early_and_reads_late(
    prompt_of: Any, vhk158: Any, config: dict[str, Any], tokens: int
) -> None:
    small = vhk158.with_settings({"units.core.meta_depth": 64, "units.core.b_depth": 512, "units.core.a_depth": 160})
    agrees(prompt_of(config, tokens, "mixed", device=small), scheduled=True)


def test_without_its_waits_a_load_destroys_what_a_product_still_needs(prompt_of: Any, vhk158: Any) -> None:
    small = vhk158.with_settings({"units.core.b_depth": 512, "units.core.a_depth": 160})
    prompt = prompt_of(LLAMA, 384, device=small)
    machine = prompt.machine()
    table = machine.table
    table[table[:, 0] == isa.LD, 1] &= ~isa.mask(isa.LD, [isa.MM])
    table[table[:, 0] == isa.MM, 2] &= ~isa.mask(isa.MM, [isa.LD])
    machine.run(scheduled=True)
    assert not np.array_equal(prompt.found(machine), prompt.expected())


def test_block_sparse_attention_skips_blocks_and_computes_what_is_kept(prompt_of: Any) -> None:
    rng = np.random.default_rng(11)
    layout = (rng.random((4, 4, 4)) < 0.5) & np.tri(4, dtype=np.bool_) | np.eye(4, dtype=np.bool_)
    assert 4 * 4 < layout.sum() < 4 * 10  # some blocks below the diagonal are kept, some are not
    masks = {ATTENTION: layout}
    sparse = agrees(prompt_of(LLAMA, 256, masks=masks))
    agrees(prompt_of(LLAMA, 256, masks=masks), scheduled=True)
    assert not np.array_equal(sparse, prompt_of(LLAMA, 256).expected())


def test_a_decode_goes_on_where_the_prefill_stopped(prompt_of: Any) -> None:
    prompt = prompt_of(LLAMA, 128, "mixed")
    agrees(prompt)
    machine = prompt.machine()
    machine.run()
    model = prompt.model
    rng = np.random.default_rng(2)
    for position in range(128, 131):
        hidden = rng.integers(-128, 128, 64)
        angles = position / 10.0 ** np.arange(8)
        cosines, sines = (np.rint(127 * f(angles)).astype(np.int64) for f in (np.cos, np.sin))
        stream = model.place(position, hidden, cosines, sines)
        if position == 128:
            move_caches(machine.memory, model.memory)
        Interpreter(stream, model.compiler.device, model.memory).run(position)
        expected = prompt.golden.step(hidden, cosines, sines)
        assert np.array_equal(model.memory.vector("lm_head", 256), expected), position


def test_what_cannot_be_run_is_refused(prompt_of: Any, model_of: Any, vhk158: Any) -> None:
    with pytest.raises(MappingError, match="compiled with index='omitted'; it can be timed, not run"):
        prompt_of(LLAMA, 128, 8, options=AS_RELEASED).machine().run()
    prompt = prompt_of(LLAMA)
    with pytest.raises(MappingError, match="a prefill starts at position 0, found 3"):
        prompt.machine().run(3)
    stream = model_of(LLAMA).stream(0)
    with pytest.raises(MappingError, match="runs prefill streams, found a decode stream"):
        PrefillInterpreter(stream, vhk158, prompt.machine().memory)
    narrow = vhk158.with_settings({"units.core.global_depth": 8})
    with pytest.raises(CapacityError, match="256 results per row exceed the global buffer"):
        prompt_of(LLAMA, 256, device=narrow, options=Options(fuse=False)).machine()
    with pytest.raises(CapacityError, match="operands take 64 entries of the global buffer, and the 8 leave no room for results"):
        prompt_of(LLAMA, device=narrow).machine()

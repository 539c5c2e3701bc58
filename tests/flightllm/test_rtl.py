"""A vector processing unit in RTL runs MV instructions of a tiny layer from their words: results golden, cycles the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hw.units.csd_chain import CsdChain
from sim.flightllm_interpreter import Interpreter
from verif.flightllm import StreamChain, latency, record, run_rtl, unit_cases
from verif.gate import run_gate
from verif.tools import missing_simulator

from .conftest import LLAMA


def place(model: Any) -> Any:
    """The stream of the first token, its inputs in memory."""
    return model.place(0, np.arange(64) * 3 - 96, np.full(8, 127), np.zeros(8, np.int64))


def products_of(model: Any, count: int) -> Any:
    """The first products of one token."""
    return record(place(model), model.compiler.device, model.memory, 0)[:count]


@pytest.mark.parametrize("kept", [2, 4, 8, 16])
def test_the_sums_of_a_unit_are_the_interpreters_and_its_cycles_the_models(model_of: Any, kept: int) -> None:
    model = model_of(LLAMA, kept)
    products = products_of(model, 2)
    assert all(product.sparse for product in products)
    chain = CsdChain(groups=8, kept=kept)
    units = (0, 5)
    sums, cycles = run_rtl(chain, unit_cases(products, model.compiler.device, units))
    for number, product in enumerate(products):
        # 512 outputs x K x kept / 16 over 1024 multiplications per cycle
        assert product.cycles == 512 * 64 * kept // 16 // 1024
        for i, unit in enumerate(units):
            assert np.array_equal(sums[2 * number + i], product.sums[8 * unit : 8 * unit + 8])
            assert cycles[2 * number + i] == product.cycles + latency(chain)


def test_recorded_products_give_the_logits_and_recording_changes_nothing(model_of: Any) -> None:
    model = model_of(LLAMA, 8)
    Interpreter(place(model), model.compiler.device, model.memory).run(0)
    expected = model.memory.vector("lm_head", 256)
    products = record(place(model), model.compiler.device, model.memory, 0)
    assert np.array_equal(model.memory.vector("lm_head", 256), expected)
    head, shift = products[-1].sums[:256], model.stream(0).memory["lm_head.weight"].shift  # the LM head is one group of outputs
    assert np.array_equal(np.clip(np.sign(head) * (np.abs(head) + (1 << shift >> 1) >> shift), -128, 127), expected)


@pytest.mark.rtl
@pytest.mark.slow
def test_the_unit_passes_the_cocotb_gate_on_the_streams_products(model_of: Any, tmp_path: Path) -> None:
    if reason := missing_simulator():
        pytest.skip(reason)
    model = model_of(LLAMA, 4)
    cases = unit_cases(products_of(model, 3), model.compiler.device, (0, 1))
    chain = StreamChain.over(cases, groups=4, kept=4)
    gate = run_gate(chain, cases=len(cases), builds=tmp_path)
    assert gate.failures == ()
    assert gate.tests > 1  # every stall pattern

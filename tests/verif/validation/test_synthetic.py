"""A gate on synthetic rows: latencies that follow from data sheets and the stated constants with a pencil.

Each row of `synthetic.csv` carries its `derivation` in seconds: operations over the rate that is sustained (power included), bytes over
the bandwidth that the memory's timing and the generation's share leave, the launch, or rings over links. They are not measurements,
and say nothing about GPUs; they notice when a change moves what the models predict in their limits.
"""

import ast
import csv
import operator
from pathlib import Path

import pytest

from hw.devices import load
from verif.validation import evaluate
from verif.validation.sources import own

FILE = Path(__file__).parent / "synthetic.csv"

WITHIN = 0.07
"""A whole kernel lies so far above its limit at most: launch, first accesses, the last wave, and resources that wait for each other."""

OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def value(node: ast.expr) -> float:
    """An arithmetic expression of numbers."""
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](value(node.left), value(node.right))
    assert isinstance(node, ast.Constant), ast.dump(node)
    return node.value


def derivations() -> list[str]:
    with FILE.open(encoding="utf-8", newline="") as file:
        return [row["derivation"] for row in csv.DictReader(file)]


def test_every_latency_is_the_value_of_its_derivation():
    for measured, text in zip(own(FILE), derivations(), strict=True):
        assert measured.latency_s == pytest.approx(value(ast.parse(text, mode="eval").body), rel=1e-5), text


def test_every_kernel_lies_a_little_above_its_limit_and_never_below():
    score = evaluate(own(FILE))
    assert not score.excluded
    assert not score.refused
    errors = [p / m.latency_s - 1 for m, p in zip(score.measured, score.predicted, strict=True)]
    for measured, error in zip(score.measured, errors, strict=True):
        assert -0.02 < error < WITHIN, (measured.device, measured.operator, measured.dtype, error)
    assert sum(map(abs, errors)) / len(errors) < 0.04


def test_the_constants_in_the_derivations_are_those_of_the_devices():
    text = " ".join(derivations())
    for name, power in (("a100-80g", None), ("h100-sxm", 700)):
        device = load(name)
        tensor = device.units["tensor"]
        assert f"{float(device.dram.efficiency):g}" in text
        if tensor.efficiency < 1:
            assert f"{float(tensor.efficiency):g}" in text
        assert f"{float(device.dram.bandwidth) / 1e9:g}e9" in text
        if power:
            assert f"{float(tensor.mac_power):g}e-12" in text
            assert device.power == power

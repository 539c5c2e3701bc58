"""The comparison of low-bit machines: every machine computes what its name says, and the script takes bad arguments with one message."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "examples" / "lowbit_shootout.py"
spec = importlib.util.spec_from_file_location("lowbit_shootout", PATH)
assert spec is not None
assert spec.loader is not None
shootout = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = shootout
spec.loader.exec_module(shootout)
MACHINES = {machine.name: machine for machine in shootout.machines()}


def test_all_the_low_bit_machines_take_part():
    kinds = {"L-Mul", "BitMoD", "OliVe", "ShiftAdd", "ternary rows", "LUT-GEMM", "LUT core 4x", "LUT core 8x", "T-MAC M2 Ultra"}
    assert kinds <= set(MACHINES)


@pytest.mark.parametrize("name", MACHINES)
def test_ternary_models_lose_nothing_but_to_tables_of_int8_and_lmul(name: str):
    error = shootout.error(MACHINES[name], "bitnet-3b")
    if name == "L-Mul":
        assert 0.01 < error < 0.1  # root mean square of a product is 3 %, its mean 0.4 %; fractions of int8 values are not uniform
    elif name.startswith(("T-MAC", "LUT core")):
        assert 0 < error < 0.02
    else:
        assert error == 0


def test_four_bits_lose_what_four_bits_lose():
    """A step of s and errors uniform in it: s / sqrt(12), with s = max / 7 and a maximum of 128 normal values near 2.6 sigma."""
    found = {name: shootout.error(machine, "llama-2-7b") for name, machine in MACHINES.items()}
    assert found["A100"] == pytest.approx(2.6 / 7 / 12**0.5, rel=0.1)
    assert found["fp16 array"] < 1e-3
    assert found["BitMoD"] < found["OliVe"] < found["ternary rows"]
    assert found["LUT-GEMM"] < found["ShiftAdd"]  # free scales against powers of two


def test_multipliers_are_put_beside_arrays_that_need_them():
    device = shootout.described(MACHINES["BitMoD"], "")
    assert device.units["multipliers"].macs_per_cycle("fp16xfp16") == 192
    assert {link.source for link in device.links if link.sink == "multipliers"} == {"weights", "activations"}


def test_one_bandwidth_can_be_given_to_all():
    for machine in MACHINES.values():
        assert shootout.described(machine, "64 GB/s").dram.bandwidth == 64 * 10**9


def test_gates_are_units_times_their_synthesis():
    mac = shootout.reference_cells("fp16_mac")
    assert MACHINES["fp16 array"].gates == 768 * mac
    assert MACHINES["A100"].gates == 108 * 1024 * mac
    assert MACHINES["LUT core 8x"].gates - MACHINES["A100"].gates == 2 * (MACHINES["LUT core 4x"].gates - MACHINES["A100"].gates)


def test_a_run_prints_a_table_and_writes_what_was_asked_for(tmp_path, capsys):
    picture, data = tmp_path / "out.png", tmp_path / "out.json"
    chosen = ["--machines", "A100, LUT core 8x", "--strategy", "heuristic", "--tokens", "64"]
    assert shootout.main([*chosen, "--json", str(data), "--picture", str(picture)]) == 0
    text = capsys.readouterr().out
    assert text.count("LUT core 8x") == 4
    assert "bitnet-3b, prefill (64 tokens)" in text
    results = json.loads(data.read_text())
    assert {(r["model"], r["phase"]) for r in results} == {(m, p) for m in shootout.MODELS for p in shootout.PHASES}
    assert all(r["latency_s"] >= r["bound"] > 0 for r in results)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--machines", "A200"], "unknown machine 'A200', expected of fp16 array"),
        (["--tokens", "0"], "--tokens: expected 1 or more, not 0"),
        (["--machines", "A100", "--bandwidth", "fast"], "A100 on llama-2-7b, decode"),
        (["--machines", "A100", "--strategy", "luck"], "A100 on llama-2-7b, decode"),
    ],
)
def test_bad_arguments_end_with_one_message(arguments: list[str], message: str, capsys):
    with pytest.raises(SystemExit) as ended:
        shootout.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("value", "shown"), [(0.00264, "2.64 ms"), (1.5, "1.5 s"), (None, "-"), (0, "0 s")])
def test_numbers_are_shown_with_three_digits(value: float | None, shown: str):
    assert shootout.digits(value, "s") == shown


def test_layers_take_tokens_by_inputs():
    acts, weights = np.ones((2, 128), np.float32), np.ones((3, 128))
    for machine in MACHINES.values():
        assert machine.layers[1](acts, weights).shape == (2, 3)

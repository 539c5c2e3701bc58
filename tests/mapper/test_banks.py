"""Kernels on units in memory banks: placed by cost, timed by their commands, refused where the banks cannot serve them."""

from __future__ import annotations

import json

import pytest

from dovetail import estimate
from dovetail.cli import main
from hw.devices import load
from hw.errors import HardwareError
from hw.pim.attacc import AttAcc
from hw.pim.hbm_pim import HbmPim
from mapper.errors import CapacityError, MappingError


def units(report):
    return {operator.name.rpartition(".")[2]: operator.unit for operator in report.operators}


def test_attention_goes_to_the_stacks_and_products_to_the_gpu():
    report = estimate("llama-2-7b", device="attacc", phase="decode", batch=8, context=2048)
    placed = units(report)
    assert placed["attention"] == "pim"
    assert placed["o_proj"] == placed["down_proj"] == placed["lm_head"] == "tensor"
    attention = next(o for o in report.operators if o.kind == "attention")
    kernel = AttAcc().attention(8 * 32, 2048, 128)
    assert attention.commands == kernel.counts
    vectors = 4 * 8 * 4096 * 2  # queries, results, keys and values of the new tokens cross the link once
    link_fs = vectors * 10**15 / 450e9
    assert attention.latency_fs == pytest.approx(kernel.fs + link_fs, rel=0.01)


def test_the_cache_of_keys_and_values_lies_in_the_stacks_alone():
    report = estimate("llama-2-7b", device="attacc", phase="decode", batch=8, context=2048)
    parts = {memory.name: dict(memory.parts) for memory in report.memories}
    assert parts["stacks"] == {"kv cache": 8 * 2 * 32 * 4096 * 2 * 2048}
    assert "kv cache" not in parts["hbm"]


def test_a_cache_beyond_the_stacks_is_refused_with_the_missing_bytes():
    need = 256 * 2 * 32 * 4096 * 2 * 2048
    with pytest.raises(CapacityError, match=f"256.00 GiB in 'stacks' of attacc, which holds 80.00 GiB: {need - 80 * 2**30} B short"):
        estimate("llama-2-7b", device="attacc", phase="decode", batch=256, context=2048)


def test_a_vector_by_a_matrix_takes_its_commands_and_the_transfer_of_vector_and_result():
    """The report's clocks are those of the DRAM command bus."""
    kernel = HbmPim().product(4096, 4096)
    report = estimate("gemm:1x4096x4096", device="hbm-pim")
    assert units(report) == {"gemm": "pim"}
    transfers = 2 * 4096 * 2 / 1024  # bytes at 1024 GB/s, in ns
    assert kernel.clocks < report.cycles < kernel.clocks + 1.2 * transfers + 2
    assert report.operators[0].commands["MAC"] == 2048


def test_a_large_batch_goes_to_the_processor_that_reuses_weights():
    batches = (1, 2, 64, 512)
    placed = [units(estimate(f"gemm:{batch}x4096x4096", device="hbm-pim"))["gemm"] for batch in batches]
    assert placed[0] == "pim"
    assert placed[-1] == "compute"
    assert placed == sorted(placed, key=("pim", "compute").index)  # one crossover


def test_operands_that_units_cannot_read_as_stored_go_elsewhere_or_are_refused_with_the_formats():
    assert units(estimate("gemm:1x4096x4096:int8", device="hbm-pim"))["gemm"] == "compute"
    with pytest.raises(MappingError, match="units read what is stored, int8 is not one of bf16, fp16"):
        estimate("gemm:1x4096x4096:int8", device="aim-gddr6")


def test_attention_on_aim_leaves_softmax_to_the_vector_unit():
    report = estimate("llama-2-7b", device="aim-gddr6", phase="decode", context=512)
    assert set(units(report).values()) <= {"pim", "vector", "gddr"}
    attention = next(o for o in report.operators if o.kind == "attention")
    assert attention.commands["MAC_ABK"] > 0
    assert report.utilization["vector"] > 0


def test_energy_is_listed_by_location_and_counts_nothing_twice():
    report = estimate("gemm:1x4096x4096", device="hbm-pim")
    kernel = HbmPim().product(4096, 4096)
    parts = {name.removeprefix("pim "): joules for name, joules in report.energy_parts.items() if name.startswith("pim ")}
    assert parts == pytest.approx({name: None if pj is None else pj * 1e-12 for name, pj in kernel.energy_pj.items()})
    transfers = 2 * 4096 * 2 * 8 * 3.48e-12  # the vector read and the result written over the interface
    assert report.energy_parts["hbm"] == pytest.approx(transfers)


@pytest.mark.parametrize("name", ["hbm-pim", "aim-gddr6", "attacc", "neupims"])
def test_both_engines_agree_and_no_estimate_beats_its_bound(name):
    fast, slow = (estimate("gemm:2x1024x2048", device=name, engine=engine) for engine in ("fast", "simpy"))
    assert fast.latency_fs == slow.latency_fs
    assert fast.lower_bound_fs <= fast.latency_fs
    for operator in estimate("llama-2-7b", device=name, phase="decode", context=256).operators:
        assert operator.lower_bound_fs <= operator.latency_fs


def test_a_saved_mapping_replays_on_the_banks():
    first = estimate("gemm:1x4096x4096", device="hbm-pim")
    again = estimate("gemm:1x4096x4096", device="hbm-pim", mapping=first.mapping)
    assert again.latency_fs == first.latency_fs
    assert again.operators[0].mapping == "banks"


def test_switches_of_the_device_reach_the_commands():
    base = estimate("gemm:1x128x65536", device="attacc")
    free = estimate("gemm:1x128x65536", device="attacc", settings={"units.pim.power_limited": False})
    without = estimate("gemm:1x16384x16384", device="hbm-pim", settings={"units.pim.refresh": False})
    assert free.latency_fs < base.latency_fs
    assert "REF" not in without.operators[0].commands
    with pytest.raises(HardwareError, match="place"):
        load("attacc").with_settings({"units.pim.place": "banks"})


def test_the_command_line_lists_commands_as_text_and_json(capsys):
    assert main(["estimate", "gemm:1x4096x4096", "--device", "hbm-pim"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("commands per channel: gemm ")
    assert "2 048 MAC" in line
    assert "REF" in line
    assert "FENCE" in line
    assert main(["estimate", "gemm:1x4096x4096", "--device", "attacc", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["operators"][0]["commands"]["MAC_AB"] == AttAcc().product(4096, 4096).counts["MAC_AB"]
    assert "pim activate" in document["energy_parts_j"]


def test_a_report_with_commands_is_read_back(tmp_path):
    from dovetail.report import Report

    report = estimate("gemm:1x256x256", device="hbm-pim")
    assert Report.from_json(json.loads(json.dumps(report.to_json()))).operators == report.operators

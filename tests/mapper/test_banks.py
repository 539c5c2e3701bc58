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
from mapper import compile_graph
from mapper.errors import CapacityError, MappingError
from tests.mapper.cases import experts


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


# Bounds -------------------------------------------------------------------------------------------------------------------------
def test_weights_that_banks_may_not_hold_are_bounded_by_the_interface_and_the_cache_by_the_banks():
    """AttAcc beside a GPU holds keys and values alone: 12.9 GB of weights cross an interface of 3352 GB/s."""
    report = estimate("llama-2-7b", device="attacc", phase="decode", batch=8, context=2048)
    outside = sum(
        operand.size * placed.count
        for placed in report.compiled.kernels
        for operand in placed.kernel.compulsory
        if not (operand.role == "kv_cache" and operand.position >= 0)
    )
    expected = outside * 10**15 / 3_352_000_000_000
    assert report.lower_bound_fs == pytest.approx(float(expected), rel=1e-6)
    assert report.lower_bound_fs > 3.9e12  # femtoseconds: 13.2 GB at that rate
    attention = next(o for o in report.operators if o.kind == "attention")
    cache = 8 * 2 * 32 * 128 * 2 * 2047  # bytes of one layer before the token that is new
    assert cache * 10**15 / AttAcc().internal_peak <= attention.lower_bound_fs * 1.000001 <= attention.latency_fs


def test_a_bound_counts_the_banks_for_what_they_may_hold():
    """A bare product may lie in the banks; those of AiM stop the interface while they work."""
    report = estimate("gemm:1x4096x4096", device="aim-gddr6")
    weights, vectors = 4096 * 4096 * 2, 2 * 4096 * 2
    inside = 32 * 16 * 32 * 10**9  # 32 channels of 16 banks with 32 bytes every ns
    assert report.lower_bound_fs == pytest.approx(weights * 1e15 / inside + vectors * 1e15 / 1024e9, rel=1e-6)
    beside = estimate("gemm:1x4096x4096", device="attacc")  # banks of another memory work while the interface does
    assert beside.lower_bound_fs == pytest.approx((weights + vectors) * 1e15 / (3352e9 + AttAcc().internal_peak), rel=1e-6)


def test_a_cache_that_lies_in_the_stacks_is_read_nowhere_else():
    report = estimate("llama-2-7b", device="attacc", phase="decode", batch=1, context=256)
    attention = next(o for o in report.operators if o.kind == "attention")
    assert attention.unit == "pim"
    assert {c.unit: c.reason for c in attention.candidates if c.latency_fs is None} == {
        "tensor": "keys and values lie in the memory of 'pim'"
    }
    # what the units cannot read stays with the GPU
    narrow = estimate("llama-2-7b", device="attacc", phase="decode", batch=1, context=256, kv="int8")
    assert next(o for o in narrow.operators if o.kind == "attention").unit == "tensor"
    assert {m.name: m.parts.get("kv cache", 0) for m in narrow.memories}["hbm"] > 0


# Products with matrices of their own ----------------------------------------------------------------------------------------
def test_experts_in_the_banks_run_one_after_the_other():
    report = estimate("mixtral-8x7b", device="aim-gddr6", phase="decode", context=128, settings={"memories.gddr.capacity": "200 GiB"})
    up = next(o for o in report.operators if "gate_up" in o.name)
    one = load("aim-gddr6").units["pim"].product(2 * 14336, 4096, 1)
    assert up.unit == "pim"
    assert up.commands == {name: 2 * count for name, count in one.counts.items()}  # two experts of one token
    assert 2 * one.fs <= up.latency_fs <= 2 * one.fs * 1.1
    assert any("one after the other on all banks" in note for note in report.assumptions)


def test_experts_with_more_tokens_take_more_passes():
    settings = {"memories.gddr.capacity": "200 GiB"}
    reports = [
        estimate("mixtral-8x7b", device="aim-gddr6", phase="decode", batch=4, context=128, settings=settings, experts=tokens)
        for tokens in ([8], [4, 4], [1] * 8)
    ]
    commands = [next(o for o in report.operators if "gate_up" in o.name).commands["MAC_ABK"] for report in reports]
    assert commands[0] == commands[1] == commands[2]  # a pass over a matrix per token, whichever expert it is
    with_few = [next(o for o in report.operators if "gate_up" in o.name).lower_bound_fs for report in reports]
    assert with_few == sorted(with_few)  # and more experts, more bytes


def test_matrices_that_take_more_rows_than_there_are_are_refused_with_the_missing_bytes():
    with pytest.raises(CapacityError, match=r"64 matrices with rows of their own need \d+ B, they hold \d+ B: \d+ B short"):
        compile_graph(experts(64, 64, 64, 4096, 17), load("aim-gddr6").with_settings({"memories.gddr.capacity": "128 MiB"}))


# Accuracy -----------------------------------------------------------------------------------------------------------------------
def test_no_measurement_of_a_gpu_stands_for_kernels_in_banks():
    report = estimate("llama-2-7b", device="attacc", phase="decode", batch=8, context=2048)
    for operator in report.operators:
        if operator.unit == "pim":
            assert operator.error_band.low_fs is None
            assert "no kernel on unit 'pim' of attacc or its like was measured" in operator.error_band.basis
    alone = estimate("gemm:1x4096x4096", device="attacc")
    assert alone.error_band.low_fs is None

"""The study of Duplex: its crossovers and orderings emerge from costs, and its rows say what they compare."""

import pytest

from dovetail.serving.costs import decoding
from hw.devices import load
from hw.pim.logic import BundlePath
from studies import duplex
from workloads import cost


def test_crossovers_are_where_times_meet_and_follow_the_rates_of_the_device():
    near, path = load("duplex"), BundlePath()
    stream = path.internal_peak * path.efficiency(2)
    assert duplex.ridge() == pytest.approx(near.peak_flops("near", "fp16") / stream, rel=0.05)
    interface = 2 * 10**12 / (near.dram.occupied_fs(2 * 10**12) * 1e-15)  # bytes per second of long streams
    assert duplex.processor_crossover() == pytest.approx(near.peak_flops("near", "fp16") / interface, rel=0.08)
    bank = load("duplex-bank-pim").peak_flops("near", "fp16")
    assert duplex.bank_crossover() == pytest.approx(bank / stream, rel=0.1)


def test_hardware_rows_are_reproduced():
    rows = duplex.hardware_rows()
    assert [row.experiment for row in rows if row.status == "not reproduced"] == []
    assert {row.status for row in rows} == {"reproduced", "reported"}


def test_glam_has_its_published_size():
    graph = duplex.glam()
    assert cost.parameters(graph) == pytest.approx(143e9, rel=0.005)
    per_token = cost.kv_bytes_per_token(graph)
    assert per_token == 32 * 2 * 4096 * 2  # layers, keys and values, heads x width, bytes


@pytest.mark.parametrize(("model", "first"), [("llama-3-70b", True), ("opt-66b", False)])
def test_grouped_queries_favour_logic_and_one_query_per_head_favours_banks(model, first):
    """Beyond the crossover of dense layers, so that attention decides."""
    step = decoding([1000] * 64)
    logic, bank = (duplex._costs(system, model, 4).step(step) for system in ("Duplex+PE", "Bank-PIM"))
    assert (logic.parts["attention"] < bank.parts["attention"]) == first
    assert (logic.fs < bank.fs) == first


def test_ratios_of_mixtral_lie_between_one_and_the_ratio_of_bandwidths():
    point = (16, 128, 96)
    gpu, duplex_, sliced = (duplex.measure(system, point) for system in ("GPU", "Duplex+PE", "Duplex+PE+ET"))
    assert gpu.tokens_per_s < duplex_.tokens_per_s < 4.1 * gpu.tokens_per_s
    assert gpu.tokens_per_s < sliced.tokens_per_s < 4.1 * gpu.tokens_per_s
    assert duplex_.joules_per_token < gpu.joules_per_token
    assert duplex_.tbt_p50 < gpu.tbt_p50


@pytest.mark.slow
def test_every_row_is_reproduced_or_says_why_not():
    for row in duplex.rows():
        assert row.status != "not reproduced" or row.note, row.experiment

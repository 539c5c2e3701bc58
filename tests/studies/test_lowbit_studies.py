"""BitMoD and OliVe: every claimed row is reproduced, and the rules behind them are those written out here."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest

from hw import devices
from hw.units.bitmod_pe import BitmodPe
from hw.units.dot_array import DotArray
from hw.work import Gemm
from studies import bitmod, olive
from studies.bitmod import ANT, BITMOD, FP16, LOSSLESS, LOSSY_4, OLIVE, PREFILL, Product, cost, refetched, run, speedups

MIB = 1 << 20
ROWS = bitmod.rows()


def test_no_claimed_row_of_bitmod_or_olive_is_missed():
    rows = [*ROWS, *olive.rows()]
    assert [row.experiment for row in rows if row.status == "not reproduced"] == []
    assert all(row.note for row in rows if row.status == "reported")


@pytest.mark.parametrize(
    ("model", "cycles"),
    [
        ("opt-1.3b", 669255680),
        ("phi-2", 1399816192),
        ("yi-6b", 2878668800),
        ("llama-2-7b", 3156574208),
        ("llama-2-13b", 6676111360),
        ("llama-3-8b", 3969089536),
    ],
)
def test_fp16_prefill_takes_exactly_the_published_cycles(model: str, cycles: int):
    assert run(model, "prefill", FP16, Fraction(16)).total == cycles


def test_every_row_of_cycles_is_exact():
    cycles = [row for row in ROWS if row.unit == "cycles" and "per head" not in row.experiment]
    assert len(cycles) == 60
    assert all(row.ours == row.published for row in cycles)


def test_dram_energy_is_within_half_a_percent():
    energies = [row for row in ROWS if row.unit == "uJ"]
    assert len(energies) == 60
    assert max(abs(row.error) for row in energies) < 1e-4


def test_means_are_those_of_the_paper():
    lossless = [sum(speedups(1, generate)) / 6 for generate in (False, True)]
    assert lossless == pytest.approx([1.99, 2.41], abs=0.005)
    stated = {row.experiment: row.ours for row in ROWS if "mean of both" in row.experiment}
    assert list(stated.values()) == pytest.approx([1.69, 1.475])


def test_the_layers_of_a_llama_add_up_by_hand():
    # per layer on 32 x 24 fp16 cells, 256 tokens: 11 blocks of columns; q, k, v, o are bound by the array, down by its 953 MiB of traffic
    square = 4096 * 128 * 11
    gated = 4096 * ceil(11008 / 32) * 11
    down = (11 * 86 * MIB + 86 * MIB // 16 + 2 * MIB) // 32  # inputs of 5.375 MiB: weights are fetched eleven times
    scores, values = 4096 * 8 * ceil(8192 / 24), 256 * 256 * 11
    head = 4096 * 1000 * 11
    assert run("llama-2-7b", "prefill", FP16, Fraction(16)).total == 32 * (4 * square + 2 * gated + down + scores + values) + head


@pytest.mark.parametrize(
    ("accelerator", "bits", "steps"), [(BITMOD, LOSSLESS, 3), (BITMOD, LOSSY_4, 2), (BITMOD, Fraction(49, 16), 2), (ANT, 5, 1)]
)
def test_two_bits_of_a_weight_take_a_cycle_on_a_bit_serial_array(accelerator: bitmod.Accelerator, bits: Fraction, steps: int):
    assert accelerator.steps(Fraction(bits)) == steps


@pytest.mark.parametrize(
    ("weights", "inputs", "moved"),
    [
        (1, 100, 101),
        (512 * 1024, 10 * MIB, 10 * MIB + 512 * 1024),
        (4 * MIB, 2 * MIB, 18 * MIB),
        (2 * MIB, 64 * MIB, 258 * MIB),
        (MIB, MIB, 3 * MIB),
    ],
)
def test_what_fits_no_buffer_is_fetched_again_in_the_cheaper_way(weights: int, inputs: int, moved: int):
    assert refetched(weights, inputs) == moved


def test_a_product_is_as_long_as_its_slower_side():
    one = Product(k=64, n=32, tokens=32, weights=64 * 32, inputs=0, outputs=0)
    assert cost([one], OLIVE, Fraction(4)).total == max(64, 64 * 32 // 32)


def test_the_released_attention_takes_every_head_by_itself():
    # scores move 9 MiB (1 of keys, twice 2 of queries, 4 of scores), values 11 MiB; the linear layers are the same
    scores, values = 9 * MIB // 32, 11 * MIB // 32
    linear = cost(bitmod.linear(bitmod.describe("llama-2-7b"), 256, LOSSLESS), BITMOD, LOSSLESS).total
    assert linear == 1_351_884_800
    assert run("llama-2-7b", "prefill", BITMOD, LOSSLESS, "per_head", 8).total == linear + 32 * (scores + values) == 1_372_856_320
    assert run("llama-2-7b", "prefill", FP16, Fraction(16), "per_head", 16).total == 2_810_544_128


@pytest.mark.parametrize(
    ("form", "key", "k"),
    [("fp4", "fp16xbitmod4", 4096), ("fp3", "fp16xbitmod3", 384), ("int6", "fp16xint6", 1024), ("int8", "fp16xint8", 128)],
)
def test_the_device_takes_the_cycles_of_the_verified_processing_element(form: str, key: str, k: int):
    array = devices.load("bitmod").units["array"]
    assert isinstance(array, DotArray)
    one = array.model_copy(update={"rows": 1, "columns": 1})
    element = BitmodPe(weights=form)  # type: ignore[arg-type]
    assert one.cycles(Gemm(3, 5, k, key)) == element.cycles(Gemm(3, 5, k, "fp16"))


@pytest.mark.parametrize(("name", "accelerator"), [("bitmod", BITMOD), ("bitmod-fp16", FP16), ("bitmod-ant", ANT), ("bitmod-olive", OLIVE)])
def test_device_files_describe_the_arrays_of_the_study(name: str, accelerator: bitmod.Accelerator):
    device = devices.load(name)
    array = device.units["array"]
    assert isinstance(array, DotArray)
    assert (array.rows, array.columns, array.lanes) == (accelerator.rows, accelerator.columns, accelerator.lanes)
    assert device.dram.bandwidth == bitmod.BYTES_PER_CYCLE * device.clock
    assert device.dram.energy is not None
    assert float(device.dram.energy) * bitmod.BYTES_PER_CYCLE * 8 == pytest.approx(bitmod.DRAM_PJ_PER_CYCLE)
    for key, steps in array.steps.items():
        assert float(array.mac_energy[key]) == pytest.approx(accelerator.cell_pj * steps / accelerator.lanes)


def test_a_dot_array_costs_blocks_times_steps():
    array = DotArray(rows=3, columns=4, lanes=2, steps={"fp16xint6": 3}, tail=5)
    assert array.cycles(Gemm(9, 7, 11, "fp16xint6")) == 3 * 3 * 6 * 3 + 5
    assert array.cycles(Gemm(9, 7, 11, "fp16xint6", final=False)) == 3 * 3 * 6 * 3
    assert array.operand_elements(Gemm(9, 7, 11, "fp16xint6")) == (9 * 11 * 3, 11 * 7 * 3, 63)
    assert array.macs_per_cycle("fp16xint6") == 8
    assert array.macs_per_cycle("int8") == 0


def test_series_have_a_value_for_every_model():
    assert all(len(series.cycles) == len(series.dram_uj) == len(series.bits) == 6 for series in (*PREFILL, *bitmod.DECODE))


def test_four_bit_pairs_run_four_times_as_fast_as_eight_bits_where_memory_keeps_up():
    assert olive.speedup(olive.ANT_8) == pytest.approx(4)
    starved = olive.Machine("starved", olive.OLIVE.macs_per_s, 1, 4, 4)
    eight = olive.Machine("starved at 8 bits", olive.ANT_8.macs_per_s, 1, 8, 8)
    assert olive.speedup(eight, starved) == pytest.approx(2)


def test_estimates_on_the_device_move_the_bytes_of_the_format_and_take_its_steps():
    from dovetail import estimate

    four, eight = (estimate("gemm:256x2048x2048", device="bitmod", weights=name) for name in ("bitmod4", "int8"))
    for report, steps in ((four, 2), (eight, 4)):
        busy = 8 * 64 * (2048 // 4) * steps  # blocks of 32 x 32 results, four weights a step
        assert report.latency_fs >= busy * 10**6  # 1 GHz
        assert report.latency_fs < 1.25 * busy * 10**6
    with pytest.raises(ValueError, match="fp16 by fp16, which no unit of bitmod does"):
        estimate("gemm:256x2048x2048", device="bitmod")


def test_the_refetch_strategy_fetches_the_cheaper_operand_again():
    from dovetail import estimate

    least = estimate("gemm:256x4096x4096", device="bitmod", weights="bitmod4", strategy="refetch")
    best = estimate("gemm:256x4096x4096", device="bitmod", weights="bitmod4")
    moved = [sum(m.read + m.written for m in r.memories if m.name == "dram") for r in (least, best)]
    assert moved[0] <= moved[1]
    assert moved[0] >= 4096 * 4096 * Fraction(4 * 128 + 10, 128) / 8 + 2 * 256 * 4096 * 2

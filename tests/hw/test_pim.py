"""PIM kernels in closed form: command counts, clocks with a pencil, layouts, energies, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.devices import load
from hw.errors import HardwareError
from hw.pim.aim import MODE, RCD_MAC, Aim
from hw.pim.attacc import AttAcc
from hw.pim.channel import AIM, ATTACC, HBM_PIM, NEUPIMS, BankSet, PimChannel
from hw.pim.hbm_pim import HbmPim
from hw.pim.layout import HeadLayout, RowLayout, TileLayout
from hw.pim.logic import BundlePath
from hw.pim.neupims import NeuPims, interleaved, pack, sub_batches
from hw.pim.stream import Kind, Part, Run, Stream
from hw.pim.timeline import FOLD, follow
from hw.work import Gemm


# Command counts ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("outputs", "inputs", "batch"), [(64, 128, 1), (4096, 4096, 1), (5000, 300, 3)])
def test_hbm_pim_issues_eight_vector_writes_and_64_accesses_per_tile_and_eight_stores_per_output_tile(outputs, inputs, batch):
    counts = HbmPim(channels=4).product(outputs, inputs, batch).stream.counts()
    output_tiles, input_tiles = ceil(outputs / (4 * 64)), ceil(inputs / 128)
    assert counts["WR_GRF"] == 8 * output_tiles * input_tiles * batch
    assert counts["MAC"] == 64 * output_tiles * input_tiles * batch
    assert counts["STORE"] == 8 * output_tiles * batch
    assert (counts["SB_TO_HAB"], counts["HAB_TO_SB"]) == (4, 2)
    assert counts["HAB_TO_PIM"] == counts["PIM_TO_HAB"] == output_tiles * batch


def test_hbm_pim_reads_back_sixteen_times_the_results():
    kernel = HbmPim(channels=4).product(256, 512)
    assert kernel.host_read == 16 * 256 * 2
    assert HbmPim(channels=4, read_back=False).product(256, 512).host_read == 0


def test_a_tile_of_hbm_pim_has_a_barrier_after_its_writes_and_after_every_eight_accesses():
    """A second input tile adds one barrier in front of its writes, one behind them and seven inside its eight groups of accesses."""
    one, two = (HbmPim(channels=1).product(64, inputs).stream.fences() for inputs in (128, 256))
    assert two - one == 2 + 7


@pytest.mark.parametrize(("outputs", "inputs"), [(16, 1024), (512, 128), (1024, 3000), (33, 17)])
def test_aim_issues_a_mac_per_sixteen_inputs_and_reads_sixteen_sums_at_a_time(outputs, inputs):
    counts = Aim(channels=1).product(outputs, inputs).stream.counts()
    groups, slices = ceil(outputs / 16), ceil(inputs / 1024)
    beats = sum(ceil(min(1024, inputs - 1024 * s) / 16) for s in range(slices))
    assert counts["WR_GB"] == beats
    assert counts["MAC_ABK"] == groups * beats
    assert counts["RD_MAC"] == counts["WR_BIAS"] == groups * slices


@pytest.mark.parametrize(("tokens", "width"), [(2048, 128), (128, 128), (1000, 64), (77, 80)])
def test_attacc_issues_two_accesses_per_sixteen_tokens_and_64_dimensions_of_a_head(tokens, width):
    counts = AttAcc(stacks=1).attention(16, tokens, width).stream.counts()
    steps, parts = ceil(tokens / 16), ceil(width / 64)
    assert counts["MAC_AB"] == 2 * steps * parts
    assert counts["WR_GB"] == 4 * parts
    assert counts["MV_SB"] == 8 * ceil(steps / 16) + 8 * parts
    assert counts["SFM"] == ceil(tokens / 256)
    assert counts["MV_GB"] == 8 * ceil(tokens / 256)


def test_fewer_units_per_stack_take_as_many_more_accesses():
    """64 banks at once, one bank of each of 16 groups, or one of each of two pseudo channels."""
    bank, group, buffer = (AttAcc(stacks=1, place=p).attention(16, 512, 128).stream.counts() for p in ("bank", "bank group", "buffer"))
    assert group["MAC_SB"] == 4 * bank["MAC_AB"]
    assert buffer["MAC_PB"] == 32 * bank["MAC_AB"]


def test_neupims_opens_a_row_of_all_banks_with_an_activate_per_four_banks():
    kernel = NeuPims(channels=1).product(32, 512)  # one row of each of 32 banks
    assert kernel.counts["ACT"] == 32 / 4
    assert kernel.counts["COMP"] == 512 / 16
    assert (kernel.counts["P_HEADER"], kernel.counts["READRES"]) == (1, 1)
    assert kernel.counts["GWRITE"] == 1024 / 64


# Clocks with a pencil ------------------------------------------------------------------------------------------------------
def test_one_group_of_aim_takes_its_activate_its_beats_and_the_read_of_its_sums():
    """MODE; activate beside the load of the buffer; 64 beats of two clocks; read; MODE. The load (64 x 2) outlasts the activate."""
    load, bias, read, beat = 64 * 2, 2, 2, 2
    assert load + bias > RCD_MAC
    clocks = Aim(channels=1, refresh=False).product(16, 1024).clocks
    assert clocks == MODE + load + bias + 64 * beat + read + MODE


def test_a_tile_of_hbm_pim_takes_writes_turnarounds_accesses_and_a_row_switch():
    """One more pair of input tiles, even and odd. Even: eight writes of the vector, write to read, 64 accesses in two rows, read to
    write. Odd: the registers' row and the weights lie in the same banks, so that rows change in between as well."""
    p = HBM_PIM
    switch = p.n_rtp + p.n_rp + p.n_rcd_rd  # last access of a row to the first of the next
    accesses = 31 * p.n_ccd_l + switch + 31 * p.n_ccd_l
    writes = 7 * p.n_ccd_l
    even = writes + (p.n_cwl + p.n_bl + p.n_wtr_l) + accesses + p.n_rtw
    recover = p.n_cwl + p.n_bl + p.n_wr + p.n_rp + p.n_rcd_rd
    odd = writes + recover + accesses + (p.n_rtp + p.n_rp + p.n_rcd_wr)
    design = HbmPim(channels=1, refresh=False)
    times = [design.product(64, 256 * pairs).clocks for pairs in (4, 5)]
    assert times[1] - times[0] == even + odd


def test_accesses_of_attacc_follow_each_other_at_the_cadence_and_pay_for_rows():
    """A score of 16 x 64 more steps is 64 x 2 accesses, in four rows of 32: each costs a switch in place of one interval."""
    design = AttAcc(stacks=1, refresh=False, pipelined=False)
    few, many = (design.product(16 * 16 * steps, 128).clocks for steps in (128, 192))
    switch = ATTACC.gap_ticks(ATTACC.n_rtp, "column", "pre") + ATTACC.n_rp + ATTACC.n_rcd_rd
    pre = ATTACC.pre_ticks
    assert pre == 1
    rows = 64 * 2 // 32
    assert many - few == 64 * 2 * 6 + rows * (switch - 6)


def test_refresh_costs_at_least_its_share():
    for kernel, p in (
        (HbmPim().product(16384, 4096), HBM_PIM),
        (Aim().product(4096, 4096), AIM),
        (NeuPims().attention(512, 2048, 128), NEUPIMS),
    ):
        without = follow(kernel.channel, kernel.stream, refresh=False).clocks
        assert kernel.timed.refreshes == kernel.clocks // p.n_refi or kernel.timed.refreshes == kernel.clocks // p.n_refi - 1
        assert kernel.clocks - without >= kernel.timed.refreshes * p.n_rfc


# Laws ----------------------------------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(outputs=st.integers(1, 3000), inputs=st.integers(1, 3000), batch=st.integers(1, 3))
def test_no_design_reads_faster_than_its_units_times_width_over_cadence(outputs, inputs, batch):
    for design in (HbmPim(channels=8), Aim(channels=4), AttAcc(stacks=1), NeuPims(channels=4)):
        kernel = design.product(outputs, inputs, batch)
        assert kernel.bandwidth <= design.internal_peak
        assert kernel.internal_bytes >= 2 * batch * outputs * inputs


def test_peaks_are_units_times_width_over_cadence():
    assert HbmPim(channels=1).internal_peak == 8 * 32 * 10**9 // 4  # eight units, 32 B, every four clocks of 1 ns
    assert Aim(channels=1).internal_peak == 16 * 32 * 10**9  # sixteen units every ns
    assert AttAcc(stacks=1).internal_peak == 16 * 64 * 32 * 10**15 // (6 * 769000)
    assert AttAcc(stacks=1, power_limited=False).internal_peak == 16 * 64 * 32 * 10**15 // (4 * 769000)
    assert NeuPims(channels=1).internal_peak == 32 * 32 * 10**9 // 2
    assert BundlePath(channels=1).internal_peak == 8 * 32 * 10**15 // (4 * 769000)  # four times the bus of a pseudo channel
    assert BundlePath(channels=1).internal_peak == pytest.approx(4 * float(BundlePath(channels=1).channel.preset.peak))


@pytest.mark.parametrize(
    "design", [HbmPim(read_back=False, refresh=False), Aim(refresh=False), AttAcc(refresh=False), NeuPims(refresh=False)]
)
def test_time_grows_by_the_same_amount_with_every_vector(design):
    times = [design.product(1024, 2048, batch).clocks for batch in (1, 2, 3, 5, 9)]
    step = times[2] - times[1]
    assert times[3] == pytest.approx(times[2] + 2 * step, rel=0.01)
    assert times[4] == pytest.approx(times[2] + 6 * step, rel=0.01)


def test_half_the_heads_of_a_stack_take_half_the_time_of_two_rounds():
    one, two, eight = (AttAcc(stacks=1, refresh=False).attention(heads, 1024, 128).clocks for heads in (32, 64, 256))
    assert eight == pytest.approx(8 * one, rel=0.02)
    assert two == pytest.approx(2 * one, rel=0.02)


def test_queries_that_share_keys_take_that_many_passes():
    alone, grouped = (AttAcc(stacks=1).attention(16, 1024, 128, queries=q).stream.counts() for q in (1, 8))
    assert grouped["MAC_AB"] == 8 * alone["MAC_AB"]


@pytest.mark.parametrize(
    "kernel",
    [
        AttAcc(stacks=1).attention(16 * 4000, 128, 128),
        HbmPim(channels=1).product(64 * 900, 1024),
        NeuPims(channels=1).attention(3000, 512, 128),
        Aim(channels=1).product(512, 128, 3000),
    ],
    ids=["attacc", "hbm-pim", "neupims", "aim"],
)
def test_long_streams_are_followed_in_part_and_agree_with_the_whole(kernel):
    folded, exact = (follow(kernel.channel, kernel.stream, exact=exact) for exact in (False, True))
    assert folded.followed < 1 == exact.followed
    assert folded.clocks == pytest.approx(exact.clocks, rel=0.002)
    assert folded.opens == pytest.approx(exact.opens, rel=0.002)
    assert len(kernel.stream) > FOLD


# Layouts -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "layout",
    [
        TileLayout(150, 300, channels=2),
        TileLayout(17, 129, channels=1, blocks=2, registers=2, lanes=4, columns=8),
        RowLayout(50, 2100, channels=2),
        RowLayout(200, 40, channels=3, banks=4, columns=8),
        HeadLayout(50, 128),
        HeadLayout(33, 80),
    ],
    ids=str,
)
def test_every_element_has_a_place_of_its_own_inside_the_rows_that_the_layout_needs(layout):
    places = {layout.place(output, index) for output in range(layout.outputs) for index in range(layout.inputs)}
    assert len(places) == layout.outputs * layout.inputs
    assert all(0 <= at.row < layout.rows_needed and 0 <= at.column < layout.columns and 0 <= at.lane < layout.lanes for at in places)
    assert layout.padding >= 1


def test_values_of_a_head_have_places_of_their_own():
    layout = HeadLayout(50, 128)
    assert len({layout.value_place(token, index) for token in range(50) for index in range(128)}) == 50 * 128


def test_even_input_tiles_lie_in_even_banks_and_a_tile_fills_two_rows():
    layout = TileLayout(64, 512, channels=1)
    assert [layout.place(0, 128 * tile).bank for tile in range(4)] == [0, 1, 0, 1]
    assert {layout.place(output, index).row for output in range(8) for index in range(128)} == {0, 1}
    assert layout.order() == [0, 2, 1, 3]


def test_sequences_go_to_the_channel_with_the_least_so_far():
    assert pack([5, 4, 3, 3], 2) == [[0, 3], [1, 2]]
    halves = sub_batches([9, 1, 5, 5, 7, 3])
    assert sorted(halves[0] + halves[1]) == list(range(6))
    assert sum([9, 1, 5, 5, 7, 3][i] for i in halves[0]) == 15


def test_two_sub_batches_take_the_longer_of_both_phases_but_for_fill_and_drain():
    assert interleaved(npu=10, pim=4, layers=3) == 10 + 5 * 10 + 4
    assert interleaved(npu=4, pim=10, layers=3) == 4 + 5 * 10 + 10


# Energy --------------------------------------------------------------------------------------------------------------------
def test_energy_is_that_of_every_command_at_every_location_it_passes():
    kernel = AttAcc(stacks=1).attention(16, 2048, 128)
    energy = kernel.energy_pj
    bits = 8 * kernel.internal_bytes
    moves = kernel.stream.counts()
    through = sum(moves[name] for name in ("WR_GB", "MV_SB", "MV_GB")) * 16
    assert energy["cells"] == pytest.approx(0.44 * bits)
    assert energy["activate"] == pytest.approx(909.0 * kernel.timed.activates * 16)
    assert energy["compute"] == pytest.approx(0.32 * bits / 16)
    assert energy["tsv"] == pytest.approx(0.5 * 256 * through)
    assert energy["interposer"] == pytest.approx(0.3 * 256 * moves["WR_GB"] * 16)
    assert energy["SFM"] is None  # softmax has no published energy


def test_a_read_by_units_further_out_passes_more_locations():
    reach = {place: AttAcc(stacks=1, place=place).attention(16, 512, 128).energy_pj for place in ("bank", "bank group", "buffer")}
    assert reach["bank"]["cells"] == pytest.approx(reach["buffer"]["cells"])
    assert reach["bank"]["column mux"] < reach["bank group"]["column mux"] == pytest.approx(reach["buffer"]["column mux"], rel=0.01)
    assert reach["bank group"]["tsv"] < reach["buffer"]["tsv"]


# Refusals ------------------------------------------------------------------------------------------------------------------
def test_a_matrix_that_does_not_fit_is_refused_with_the_rows_and_bytes_that_are_missing():
    weights, results = 1000 * 16 * 64 // 32, 1000 * 8 // 32  # a thousand output tiles of 16 tiles per bank; eight bursts each
    short = weights + results - (16384 - 4)
    assert short == 15870
    with pytest.raises(
        HardwareError, match=rf"needs 32250 rows of each bank, which has 16380 for data: 15870 rows \({short * 1024 * 16} B"
    ):
        HbmPim(channels=1).product(64 * 1000, 128 * 32)
    with pytest.raises(HardwareError, match="AiM matrix 1000000 x 1024 on 2 channels: needs 31250 rows"):
        Aim(channels=2).product(1_000_000, 1024)


def test_keys_and_values_that_do_not_fit_are_refused_with_heads_and_rows():
    with pytest.raises(
        HardwareError, match=r"keys and values of 1600 heads x 32768 tokens on 16 channels \(100 heads in one\): needs 25600 rows"
    ):
        AttAcc(stacks=1).attention(1600, 32768, 128)
    with pytest.raises(HardwareError, match="NeuPIMs: keys and values of 32 heads x 8000000 tokens"):
        NeuPims(channels=32).attention(32, 8_000_000, 128)


@pytest.mark.parametrize("shape", [(0, 128, 1), (64, 0, 1), (64, 128, 0)])
@pytest.mark.parametrize("design", [HbmPim(), Aim(), AttAcc(), NeuPims()], ids=lambda d: type(d).__name__)
def test_empty_products_are_refused(design, shape):
    with pytest.raises(HardwareError, match="of at least 1, found 0"):
        design.product(*shape)


def test_a_channel_refuses_sets_that_overlap_or_lie_outside():
    with pytest.raises(HardwareError, match="bank 16 does not exist, the channel has 16"):
        PimChannel(preset=HBM_PIM, sets=(BankSet(name="all", first=1, banks=16),))
    with pytest.raises(HardwareError, match="shares a bank with another set"):
        PimChannel(preset=HBM_PIM, sets=(BankSet(name="a", first=0, banks=8), BankSet(name="b", first=7, banks=2)))
    with pytest.raises(HardwareError, match="expected all, set or none, not 'sets'; did you mean `set`"):
        PimChannel(preset=HBM_PIM, sets=(), scope="sets")


def test_bundles_of_the_logic_die_path_are_two_banks_of_every_group():
    sets = BundlePath().channel.sets
    assert len(sets) == 4
    assert sets[0].members == (0, 1, 4, 5, 8, 9, 12, 13)
    assert sorted(bank for part in sets for bank in part.members) == list(range(32))


def test_the_next_run_in_another_set_has_its_row_opened_while_the_one_before_goes_on():
    """Rows in turns in two bundles cost nothing but the first; in one bundle each costs a switch."""
    path = BundlePath(channels=1, refresh=False)
    gap = 4

    def clocks(sets: tuple[int, int]) -> int:
        make = lambda i: (Run("READ", Kind.READ, 32, gap, sets[i % 2], i),)  # noqa: E731
        return follow(path.channel, Stream((Part(20, make),)), refresh=False).clocks

    first = path.channel.rules.read_after_act()
    assert clocks((0, 1)) == first + 20 * 32 * gap
    assert clocks((0, 0)) > 1.2 * clocks((0, 1))


# Devices -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "internal"), [("hbm-pim", 4.096), ("aim-gddr6", 16.384), ("attacc", 35.51), ("neupims", 16.384)])
def test_devices_have_the_bandwidth_of_their_designs_inside(name, internal):
    device = load(name)
    unit = device.units["pim"]
    assert unit.internal_peak == pytest.approx(internal * 1e12, rel=1e-3)
    assert unit.memory in device.memories
    # two bytes per multiply-accumulate
    assert unit.macs_per_cycle("fp16") * device.unit_clock("pim") >= Fraction(unit.internal_peak, 2)
    assert unit.macs_per_cycle("int4") == 0


def test_the_unit_takes_the_clocks_of_its_kernel():
    unit = load("hbm-pim").units["pim"]
    assert unit.cycles(Gemm(2, 512, 256, "fp16")) == HbmPim().product(512, 256, 2).clocks
    with pytest.raises(HardwareError, match="no cost for Gemm work"):
        unit.cycles(Gemm(2, 512, 256, "int8"))


def test_a_unit_without_attention_says_so():
    with pytest.raises(HardwareError, match="'hbm_pim' has no attention kernel"):
        load("hbm-pim").units["pim"].attention(1, 128, 128, 128, 1)

"""Whole kernels by pencil: the stream of one matrix-vector product on HBM-PIM and of heads on AttAcc, command by command."""

from __future__ import annotations

import pytest

from hw.pim.attacc import AttAcc
from hw.pim.channel import ATTACC, HBM_PIM
from hw.pim.hbm_pim import HbmPim

P = HBM_PIM
GAP = P.n_ccd_l
SWITCH = P.n_rtp + P.n_rp + P.n_rcd_rd
"""Last read of a row to the first of the next in the same banks."""
TILE = 31 * GAP + SWITCH + 31 * GAP
"""First to last of the 64 MACs of a tile: two rows of 32 columns."""
EVEN = P.n_rtw + 7 * GAP + (P.n_cwl + P.n_bl + P.n_wtr_l) + TILE
"""Last MAC of an even tile to that of the next: turn to writes, eight registers, turn to reads (opening the row of the weights hides
behind it), MACs. The registers' row lies in the odd banks and stays open."""
ODD = (P.n_rtp + P.n_rp + P.n_rcd_wr) + 7 * GAP + (P.n_cwl + P.n_bl + P.n_wr + P.n_rp + P.n_rcd_rd) + TILE
"""The same in the odd banks: the registers' row and the weights' take turns."""


def test_the_terms_of_a_tile() -> None:
    assert (SWITCH, TILE, EVEN, ODD) == (33, 281, 343, 392)


def test_a_product_of_4096_by_4096_on_hbm_pim() -> None:
    """64 channels x 64 outputs are one output tile; 4096 / 128 = 32 input tiles, 16 in even banks and then 16 in odd ones: in each
    channel 32 x 64 MACs and 32 x 8 register writes, 8 stores, and 64 bursts of partial sums read back."""
    kernel = HbmPim().product(4096, 4096)
    counts = kernel.counts
    assert (counts["MAC"], counts["WR_GRF"], counts["STORE"], counts["READ_RESULT"]) == (32 * 64, 32 * 8, 8, 64)
    bare = HbmPim(refresh=False, read_back=False).product(4096, 4096)
    tiles = 16 * EVEN + 16 * ODD
    assert tiles == 11760
    # modes, program, store and return to single-bank mode: once, each of them writes behind a row of their own
    modes = bare.clocks - tiles
    writes = sum(counts[name] for name in ("SB_TO_HAB", "WR_CRF", "HAB_TO_PIM", "PIM_TO_HAB", "HAB_TO_SB", "STORE"))
    parking = (counts["PARK"] + counts["UNPARK"]) * GAP
    rows = 8  # parking, entering (2), program, registers, store, leaving (2)
    assert writes * GAP + parking < modes < (writes + rows) * GAP + parking + rows * (P.n_cwl + P.n_bl + P.n_wr + P.n_rp + P.n_rcd_wr)
    assert modes < 0.035 * bare.clocks


def test_more_inputs_cost_whole_tiles_and_nothing_else() -> None:
    design = HbmPim(refresh=False, read_back=False)
    few, many = (design.product(4096, inputs).clocks for inputs in (256, 4096))
    assert many - few == 15 * (EVEN + ODD)


def test_read_back_takes_a_column_every_burst_and_its_row() -> None:
    bare, whole = (HbmPim(refresh=False, read_back=read).product(4096, 4096).clocks for read in (False, True))
    reads = 64 * P.n_bl
    assert reads <= whole - bare <= reads + (P.n_cwl + P.n_bl + P.n_wr) + P.n_rp + P.n_rcd_rd + GAP


def test_a_refresh_costs_closing_waiting_and_opening_again() -> None:
    bare, whole = (HbmPim(refresh=refresh, read_back=False).product(4096, 4096) for refresh in (False, True))
    assert whole.timed.refreshes == whole.clocks // P.n_refi == 3
    each = (whole.clocks - bare.clocks) / 3
    assert P.n_rp + P.n_rfc + P.n_rcd_rd <= each <= P.n_rp + P.n_rfc + P.n_rcd_rd + P.n_ras


@pytest.mark.parametrize("tokens", [512, 2048])
def test_a_pair_of_heads_on_attacc_takes_its_macs_rows_and_refreshes(tokens: int) -> None:
    """Keys and values of a head of 128: tokens / 16 x 2 accesses each, six clocks apart, 32 to a row. Softmax and moves hide, but for
    the last moves of a pair; between groups of 16 results barriers cost what a row does not hide."""
    accesses = 4 * tokens // 16 * 2
    rows = accesses // 32
    switch = ATTACC.gap_ticks(ATTACC.n_rtp, "column", "pre") + ATTACC.n_rp + ATTACC.n_rcd_rd
    pencil = accesses * 6 + rows * (switch - 6)
    design = AttAcc(stacks=1, refresh=False)
    pair = (design.attention(16 * 8, tokens, 128).clocks - design.attention(16 * 2, tokens, 128).clocks) / 3
    assert pair == pytest.approx(pencil, rel=0.05)
    assert pair >= accesses * 6
    refreshed = (AttAcc(stacks=1).attention(16 * 64, tokens, 128).clocks) / 32
    assert refreshed >= pencil * (1 + ATTACC.n_rfc / ATTACC.n_refi) * 0.97


def test_a_matrix_vector_product_on_attacc_is_the_score_of_a_head_per_channel() -> None:
    """4096 outputs over 80 channels are 52 each: 4 steps of 16 ways x 4096 / 64 accesses."""
    kernel = AttAcc(refresh=False).product(4096, 4096)
    assert kernel.counts["MAC_AB"] == 4 * 64
    switch = ATTACC.gap_ticks(ATTACC.n_rtp, "column", "pre") + ATTACC.n_rp + ATTACC.n_rcd_rd
    loads = 4 * 64 * 4  # the vector enters first, four clocks a beat for each of four banks
    pencil = loads + 255 * 6 + 7 * (switch - 6) + ATTACC.n_rcd_rd + 8 * 4
    assert kernel.clocks == pytest.approx(pencil, rel=0.05)

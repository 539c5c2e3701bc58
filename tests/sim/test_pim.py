"""PIM kernels command by command: equal to the closed form, in contention with ordinary traffic, and right on data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.errors import HardwareError
from hw.pim.aim import Aim
from hw.pim.attacc import AttAcc
from hw.pim.hbm_pim import HbmPim
from hw.pim.kernel import Kernel
from hw.pim.logic import BundlePath
from hw.pim.neupims import NeuPims
from hw.pim.timeline import follow
from hw.units.bank_mac import COLUMN, FILL_B, JUMP, PROGRAM, STORE, VECTOR, BankMac, Instruction
from sim.dram import serve
from sim.patterns import Requests, requests
from sim.pim import across, play, share
from sim.pim_functional import Sequencer, hbm_pim_program, rows_golden, run_attacc, run_hbm_pim, run_rows, tree

KERNELS = {
    "hbm-pim": HbmPim(channels=4).product(1024, 4096),
    "aim": Aim(channels=1).product(512, 2100, 2),
    "attacc": AttAcc(stacks=1).attention(200, 640, 128),
    "attacc bank group": AttAcc(stacks=1, place="bank group").attention(40, 640, 128),
    "neupims": NeuPims(channels=2).attention(50, 700, 128),
    "bundle": BundlePath(channels=2).read(1 << 21),
}


# One clock, the same rules as the closed form ---------------------------------------------------------------------------------
def agree(kernel: Kernel, refresh: bool) -> None:
    closed = follow(kernel.channel, kernel.stream, refresh=refresh, exact=True)
    played = play(kernel, refresh=refresh)
    assert (played.kernel_clocks, played.opens, played.activates, played.closes, played.refreshes) == (
        closed.clocks,
        closed.opens,
        closed.activates,
        closed.closes,
        closed.refreshes,
    )


@pytest.mark.parametrize("refresh", [True, False])
@pytest.mark.parametrize("name", KERNELS)
def test_commands_take_exactly_as_long_as_the_closed_form_says(name, refresh):
    agree(KERNELS[name], refresh)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 2000),
    st.integers(1, 5000),
    st.integers(1, 4),
    st.sampled_from([HbmPim(channels=2), Aim(), NeuPims(channels=3), AttAcc(stacks=1)]),
)
def test_products_of_any_shape_take_exactly_as_long_as_the_closed_form_says(outputs, inputs, batch, design):
    agree(design.product(outputs, inputs, batch), True)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 1500), st.integers(1, 200), st.sampled_from(["bank", "bank group", "buffer"]), st.booleans())
def test_attention_of_any_shape_takes_exactly_as_long_as_the_closed_form_says(heads, tokens, width, place, pipelined):
    agree(AttAcc(stacks=1, place=place, pipelined=pipelined).attention(heads, tokens, width), True)


def test_every_command_of_the_stream_is_issued_once_and_in_order_on_its_path():
    kernel = KERNELS["attacc"]
    issued: dict[str, int] = {}
    last: dict[str, int] = {}
    for clock, name, _, _ in play(kernel, record=True).commands:
        issued[name] = issued.get(name, 0) + 1
        assert clock >= last.get(name, 0)
        last[name] = clock
    assert {name: issued[name] for name in kernel.stream.counts()} == kernel.stream.counts()


def test_recorded_accesses_keep_the_cadence_and_the_row_timers():
    kernel, p = KERNELS["hbm-pim"], KERNELS["hbm-pim"].channel.preset
    before: dict[str, int] = {}
    opened: dict[int, int] = {}
    closed: dict[int, int] = {}
    for clock, name, part, _ in play(kernel, record=True).commands:
        if name == "MAC":
            assert clock - before.get("MAC", -100) >= p.n_ccd_l
            assert clock - opened[part] >= p.n_rcd_rd
            before["MAC"] = clock
        elif name == "PIM-ACT":
            assert clock - closed.get(part, -100) >= p.n_rp
            assert clock - opened.get(part, -100) >= p.n_rc
            opened[part] = clock
        elif name == "PIM-PRE":
            assert clock - opened[part] >= p.n_ras
            closed[part] = clock
        elif name == "REFab":
            refreshed = clock
            opened = {key: min(value, clock) for key, value in opened.items()}
            closed = dict.fromkeys((0, 1), refreshed + p.n_rfc - p.n_rp)


# Contention ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", KERNELS)
def test_ordinary_traffic_slows_a_kernel_in_its_channel_and_not_in_another(name):
    """Four channels; the kernel runs on the first two, all requests go to the second (256 B of every 1024 B)."""
    kernel = KERNELS[name]
    one = requests(kernel.channel.preset, "random", 64 * 1500)
    block, offset = np.divmod(one.addresses, 256)
    wanted = Requests(block * 1024 + 256 + offset, one.writes)
    alone = play(kernel)
    untouched, touched, *idle = across(kernel, wanted, 4, on=(0, 1))
    assert untouched.kernel_clocks == alone.kernel_clocks
    assert touched.kernel_clocks > alone.kernel_clocks
    assert untouched.bursts == 0
    assert touched.bursts == 1500 * kernel.channel.preset.bursts_per_request
    assert [(part.kernel_clocks, part.bursts) for part in idle] == [(0, 0), (0, 0)]
    # and the kernel slows the traffic: where it does not run, the same requests end earlier
    free = across(kernel, wanted, 4, on=(0,))[1]
    assert touched.traffic_clocks > free.traffic_clocks


def test_a_channel_that_does_not_exist_or_an_interleaving_that_splits_requests_is_refused():
    kernel = KERNELS["aim"]
    wanted = requests(kernel.channel.preset, "stream", 64 * 10)
    with pytest.raises(HardwareError, match=r"expected channels of 0 to 1, found \[2\]"):
        across(kernel, wanted, 2, on=(2,))
    with pytest.raises(HardwareError, match="whole requests of 64 B, found 96 B"):
        across(kernel, wanted, 2, interleave_bytes=96)


def test_hbm_pim_hands_the_channel_over_between_output_tiles_only():
    """In all-bank mode the host has no access: one output tile is never interrupted, four may be three times in between."""
    one, four = HbmPim(channels=1).product(64, 4096), HbmPim(channels=1).product(256, 4096)
    traffic = requests(one.channel.preset, "random", 64 * 4000)
    lead = share(one, traffic)
    assert lead.turns == 1  # before its only tile, once the traffic waits
    beside, alone = share(four, traffic), play(four)
    assert beside.turns == 4
    assert beside.kernel_clocks > alone.kernel_clocks


def test_refresh_costs_both_the_kernel_and_the_traffic_beside_it():
    for kernel in KERNELS.values():
        traffic = requests(kernel.channel.preset, "stream", 64 * 8000)
        with_, without = (share(kernel, traffic, refresh=refresh) for refresh in (True, False))
        assert with_.refreshes > 0 == without.refreshes
        assert with_.kernel_clocks >= without.kernel_clocks
        assert with_.traffic_clocks > without.traffic_clocks + kernel.channel.preset.n_rfc
        only = [share(None, traffic, channel=kernel, refresh=refresh).traffic_clocks for refresh in (True, False)]
        assert only[0] > only[1]


def test_a_second_row_buffer_lets_both_go_on_where_one_makes_them_take_turns():
    """Without turns, the traffic is delayed by the kernel's activates and beats only."""
    traffic = requests(NeuPims().channel.preset, "stream", 64 * 6000)
    dual, single = (NeuPims(channels=2, dual=dual).attention(50, 700, 128) for dual in (True, False))
    assert play(dual).kernel_clocks == play(single).kernel_clocks
    both, turns = share(dual, traffic), share(single, traffic)
    assert both.turns == 0 < turns.turns
    assert max(both.kernel_clocks, both.traffic_clocks) < max(turns.kernel_clocks, turns.traffic_clocks)


def test_a_larger_quantum_lets_the_traffic_end_earlier_with_fewer_turns():
    kernel = KERNELS["aim"]
    traffic = requests(kernel.channel.preset, "stream", 64 * 4000)
    small, large = (share(kernel, traffic, quantum=quantum) for quantum in (8, 256))
    assert small.turns > large.turns
    assert small.traffic_clocks > large.traffic_clocks


def test_requests_that_arrive_late_do_not_disturb_a_kernel_that_is_done():
    kernel = KERNELS["neupims"]
    alone = play(kernel).kernel_clocks
    traffic = requests(kernel.channel.preset, "random", 64 * 100)
    arrivals = np.arange(100) * 50 + 2 * alone
    late = share(kernel, traffic, arrivals=arrivals)
    assert late.kernel_clocks == alone
    assert late.latency_clocks.mean() < 200


@pytest.mark.parametrize(("pattern", "within"), [("stream", 0.01), ("random", 0.06), ("mixed", 0.13)])
@pytest.mark.parametrize("name", KERNELS)
def test_traffic_alone_runs_as_in_the_ordinary_engine(name, pattern, within):
    """One queue here, a queue for reads and one for writes there: writes are drained later, which shows in mixed traffic."""
    kernel = KERNELS[name]
    wanted = requests(kernel.channel.preset, pattern, 64 * 4000)
    here, there = share(None, wanted, channel=kernel).traffic_clocks, serve(kernel.channel.preset, wanted).end_ticks
    assert here == pytest.approx(there, rel=within)


def test_bad_requests_are_refused():
    kernel = KERNELS["aim"]
    traffic = requests(kernel.channel.preset, "stream", 64 * 10)
    with pytest.raises(HardwareError, match="expected a kernel, or the kernel whose channel"):
        share(None, traffic)
    with pytest.raises(HardwareError, match="neither a kernel nor a request"):
        share(None, None, channel=kernel)
    with pytest.raises(HardwareError, match="quantum and a queue of at least 1, found 0 and 32"):
        share(kernel, traffic, quantum=0)
    with pytest.raises(HardwareError, match="one ascending arrival for each of 10 requests, found 3"):
        share(kernel, traffic, arrivals=np.arange(3))
    beyond = requests(HbmPim().channel.preset, "stream", 64)
    beyond.addresses[0] = HbmPim().channel.preset.capacity
    with pytest.raises(HardwareError, match="lies beyond one channel"):
        share(KERNELS["hbm-pim"], beyond)


# On data -------------------------------------------------------------------------------------------------------------------
def half(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float16)


def in_kernel_order(design: HbmPim, matrix: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both padded to whole tiles, even input tiles first."""
    layout = design.layout(*matrix.shape, len(vectors))
    padding = -matrix.shape[1] % layout.input_tile
    order = np.concatenate([np.arange(layout.input_tile) + tile * layout.input_tile for tile in layout.order()])
    return tuple(np.pad(values, ((0, 0), (0, padding)))[:, order] for values in (matrix, vectors))


@pytest.mark.parametrize(("outputs", "inputs", "batch"), [(130, 300, 2), (128, 128, 1), (5, 700, 1)])
def test_hbm_pim_computes_what_the_bank_unit_does_lane_by_lane(outputs, inputs, batch):
    rng = np.random.default_rng(outputs)
    design = HbmPim(channels=2)
    matrix, vectors = half(rng, outputs, inputs), half(rng, batch, inputs)
    results, lanes = run_hbm_pim(design, matrix, vectors)
    ordered, inputs_ordered = in_kernel_order(design, matrix, vectors)
    golden = BankMac().golden(inputs_ordered.view(np.uint16), ordered.T.copy().view(np.uint16))
    assert np.array_equal(lanes.view(np.uint16), golden)
    assert np.array_equal(results, lanes.astype(np.float32).sum(axis=-1, dtype=np.float32).astype(np.float16))


def test_hbm_pim_is_exact_on_small_integers():
    rng = np.random.default_rng(0)
    matrix, vectors = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((70, 256), (2, 256)))
    results, _ = run_hbm_pim(HbmPim(channels=1), matrix, vectors)
    assert np.array_equal(results.astype(int), vectors.astype(int) @ matrix.T.astype(int))


def test_another_order_of_input_tiles_rounds_to_other_sums():
    """So the comparison with the bank unit does test the order of even and odd tiles."""
    rng = np.random.default_rng(4)
    matrix, vectors = half(rng, 64, 512), half(rng, 1, 512)
    _, lanes = run_hbm_pim(HbmPim(channels=1), matrix, vectors)
    golden = BankMac().golden(vectors.view(np.uint16), matrix.T.copy().view(np.uint16))
    assert not np.array_equal(lanes.view(np.uint16), golden)


@pytest.mark.parametrize("design", [Aim(channels=2), NeuPims(channels=2)], ids=["aim", "neupims"])
@pytest.mark.parametrize(("outputs", "inputs", "batch"), [(70, 1100, 2), (40, 128, 1), (3, 33, 1)])
def test_row_designs_compute_a_tree_of_every_burst_and_add_slices(design, outputs, inputs, batch):
    rng = np.random.default_rng(inputs)
    matrix, vectors = half(rng, outputs, inputs), half(rng, batch, inputs)
    row_elements = 1024 if isinstance(design, Aim) else 512
    assert np.array_equal(run_rows(design, matrix, vectors), rows_golden(matrix, vectors, lanes=16, row_elements=row_elements))


def test_an_adder_tree_adds_neighbours():
    """(1 + 2048) and (1 + 0) round in fp16, where 2048 + 1 is lost: 2048 + 1 = 2048, whereas 1 + 1 is kept."""
    values = np.array([2048, 1, 1, 0], np.float16)
    assert tree(values) == 2048  # (2048 + 1) + (1 + 0) = 2048 + 1
    assert tree(np.array([2048, 0, 1, 1], np.float16)) == 2050


def test_attacc_computes_scores_and_context_of_a_head():
    rng = np.random.default_rng(2)
    tokens, width = 70, 96
    keys, values = half(rng, tokens, width), half(rng, tokens, width)
    query = (rng.normal(size=width) / 8).astype(np.float16)
    scores, context = run_attacc(AttAcc(stacks=1), keys, values, query)
    exact = keys.astype(float) @ query.astype(float)
    weights = np.exp(exact - exact.max())
    # seven roundings of sums of at most that size, and of the product
    bound = 8 * 2.0**-11 * (np.abs(keys.astype(float)) @ np.abs(query.astype(float)))
    assert (np.abs(scores - exact) <= bound).all()
    assert context == pytest.approx(weights / weights.sum() @ values.astype(float), abs=4e-3)


def test_a_command_beyond_the_program_is_refused():
    unit = Sequencer(hbm_pim_program(HbmPim(channels=1).layout(64, 128)))
    assert [unit.step() for _ in range(64)] == [unit.program[0].operation] * 64
    assert [unit.step() for _ in range(8)] == [STORE] * 8
    with pytest.raises(HardwareError, match="after the program's end"):
        unit.step()


def test_the_bank_units_rtl_executes_the_commands_of_a_kernel():
    """The stream of one pair of banks, word by word: its program, its vectors, its accesses and stores."""
    pytest.importorskip("amaranth", reason="RTL needs the extra `rtl`")
    from hw.bits import pack
    from verif.simulate import Batch, simulate

    rng = np.random.default_rng(6)
    design = HbmPim(channels=1, blocks=1, registers=4, lanes=4)
    matrix, vectors = half(rng, 4, 80), half(rng, 1, 80)
    layout = design.layout(4, 80)
    padded = np.zeros(layout.input_tiles * layout.input_tile, np.float16)
    padded[:80] = vectors[0]
    clear = [Instruction(FILL_B), Instruction(JUMP, 0, layout.registers - 1)]
    program = [*clear, *(step._replace(target=step.target + 2 * (step.operation == JUMP)) for step in hbm_pim_program(layout))]
    zeros = np.zeros(4, np.float16)
    words = [(PROGRAM, index, zeros, *step) for index, step in enumerate(program)]
    weights = np.zeros((2, layout.rows_needed, layout.columns, 4), np.float16)
    for output in range(4):
        for index in range(80):
            at = layout.place(output, index)
            weights[at.bank, at.row, at.column, at.lane] = matrix[output, index]
    for run in design.product(4, 80).stream.runs():
        for i in range(run.count):
            if run.name == "HAB_TO_PIM":
                words += [(COLUMN, 4 * b, zeros, 0, 0, 0) for b in range(4)]
            elif run.name == "WR_GRF":
                first = run.tag[1] * layout.input_tile + 4 * i
                words.append((VECTOR, i, padded[first : first + 4], 0, 0, 0))
            elif run.name == "MAC":
                burst = (run.row * layout.columns + run.column + i) % layout.bursts
                words.append((COLUMN, burst, weights[run.bank_set, run.row, run.column + i], 0, 0, 0))
            elif run.name == "STORE":
                words.append((COLUMN, 4 * i, zeros, 0, 0, 0))
    columns = [np.array(column) for column in zip(*words, strict=True)]
    columns[2] = columns[2].view(np.uint16).astype(np.int64)
    stream = pack(*zip(columns, (2, 8, 16, 3, 5, 24), strict=True))
    found = simulate(BankMac(lanes=4, registers=4).rtl(), [Batch(stream, 4)]).results[0]
    _, lanes = run_hbm_pim(design, matrix, vectors)
    want = [int.from_bytes(row.tobytes(), "little") for row in lanes[0].view(np.uint16).astype("<u2")]
    assert list(found) == want

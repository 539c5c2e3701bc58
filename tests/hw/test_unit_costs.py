"""Cycles of the array, the tensor core and the vector unit: closed forms against a machine that is stepped cycle by cycle."""

from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw import UNITS, Gemm, HardwareError, Systolic, TensorCore, Unit, Vector, VectorUnit
from hw.devices import load

FLOWS = [
    ("output_stationary", "serial", "none"),
    ("output_stationary", "serial", "full"),
    ("weight_stationary", "serial", "none"),
    ("weight_stationary", "serial", "full"),
    ("weight_stationary", "hidden", "none"),
    ("weight_stationary", "hidden", "full"),
]


def array(rows, columns, flow=FLOWS[0], **fields):
    dataflow, preload, overlap = flow
    return Systolic(rows=rows, columns=columns, dataflow=dataflow, preload=preload, fold_overlap=overlap, **fields)


# A machine, stepped ---------------------------------------------------------------------------------------------------------
def padded(matrix, rows, columns):
    return np.pad(matrix, ((0, rows - matrix.shape[0]), (0, columns - matrix.shape[1])))


def skewed(words, lanes):
    """[words, lanes] as they enter an edge: lane i one cycle after lane i - 1. NaN where nothing enters."""
    edge = np.full((len(words) + lanes - 1, lanes), np.nan)
    for lane in range(lanes):
        edge[lane : lane + len(words), lane] = words[:, lane]
    return edge


def step_outputs_stationary(left, right, r, c, overlap):
    """Cycles from the first operand accepted to the last sum complete, and the product that the cells then hold.

    Every cell passes its left operand to the right and its upper one down, and multiplies when both are there. A column has one
    way out, which takes one finished sum per cycle: where folds overlap, the last word of one waits until the rows before are out.
    """
    (m, k), n = left.shape, right.shape[1]
    folds = [(i, j) for i in range(0, m, r) for j in range(0, n, c)]
    tiles = [(padded(left[i : i + r], r, k).T, padded(right[:, j : j + c], k, c)) for i, j in folds]
    if overlap:
        waits = [max(0, r - k) if number else 0 for number in range(len(tiles))]

        def stream(side, lanes):
            gaps = [np.full((wait, lanes), np.nan) for wait in waits]
            return np.concatenate([part for t, gap in zip(tiles, gaps, strict=True) for part in (t[side][:-1], gap, t[side][-1:])])

        runs = [(stream(0, r), stream(1, c))]
    else:
        runs = tiles
    product = np.zeros((ceil(m / r) * r, ceil(n / c) * c))
    cycles, fold_of_cell = 0, np.zeros((r, c), int)
    rows, columns = np.indices((r, c))
    for rows_in, columns_in in runs:
        west, north = skewed(rows_in, r), skewed(columns_in, c)
        a, b, steps = np.full((r, c), np.nan), np.full((r, c), np.nan), np.zeros((r, c), int)
        needed = int((~np.isnan(rows_in[:, 0])).sum())
        time = 0
        while (steps < needed).any():
            a = np.column_stack([west[time] if time < len(west) else np.full(r, np.nan), a[:, :-1]])
            b = np.vstack([north[time] if time < len(north) else np.full(c, np.nan), b[:-1]])
            active = ~np.isnan(a) & ~np.isnan(b)
            assert (np.isnan(a) == np.isnan(b)).all()  # partners meet
            fold = fold_of_cell + steps // k
            for cell in zip(*np.nonzero(active), strict=True):
                i, j = folds[fold[cell]]
                product[i + rows[cell], j + columns[cell]] += a[cell] * b[cell]
            steps += active
            assert ((active & (steps % k == 0)).sum(axis=0) <= 1).all()  # the way out of a column
            time += 1
        cycles += time
        fold_of_cell += needed // k
    return cycles, product[:m, :n]


def step_weights_stationary(left, right, r, c, preload, overlap):
    """The same for weights that stay: rows of the left operand enter at the left, weights at the top, sums leave at the bottom.

    A slot is what enters the corner cell in one cycle: a row of activations, a row of weights with its destination, or both.
    Weights travel down beside the sums and are kept by the row they are meant for; `hidden` keeps them in a second register
    until the first activations of their fold pass.
    """
    (m, k), n = left.shape, right.shape[1]
    tiles = [(i, j) for j in range(0, n, c) for i in range(0, k, r)]
    weights = [padded(right[i : i + r, j : j + c], r, c) for i, j in tiles]
    inputs = [padded(left[:, i : i + r], m, r) for i, _ in tiles]
    idle = [(None, None)] * (r + c - 2)
    load = [[(None, (f, row)) for row in range(r)] for f in range(len(tiles))]
    flow = [[((f, row), None) for row in range(m)] for f in range(len(tiles))]
    slots = []
    if preload == "serial":
        for f in range(len(tiles)):
            slots += load[f] + flow[f] + ([] if overlap else idle)
    else:
        slots += load[0]
        for f in range(len(tiles)):
            length = m + (0 if overlap else len(idle))
            if f + 1 < len(tiles):  # the weights of the next fold enter meanwhile
                length = max(length, r)
            body = flow[f] + [(None, None)] * (length - m)
            after = load[f + 1] if f + 1 < len(tiles) else []
            slots += [(activation, after[t][1] if t < len(after) else None) for t, (activation, _) in enumerate(body)]
    product = np.zeros((m, ceil(n / c) * c))
    stationary, shadow = np.zeros((r, c)), np.zeros((r, c))
    outputs = 0
    sums: dict[tuple[int, int, int], float] = {}
    for time in range(len(slots) + r + c):
        for i in range(r):
            for j in range(c):
                entered = time - i - j
                if not 0 <= entered < len(slots):
                    continue
                activation, weight = slots[entered]
                if activation is not None:
                    f, row = activation
                    if preload == "hidden" and row == 0:
                        stationary[i, j] = shadow[i, j]
                    total = sums.pop((f, row, j), 0.0) + inputs[f][row, i] * stationary[i, j]
                    if i < r - 1:
                        sums[f, row, j] = total
                    else:
                        product[row, tiles[f][1] + j] += total
                        outputs += 1
                if weight is not None and weight[1] == i:
                    (shadow if preload == "hidden" else stationary)[i, j] = weights[weight[0]][i, j]
        if outputs == m * c * len(tiles):
            return time + 1, product[:, :n]
    raise AssertionError("results are missing")


sizes = st.integers(1, 5)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(1, 11), st.integers(1, 11), st.integers(1, 9), st.sampled_from(FLOWS), st.integers(0, 2**32 - 1))
def test_the_formulas_count_the_cycles_of_the_stepped_array(r, c, m, n, k, flow, seed):
    rng = np.random.default_rng(seed)
    left, right = rng.integers(-9, 9, (m, k)).astype(float), rng.integers(-9, 9, (k, n)).astype(float)
    dataflow, preload, overlap = flow
    unit = array(r, c, flow)
    if dataflow == "output_stationary":
        cycles, product = step_outputs_stationary(left, right, r, c, overlap == "full")
    else:
        cycles, product = step_weights_stationary(left, right, r, c, preload, overlap == "full")
    np.testing.assert_array_equal(product, left @ right)
    assert unit.cycles(Gemm(m, n, k, "int8")) == cycles


@pytest.mark.parametrize("size", [1, 7, 32, 128])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (1, 64, 64), (100, 300, 77), (257, 129, 513), (32, 32, 32), (33, 31, 129)])
def test_the_published_stall_free_formulas(size, m, k, n):
    work = Gemm(m, n, k, "int8")
    # SCALE-Sim (Samajdar et al., ISPASS 2020) for a square array, plus the one cycle of its numbering from 0
    assert array(size, size).cycles(work) == ceil(m / size) * ceil(n / size) * (k + 2 * size - 2)
    assert array(size, size, FLOWS[2]).cycles(work) == ceil(k / size) * ceil(n / size) * (m + 3 * size - 2)


# Laws of splitting ------------------------------------------------------------------------------------------------------------
shapes = st.integers(1, 300)


def cut(size, places):
    """`size` as parts, cut at some places."""
    edges = [0, *sorted({p % size for p in places if p % size}), size]
    return [b - a for a, b in pairwise(edges)]


def run(unit, parts, work_of):
    """Cycles of the parts of one run: only the first opens, only the last closes."""
    last = len(parts) - 1
    return sum(unit.cycles(work_of(part, i == 0, i == last)) for i, part in enumerate(parts))


@given(
    st.integers(1, 64),
    st.integers(1, 64),
    st.data(),
    shapes,
    st.lists(st.integers(1, 10**6), max_size=5),
    st.sampled_from(["none", "full"]),
)
def test_one_fold_of_outputs_costs_the_same_however_its_k_is_cut(r, c, data, k, places, overlap):
    unit = array(r, c, ("output_stationary", "serial", overlap))
    m, n = data.draw(st.integers(1, r)), data.draw(st.integers(1, c))
    whole = unit.cycles(Gemm(m, n, k, "int8"))
    parts = run(unit, cut(k, places), lambda part, first, last: Gemm(m, n, part, "int8", first, last, first, last))
    assert parts == whole == k + r + c - 2


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 5), shapes, st.lists(st.integers(1, 10**6), max_size=5))
def test_overlapped_folds_of_outputs_cost_the_same_however_each_k_is_cut(r, c, folds, k, places):
    """Tiles that continue a run know what was added before them, so that a short last piece of a long run waits for nothing."""
    unit = array(r, c, FLOWS[1])
    pieces = cut(k, places)
    ends = len(pieces) - 1
    total = 0
    for fold in range(folds):
        for i, piece in enumerate(pieces):
            before = sum(pieces[:i])
            final = fold == folds - 1 and i == ends
            total += unit.cycles(Gemm(r, c, piece, "int8", i == 0, i == ends, fold == i == 0, final, accumulated=before))
    assert total == unit.cycles(Gemm(folds * r, c, k, "int8")) == (folds - 1) * max(k, r) + k + r + c - 2


@given(st.integers(1, 64), st.integers(1, 64), st.data(), shapes, st.lists(st.integers(1, 10**6), max_size=5), st.sampled_from(FLOWS[2:]))
def test_one_fold_of_weights_costs_the_same_however_its_rows_are_cut(r, c, data, m, places, flow):
    unit = array(r, c, flow)
    k, n = data.draw(st.integers(1, r)), data.draw(st.integers(1, c))
    pieces = cut(m, places)
    whole = unit.cycles(Gemm(m, n, k, "int8"))
    parts = run(unit, pieces, lambda part, first, last: Gemm(part, n, k, "int8", first, last, first, last))
    if flow[1] == "hidden" and pieces[0] < r:
        assert whole <= parts <= whole + r  # the first piece alone lasts until the next weights are there
    else:
        assert parts == whole


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), *[st.integers(1, 90)] * 3, st.sampled_from(FLOWS))
def test_whole_folds_add_up(r, c, m, n, k, flow):
    unit = array(r, c, flow)

    def folds(m, n, k):
        if flow[0] == "output_stationary":
            return [(a, b, k) for a in cut(m, range(r, m, r)) for b in cut(n, range(c, n, c))]
        return [(m, b, a) for a in cut(k, range(r, k, r)) for b in cut(n, range(c, n, c))]

    pieces = folds(m, n, k)
    last = len(pieces) - 1
    parts = sum(unit.cycles(Gemm(a, b, d, "int8", cold=i == 0, final=i == last)) for i, (a, b, d) in enumerate(pieces))
    assert parts == unit.cycles(Gemm(m, n, k, "int8"))


@given(st.integers(1, 40), st.integers(1, 40), shapes, shapes, shapes, st.sampled_from(FLOWS))
def test_an_array_is_never_faster_than_its_cells(r, c, m, n, k, flow):
    work = Gemm(m, n, k, "int8")
    assert array(r, c, flow).cycles(work) * r * c >= work.macs
    assert array(r, c, flow).macs_per_cycle("int8") == r * c


@given(st.integers(1, 40), st.integers(1, 40), shapes, shapes, shapes)
def test_hiding_and_overlapping_never_cost_a_cycle(r, c, m, n, k):
    work = Gemm(m, n, k, "int8")
    cycles = {flow: array(r, c, flow).cycles(work) for flow in FLOWS}
    assert cycles[FLOWS[1]] <= cycles[FLOWS[0]]
    assert cycles[FLOWS[3]] <= cycles[FLOWS[2]]
    assert cycles[FLOWS[4]] <= cycles[FLOWS[2]]
    assert cycles[FLOWS[5]] <= min(cycles[FLOWS[3]], cycles[FLOWS[4]])


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    shapes,
    shapes,
    shapes,
    st.sampled_from(FLOWS),
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(0, 50),
)
def test_a_larger_product_never_takes_fewer_cycles(r, c, m, n, k, flow, dm, dn, dk):
    unit = array(r, c, flow)
    assert unit.cycles(Gemm(m, n, k, "int8")) <= unit.cycles(Gemm(m + dm, n + dn, k + dk, "int8"))


@given(st.integers(1, 40), st.integers(1, 40), shapes, shapes, shapes, st.sampled_from(FLOWS), st.tuples(*[st.booleans()] * 4))
def test_a_tile_inside_a_run_never_takes_longer_than_one_by_itself(r, c, m, n, k, flow, flags):
    unit = array(r, c, flow)
    assert 0 < unit.cycles(Gemm(m, n, k, "int8", *flags)) <= unit.cycles(Gemm(m, n, k, "int8"))


def test_hidden_weights_leave_one_pass_of_the_rows_per_fold():
    # 1024 x 1024 weights on 32 x 32 cells: 32 x 32 folds of M rows, one cold load of 32 and one drain of 62
    assert array(32, 32, FLOWS[5]).cycles(Gemm(4096, 1024, 1024, "int8")) == 32 + 32 * 32 * 4096 + 62


# What crosses the edge ---------------------------------------------------------------------------------------------------
def test_moving_operands_are_read_once_per_fold_and_stationary_ones_once():
    work = Gemm(8, 12, 10, "int8")  # 2 row folds and 3 column folds of 4 x 4 results; 3 x 3 folds of 4 x 4 weights
    assert array(4, 4).operand_elements(work) == (8 * 10 * 3, 10 * 12 * 2, 8 * 12)
    left, right, sums = array(4, 4, FLOWS[2]).operand_elements(work)
    assert (left, right) == (8 * 10 * 3, 10 * 12)
    assert sums == 8 * 12 * (3 + 2)  # three folds along k write, two of them read what was there


@given(st.integers(1, 40), st.integers(1, 40), shapes, shapes, shapes, st.sampled_from(FLOWS))
def test_every_operand_crosses_the_edge_at_least_once(r, c, m, n, k, flow):
    left, right, sums = array(r, c, flow).operand_elements(Gemm(m, n, k, "int8"))
    assert left >= m * k
    assert right >= k * n
    assert sums >= m * n


def test_the_stationary_operand_and_the_granularity_follow_the_dataflow():
    assert (array(4, 8).stationary(), array(4, 8).granularity()) == ("outputs", (4, 8, 1))
    assert (array(4, 8, FLOWS[2]).stationary(), array(4, 8, FLOWS[2]).granularity()) == ("weights", (1, 8, 4))
    assert [array(4, 8, accumulator_bits=bits).accumulator_bytes() for bits in (8, 24, 25, 32)] == [1, 3, 4, 4]


# Tensor core ----------------------------------------------------------------------------------------------------------------
def core(**fields):
    return TensorCore(
        **{"macs": {"fp16": 1024, "int8": 2048}, "instruction": (16, 8, 16), "shared_bandwidth": 128, "warps": (2, 2), **fields}
    )


def test_a_tile_takes_its_macs_at_the_rate_and_drains_one_instruction():
    assert core().cycles(Gemm(128, 128, 64, "fp16")) == 128 * 128 * 64 // 1024 + 32
    assert core().cycles(Gemm(128, 128, 64, "fp16", closes=False)) == 128 * 128 * 64 // 1024


def test_a_small_tile_waits_for_its_operands():
    # two columns of warps read 16 rows, two rows of warps read 8 columns: (32 + 16) x 64 x 2 B at 128 B per cycle
    assert core().cycles(Gemm(16, 8, 64, "fp16", closes=False)) == (16 * 2 + 8 * 2) * 64 * 2 // 128
    assert core().cycles(Gemm(16, 8, 64, "fp16", closes=False)) > 16 * 8 * 64 // 1024


def test_tiles_are_whole_instructions_with_the_flat_operand_on_the_smaller_side():
    unit = core(shared_bandwidth=10**9)  # operands for free
    assert unit.cycles(Gemm(1, 1, 1, "fp16", closes=False)) == ceil(16 * 8 * 16 / 1024)
    assert unit.cycles(Gemm(1, 4096, 64, "fp16")) == unit.cycles(Gemm(8, 4096, 64, "fp16")) == unit.cycles(Gemm(4096, 1, 64, "fp16"))
    assert unit.cycles(Gemm(9, 4096, 64, "fp16")) == unit.cycles(Gemm(16, 4096, 64, "fp16"))


def test_k_of_an_instruction_scales_inversely_with_the_operand_width():
    unit = core(shared_bandwidth=10**9)
    for number_format, step in (("fp16", 16), ("int8", 32)):
        unit_cycles = [unit.cycles(Gemm(1024, 1024, k, number_format)) for k in (step - 1, step, step + 1)]
        assert unit_cycles[0] == unit_cycles[1] < unit_cycles[2]


@given(shapes, shapes, shapes, st.sampled_from(["fp16", "int8"]), st.sampled_from(["a100-80g", "h100-sxm"]))
def test_a_tensor_core_is_never_faster_than_its_rate(m, n, k, number_format, device):
    unit = load(device).units["tensor"]
    work = Gemm(m, n, k, number_format, closes=False)
    assert unit.cycles(work) * unit.macs_per_cycle(number_format) >= work.macs


@given(shapes, shapes, shapes, st.integers(0, 64), st.integers(0, 64), st.integers(0, 64), st.sampled_from(["fp16", "int8"]))
def test_a_larger_tile_never_takes_fewer_cycles(m, n, k, dm, dn, dk, number_format):
    assert core().cycles(Gemm(m, n, k, number_format)) <= core().cycles(Gemm(m + dm, n + dn, k + dk, number_format))


def test_a_format_without_a_rate_is_refused_with_those_that_have_one():
    assert core().macs_per_cycle("fp8") == 0
    with pytest.raises(HardwareError, match="tensor core has no rate for fp8, only for fp16, int8"):
        core().cycles(Gemm(16, 8, 16, "fp8"))


# Vector unit ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("work", "cycles"),
    [
        (Vector(1000, 2, 1), ceil(2000 / 128) + ceil(1000 / 32)),
        (Vector(1, 1, 0), 1),
        (Vector(128, 1, 0), 1),
        (Vector(129, 1, 0), 2),
        (Vector(32, 0, 1), 1),
        (Vector(0, 1, 1), 0),
    ],
)
def test_lanes_do_arithmetic_and_special_lanes_the_rest_one_after_the_other(work, cycles):
    assert VectorUnit(lanes=128, special_lanes=32).cycles(work) == cycles


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 9), st.integers(0, 9), st.integers(1, 512), st.integers(1, 512))
def test_split_vector_work_costs_at_most_one_cycle_more_per_kind(first, second, operations, specials, lanes, special_lanes):
    unit = VectorUnit(lanes=lanes, special_lanes=special_lanes)
    whole = unit.cycles(Vector(first + second, operations, specials))
    parts = unit.cycles(Vector(first, operations, specials)) + unit.cycles(Vector(second, operations, specials))
    assert whole <= parts <= whole + (operations > 0) + (specials > 0)


# Every unit -----------------------------------------------------------------------------------------------------------------
def test_energy_is_per_operation_and_absent_where_it_is_not_modelled():
    unit = array(4, 4, mac_energy={"int8": "0.1 pJ"})
    assert unit.energy(Gemm(3, 5, 7, "int8")) == 3 * 5 * 7 / 10
    assert unit.energy(Gemm(3, 5, 7, "fp16")) is None
    assert VectorUnit(lanes=4, special_lanes=1).energy(Vector(10)) is None
    assert VectorUnit(lanes=4, special_lanes=1, operation_energy="2 pJ").energy(Vector(10, 3, 1)) == 80


@pytest.mark.parametrize(
    ("unit", "work"), [(array(4, 4), Vector(3)), (core(), Vector(3)), (VectorUnit(lanes=1, special_lanes=1), Gemm(1, 1, 1, "int8"))]
)
def test_work_of_another_kind_is_refused(unit, work):
    with pytest.raises(HardwareError, match=f"unit kind '{type(unit).kind}' has no cost for {type(work).__name__} work"):
        unit.cycles(work)


def test_a_new_unit_is_found_by_its_kind():
    class Oracle(Unit, kind="oracle-of-this-test", executes={"gemm"}):
        def cycles(self, work):
            return 1

    try:
        assert UNITS["oracle-of-this-test"] is Oracle
        assert Oracle(count=3).executes == {"gemm"}
        assert Oracle().golden() is None
        assert Oracle().rtl() is None
    finally:
        del UNITS["oracle-of-this-test"]

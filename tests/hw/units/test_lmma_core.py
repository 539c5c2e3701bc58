"""Costs of look-up arrays in a GPU: the closed form written out, and the verified array behind it."""

from fractions import Fraction
from math import ceil

import pytest

from hw.devices import load
from hw.units.lmma_core import LmmaCore, table_adds
from hw.units.lut_tensor_core import LutTensorCore
from hw.work import Gemm

WIDE = {"macs": {"fp16": 1024}, "shared_bandwidth": 10**9, "widest": 8}


@pytest.mark.parametrize("planes", range(1, 9))
@pytest.mark.parametrize(("rows", "columns", "depth", "arrays"), [(2, 64, 4, 16), (1, 3, 2, 5), (4, 32, 4, 1), (3, 7, 5, 3)])
def test_a_tile_takes_its_bit_planes_over_the_arrays(rows, columns, depth, arrays, planes):
    core = LmmaCore(rows=rows, columns=columns, depth=depth, arrays=arrays, **WIDE)
    for m, n, k in ((1, 1, 1), (128, 256, 64), (77, 33, 101)):
        expected = ceil(ceil(m / rows) * ceil(n / columns) * ceil(k / depth) * planes / arrays)
        assert core.tile_cycles(m, n, k, f"table8-k{depth}xint{planes}") == expected
        assert m * n * k <= expected * core.macs_per_cycle(f"table8-k{depth}xint{planes}")


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_one_array_takes_the_cycles_of_the_verified_core_less_its_pipeline(planes):
    one, verified = LmmaCore(arrays=1, **WIDE), LutTensorCore(rows=2, columns=64, weight_bits=planes)
    for m, n, k in ((2, 64, 4), (5, 100, 37), (64, 256, 512)):
        assert one.tile_cycles(m, n, k, f"table8-k4xint{planes}") == verified.cycles(Gemm(m, n, k, "int8")) - 1


@pytest.mark.parametrize(("name", "times"), [("a100-lut-4x", 4), ("a100-lut-8x", 8)])
def test_two_bit_look_ups_are_as_many_times_the_fp16_rate_as_the_device_says(name, times):
    core = load(name).units["tensor"]
    assert core.macs_per_cycle("table8-k4xint2") == times * core.macs_per_cycle("fp16")


def test_shared_memory_delivers_tables_and_weights_to_the_best_grid_of_warps():
    core = LmmaCore(macs={"fp16": 1024}, arrays=10**6, shared_bandwidth=128)
    # 4 warps as 4 x 1: 128 rows of 16 bits once, 64 columns of 2 bits four times, for each of 64 elements of k
    assert core.tile_cycles(128, 64, 64, "table8-k4xint2") == ceil((128 * 16 + 4 * 64 * 2) * 64 / (8 * 128))
    # 8 rows and 1024 columns, as 1 x 4: the tables four times, the weights once
    assert core.tile_cycles(8, 1024, 64, "table8-k4xint2") == ceil((4 * 8 * 16 + 1024 * 2) * 64 / (8 * 128))


@pytest.mark.parametrize("depth", range(2, 9))
def test_mirrored_tables_are_half(depth):
    half, whole = (LmmaCore(depth=depth, symmetric=s, **WIDE) for s in (True, False))
    assert (half.entries, whole.entries) == (2 ** (depth - 1), 2**depth)
    assert whole.table_bits_per_activation - Fraction(1, 4) == 2 * (half.table_bits_per_activation - Fraction(1, 4))
    assert half.build_operations < whole.build_operations


def test_additions_of_a_table_share_those_of_its_halves():
    # two sums of two activations each (their mirror images are free), then one addition per entry
    assert table_adds(4) == 2 + 2 + 8
    for depth in range(2, 9):
        assert table_adds(depth) <= 2 ** (depth - 1) * (depth - 1)  # every entry by itself


def test_formats_are_those_of_the_tables_that_are_built():
    core = LmmaCore(depth=2, symmetric=False, table_bits=16, widest=2, macs={"int8": 2048})
    assert core.formats() == {"int8", "fulltable16-k2xint1", "fulltable16-k2xint2"}
    assert core.planes("fulltable16-k2xint2") == 2
    assert core.planes("table16-k2xint2") == core.planes("int8") == 0
    assert core.instruction_name("fp16", "fulltable16-k2xint1") == "lmma.m2n64k2.fp16.int1.fp32.fp32"

"""Look-up tables in cache slices: cycles of the verified slice, shared out over arrays, with conversion."""

from __future__ import annotations

from fractions import Fraction

import pytest

from hw.errors import HardwareError
from hw.units.sail import SailSlices, SimdCores
from hw.units.sram_pim_slice import SramPimSlice
from hw.work import Gemm


def unit(**fields: object) -> SailSlices:
    return SailSlices(**{"slices": 1, "arrays": 1, "reuse": 0, **fields})


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("batch", [1, 3])
def test_one_array_takes_the_cycles_of_the_verified_slice_and_converts_before_sums_leave(bits: int, batch: int) -> None:
    """The slice reads 24 rows of each sum out; here they are converted in 217 cycles (25 + 24 + 24 + 5 x 24 + 24), and 32 rows leave."""
    plain = SramPimSlice(weight_bits=bits, items=4, columns=256).cycles(Gemm(batch, 256, 128, "int8"))
    ours = unit(columns=256).cycles(Gemm(batch, 256, 128, f"int8xint{bits}"))
    assert ours == plain + batch * (217 + 32 - 24)


def test_arrays_share_columns_and_scale_groups() -> None:
    """4096 x 4096 are 16 x 32 blocks of 256 columns and 128 rows of the contraction."""
    one = unit().cycles(Gemm(1, 4096, 4096, "int8xint4"))
    assert unit(arrays=512).cycles(Gemm(1, 4096, 4096, "int8xint4")) * 512 == one
    assert unit(arrays=511).cycles(Gemm(1, 4096, 4096, "int8xint4")) * 256 == one  # two turns
    assert unit(slices=16, arrays=32).cycles(Gemm(1, 4096, 4096, "int8xint4")) * 512 == one


def test_a_table_is_built_once_for_as_many_rows_as_an_array_has_accumulators() -> None:
    """256 rows: 16 of weights, 11 sums of 6 bits, and (256 - 82) / 24 = 7 accumulators."""
    product = unit()
    assert product.slice_for("int8xint4").items == 7
    per_row = [product.cycles(Gemm(m, 256, 128, "int8xint4")) / m for m in range(1, 8)]
    assert per_row == sorted(per_row, reverse=True)
    seven, eight = (product.cycles(Gemm(m, 256, 128, "int8xint4")) for m in (7, 8))
    assert eight == seven + product.cycles(Gemm(1, 256, 128, "int8xint4"))


def test_fewer_bits_and_more_reuse_never_take_more_cycles() -> None:
    by_bits = [unit().cycles(Gemm(7, 256, 128, f"int8xint{bits}")) for bits in (2, 3, 4, 5, 6, 8)]
    assert by_bits == sorted(by_bits)
    by_reuse = [unit(reuse=Fraction(share, 10)).cycles(Gemm(7, 256, 128, "int8xint4")) for share in range(6)]
    assert by_reuse == sorted(by_reuse, reverse=True)


def test_the_peak_is_never_exceeded() -> None:
    product = unit(arrays=4, reuse=Fraction(1, 8))
    for m, n, k in ((1, 1024, 128), (7, 1024, 4096), (64, 2048, 512)):
        work = Gemm(m, n, k, "int8xint4")
        assert product.cycles(work) * product.macs_per_cycle("int8xint4") >= work.macs


def test_arrays_without_room_for_tables_and_unknown_widths_are_refused() -> None:
    with pytest.raises(HardwareError, match="need 166 rows, an array has 64: 102 short; use a smaller group"):
        unit(rows=64).cycles(Gemm(1, 1, 1, "int8xint8"))  # 8 x 4 + 11 x 10 + 24
    with pytest.raises(HardwareError, match="not fp16"):
        unit().cycles(Gemm(1, 1, 1, "fp16"))


def test_cores_convert_a_quarter_of_their_byte_lanes_at_a_time() -> None:
    cores = SimdCores(rows=1, columns=1, lanes=32, steps={"int8xint4": 4})
    assert cores.conversion_cycles(64) == 64 * 3 / 8
    assert cores.cycles(Gemm(1, 1, 64, "int8xint4")) == 2 * 4

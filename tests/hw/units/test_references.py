"""Designs that areas are compared with compute what they stand for: a smaller circuit that does something else proves nothing."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="RTL needs the extra `rtl`")

from hw.bits import pack, unpack
from hw.number import FLOATS
from hw.rtl.lut_tensor_core import ENTRY_BITS
from hw.rtl.reference import Fp16Adders, Fp16Mac, Int8Dot, LookupElement, LookupTable
from verif.simulate import Batch, simulate

HALF, SINGLE = FLOATS["fp16"], FLOATS["fp32"]
SIGNS = np.array([[-1, *(1 if p >> j & 1 else -1 for j in range(3))] for p in range(8)])
"""Of the four activations in each entry of a table."""


def run(component, words: list[int], results: int) -> list[int]:
    return list(simulate(component, [Batch(words, results)]).results[0])


def test_the_integer_table_holds_all_signed_sums():
    acts = np.random.default_rng(0).integers(-128, 128, (9, 4))
    (found,) = unpack(run(LookupTable(fp16=False), pack((acts, 8)), 9), (8, ENTRY_BITS, True))
    assert np.array_equal(found, acts @ SIGNS.T)


def test_the_fp16_table_holds_signed_sums_rounded_pair_by_pair():
    acts = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float16)
    words = pack((acts.view(np.uint16).astype(np.int64), 16))
    (found,) = unpack(run(LookupTable(fp16=True), words, 9), (8, 16, False))
    signed = (acts[:, None] * SIGNS.astype(np.float16)).astype(np.float16)
    near, far = (signed[..., i] + signed[..., i + 1] for i in (0, 2))
    assert np.array_equal(HALF.decode(found), (near + far).astype(np.float64))


@pytest.mark.parametrize("fp16", [False, True])
def test_an_element_adds_shifted_entries_with_their_sign(fp16: bool):
    rng, count = np.random.default_rng(2), 12
    index, sign, plane = (rng.integers(0, limit, count) for limit in (8, 2, 4))
    closes = np.arange(count) % 4 == 3
    if fp16:
        entries = rng.integers(-64, 64, (count, 8)) / 8  # exact in fp32 whatever the order
        codes, width = HALF.encode(entries), 16
    else:
        entries, width = rng.integers(-512, 513, (count, 8)), ENTRY_BITS
        codes = entries
    words = pack((codes, width), (index, 3), (sign, 1), (plane, 2), (closes, 1))
    # the table stands still in a core: its word is looked up in the cycle after, so the same table comes twice
    table = np.repeat(codes[:1], count, axis=0)
    words = pack((table, width), (index, 3), (sign, 1), (plane, 2), (closes, 1))
    found = run(LookupElement(width, fp16), [*words, words[0]], 3)  # one word more: the table stays until the last one is looked up
    terms = (1 - 2 * sign) * entries[0][index] * 2.0**plane
    want = terms.reshape(3, 4).sum(axis=1)
    got = SINGLE.decode(np.array(found)) if fp16 else unpack(found, (1, 32, True))[0][:, 0]
    assert got.tolist() == want.tolist()


def test_adders_sum_signed_activations_plane_by_plane():
    rng, count = np.random.default_rng(4), 12
    acts = rng.integers(-64, 64, (count, 4)) / 8  # exact in fp16 whatever the order
    signs, plane = rng.integers(0, 2, (count, 4)), rng.integers(0, 4, count)
    closes = np.arange(count) % 4 == 3
    words = pack((HALF.encode(acts), 16), (signs, 1), (plane, 2), (closes, 1))
    want = (((1 - 2 * signs) * acts).sum(axis=1) * 2.0**plane).reshape(3, 4).sum(axis=1)
    assert SINGLE.decode(np.array(run(Fp16Adders(), words, 3))).tolist() == want.tolist()


def test_the_multipliers_are_exact_where_the_numbers_are_small():
    rng = np.random.default_rng(3)
    a, b = rng.integers(-30, 31, (2, 8, 4))
    closes = np.arange(8) % 2 == 1
    want = (a * b).sum(axis=1).reshape(4, 2).sum(axis=1)
    words = pack((HALF.encode(a.astype(float)), 16), (HALF.encode(b.astype(float)), 16), (closes, 1))
    assert SINGLE.decode(np.array(run(Fp16Mac(4), words, 4))).tolist() == want.tolist()
    words = pack((a, 8), (b, 8), (closes, 1))
    assert unpack(run(Int8Dot(4), words, 4), (1, 32, True))[0][:, 0].tolist() == want.tolist()


@pytest.mark.parametrize("name", ["bf16", "fp8-e4m3", "fp8-e5m2"])
def test_the_flushing_multiplier_rounds_flushes_and_saturates(name: str):
    """Against exact products in float64, rounded by `frexp` without an end of exponents; every kind of operand, NaN and infinity too."""
    from amaranth.sim import Simulator

    from hw.rtl.float import Operation
    from hw.rtl.flush_multiplier import flush_multiply

    form, rng = FLOATS[name], np.random.default_rng(4)
    if name == "bf16":
        x, y = rng.integers(0, 1 << 16, (2, 1500))
        x[:750], y[:750] = form.encode(rng.normal(size=(2, 750)))
        x[750:1000] = (x[750:1000] & 0x807F) | 0x1F80  # exponents that add up to the edge of the normal numbers
        y[750:1000] = (y[750:1000] & 0x807F) | 0x1F80
    else:
        x, y = (codes.ravel()[::23] for codes in np.meshgrid(np.arange(256), np.arange(256)))  # 23 and 256 have no common factor
    found, design = [], Operation(form, flush_multiply)

    async def bench(ctx):
        for a, b in zip(x.tolist(), y.tolist(), strict=True):
            ctx.set(design.a, a)
            ctx.set(design.b, b)
            await ctx.delay(1e-9)
            found.append(ctx.get(design.result))

    simulator = Simulator(design)
    simulator.add_testbench(bench)
    simulator.run()
    assert np.array_equal(found, flushed_product(form, x, y))


def flushed_product(form, x, y):
    a, b = form.decode(x), form.decode(y)
    smallest, largest = 2.0 ** (1 - form.bias), float(form.decode(form.largest))
    a, b = (np.where(np.abs(v) < smallest, np.copysign(0.0, v), v) for v in (a, b))
    with np.errstate(invalid="ignore"):
        exact = np.abs(a * b)
    fraction, exponent = np.frexp(np.where(np.isfinite(exact), exact, 0))
    rounded = np.ldexp(np.rint(np.ldexp(fraction, form.fraction + 1)), exponent - form.fraction - 1)
    rounded = np.where(np.isinf(exact), largest, np.minimum(rounded, largest))
    value = np.where(rounded < smallest, 0, rounded)
    codes = form.encode(value) | ((x ^ y) & (1 << (form.width - 1)))
    return np.where(np.isnan(exact), form.nan, codes)


def test_a_shift_add_element_adds_shifted_sums_of_eight_activations():
    """Beside the layer in numpy: entries of half a table, found again from all 256 indices."""
    from hw.lowbit.lookup import doubled_tables
    from hw.rtl.shift_add import ENTRIES, ShiftAddElement

    rng, count = np.random.default_rng(5), 12
    table = doubled_tables(rng.integers(-15, 16, 8).astype(np.float16))[0]  # integers: exact, so that halves are negatives
    index, exponent = rng.integers(0, 256, count), rng.integers(-6, 7, count)
    closes = np.arange(count) % 4 == 3
    entries = np.repeat(table[256 - ENTRIES :].view(np.uint16).astype(np.int64)[None], count, axis=0)
    words = pack((entries, 16), (index, 8), (exponent, 6), (closes, 1))
    found = SINGLE.decode(np.array(run(ShiftAddElement(), words, 3)))
    assert found.tolist() == np.ldexp(table[index].astype(float), exponent).reshape(3, 4).sum(axis=1).tolist()

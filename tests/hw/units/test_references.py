"""Designs that areas are compared with compute what they stand for: a smaller circuit that does something else proves nothing."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="RTL needs the extra `rtl`")

from hw.bits import pack, unpack
from hw.number import FLOATS
from hw.rtl.lut_tensor_core import ENTRY_BITS
from hw.rtl.reference import Fp16Mac, Int8Dot, LookupElement, LookupTable
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
    found = run(LookupElement(width, fp16), words, 3)
    terms = (1 - 2 * sign) * entries[0][index] * 2.0**plane
    want = terms.reshape(3, 4).sum(axis=1)
    got = SINGLE.decode(np.array(found)) if fp16 else unpack(found, (1, 32, True))[0][:, 0]
    assert got.tolist() == want.tolist()


def test_the_multipliers_are_exact_where_the_numbers_are_small():
    rng = np.random.default_rng(3)
    a, b = rng.integers(-30, 31, (2, 8, 4))
    closes = np.arange(8) % 2 == 1
    want = (a * b).sum(axis=1).reshape(4, 2).sum(axis=1)
    words = pack((HALF.encode(a.astype(float)), 16), (HALF.encode(b.astype(float)), 16), (closes, 1))
    assert SINGLE.decode(np.array(run(Fp16Mac(4), words, 4))).tolist() == want.tolist()
    words = pack((a, 8), (b, 8), (closes, 1))
    assert unpack(run(Int8Dot(4), words, 4), (1, 32, True))[0][:, 0].tolist() == want.tolist()

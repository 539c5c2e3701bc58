"""BitLinear and the MatMul-free block: integer sums equal to torch's, bytes of ternary digits, and the devices that run them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from dovetail import estimate
from hw import HardwareError, devices
from hw.lowbit.bitlinear import CODES, Block, Linear, mlgru, pack_trits, quantised, rms_norm, ternary, unpack_trits
from hw.units.dot_array import DotArray
from hw.units.ternary_row import TernaryRow
from hw.work import Gemm

torch = pytest.importorskip("torch")
WIDTH, FFN, TOKENS = 48, 96, 5


# The definition, in torch -----------------------------------------------------------------------------------------------------
def torch_norm(x):
    return x * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-8).float()


def torch_linear(x, w):
    """(y, integer sums): the released BitLinear."""
    x = torch_norm(x)
    scale = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
    q = (x * scale).round().clamp(-128, 127)
    s = 1.0 / w.double().abs().mean().float().clamp(min=1e-5)
    t = (w * s).round().clamp(-1, 1)
    sums = q.long() @ t.long().T
    return sums.float() / (s * scale), sums


def torch_silu(x):
    return (x.double() / (1 + torch.exp(-x.double()))).float()


def torch_block(weights, x, state):
    i, f, g, o, up, down = weights
    sums = []

    def linear(value, w):
        y, exact = torch_linear(value, w)
        sums.append(exact)
        return y

    normed = torch_norm(x)
    a, b = torch_silu(linear(normed, i)), (1 / (1 + torch.exp(-linear(normed, f).double()))).float()
    states, h = [], state
    for t in range(len(x)):
        h = b[t] * h + (1 - b[t]) * a[t]
        states.append(h)
    gate = torch_silu(linear(normed, g))
    x = x + linear(torch_norm(torch.stack(states)) * gate, o)
    first, second = linear(torch_norm(x), up).chunk(2, dim=1)
    return x + linear(torch_silu(first) * second, down), h, sums


def drawn(seed: int):
    rng = np.random.default_rng(seed)
    shapes = [(WIDTH, WIDTH)] * 4 + [(2 * FFN, WIDTH), (WIDTH, FFN)]
    weights = [(rng.standard_normal(shape) * 0.02).astype(np.float32) for shape in shapes]
    return weights, rng.standard_normal((TOKENS, WIDTH)).astype(np.float32), rng.standard_normal(WIDTH).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_integer_sums_of_a_layer_equal_torch(seed: int):
    weights, x, _ = drawn(seed)
    for w in weights[:5]:
        y, sums = torch_linear(torch.from_numpy(x), torch.from_numpy(w))
        layer = Linear.of(w)
        assert np.array_equal(layer.sums(x)[0], sums.numpy())
        assert layer(x) == pytest.approx(y.numpy(), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_every_integer_sum_of_a_block_equals_torch(seed: int, monkeypatch: pytest.MonkeyPatch):
    weights, x, state = drawn(10 + seed)
    block, seen = Block(*map(Linear.of, weights)), []
    monkeypatch.setattr(Linear, "__call__", recording(seen))
    y, after = block(x, state)
    wanted, h, sums = torch_block([torch.from_numpy(w) for w in weights], torch.from_numpy(x), torch.from_numpy(state))
    # i, f, g, o, gate, down are computed in this order by both
    assert [np.array_equal(a, b.numpy()) for a, b in zip(seen, sums, strict=True)] == [True] * 6
    assert y == pytest.approx(wanted.numpy(), rel=1e-5, abs=1e-6)
    assert after == pytest.approx(h.numpy(), rel=1e-5, abs=1e-6)


def recording(seen):
    def call(self, x):
        sums, factor = self.sums(x)
        seen.append(sums)
        return sums.astype(np.float32) / (self.factor * factor)

    return call


def test_rounding_is_to_even_and_clips():
    # the largest is 127: factor 1; 0.5, 1.5 and 2.5 round to even
    q, factor = quantised(np.array([[127, 0.5, 1.5, 2.5, -127]]))
    assert factor.tolist() == [[1.0]]
    assert q.tolist() == [[127, 0, 2, 2, -127]]
    # mean magnitude 1: factor 1
    t, scale = ternary(np.array([[0.5, 1.5], [-0.6, -1.4]]))
    assert scale == 1
    assert t.tolist() == [[0, 1], [-1, -1]]


def test_zeros_have_a_scale():
    assert not quantised(np.zeros((2, 4)))[0].any()
    assert not ternary(np.zeros((2, 4)))[0].any()
    assert not Linear.of(np.zeros((3, 4)))(np.zeros((2, 4))).any()


def test_an_open_gate_keeps_the_state_and_a_closed_one_takes_the_input():
    ones = np.ones((3, 4), np.float32)
    assert np.array_equal(mlgru(5 * ones, ones, np.arange(4.0)), np.tile(np.arange(4, dtype=np.float32), (3, 1)))
    assert np.array_equal(mlgru(5 * ones, 0 * ones, np.arange(4.0)), 5 * ones)


def test_a_norm_makes_the_mean_square_one():
    found = rms_norm(np.random.default_rng(0).standard_normal((4, 256)) * 30)
    assert np.square(found.astype(float)).mean(axis=1) == pytest.approx(1, rel=1e-5)


# Bytes of five --------------------------------------------------------------------------------------------------------------
def test_every_five_digits_have_a_byte_of_their_own():
    digits = np.array(list(product((-1, 0, 1), repeat=5)))
    data = pack_trits(digits.ravel())
    assert sorted(data.tolist()) == list(range(243))
    values, wrong = unpack_trits(data, 243 * 5)
    assert np.array_equal(values.reshape(-1, 5), digits)
    assert not wrong.any()


@pytest.mark.parametrize("count", [1, 4, 5, 6, 1001])
def test_bytes_are_a_fifth_of_the_weights_and_come_back(count: int):
    values = np.random.default_rng(count).integers(-1, 2, count)
    data = pack_trits(values)
    assert len(data) == -(-count // 5)
    assert np.array_equal(unpack_trits(data, count)[0], values)


def test_bytes_without_meaning_are_zeros_and_are_named():
    values, wrong = unpack_trits(np.arange(240, 256), 80)
    assert wrong.tolist() == [False] * 3 + [True] * 13
    assert not values[15:].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_trits([0, 2]), "ternary weights are -1, 0 or 1, found 0 to 2"),
        (lambda: Linear.of(np.full((2, 2), np.nan)), "4 of 4 weights are NaN or infinite"),
        (lambda: Linear.of(np.ones((2, 4)))(np.ones((1, 5))), r"a layer of 4 inputs takes \[tokens, 4\], found \[1, 5\]"),
        (lambda: Linear.of(np.ones((2, 4)))(np.full((1, 4), np.inf)), "4 of 4 inputs are NaN or infinite"),
        (lambda: mlgru(np.ones((2, 4)), np.ones((2, 4)), np.ones(3)), r"and a state \[width\], found"),
    ],
)
def test_what_cannot_be_computed_is_named(call, message: str):
    with pytest.raises(HardwareError, match=message):
        call()


# Devices --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["matmul-free-d5005", "tereffic-hbm"])
def test_devices_are_rows_of_the_verified_unit(name: str):
    array = devices.load(name).units["tmatmul"]
    assert isinstance(array, DotArray)
    row, one = TernaryRow(lanes=array.lanes), array.model_copy(update={"rows": 1})
    for m, n, k in ((1, 1, 1), (1, 7, 2048), (3, 2, 1000)):
        assert one.cycles(Gemm(m, n, k, "int8xternary")) == row.cycles(Gemm(m, n, k, "ternary"))


def test_codes_are_those_of_the_unit():
    rng = np.random.default_rng(1)
    t, q = rng.integers(-1, 2, (9, 33)), rng.integers(-128, 128, (4, 33))
    assert np.array_equal(TernaryRow().golden(q, CODES[t].T), q @ t.T)


def test_a_step_takes_the_time_of_its_weights():
    report = estimate("matmul-free-370m", device="matmul-free-d5005", phase="decode", context=16)
    # 308 M ternary values of the blocks and 33 M of the head at two bits over 3.84 GB/s
    stream = (24 * (4 * 1024**2 + 3 * 1024 * 2816) + 32000 * 1024) / 4 / 3.84e9
    assert stream < report.latency_s < 1.1 * stream
    assert report.lower_bound_fs <= report.latency_fs


def test_both_engines_agree_on_ternary_rows():
    options = {"device": "matmul-free-d5005", "weights": "ternary-dense", "acts": "int8"}
    simpy, fast = (estimate("gemm:1x512x640", engine=engine, **options) for engine in ("simpy", "fast"))
    assert simpy.latency_fs == fast.latency_fs


def test_rows_take_nothing_but_ternary_weights():
    with pytest.raises(ValueError, match="which no unit of matmul-free-d5005 does"):
        estimate("gemm:1x512x640", device="matmul-free-d5005", weights="int2", acts="int8")

"""L-Mul layers: the unit's arithmetic over whole layers, held against a second implementation in torch that adds no codes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from hw import HardwareError, devices
from hw.lowbit.lmul import adder, attention, formula, fraction_format, linear, softmax
from hw.mac import MACS, mac_type, reference_cells, saving
from hw.number import FLOATS
from hw.units.dot_array import DotArray
from hw.units.lmul import LmulDot8, offset_bits
from hw.work import Gemm

torch = pytest.importorskip("torch")

CARRIER = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8-e4m3": torch.float8_e4m3fn, "fp8-e5m2": torch.float8_e5m2}


def torch_product(x, y, form: str):
    """L-Mul by its definition on real numbers: split each operand by `frexp`, add fractions and constant, carry at one."""
    f = FLOATS[form]
    x, y = (v.to(torch.float32).clamp(-largest(form), largest(form)).to(CARRIER[form]).to(torch.float64) for v in (x, y))
    smallest = 2.0 ** (1 - f.bias)
    (mx, ex), (my, ey) = torch.frexp(x.abs()), torch.frexp(y.abs())
    s = (2 * mx - 1) + (2 * my - 1) + 2.0 ** -offset_bits(f.fraction)
    exponent = ex + ey - 2
    significand = torch.where(s < 1, 1 + s, torch.where(s < 2, s, s - 1))  # what carries raises the exponent, once or twice
    value = torch.ldexp(significand, exponent + (s >= 1) + (s >= 2))
    value = value.clamp(max=largest(form))
    value = torch.where((value < smallest) | (x.abs() < smallest) | (y.abs() < smallest), 0.0, value)
    return (value * torch.sign(x) * torch.sign(y)).to(torch.float32)


def largest(form: str) -> float:
    return float(FLOATS[form].decode(FLOATS[form].largest))


def torch_linear(acts, weights, form: str):
    """Steps of eight, added up in fp32 from the first to the last."""
    a, w = torch.as_tensor(acts, dtype=torch.float64), torch.as_tensor(weights, dtype=torch.float64)
    pad = -a.shape[1] % 8
    a, w = torch.nn.functional.pad(a, (0, pad)), torch.nn.functional.pad(w, (0, pad))
    total = None
    for start in range(0, a.shape[1], 8):
        step = torch_product(a[:, None, start], w[None, :, start], form)
        for lane in range(start + 1, start + 8):
            step = step + torch_product(a[:, None, lane], w[None, :, lane], form)
        total = step if total is None else total + step
    return total.numpy()


def test_the_example_of_the_definition():
    # bf16 1.5 is 0x3FC0: 0x3FC0 + 0x3FC0 - 0x3F80 + 8 = 0x4008 = 2.125; the equation gives (1 + 0.5 + 0.5 + 1/16) = 2.0625; Mitchell 2
    bf16 = FLOATS["bf16"]
    code = bf16.encode(np.array([1.5]))
    assert adder(bf16, code, code).tolist() == [2.125]
    assert formula(bf16, code, code).tolist() == [2.0625]
    assert adder(bf16, code, code, "none").tolist() == [2.0]


@pytest.mark.parametrize("form", list(CARRIER))
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(1, 1, 1), (3, 17, 5), (9, 64, 21)])
def test_a_linear_layer_equals_torch_bit_for_bit(form: str, tokens: int, inputs: int, outputs: int):
    rng = np.random.default_rng(inputs)
    acts, weights = rng.standard_normal((tokens, inputs)), rng.standard_normal((outputs, inputs))
    assert np.array_equal(linear(acts, weights, form), torch_linear(acts, weights, form))


def test_a_layer_in_pieces_is_the_layer(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(5)
    acts, weights = rng.standard_normal((7, 40)), rng.standard_normal((11, 40))
    whole = linear(acts, weights)
    monkeypatch.setattr("hw.lowbit.lmul.BLOCK", 90)  # two results at a time
    assert np.array_equal(linear(acts, weights), whole)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_two_linear_layers_around_a_softmax(causal: bool):
    rng = np.random.default_rng(6)
    q, k, v = rng.standard_normal((2, 5, 16)), rng.standard_normal((2, 9, 16)), rng.standard_normal((2, 9, 16))
    found = attention(q, k, v, causal=causal)
    for head in range(2):
        scores = torch.from_numpy(torch_linear(q[head], k[head], "bf16")) * torch.tensor(0.25)
        if causal:  # query i of five sees tokens 0 to 4 + i of nine
            hidden = torch.arange(9)[None] > torch.arange(5)[:, None] + 4
            scores = scores.masked_fill(hidden, -torch.inf)
        weights = torch.softmax(scores.to(torch.float64), dim=-1).to(torch.float32)
        assert np.array_equal(found[head], torch_linear(weights.numpy(), v[head].T, "bf16"))


def test_a_query_sees_no_later_token():
    rng = np.random.default_rng(7)
    q, k, v = rng.standard_normal((3, 1, 6, 8))
    before = attention(q, k, v)
    k[0, 4:], v[0, 4:] = 9.0, -9.0
    assert np.array_equal(attention(q, k, v)[0, :4], before[0, :4])
    assert not np.array_equal(attention(q, k, v)[0, 4:], before[0, 4:])


def test_softmax_rows_sum_to_one():
    found = softmax(np.array([[0.0, np.log(3.0)], [5.0, -np.inf]], np.float32))
    assert found[0] == pytest.approx([0.25, 0.75], rel=1e-6)
    assert found[1].tolist() == [1.0, 0.0]


def test_a_nan_stays_in_its_row_and_column():
    acts, weights = np.ones((3, 8)), np.ones((2, 8))
    acts[1, 3] = np.nan
    found = linear(acts, weights)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()


def test_products_of_powers_of_two_are_too_large_by_the_offset():
    # fractions are zero: 2^a 2^b (1 + 2^-l); l(7) = 4, eight products of 1
    assert linear(np.ones((1, 8)), np.ones((1, 8))).tolist() == [[8 * (1 + 1 / 16)]]


def test_the_adder_is_mitchells_product_between_nothing_and_a_ninth_below():
    form = fraction_format(6)
    x, y = ((127 << 6) + v.ravel() for v in np.meshgrid(np.arange(64), np.arange(64)))
    error = adder(form, x, y, "none") / (form.decode(x) * form.decode(y)) - 1
    assert error.max() == 0
    assert error.min() == pytest.approx(-1 / 9)  # at 1.5 x 1.5: 2 against 2.25


@pytest.mark.parametrize(
    ("acts", "weights"), [(np.ones(4), np.ones((2, 4))), (np.ones((2, 4)), np.ones((2, 5))), (np.ones((1, 2, 4)), np.ones((2, 4)))]
)
def test_shapes_that_do_not_fit_are_named(acts, weights):
    with pytest.raises(HardwareError, match=r"takes \[tokens, inputs\] and \[outputs, inputs\]"):
        linear(acts, weights)


def test_attention_names_what_does_not_fit():
    with pytest.raises(HardwareError, match=r"twice \[heads, tokens, width\], found \[1, 2, 8\], \[1, 3, 8\], \[1, 4, 8\]"):
        attention(np.ones((1, 2, 8)), np.ones((1, 3, 8)), np.ones((1, 4, 8)))
    with pytest.raises(HardwareError, match="causal attention of 5 queries needs as many tokens"):
        attention(np.ones((1, 5, 8)), np.ones((1, 3, 8)), np.ones((1, 3, 8)))
    with pytest.raises(HardwareError, match="expected `paper`"):
        adder(FLOATS["bf16"], 0, 0, "half")  # type: ignore[arg-type]
    with pytest.raises(HardwareError, match="fractions of 0 bits: expected 1 to 23"):
        fraction_format(0)


# Types of multiply-accumulate -----------------------------------------------------------------------------------------------
def test_energies_are_sums_of_the_table():
    assert mac_type("ieee-fp32").step_pj == Fraction("4.6")
    assert mac_type("lmul-fp32").step_pj == Fraction("1.0")
    assert saving(mac_type("lmul-fp32").step_pj, mac_type("ieee-fp32").step_pj) == pytest.approx(100 * 3.6 / 4.6)
    assert all(m.multiply_pj >= 0 < m.accumulate_pj for m in MACS.values())


def test_a_type_without_synthesis_has_no_area():
    assert mac_type("lmul-fp32").cells is None
    assert mac_type("lmul-bf16").cells == reference_cells("lmul_bf16_multiplier")


def test_unknown_types_and_designs_are_named_with_the_nearest():
    with pytest.raises(HardwareError, match=r"unknown multiply-accumulate type 'lmul-bf61'.*did you mean `lmul-bf16`"):
        mac_type("lmul-bf61")
    with pytest.raises(HardwareError, match=r"no synthesis of 'ieee_bf16_multiplyer'.*did you mean `ieee_bf16_multiplier`"):
        reference_cells("ieee_bf16_multiplyer")
    with pytest.raises(HardwareError, match="needs an energy above 0"):
        saving(Fraction(1), Fraction(0))


def test_the_device_is_an_array_of_the_verified_dot_product():
    device = devices.load("lmul")
    array = device.units["array"]
    assert isinstance(array, DotArray)
    one = array.model_copy(update={"rows": 1, "columns": 1})
    for m, n, k in ((1, 1, 8), (3, 5, 17), (2, 7, 4096)):
        assert one.cycles(Gemm(m, n, k, "bf16")) == LmulDot8().cycles(Gemm(m, n, k, "bf16"))
    assert array.mac_energy["bf16"] == mac_type("lmul-bf16").step_pj


def test_the_array_fills_the_gates_of_the_fp16_baseline():
    array, base = devices.load("lmul").units["array"], devices.load("bitmod-fp16").units["array"]
    assert isinstance(array, DotArray)
    assert isinstance(base, DotArray)
    cell = LmulDot8().area()
    assert cell is not None
    budget = base.rows * base.columns * reference_cells("fp16_mac")
    assert array.rows * array.columns * cell.cells <= budget < (array.rows + 1) * (array.columns + 1) * cell.cells

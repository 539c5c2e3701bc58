"""Floating-point arithmetic by torch's own types where it has them, and by exact float64 where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verif.kernels import Kernel, Operands, Parameters
from verif.kernels.combinations import Identities, dot_steps, joined, lanes_of, pairs

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8-e4m3": torch.float8_e4m3fn, "fp8-e5m2": torch.float8_e5m2}
FRACTION = {"bf16": 7, "fp16": 10, "fp8-e4m3": 3, "fp8-e5m2": 2}
NAN32 = 0x7FC00000


def values_of(codes: Tensor, form: str) -> Tensor:
    """float64 values of codes of a type that torch has."""
    carrier = torch.uint8 if form.startswith("fp8") else torch.int16
    if carrier == torch.int16:
        codes = torch.where(codes >= 1 << 15, codes - (1 << 16), codes)
    return codes.to(carrier).view(TYPES[form]).to(torch.float32).to(torch.float64)


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64, exact on every device, for exponents from -1022 to 1023."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def codes_of(values: Tensor, form: str) -> Tensor:
    """Codes of values that the type holds exactly, or rounded to nearest even by torch."""
    raw = values.to(torch.float32).to(TYPES[form])
    if form.startswith("fp8"):
        return raw.view(torch.uint8).to(torch.int64)
    return raw.view(torch.int16).to(torch.int64) & 0xFFFF


def codes32(values: Tensor) -> Tensor:
    """fp32 codes, every NaN the quiet one."""
    codes = values.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    return torch.where(torch.isnan(values), torch.full_like(codes, NAN32), codes)


def lmul(parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
    """From the formula with reals: fractions and the constant are added; whole ones among them raise the exponent."""
    form = str(parameters.get("format", "bf16"))
    m = FRACTION[form]
    constant = 2.0 ** -(m if m <= 3 else 3 if m == 4 else 4)
    a, b = values_of(x, form), values_of(y, form)
    info = torch.finfo(TYPES[form])
    tiny, largest = float(info.smallest_normal), float(info.max)
    zero = (a.abs() < tiny) | (b.abs() < tiny)
    infinite = torch.isinf(a) | torch.isinf(b)
    nan = torch.isnan(a) | torch.isnan(b) | (zero & infinite)
    plain = ~(zero | infinite | nan)
    one = torch.ones_like(a)
    (f, e), (g, h) = torch.frexp(torch.where(plain, a.abs(), one)), torch.frexp(torch.where(plain, b.abs(), one))
    total = (2 * f - 1) + (2 * g - 1) + constant
    carry = torch.floor(total)
    size = (1 + total - carry) * power_of_two(e + h - 2 + carry.to(torch.int64))
    size = torch.where(size < tiny, torch.zeros_like(size), size.clamp(max=largest))
    size = torch.where(infinite, torch.full_like(size, largest), torch.where(zero, torch.zeros_like(size), size))
    negative = torch.signbit(a) ^ torch.signbit(b)
    code = codes_of(torch.where(negative, -size, size), form)
    quiet = {"bf16": 0x7FC0, "fp16": 0x7E00, "fp8-e4m3": 0x7F, "fp8-e5m2": 0x7E}[form]
    return torch.where(nan, torch.full_like(code, quiet), code)


def draw_codes(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Any codes at all; for 8-bit types every pair of them, when there is room."""
    width = 8 if str(parameters.get("format", "bf16")).startswith("fp8") else 16
    if width == 8 and m >= 1 << 16:
        pairs = np.arange(m) % (1 << 16)
        return pairs >> 8, pairs & 255
    return rng.integers(0, 1 << width, m), rng.integers(0, 1 << width, m)


def lmul_dot8(parameters: Parameters, left: Tensor, right: Tensor) -> Tensor:
    """fp32 sums, lane after lane, step after step."""
    form = str(parameters.get("format", "bf16"))
    padding = -left.shape[1] % 8
    left, right = torch.nn.functional.pad(left, (0, padding)), torch.nn.functional.pad(right, (0, 0, 0, padding))
    running: Tensor | None = None
    for start in range(0, left.shape[1], 8):
        step: Tensor | None = None
        for lane in range(start, start + 8):
            product = values_of(lmul(parameters, left[:, None, lane], right[None, lane]), form).to(torch.float32)
            step = product if step is None else step + product
        assert step is not None
        running = step if running is None else running + step
    assert running is not None
    return codes32(running)


def draw_numbers(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Codes of normally distributed numbers, and a few of anything."""
    form = str(parameters.get("format", "bf16"))
    width = 8 if form.startswith("fp8") else 16
    found = []
    for shape in ((m, k), (k, n)):
        numbers = codes_of(torch.from_numpy(rng.normal(size=shape)), form).numpy()
        found.append(np.where(rng.random(shape) < 0.001, rng.integers(0, 1 << width, shape), numbers))
    return found[0], found[1]


def _small_float(codes: Tensor, exponent: int, fraction: int) -> tuple[Tensor, Tensor]:
    """(signed significand, exponent field of at least 1) of a small float."""
    field = (codes >> fraction) & ((1 << exponent) - 1)
    significand = (codes & ((1 << fraction) - 1)) + torch.where(field > 0, 1 << fraction, 0)
    sign = 1 - 2 * ((codes >> (exponent + fraction)) & 1)
    return sign * significand, field.clamp(min=1)


ELEMENTS = {"fp8-e4m3": (4, 3, 7), "fp8-e5m2": (5, 2, 15), "fp6-e3m2": (3, 2, 3), "fp6-e2m3": (2, 3, 1), "fp4": (2, 1, 1)}
"""Exponent bits, fraction bits, bias."""


def _blocks(values: Tensor, block: int) -> Tensor:
    """[rows, K] to [rows, blocks, block], padded with zeros."""
    return torch.nn.functional.pad(values, (0, -values.shape[1] % block)).reshape(len(values), -1, block)


def _sum_blocks(size: int, unit: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], scales: Tensor, lost: Tensor) -> Tensor:
    """fp32 sums over blocks of exact sums of significands times powers of two, in two 29-bit limbs so that int64 suffices."""
    running: Tensor | None = None
    for number in range(size):
        product = a[0][:, None, number] * b[0][None, :, number]
        shift = a[1][:, None, number] + b[1][None, :, number] - 2
        low = torch.where(shift < 29, product << shift.clamp(max=28), 0).sum(dim=-1)
        high = torch.where(shift >= 29, product << (shift - 29).clamp(min=0), 0).sum(dim=-1)
        high, low = high + (low >> 29), low & ((1 << 29) - 1)
        exact = (high << 29) + low
        odd = (high << 1) | (low != 0).to(torch.int64)
        big = high.abs() >= 1 << 24
        value = torch.where(big, odd.to(torch.float64) * 2.0**28, torch.where(big, 0, exact).to(torch.float64))
        term = (value * power_of_two(scales[:, :, number] - unit)).to(torch.float32)
        running = term if running is None else running + term
    assert running is not None
    return codes32(torch.where(lost, torch.full_like(running, float("nan")), running))


def mx_dot(parameters: Parameters, left: Tensor, left_scales: Tensor, right: Tensor, right_scales: Tensor) -> Tensor:
    name, block = str(parameters.get("element_format", "fp4")), int(parameters.get("block_size", 32))
    sides, lost = [], []
    for codes, scale in ((left, left_scales), (right.T, right_scales.T)):
        if name == "int8":
            value = torch.where(codes >= 128, codes - 256, codes)
            parts = (_blocks(value, block), torch.ones_like(_blocks(value, block)))
            undefined = torch.zeros_like(codes, dtype=torch.bool)
        else:
            exponent, fraction, _ = ELEMENTS[name]
            significand, field = _small_float(codes, exponent, fraction)
            parts = (_blocks(significand, block), _blocks(field, block).clamp(min=1))
            magnitude = codes & 127
            undefined = {"fp8-e4m3": magnitude == 127, "fp8-e5m2": magnitude >= 124}.get(name, torch.zeros_like(codes, dtype=torch.bool))
        sides.append(parts)
        lost.append(undefined.any(dim=1) | (scale == 255).any(dim=1))
    step = 6 if name == "int8" else ELEMENTS[name][2] - 1 + ELEMENTS[name][1]
    scales = left_scales[:, None] + right_scales.T[None]
    return _sum_blocks(left_scales.shape[1], 2 * (127 + step), sides[0], sides[1], scales, lost[0][:, None] | lost[1][None])


def bfp_dot(parameters: Parameters, left: Tensor, left_scales: Tensor, right: Tensor, right_scales: Tensor) -> Tensor:
    bits, block = int(parameters.get("magnitude_bits", 3)), int(parameters.get("block_size", 16))
    sides = []
    for codes in (left, right.T):
        value = (codes % (1 << bits)) * torch.where(codes >= 1 << bits, -1, 1)
        sides.append((_blocks(value, block), torch.ones_like(_blocks(value, block))))
    scales = left_scales[:, None] + right_scales.T[None]
    never = torch.zeros(scales.shape[:2], dtype=torch.bool, device=left.device)
    return _sum_blocks(left_scales.shape[1], 2 * (127 + bits - 1), sides[0], sides[1], scales, never)


def _draw_blocks(width: int, block: int, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    blocks = -(-k // block)
    return (
        rng.integers(0, 1 << width, (m, k)),
        rng.integers(100, 150, (m, blocks)),
        rng.integers(0, 1 << width, (k, n)),
        rng.integers(100, 150, (blocks, n)),
    )


def draw_mx(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Any codes; NaNs and infinities are made rare, so that most sums are numbers."""
    name, block = str(parameters.get("element_format", "fp4")), int(parameters.get("block_size", 32))
    width = {"fp4": 4, "fp6-e3m2": 6, "fp6-e2m3": 6}.get(name, 8)
    operands = list(_draw_blocks(width, block, rng, m, n, k))
    for i in (0, 2):
        special = (operands[i] & 127) >= {"fp8-e4m3": 127, "fp8-e5m2": 124}.get(name, 256)
        operands[i] = np.where(special & (rng.random(operands[i].shape) < 0.9995), 0, operands[i])
    return tuple(operands)


def draw_bfp(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    return _draw_blocks(1 + int(parameters.get("magnitude_bits", 3)), int(parameters.get("block_size", 16)), rng, m, n, k)


FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP3 = (0.0, 1.0, 2.0, 4.0)
SPECIALS = {"fp4": (5.0, -5.0, 8.0, -8.0), "fp3": (3.0, -3.0, 6.0, -6.0)}


def _terms(codes: Tensor, select: Tensor, form: str) -> list[tuple[Tensor, int]]:
    """(signed power of two or zero, shift of the exponent) of each bit-serial term; their sum is the weight."""
    if form in ("int8", "int6"):
        bits = int(form[3:])
        digits = []
        for i in range(bits // 2):
            pattern = ((codes << 1) >> (2 * i)) & 7
            digit = torch.tensor([0, 1, 1, 2, -2, -1, -1, 0], device=codes.device)[pattern]
            digits.append((digit.to(torch.float64) * 4.0**i, 2 * i))
        return digits
    grid = FP4 if form == "fp4" else FP3
    table = torch.tensor([*grid, *(-v for v in grid)], dtype=torch.float64, device=codes.device)
    special = torch.tensor(SPECIALS[form], dtype=torch.float64, device=codes.device)
    value = torch.where(codes == len(grid), special[select], table[codes])
    size = value.abs()
    first = torch.where(size >= 1, power_of_two(torch.frexp(size)[1] - 1), torch.zeros_like(size))
    sign = torch.sign(value)
    return [(sign * first, 0), (sign * (size - first), -1)]


def bitmod_pe(parameters: Parameters, acts: Tensor, codes: Tensor, select: Tensor, scales: Tensor) -> Tensor:
    """Real numbers, rounded at each step to the grid that the alignment leaves."""
    form, group = str(parameters.get("weights", "fp4")), int(parameters.get("group", 128))
    field, fraction = (acts >> 10) & 31, acts & 1023
    base = field.clamp(min=1)
    size = (fraction + torch.where(field > 0, 1024, 0)).to(torch.float64) * power_of_two(base - 25)
    numbers = torch.where(acts >= 1 << 15, -size, size)
    results = []
    for number in range(scales.shape[0]):
        part = slice(number * group, (number + 1) * group)
        x, w, e = numbers[:, part], codes[part], base[:, part]
        held = torch.zeros(len(x), w.shape[1], dtype=torch.float64, device=x.device)
        lowest = torch.full(held.shape, -35, dtype=torch.int64, device=x.device)
        grid = lowest
        for start in range(0, x.shape[1], 4):
            four = slice(start, start + 4)
            for term, shift in _terms(w[four], select[number], form):
                product = x[:, None, four] * term.T[None]
                reach = e[:, None, four] + (torch.frexp(term)[1] - 1 - shift).T[None]
                top = torch.where(product != 0, reach, 0).amax(dim=-1, keepdim=True)
                partial = torch.round(product * power_of_two(28 - shift - top)).sum(dim=-1) * power_of_two(top[..., 0] + shift - 28)
                coarse = torch.maximum(grid, torch.where(partial != 0, top[..., 0] + shift - 34, lowest))
                unit, count = power_of_two(coarse), power_of_two(-coarse)
                held = torch.round(held * count) + torch.round(partial * count)
                over = held.abs() >= 2.0**24
                held = torch.where(over, torch.round(held / 2) * 2, held) * unit
                grid = coarse + over.to(torch.int64)
        results.append((held * scales[number].to(torch.float64) + 0.0).to(torch.float32))  # a zero sum is +0
    return codes32(torch.stack(results, dim=-1))


def draw_bitmod(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    form, group = str(parameters.get("weights", "fp4")), int(parameters.get("group", 128))
    groups, width = -(-k // group), {"int8": 8, "int6": 6, "fp4": 4, "fp3": 3}[form]
    acts = codes_of(torch.from_numpy(rng.normal(size=(m, k)) * 2.0 ** rng.integers(-6, 6, (m, k))), "fp16").numpy()
    return acts, rng.integers(0, 1 << width, (k, n)), rng.integers(0, 4, (groups, n)), rng.integers(0, 256, (groups, n))


def bank_mac(parameters: Parameters, left: Tensor, right: Tensor) -> Tensor:
    """torch's fp16 product and sum, each rounded by the device."""
    lanes, registers = int(parameters.get("lanes", 16)), int(parameters.get("registers", 8))
    padding = -left.shape[1] % (lanes * registers)
    x = values_of(torch.nn.functional.pad(left, (0, padding)), "fp16").to(torch.float16)
    y = values_of(torch.nn.functional.pad(right, (0, 0, 0, padding)), "fp16").to(torch.float16)
    total = torch.zeros(len(x), y.shape[1], lanes, dtype=torch.float16, device=left.device)
    for start in range(0, x.shape[1], lanes):
        product = x[:, None, start : start + lanes] * y.T[None, :, start : start + lanes]
        total = total + product
    codes = total.view(torch.int16).to(torch.int64) & 0xFFFF
    return torch.where(torch.isnan(total), torch.full_like(codes, 0x7E00), codes)


def draw_fp16(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    return draw_numbers({"format": "fp16"}, rng, m, n, k)


def dequant_stream(parameters: Parameters, codes: Tensor, scales: Tensor) -> Tensor:
    bits, group = int(parameters.get("bits", 4)), int(parameters.get("group", 128))
    value = torch.where(codes >= 1 << (bits - 1), codes - (1 << bits), codes)
    scale = scales.repeat_interleave(group)[: len(codes)]
    if parameters.get("target", "int8") == "int8":
        real = value.to(torch.float64) * scale.to(torch.float64) / 2.0 ** int(parameters.get("scale_fraction", 4))
        return torch.round(real).clamp(-128, 127).to(torch.int64)
    product = value.to(torch.bfloat16) * values_of(scale, "bf16").to(torch.bfloat16)
    found = product.view(torch.int16).to(torch.int64) & 0xFFFF
    return torch.where(torch.isnan(product), torch.full_like(found, 0x7FC0), found)


def draw_groups(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    """Any codes and scales; where there is room, every code with every scale."""
    group, bits, scale_bits = (int(v) for v in (parameters.get("group", 128), parameters.get("bits", 4), _scale_bits(parameters)))
    codes, scales = rng.integers(0, 1 << bits, m), rng.integers(0, 1 << scale_bits, -(-m // group))
    each = -(-(1 << bits) // group)  # groups that hold all codes
    if m >= each * group << scale_bits:
        scales[: each << scale_bits] = np.repeat(np.arange(1 << scale_bits), each)
        codes[: each * group << scale_bits] = np.tile(np.arange(each * group) % (1 << bits), 1 << scale_bits)
    return codes, scales


def _scale_bits(parameters: Parameters) -> int:
    return 8 if parameters.get("target", "int8") == "int8" else 16


def softmax_stream(parameters: Parameters, codes: Tensor) -> Tensor:
    """In float64 where that is exact, with the sum in integers as the unit shifts it; rounded to odd before torch's cast."""
    field, fraction = (codes >> 10) & 31, codes & 1023
    base = field.clamp(min=1)
    size = (fraction + torch.where(field > 0, 1024, 0)).to(torch.float64) * power_of_two(base - 25)
    numbers = torch.where(codes >= 1 << 15, -size, size)
    logs = torch.round(numbers * (47274 / 8)).to(torch.int64)
    whole, part = torch.div(logs, 4096, rounding_mode="floor"), torch.remainder(logs, 4096)
    index, rest = part // 64, part % 64
    table = torch.tensor([round(65536 * 2 ** (i / 64)) for i in range(65)], device=codes.device)
    power = table[index] + (table[index + 1] - table[index]) * rest // 64
    top, total = whole[..., 0] + 1, torch.zeros_like(whole[..., 0])
    for i in range(codes.shape[-1]):
        above = torch.maximum(top, whole[..., i] + 1)
        total = (total >> (above - top).clamp(max=63)) + ((power[..., i] * 128) >> (above - whole[..., i] - 1).clamp(max=63))
        top = above
    product = power * torch.div(torch.full_like(total, 1 << 52), total, rounding_mode="floor")[..., None]
    drop = torch.where(product >= 1 << 41, 23, 17)
    odd = (product >> drop) | ((product & ((1 << drop) - 1)) != 0).to(torch.int64)
    exponent = (whole - top[..., None] + drop - 44).clamp(min=-100)
    value = (odd.to(torch.float64) * power_of_two(exponent)).to(torch.float32).to(torch.float16)
    return value.view(torch.int16).to(torch.int64) & 0xFFFF


def draw_scores(parameters: Parameters, rng: np.random.Generator, m: int, n: int, k: int) -> Operands:
    scale = 2.0 ** rng.integers(-2, 6, (m, 1))
    return (codes_of(torch.from_numpy(rng.normal(size=(m, k)) * scale), "fp16").numpy(),)


def _codes(parameters: Parameters, x: Any, y: Any) -> Identities:
    return np.asarray((x << 16 | y).astype(np.uint64))


def _steps_of_eight(parameters: Parameters, left: Any, right: Any) -> Identities:
    return dot_steps(left, right, 8)


def _blocks_with_scales(size: int) -> Callable[..., Identities]:
    """The codes of two blocks and their scales."""

    def identities(parameters: Parameters, left: Any, left_scales: Any, right: Any, right_scales: Any) -> Identities:
        block = int(parameters.get("block_size", size))
        a, b = joined(lanes_of(left, block), left_scales), joined(lanes_of(right.T, block), right_scales.T)
        return joined(a[:, None], b[None]).ravel()

    return identities


def _bit_serial(parameters: Parameters, acts: Any, codes: Any, select: Any, scales: Any) -> Identities:
    """Four activations, four weights and the selector of their special value; a group is a whole number of steps."""
    chosen = np.repeat(select, int(parameters.get("group", 128)), axis=0)[: len(codes)]
    return dot_steps(acts, codes * 4 + chosen, 4)


def _scaled_codes(parameters: Parameters, codes: Any, scales: Any) -> Identities:
    scale = np.repeat(scales, int(parameters.get("group", 128)))[: len(codes)]
    return np.asarray((codes << 16 | scale).astype(np.uint64))


def _running(parameters: Parameters, codes: Any) -> Identities:
    """The next number and all before it in its vector: maximum and sum depend on nothing else."""
    found, before = [], np.zeros(len(codes), np.uint64)
    for i in range(codes.shape[1]):
        before = joined(before.view(np.int64), codes[:, i])
        found.append(before)
    return np.concatenate(found)


def _byte_pairs(parameters: Parameters) -> int | None:
    return 1 << 16 if str(parameters.get("format", "bf16")).startswith("fp8") else None


KERNELS = {
    "lmul": Kernel(
        lmul, draw_codes, tuple({"format": f} for f in ("bf16", "fp16", "fp8-e4m3", "fp8-e5m2")), (10_500_000, 1, 1), _codes, _byte_pairs
    ),
    "lmul_dot8": Kernel(
        lmul_dot8, draw_numbers, ({"format": "bf16"}, {"format": "fp8-e4m3"}), (256, 256, 168), _steps_of_eight, rounds=(8, 8)
    ),
    "mx_dot": Kernel(
        mx_dot,
        draw_mx,
        tuple({"element_format": f} for f in (*ELEMENTS, "int8")),
        (256, 256, 224),
        _blocks_with_scales(32),
        rounds=(23,) * 6,
    ),
    "bfp_dot": Kernel(
        bfp_dot, draw_bfp, ({}, {"block_size": 5, "magnitude_bits": 7}), (256, 256, 320), _blocks_with_scales(16), rounds=(8, 3)
    ),
    "bitmod_pe": Kernel(
        bitmod_pe,
        draw_bitmod,
        tuple({"weights": f, "group": 32} for f in ("fp4", "fp3", "int6", "int8")),
        (256, 256, 176),
        _bit_serial,
        rounds=(4,) * 4,
    ),
    "bank_mac": Kernel(
        bank_mac, draw_fp16, ({"lanes": 4, "registers": 2},), (256, 256, 184), lambda parameters, left, right: pairs(left, right)
    ),
    "softmax_stream": Kernel(softmax_stream, draw_scores, ({},), (21_000, 1, 500), _running),
    "dequant_stream": Kernel(
        dequant_stream,
        draw_groups,
        (*({"bits": b, "group": 16} for b in (3, 4, 5)), {"bits": 4, "target": "bf16", "group": 8}),
        (10_500_000, 1, 1),
        _scaled_codes,
        lambda parameters: 1 << (int(parameters.get("bits", 4)) + _scale_bits(parameters)),
    ),
}

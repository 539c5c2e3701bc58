"""Costs of kernels that look products up, on CPUs and GPUs: counts of instructions and cycles that a pencil can check."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest

from dovetail import estimate
from hw import HardwareError, devices
from hw.units.lut_gemm import BANKS, CONFLICTS, LutGemm
from hw.units.tmac_core import TABLE_OPERATIONS, TmacCore
from hw.work import Gemm

CORE = TmacCore(ports=4, table_ports=2, multiply={"fp16xfp16": 8})
CPUS = ("t-mac-m2-ultra", "t-mac-agx-orin", "t-mac-raspberry-pi-5", "t-mac-surface-book-3")


def test_a_lookup_takes_one_plane_of_four_weights_of_sixteen_outputs():
    # 64 inputs x 32 outputs x 3 planes: 16 groups x 2 registers x 3 = 96 lookups, each with one unpacking and two additions; 2 x 3 x 4
    # instructions combine; tables: 16 x 56 operations on 8 lanes = 112
    issued = 96 * 4 + 24
    assert CORE.cycles(Gemm(1, 32, 64, "fp16xint3")) == max(ceil(issued / 4), 96 // 2) + ceil(16 * TABLE_OPERATIONS / 8 / 4)


def test_time_is_linear_in_bits_and_rows():
    def busy(bits: int, m: int = 1) -> int:
        return CORE.cycles(Gemm(m, 4096, 4096, f"int8xint{bits}"))

    build = ceil(1024 * TABLE_OPERATIONS / 8 / 4)
    assert [busy(b) - build for b in (2, 3, 4)] == [b * (busy(1) - build) for b in (2, 3, 4)]
    assert busy(2, 7) == 7 * busy(2)


def test_tables_are_built_once_for_all_outputs():
    wide, narrow = (CORE.cycles(Gemm(1, n, 4096, "fp16xint4")) for n in (4096, 16))
    assert wide < 256 * narrow


def test_few_table_ports_are_the_limit_where_unpacking_is_free():
    starved = CORE.model_copy(update={"table_ports": 1})
    assert starved.cycles(Gemm(1, 1600, 64, "fp16xint2")) > CORE.cycles(Gemm(1, 1600, 64, "fp16xint2")) * 0.8
    assert starved.macs_per_cycle("fp16xint2") == 16 * 4 // 2


@pytest.mark.parametrize("n", [1, 15, 16, 17, 4096])
@pytest.mark.parametrize("k", [1, 4, 63, 4096])
@pytest.mark.parametrize("number_format", ["fp16xint1", "int8xint2", "fp16xint3", "fp32xint4", "fp16xfp16"])
def test_no_product_beats_the_rate_of_the_ports(n: int, k: int, number_format: str):
    work = Gemm(3, n, k, number_format)
    assert CORE.cycles(work) * CORE.macs_per_cycle(number_format) >= work.macs


def test_a_format_without_kernel_is_named():
    with pytest.raises(HardwareError, match=r"no products in fp16xint5, only in fp16xfp16, fp16xint1"):
        CORE.cycles(Gemm(1, 1, 1, "fp16xint5"))
    with pytest.raises(HardwareError, match=r"LUT-GEMM has no products in fp16, only in fp16xint1"):
        LutGemm().tile_cycles(1, 1, 1, "fp16")


@pytest.mark.parametrize("device", CPUS)
def test_a_cpu_decodes_no_faster_than_its_bounds_and_four_bits_no_faster_than_two(device: str):
    two, four = (
        estimate("llama-2-7b", device=device, phase="decode", context=64, weights=w, settings={"units.simd.count": 1})
        for w in ("int2-g128", "int4-g128")
    )
    assert two.lower_bound_fs <= two.latency_fs < four.latency_fs
    assert 1.8 < four.latency_fs / two.latency_fs < 2.05


def test_both_engines_agree_on_a_cpu():
    options = {"device": "t-mac-agx-orin", "weights": "int3-g128"}
    simpy, fast = (estimate("gemm:2x1024x2048", engine=engine, **options) for engine in ("simpy", "fast"))
    assert simpy.latency_fs == fast.latency_fs


def test_more_threads_are_never_slower():
    times = [
        estimate("gemm:1x4096x4096", device="t-mac-m2-ultra", weights="int2-g128", settings={"units.simd.count": n}).latency_fs
        for n in (1, 2, 4, 8)
    ]
    assert times == sorted(times, reverse=True)


def test_a_cpu_says_which_weights_it_looks_up():
    with pytest.raises(ValueError, match="which no unit of t-mac-agx-orin does"):
        estimate("gemm:1x1024x1024", device="t-mac-agx-orin", weights="int8")


# LUT-GEMM -------------------------------------------------------------------------------------------------------------------
def test_conflicts_are_those_of_random_lookups():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 256, (20000, 32)) // 2  # two fp16 entries to a word
    wanted = np.zeros((20000, 128), bool)
    wanted[np.arange(20000)[:, None], words] = True
    turns = wanted.reshape(20000, 4, BANKS).sum(axis=1).max(axis=1)
    assert turns.mean() == pytest.approx(float(CONFLICTS), rel=0.01)


def test_a_tile_reads_an_entry_per_plane_and_eight_inputs():
    unit = LutGemm()
    lookups = 512 // 8 * 1024 * 3
    tables = ceil(512 // 8 * 255 / 64)
    assert unit.tile_cycles(1, 1024, 512, "fp16xbcq3") == ceil(lookups * CONFLICTS / 32) + tables
    assert unit.tile_cycles(1, 1024, 512, "fp16xbcq3", full=True) == ceil(lookups / 32) + tables
    columns = np.array([32, 4096])
    assert unit.tile_cycles(2, columns, 512, "fp16xint4").tolist() == [unit.tile_cycles(2, int(n), 512, "fp16xint4") for n in columns]


@pytest.mark.parametrize("number_format", sorted(LutGemm().formats()))
def test_no_tile_beats_the_rate_of_shared_memory(number_format: str):
    unit = LutGemm()
    for m, n, k in ((1, 32, 8), (3, 1000, 4096), (16, 4096, 100)):
        assert unit.tile_cycles(m, n, k, number_format, full=True) * unit.macs_per_cycle(number_format) >= m * n * k


def test_lookup_and_dequantisation_compete_by_cost():
    few, many = (estimate(f"gemm:{m}x12288x12288", device="lut-gemm-a100", weights="bcq3-g128") for m in (1, 2048))
    assert [report.operators[0].unit for report in (few, many)] == ["lookup", "tensor"]
    assert few.lower_bound_fs <= few.latency_fs
    dense = estimate("gemm:1x12288x12288", device="lut-gemm-a100")
    assert dense.operators[0].unit == "tensor"
    assert dense.latency_fs == estimate("gemm:1x12288x12288", device="a100-80g").latency_fs


def test_both_engines_agree_on_lookups_of_a_gpu():
    simpy, fast = (estimate("gemm:1x4096x4096", device="lut-gemm-a100", weights="int4-g128", engine=e) for e in ("simpy", "fast"))
    assert simpy.latency_fs == fast.latency_fs


@pytest.mark.parametrize("name", [*CPUS, "lut-gemm-a100"])
def test_a_device_survives_its_own_yaml(name: str):
    device = devices.load(name)
    assert type(device).from_dict(__import__("yaml").safe_load(device.to_yaml())) == device

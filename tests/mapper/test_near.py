"""Units near memory: rates from command streams, and kernels whose right operand streams past waiting vectors."""

import pytest

from hw.device import Device
from hw.devices import load
from hw.errors import HardwareError
from hw.pim.logic import BundlePath
from hw.units.near_pim import NearUnit
from hw.work import Gemm, Vector
from mapper.compile import compile_graph
from mapper.errors import MappingError
from mapper.kernels import fuse
from mapper.near import Near
from mapper.placement import sites
from mapper.residency import NOTHING
from mapper.search import search
from mapper.target import Target
from sim import simulate
from workloads import load as load_workload
from workloads.experts import with_tokens
from workloads.format import parse_format
from workloads.graph import Graph, Operator, Segment, Tensor

FP16 = parse_format("fp16")
NEAR = ("duplex", "duplex-bank-pim", "duplex-bankgroup-pim")


# Arrays --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("place", "bundles", "times"), [("logic", 4, 4), ("bank_group", 4, 4), ("bank", 1, 16)])
def test_places_deliver_their_multiple_of_the_bus_from_disjoint_banks(place, bundles, times):
    path = BundlePath(channels=1, place=place)
    assert path.bundles == bundles
    assert path.internal_peak == pytest.approx(times * float(path.channel.preset.peak), rel=1e-9)
    members = [bank for part in path.channel.sets for bank in part.members]
    assert sorted(members) == list(range(32))


def test_bank_groups_give_one_bank_each():
    for part in BundlePath(place="bank_group").channel.sets:
        assert sorted(bank // 4 for bank in part.members) == list(range(8))  # eight groups in two ranks, four banks each


def test_more_bundles_are_never_slower_and_two_hide_the_rows_of_each_other():
    path = BundlePath(channels=4)
    size = 1 << 22
    clocks = [path.read(size, 0, across).clocks for across in (1, 2, 3, 4)]
    assert clocks[0] > clocks[1]
    assert max(clocks[2:]) <= clocks[1] * 1.005  # up to where refresh falls into a row
    preset = path.channel.preset
    without_rows = 1 - preset.n_rfc / preset.n_refi  # refresh alone
    assert path.efficiency(2) == pytest.approx(without_rows, rel=0.02)
    row = preset.row_bytes // preset.burst_bytes * preset.n_ccd_l  # clocks of a row, then precharge and activate in the same bundle
    switch = preset.n_rtp + preset.n_rp + preset.n_rcd_rd - preset.n_ccd_l
    assert path.efficiency(1) == pytest.approx(without_rows * row / (row + switch), rel=0.03)


def test_all_bytes_are_read_once_and_bundles_that_there_are_not_are_refused():
    path = BundlePath(channels=2)
    kernel = path.read(1 << 20, 1, 3)
    assert kernel.internal_bytes == kernel.counts["READ_BUNDLE"] * 8 * 32 * 2 == 1 << 20
    with pytest.raises(HardwareError, match="bundles 2 to 4: a pseudo channel has 4, numbered from 0"):
        path.read(1 << 20, 2, 3)
    with pytest.raises(HardwareError, match="bundles 0 to 1: a pseudo channel has 1"):
        BundlePath(place="bank").read(1 << 20, 0, 2)


# Devices -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NEAR)
def test_devices_state_what_the_arrays_deliver(name):
    device = load(name)
    unit, way = device.units["near"], device.own_way("near")
    assert isinstance(unit, NearUnit)
    assert way.bandwidth == pytest.approx(unit.path.internal_peak, rel=1e-6)
    assert float(way.efficiency) == pytest.approx(unit.path.efficiency(min(2, unit.path.bundles)), abs=5e-4)
    assert (way.access == "concurrent") == (unit.place == "logic")
    assert way.sections == (unit.path.bundles if unit.place == "logic" else 1)
    assert Device.from_dict(device.to_dict()) == device


def test_peaks_are_the_published_ones():
    flops = {name: load(name).peak_flops("near", "fp16") for name in NEAR}
    assert flops["duplex"] == 5 * 32 * 512 * 2 * 650_000_000  # 21.3 TFLOP/s per stack
    assert flops["duplex-bankgroup-pim"] == flops["duplex"]
    way = load("duplex-bank-pim").own_way("near")
    assert flops["duplex-bank-pim"] / way.bandwidth == pytest.approx(1, rel=1e-3)  # peak at one operation per byte
    assert load("duplex-gpu").peak_flops("tensor", "fp16") == pytest.approx(989.4e12, rel=1e-3)


def test_a_module_multiplies_at_its_rate_and_only_in_its_formats():
    unit = load("duplex").units["near"]
    assert unit.cycles(Gemm(8, 32, 17, "fp16")) == 9  # 4352 of 512 a cycle
    with pytest.raises(HardwareError, match="no rate for int8, only for fp16"):
        unit.cycles(Gemm(8, 32, 16, "int8"))
    with pytest.raises(HardwareError, match="it has no cost for Vector work"):
        unit.cycles(Vector(8))


# Kernels -------------------------------------------------------------------------------------------------------------------
def product(rows, columns=4096, width=4096):
    tensors = (Tensor("x", (rows, width), FP16), Tensor("w", (columns, width), FP16, "weight"), Tensor("y", (rows, columns), FP16))
    op = Operator("product", "matmul", ("x", "w"), ("y",), {"batch": 1, "m": rows, "n": columns, "k": width})
    return Graph("product", "single", 1, rows, rows, {t.name: t for t in tensors}, (Segment("all", 1, (op,)),), ("x",), ("y",))


def near_plan(graph, device="duplex"):
    target = Target(load(device))
    ((_, (kernel,)),) = fuse(graph)
    site = next(s for s in sites(target, kernel) if s.unit == "near")
    space = Near(target.at(site), kernel, NOTHING)
    return space, search(space, kernel.name).plan


@pytest.mark.parametrize("rows", [1, 7, 64, 512])
def test_a_product_takes_no_less_than_its_weights_or_its_arithmetic_and_not_much_more(rows):
    space, plan = near_plan(product(rows))
    device = load("duplex")
    way = device.own_way("near")
    stream = 2 * 4096**2 * 10**15 / (way.bandwidth * float(way.efficiency))
    arithmetic = 2 * rows * 4096**2 * 10**15 / device.peak_flops("near", "fp16")
    passes = -(-rows * 4096 * 2 // 2**20)  # of what the buffer of a stack holds
    floor = max(stream * passes, arithmetic)
    copies = rows * 4096 * 2 * 5 / 2.9e12 * 1e15  # vectors to five stacks
    assert floor <= plan.latency_fs <= 1.3 * floor + copies + 10**9  # a slice of filling and draining, one access
    assert space.bound(next(iter(space.candidates()))) <= plan.latency_fs


def test_work_and_bytes_of_a_plan_are_those_of_the_kernel():
    _, plan = near_plan(product(24))
    assert plan.effort["near"].macs == 24 * 4096**2
    moved = plan.effort["hbm"]
    assert moved.read == 2 * 4096**2
    assert moved.written == 24 * 4096 * 2 * 5 + 24 * 4096 * 2  # vectors, a copy for every stack, and results


def test_what_is_simulated_takes_as_long_as_planned():
    device = load("duplex")
    units = {name: unit for name, unit in device.units.items() if name.startswith("near")}
    links = device.links[-3:]
    alone = device.model_copy(update={"units": units, "links": links})
    compiled = compile_graph(product(16), alone, co_processing=False)
    (placed,) = compiled.kernels
    assert placed.plan.mapping.unit == "near"
    assert simulate(compiled.program).makespan == simulate(compiled.program, "simpy").makespan == placed.plan.latency_fs


def test_heads_of_attention_are_whole_in_every_stack():
    def attention(batch):
        cache = [Tensor(n, (batch, 1, 4096, 128), FP16, "kv_cache") for n in "kv"]
        tensors = [Tensor("q", (batch, 1, 128), FP16), *cache, Tensor("o", (batch, 1, 128), FP16)]
        shape = {"batch": batch, "heads": 1, "kv_heads": 1, "queries": 1, "keys": 4096, "head_dim": 128, "value_dim": 128}
        op = Operator("attention", "attention", ("q", "k", "v"), ("o",), {**shape, "causal": 1, "window": 0})
        segments = (Segment("all", 1, (op,)),)
        return Graph("attention", "decode", batch, 1, 4096, {t.name: t for t in tensors}, segments, ("q",), ("o",))

    even, odd = near_plan(attention(500))[1].latency_fs, near_plan(attention(501))[1].latency_fs
    busiest = near_plan(attention(505))[1].latency_fs
    assert even < odd <= busiest * 1.001  # 101 heads in the busiest of five stacks


def test_experts_stream_one_after_the_other_with_rows_of_their_own():
    graph = load_workload("mixtral-8x7b", phase="decode", batch=1, context=2048)
    from dovetail.serving.shares import resized

    many = resized(graph, 16)
    kernels = {}
    for tokens in ([4] * 8, [25, 1, 1, 1, 1, 1, 1, 1]):
        for _, body in fuse(with_tokens(many, tokens)):
            for kernel in body:
                if kernel.name.endswith("down_proj"):
                    kernels[tuple(tokens)] = kernel
    target = Target(load("duplex"))
    plans = {}
    for tokens, kernel in kernels.items():
        site = next(s for s in sites(target, kernel) if s.unit == "near")
        plans[tokens] = Near(target.at(site), kernel).plan(next(iter(Near(target.at(site), kernel).candidates())))
    even, uneven = plans.values()
    assert even.effort["near"].macs == uneven.effort["near"].macs
    assert uneven.latency_fs > even.latency_fs  # 25 rows are bound by arithmetic, the others still stream


def test_more_bundles_or_modules_are_never_slower():
    device = load("duplex")
    before = None
    for count in (80, 160, 320):
        units = {**device.units, "near": device.units["near"].model_copy(update={"count": count})}
        ((_, (kernel,)),) = fuse(product(64))
        target = Target(device.model_copy(update={"units": units}))
        site = next(s for s in sites(target, kernel) if s.unit == "near")
        latency = search(Near(target.at(site), kernel), kernel.name).plan.latency_fs
        assert before is None or latency <= before
        before = latency


def test_the_cheaper_of_both_kinds_of_units_is_taken_and_the_crossover_is_found_not_set():
    device = load("duplex")
    chosen = {}
    for rows in (1, 16, 200, 512):
        compiled = compile_graph(product(rows), device, co_processing=False)
        chosen[rows] = compiled.kernels[0].plan.mapping.unit
    assert chosen == {1: "near", 16: "near", 200: "tensor", 512: "tensor"}


def test_a_device_of_other_rates_moves_the_crossover():
    device = load("duplex")
    slow = {**device.units, "near": device.units["near"].model_copy(update={"count": 16})}
    compiled = compile_graph(product(16), device.model_copy(update={"units": slow}), co_processing=False)
    assert compiled.kernels[0].plan.mapping.unit == "tensor"


def test_a_mapping_for_one_unit_on_the_whole_device_is_refused_with_the_device_named():
    with pytest.raises(MappingError, match=r"a100-80g: a mapping for one unit needs the site"):
        _ = Target(load("a100-80g")).sited

"""Placement where thread blocks, near-memory units and products of unlike formats compete."""

import json
from fractions import Fraction

import pytest

from hw import Device
from hw.devices import load as device_called
from hw.units.tensor_core import TensorCore
from mapper import Mapping, MappingError, compile_graph
from mapper.target import Target
from sim import simulate
from tests.mapper.cases import attention, checked, experts, only, product
from workloads.format import parse_format


def gpu_with_near_memory(access="concurrent"):
    """A GPU whose memory stacks have matrix and vector units of their own, four times as close to the memory."""
    description = device_called("h100-sxm").to_dict()
    near = {"kind": "systolic", "rows": 16, "columns": 512, "count": 10, "clock": "650 MHz", "dtypes": ["fp16"]}
    description["units"] |= {
        "near": {**near, "dataflow": "weight_stationary", "preload": "hidden", "fold_overlap": "full"},
        "near_vector": {"kind": "vector", "lanes": 2048, "special_lanes": 512, "count": 5, "clock": "650 MHz"},
    }
    description["memories"]["buffer"] = {"kind": "scratchpad", "capacity": "10 MiB", "bandwidth": "20 TB/s"}
    way = {"source": "hbm", "sink": "buffer", "bandwidth": "13.4 TB/s", "access": access, "efficiency": "0.68"}
    description["links"] += [way, ["buffer", "near"], ["buffer", "near_vector"]]
    return Device.from_dict(description)


WORKLOADS = {
    "vector": product(1, 4096, 4096),
    "narrow": product(64, 4096, 14336),
    "wide": product(1024, 2048, 4096),
    "experts": experts(64, 8, 8, 1024, 2048),
    "attention": attention(16, 8, 4, 1, 2000, 128),
}


@pytest.mark.parametrize("access", ["concurrent", "exclusive"])
@pytest.mark.parametrize("name", list(WORKLOADS))
def test_thread_blocks_and_a_near_unit_share_a_kernel_whichever_way_memory_is_reached(name, access):
    device = gpu_with_near_memory(access)
    apart = compile_graph(WORKLOADS[name], device, co_processing=False)
    together = compile_graph(WORKLOADS[name], device)
    assert checked(together) <= checked(apart)
    again = compile_graph(WORKLOADS[name], device, Mapping.loads(together.mapping.dumps()))
    assert again.mapping.dumps() == together.mapping.dumps()
    assert json.dumps(again.program.to_json()) == json.dumps(together.program.to_json())


@pytest.mark.parametrize("share", ["1/2", "1/3", "99/100"])
def test_thread_blocks_with_a_share_of_memory_take_as_long_as_with_that_much_bandwidth(share):
    device = gpu_with_near_memory()
    document = json.loads(compile_graph(WORKLOADS["wide"], device_called("h100-sxm")).mapping.dumps())
    document["device"] = device.name
    slow = device.with_settings({"memories.hbm.bandwidth": int(device.dram.bandwidth * Fraction(share))})
    plain = compile_graph(WORKLOADS["wide"], slow, Mapping.loads(json.dumps(document)))
    document["operators"][0]["placement"] = {"share": share}
    shared = compile_graph(WORKLOADS["wide"], device, Mapping.loads(json.dumps(document)))
    assert simulate(shared.program, "fast").makespan == simulate(plain.program, "fast").makespan
    assert "hbm.tensor" in shared.program.queues


# Products of unlike formats ---------------------------------------------------------------------------------------------------
def with_rates(rates):
    """The GPU of the Ampere generation with further rates of its matrix units, multiply-accumulates per cycle and SM."""
    description = device_called("a100-80g").to_dict()
    description["units"]["tensor"]["macs"] = {**description["units"]["tensor"]["macs"], **rates}
    return Device.from_dict(description)


@pytest.mark.parametrize(("acts", "weights", "mixed"), [("fp16", "int4-g128", "fp16xint4"), ("int8", "int2-g128", "int8xint2")])
def test_thread_blocks_multiply_stored_weights_where_that_is_faster_than_converting_them(acts, weights, mixed):
    # at the rate of the plain format there is nothing to convert any more; at a 64th of it converting is cheaper for many rows
    plain = with_rates({}).units["tensor"].macs[acts]
    for rows, rate, chosen in ((1, plain, mixed), (2048, 4 * plain, mixed), (2048, plain // 64, acts)):
        result = compile_graph(product(rows, 4096, 4096, acts, weights), with_rates({mixed: rate}))
        assert only(result).number_format == chosen
        assert checked(result) <= checked(compile_graph(product(rows, 4096, 4096, acts, weights), with_rates({})))


def test_a_mixed_format_needs_no_conversion_and_less_shared_memory():
    core = TensorCore(macs={"fp16": 1024, "fp16xint4": 1024, "int8": 2048}, shared_bandwidth=8)
    # operands of 128 x 128 results over 64 elements of k: 2 rows and 2 columns of warps read both
    for name, left, right in (("fp16", 16, 16), ("fp16xint4", 16, 4), ("int8", 8, 8)):
        assert core.tile_cycles(128, 128, 64, name) == (2 * 128 * left + 2 * 128 * right) * 64 // 8 // 8


def test_a_mixed_format_takes_only_what_it_can_hold():
    target = Target(with_rates({"fp16xint4": 2048, "int8xint2": 8192}))
    lowerings = {
        ("fp16", "int4-g128"): ("fp16", "fp16xint4"),
        ("fp16", "int2"): ("fp16", "fp16xint4"),
        ("fp16", "int8"): ("fp16",),
        ("bf16", "int4"): ("bf16",),
        ("int8", "ternary"): ("int8", "int8xint2"),
        ("int8", "int4"): ("int8",),
    }
    for (left, right), names in lowerings.items():
        assert target.lowerings("tensor", parse_format(left), parse_format(right)) == names


def test_a_unit_of_mixed_formats_alone_refuses_others_by_name():
    description = device_called("a100-80g").to_dict()
    description["units"]["tensor"]["macs"] = {"int8xint2": 4096}
    description["units"]["tensor"].pop("mac_energy", None)
    with pytest.raises(MappingError, match=r"multiplies fp16 by fp16.*'tensor' multiplies int8xint2"):
        compile_graph(product(8, 64, 64), Device.from_dict(description))
    assert only(compile_graph(product(8, 64, 64, "int8", "int2"), Device.from_dict(description))).number_format == "int8xint2"

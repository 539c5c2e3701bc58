"""Kernels streamed through a last-level cache: everything is moved and computed once, whatever the blocks; laws; what is refused."""

from __future__ import annotations

from math import ceil

import pytest

from dovetail import estimate
from hw.devices import load as load_device
from mapper.cached import Cached, CachedAttention, CachedProduct
from mapper.errors import CapacityError
from mapper.kernels import Kernel, fuse
from mapper.placement import sites
from mapper.target import Target
from workloads import cost, load, quantise

MODEL = "opt-1.3b"


def kernels(batch: int = 3, context: int = 500) -> list[Kernel]:
    graph = quantise(load(MODEL, phase="decode", batch=batch, context=context), weights="int4-g128", acts="int8")
    return [kernel for _, found in fuse(graph) for kernel in found if kernel.multiplied]


def space(kernel: Kernel, unit: str) -> Cached:
    target = Target(load_device("sail-neoverse"))
    site = next(site for site in sites(target, kernel) if site.unit == unit)
    return (CachedAttention if kernel.kind == "attention" else CachedProduct)(target.at(site), kernel)


@pytest.mark.parametrize("unit", ["cores", "sram"])
def test_every_mapping_multiplies_everything_and_reads_every_weight_once(unit: str) -> None:
    for kernel in kernels():
        if unit == "sram" and kernel.input(1).format.name != "int4-g128":
            continue  # attention, and the head that shares the table of embeddings in fp16
        one = space(kernel, unit)
        stored = sum((o.size for o in kernel.reads), start=0)
        for mapping in one.candidates():
            effort = one.plan(mapping).effort
            assert effort[unit].macs == cost.macs(kernel.operator)
            assert effort["dram"].written == sum(o.size for o in kernel.writes)
            assert effort["dram"].read >= stored
            if kernel.kind == "attention" or mapping.integer("rows") == kernel.operator["m"]:
                assert effort["dram"].read == stored


def test_attention_in_blocks_of_keys_needs_less_of_the_cache() -> None:
    kernel = next(kernel for kernel in kernels(context=2048) if kernel.kind == "attention")
    one = space(kernel, "cores")
    needs = [one.footprint(mapping)["llc"] for mapping in one.candidates()]
    assert needs == sorted(needs)
    assert needs[-1] > 10 * needs[0]
    whole = sum(o.size for o in kernel.reads if o.role == "kv_cache") * 16 // (3 * 32)  # sixteen heads of 96 at a time, twice
    assert needs[-1] == pytest.approx(ceil(2 * whole), rel=0.01)


def test_more_cores_arrays_and_bandwidth_are_never_slower() -> None:
    def latency(**settings: object) -> int:
        device = load_device("sail-neoverse").with_settings({path.replace("__", "."): value for path, value in settings.items()})
        return estimate(MODEL, device=device, phase="decode", batch=4, context=64, weights="int4-g128", acts="int8").latency_fs

    for path, values in (
        ("units__cores__count", [4, 16, 32]),
        ("units__sram__arrays", [8, 32, 64]),
        ("memories__dram__bandwidth", ["102.4 GB/s", "204.8 GB/s", "409.6 GB/s"]),
        ("memories__llc__capacity", ["1 MiB", "28 MiB", "100 MiB"]),
    ):
        times = [latency(**{path: value}) for value in values]
        assert times == sorted(times, reverse=True), path


def test_a_cache_too_small_for_a_block_is_refused_with_the_missing_bytes() -> None:
    device = load_device("sail-neoverse").with_settings({"memories.llc.capacity": "4 KiB"})
    with pytest.raises(CapacityError, match=r"no mapping fits: the smallest needs \d+ B in 'llc', which holds 4096 B"):
        estimate(MODEL, device=device, phase="decode", batch=1, context=64, weights="int4-g128", acts="int8")

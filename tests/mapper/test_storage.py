"""Attention in drives: pages, links and drives by pencil, laws, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import ceil

import pytest

from dovetail import estimate
from dovetail.report import Report
from hw.devices import load as load_device
from hw.errors import HardwareError
from hw.units.storage import FlashArray, StorageAttention
from mapper.errors import CapacityError, MappingError
from mapper.kernels import Kernel, fuse
from mapper.placement import sites
from mapper.storage import InStorage
from mapper.target import Target
from workloads import load

MODEL = "opt-1.3b"  # 24 layers of 32 heads of 64


def attention(phase: str = "decode", batch: int = 4, length: int = 100) -> Kernel:
    seq, context = (length, None) if phase == "prefill" else (None, length)
    graph = load(MODEL, phase=phase, batch=batch, seq=seq, context=context)
    return next(kernel for _, kernels in fuse(graph) for kernel in kernels if kernel.kind == "attention")


def in_storage(kernel: Kernel, **settings: object) -> InStorage:
    target = Target(load_device("instinfer").with_settings({path.replace("__", "."): value for path, value in settings.items()}))
    (site,) = sites(target, kernel)
    return InStorage(target.at(site), kernel)


def fs(kernel: Kernel, **settings: object) -> int:
    space = in_storage(kernel, **settings)
    (mapping,) = space.candidates()
    return space.plan(mapping).latency_fs


@cache
def run(phase: str = "decode", batch: int = 2, length: int = 64, engine: str = "fast", **settings: object) -> Report:
    device = load_device("instinfer").with_settings({path.replace("__", "."): value for path, value in settings.items()})
    seq, context = (length, None) if phase == "prefill" else (None, length)
    return estimate(MODEL, device=device, phase=phase, batch=batch, seq=seq, context=context, engine=engine)


def test_a_step_takes_the_link_down_the_pages_and_the_link_up() -> None:
    """A page holds 4096 / (64 x 2) = 32 tokens of a head: 100 tokens of 4 x 32 heads are 4 pages of keys and as many of values each.

    Down go a query, a key and a value of 2048 fp16 numbers per sequence, up comes one output. New keys and values fill pages that are
    written at 3.78 GB/s.
    """
    pages = 4 * 32 * (4 + 4)
    link = [ceil(vectors * 4 * 2048 * 2 * 10**15 / 7e9) for vectors in (3, 1)]
    read = 50 * 10**9 + ceil(pages / 8) * 4096 * 10**15 / 1.4e9
    written = 2 * 4 * 2048 * 2 * 10**15 / 3.78e9
    expected = load_device("instinfer").launch + sum(link) + read + written  # a command starts it
    assert fs(attention()) == pytest.approx(expected, rel=1e-6)


def test_attention_is_bound_by_its_kernels_where_flash_is_fast() -> None:
    """100 tokens x 4 x 32 heads x 128 products, 2048 in 91 cycles on each of two kernels."""
    kernel = attention()
    fast = {"memories__flash__channel_bandwidth": "1 TB/s", "memories__flash__read_time": 0, "memories__flash__write_bandwidth": "1 TB/s"}
    space = in_storage(kernel, **fast)
    job = next(job for stage in space.plan(next(iter(space.candidates()))).tiles[0] for job in stage if job.name == "attend")  # type: ignore[union-attr]
    assert job.cycles == ceil(100 * 4 * 32 * 128 / 2048 / 2) * 91
    assert fs(kernel, **fast) > job.fs


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("memories__flash__count", [1, 2, 3, 8, 32, 64]),
        ("memories__flash__channels", [4, 8, 16]),
        ("memories__flash__channel_bandwidth", ["0.7 GB/s", "1.4 GB/s", "2.8 GB/s"]),
        ("units__csd__kernels", [1, 2, 8]),
        ("units__csd__kept", ["1", "0.6", "0.2"]),
    ],
)
def test_more_of_anything_is_never_slower(path: str, values: list[object]) -> None:
    kernel = attention(length=2000)
    times = [fs(kernel, **{path: value}) for value in values]
    assert times == sorted(times, reverse=True)


def test_steps_grow_with_batch_and_context() -> None:
    by_batch = [fs(attention(batch=batch)) for batch in (1, 4, 16)]
    assert by_batch == sorted(by_batch)
    by_context = [fs(attention(length=length)) for length in (32, 33, 100, 1000)]
    assert by_context == sorted(by_context)
    assert by_context[0] < by_context[1]  # a further page


def test_attention_to_what_lies_in_drives_runs_there_and_a_prefill_on_the_processor() -> None:
    target = Target(load_device("instinfer"))
    assert [site.unit for site in sites(target, attention())] == ["csd"]
    assert [site.unit for site in sites(target, attention("prefill"))] == ["tensor"]


def test_a_prefill_ships_its_cache_beside_the_next_layers() -> None:
    """64 tokens x 2 sequences x 24 layers x 2 x 2048 fp16 numbers."""
    report = run("prefill")
    flash = next(use for use in report.memories if use.name == "flash")
    assert flash.written == 64 * 2 * 24 * 2 * 2048 * 2
    slow = run("prefill", memories__flash__write_bandwidth="10 MB/s")
    assert slow.latency_s == pytest.approx(flash.written / 10e6, rel=0.1)
    assert report.latency_s < 0.1 * slow.latency_s


def test_keys_and_values_lie_in_the_drives() -> None:
    report = run()
    held = {use.name: use.parts for use in report.memories}
    assert held["flash"]["kv cache"] == 64 * 2 * 24 * 2 * 2048 * 2
    assert "kv cache" not in held["gddr"]
    assert report.latency_fs >= report.lower_bound_fs


def test_sparse_attention_stores_keys_twice() -> None:
    sparse = run(units__csd__kept="0.5")
    held = {use.name: use.peak for use in sparse.memories}
    assert held["flash"] == Fraction(3, 2) * 64 * 2 * 24 * 2 * 2048 * 2


def test_both_engines_agree() -> None:
    for phase in ("decode", "prefill"):
        assert run(phase).latency_fs == run(phase, engine="simpy").latency_fs


def test_a_cache_beyond_the_drives_is_refused_with_the_missing_bytes() -> None:
    small = {"memories.flash.capacity": "10 MB"}
    need = 64 * 2 * 24 * 2 * 2048 * 2
    with pytest.raises(CapacityError, match=rf"KV cache needs {need} B in 'flash' .*: {need - 10**7} B short"):
        estimate(MODEL, device=load_device("instinfer").with_settings(small), phase="decode", batch=2, context=64)


def test_pages_without_room_for_a_token_missing_links_and_wrong_memories_are_refused() -> None:
    with pytest.raises(CapacityError, match="a token of a head needs 128 B, a page holds 64"):
        fs(attention(), memories__flash__page="64 B")
    device = load_device("instinfer")
    unlinked = device.model_copy(update={"links": tuple(link for link in device.links if "gddr" not in (link.source, link.sink))})
    with pytest.raises(MappingError, match="no link with a bandwidth between 'flash' and 'gddr'"):
        estimate(MODEL, device=unlinked, phase="decode", batch=1, context=32)
    with pytest.raises(MappingError, match="expected a flash_array, found 'gddr'"):
        fs(attention(), units__csd__memory="gddr")


def test_the_bandwidth_of_flash_is_that_of_all_channels() -> None:
    flash = FlashArray(capacity="1 TB", channel_bandwidth="1.4 GB/s", write_bandwidth="1 GB/s", count=3)
    assert flash.bandwidth == 3 * 8 * 1_400_000_000
    with pytest.raises(HardwareError, match="channel_bandwidth"):
        FlashArray(capacity="1 TB", write_bandwidth="1 GB/s")
    assert StorageAttention(memory="flash").products == 1
    assert StorageAttention(memory="flash", kept="0.5").products == Fraction(3, 16)

"""Which attention kernels frameworks run: choices read off their code, and what the kernels around them cost."""

from itertools import pairwise
from math import ceil

import pytest

from hw.devices import load
from mapper.rowwork import KERNELS
from verif.validation.attention_protocol import XQA_HEADS, attention_protocol, flash_parts, xqa
from verif.validation.measurement import Measurement
from verif.validation.predict import GAP_S, Predictor


def shape(batch=1, keys=4096, heads=32, kv_heads=8, queries=1, head_dim=128):
    sizes = {"batch": batch, "queries": queries, "keys": keys, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    return {**sizes, "tokens": queries, "step": keys - queries}


def protocol(device, dtype="bf16", *, vllm=False, prefill=False, **sizes):
    return attention_protocol(device, dtype, shape(**sizes), vllm=vllm, prefill=prefill)


@pytest.mark.parametrize("sms", [108, 132])
def test_xqa_fills_the_sms_with_eight_blocks_each_at_most(sms):
    for batch in (1, 3, 16, 200):
        for keys in (1, 255, 256, 5000, 131072):
            parts = xqa(shape(batch, keys), "bf16-kv8", sms)["splits"]
            assert parts == 1 or (batch * 8 * parts <= 8 * sms and keys // parts >= 128)


def test_xqa_leaves_16_bit_caches_of_few_keys_and_heads_that_do_not_share_them():
    """4 sequences of 8 heads are 32 thread blocks, 4 x 32 < 132; with 256 keys they are 64."""
    assert xqa(shape(4, 255), "bf16", 132) == {"packed": 1}
    assert "splits" in xqa(shape(4, 256), "bf16", 132)
    assert "splits" in xqa(shape(4, 255), "bf16-kv8", 132)
    assert xqa(shape(64, kv_heads=32), "bf16", 132) == {"packed": 1}
    assert xqa(shape(64, heads=2 * XQA_HEADS, kv_heads=1), "bf16", 132) == {"packed": 1}


def test_flash_attention_splits_until_two_blocks_on_each_sm_are_nearly_all_at_work():
    for batch in (1, 2, 5, 20):
        for keys in (100, 1000, 4096, 65536):
            blocks = ceil(keys / 128)
            shorter = [n for n in range(1, min(128, blocks) + 1) if n == 1 or ceil(blocks / n) < ceil(blocks / (n - 1))]
            filled = {n: batch * 8 * n / 216 / ceil(batch * 8 * n / 216) for n in shorter}
            enough = min(n for n in shorter if filled[n] >= 0.85 * max(filled.values()))
            assert flash_parts(shape(batch, keys), 108) == enough
    assert flash_parts(shape(22, 65536), 108) == 1  # 176 of 216 places are taken without


def test_a_window_leaves_no_more_keys_to_split():
    narrow = shape(1, 65536) | {"window": 256}
    assert flash_parts(narrow, 108) <= 2
    assert xqa(narrow, "bf16-kv8", 132)["splits"] == 2


def test_what_runs_around_attention_depends_on_the_framework_and_the_generation():
    assert protocol("a100-80g", vllm=True, batch=4) == ({"splits": 6}, ("append", "pack", "pack"))
    assert protocol("a100-80g", vllm=True, batch=1)[1] == ("append",)
    assert protocol("a100-80g", vllm=True, kv_heads=32) == ({"splits": 1}, ("append",))
    assert "splits" not in protocol("h100-sxm", vllm=True)[0]  # not FlashAttention 2
    added, before = protocol("h100-sxm", prefill=True, queries=4096)
    assert added == {"aliased": 1, "prompt": 1}
    assert before == ("rearrange", "overlapped", "overlapped")
    # launches overlap since Hopper
    assert protocol("l40s", prefill=True, queries=4096)[1] == ("rearrange", "empty", "empty")
    assert protocol("h100-sxm", "bf16-kv8")[1] == ("overlapped", "early")
    assert protocol("l40s", "bf16-kv8")[1] == ("empty",)
    assert protocol("b200", batch=64)[0] == {"aliased": 1}  # kernels whose splits are not open


def seconds(before, device="a100-80g", **sizes):
    m = Measurement(device, "attention-prefill", "bf16", shape(**sizes), 1e-3, copies=0, before=before)
    return Predictor(load(device)).kernels(m)


def test_a_kernel_that_starts_early_hides_the_gap_before_it():
    plain, early = (sum(seconds(before, queries=1024, keys=1024)) for before in ((), ("early",)))
    assert plain - early == pytest.approx(GAP_S)


def test_writes_to_a_paged_cache_are_limited_by_their_threads():
    """vLLM's kernel has a thread for two elements of a token's keys and values, 512 at most: with 1, 2 and 4 heads of 128 its time
    doubles, and 8 heads take no longer than 4 as long as memory keeps up."""
    append = {n: seconds(("append",), batch=64, queries=512, keys=512, heads=32, kv_heads=n)[0] for n in (1, 2, 4, 8)}
    device = load("a100-80g")
    threads = 64 * 512 * 2 * 128 / KERNELS["append"].rate / 108 / device.clock  # tokens, elements of one head
    assert append[2] - append[1] == pytest.approx(threads, rel=0.05)
    assert append[4] - append[2] == pytest.approx(2 * threads, rel=0.05)
    assert append[8] - append[4] < 0.2 * threads


def test_rotating_queries_takes_as_long_for_few_keys_as_for_some():
    times = [seconds(("rearrange",), "h100-sxm", batch=64, queries=512, keys=512, heads=32, kv_heads=n)[0] for n in (1, 2, 4, 8, 32)]
    assert all(less < more for less, more in pairwise(times))
    assert times[3] < 1.1 * times[0] < 0.75 * times[4]

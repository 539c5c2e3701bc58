"""The compiler: what it refuses, where it places things, and how the stream is organised."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from hw import devices
from hw.errors import HardwareError
from hw.units.flightllm import FlightCore
from hw.work import Gemm, Vector
from mapper.errors import CapacityError, MappingError
from mapper.flightllm import isa
from mapper.flightllm.compile import Compiler, core_of
from mapper.flightllm.emit import AS_RELEASED, Options, mm_tiles, mv_tiles
from studies import flightllm as study
from workloads import WorkloadError, load, quantise
from workloads.format import kept_of, parse_format
from workloads.prune import prune, prune_matrix, spread

from .conftest import LLAMA, OPT


def test_tiles_along_k_are_those_of_the_released_generator() -> None:
    core = FlightCore()
    assert mv_tiles(core, 256) == ([(0, 128), (128, 256)], 4)  # 4096 inputs: two tiles, four of them in the index buffer
    assert [end - start for start, end in mv_tiles(core, 688)[0]] == [114] * 6 + [4]  # 11008 inputs
    assert mm_tiles(core, 256) == ([(0, 256)], 2)
    assert [end - start for start, end in mm_tiles(core, 688)[0]] == [229] * 3 + [1]


def test_regions_do_not_overlap_and_hold_what_the_model_needs() -> None:
    made = study.compiler()
    memory = made.compile(144).memory
    for side in (False, True):
        ordered = [r for r in memory.ordered(side) if r.name != "model.embed_tokens"]  # shares the place of a layer's result
        assert all(a.end <= b.start for a, b in pairwise(ordered))
    kinds = memory.by_kind()
    assert kinds["keys"] == kinds["values"] == 32 * 2048 * 4096
    dense = (32 * (4 * 4096**2 + 2 * 4096 * 11264 + 11008 * 4096) + 4096 * 32256) // 2  # outputs padded to 512, 4 bits
    assert kinds["weight"] == pytest.approx(dense - 32 * 0.3 * 4096**2, rel=1e-4)  # 30 % of Q and K are not stored


def test_one_map_serves_all_contexts() -> None:
    made = study.compiler()
    assert made.compile(16).memory.regions == made.compile(2048).memory.regions


def test_every_repetition_of_a_layer_has_its_own_weights_and_caches() -> None:
    stream = study.compiler().compile(144)
    first, second = (isa.decode(stream.chunks[i]) for i in (1, 2))
    column = isa.SPECS[isa.LD].column("address")
    loads = (first[:, 0] == isa.LD) & (first[:, 3] == isa.MODES.index("A"))
    moved = {stream.memory.find(a, False).size for a in first[loads, column].tolist()}
    assert set((second - first)[loads, column].tolist()) == moved
    assert not (np.delete(second - first, column, axis=1)[first[:, 0] == isa.LD]).any()


def test_a_model_that_does_not_fit_is_refused_with_the_missing_bytes() -> None:
    board = devices.load("flightllm-u280")
    graph = load("llama-2-7b", phase="decode", batch=1, context=144)
    eight = Compiler(quantise(graph, weights="int8", kv="int8"), board, max_tokens=8192)
    short = r"which holds 8\.00 GiB: 233149952 B short \(weights 6\.22 GiB, keys 1\.00 GiB, values 1\.00 GiB"
    with pytest.raises(CapacityError, match=rf"needs 8\.22 GiB in 'hbm' of flightllm-u280, {short}"):
        eight.compile(144)
    big = Compiler(
        quantise(load("llama-2-70b", phase="decode", batch=1, context=144), weights="int4", kv="int8"), devices.load("flightllm-vhk158")
    )
    with pytest.raises(CapacityError, match=r"flightllm-vhk158, which holds 32\.00 GiB: 333751808 B short"):
        big.compile(144)
    with pytest.raises(CapacityError, match="a context of 2064 tokens exceeds the 2048 that caches are allocated for"):
        study.compiler().compile(2049)


def test_weights_in_floating_point_are_refused_with_the_fix(vhk158: Any) -> None:
    with pytest.raises(MappingError, match=r"'model.layers.0.self_attn.q_proj.weight': is .*16.*quantise it first"):
        Compiler(load("llama-2-7b", phase="decode", batch=1, context=144), vhk158)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        (np.full((4, 4), 3), r"3:16 is not supported, expected N of 0, 2, 4, 8, 16"),
        (np.full((4, 5), 8), r"expected counts of 4 x 4 blocks, found 4 x 5"),
    ],
)
def test_unsupported_sparsity_is_refused(graph_of: Any, vhk158: Any, counts: Any, reason: str) -> None:
    with pytest.raises(MappingError, match=reason):
        Compiler(graph_of(LLAMA), vhk158, counts={"model.layers.0.self_attn.q_proj.weight": counts})


def test_other_machines_and_other_models_are_refused(graph_of: Any, vhk158: Any) -> None:
    with pytest.raises(MappingError, match="'edge-npu' has no unit of kind 'flightllm_core'"):
        core_of(devices.load("edge-npu"))
    with pytest.raises(MappingError, match="runs one sequence at a time, found batch 2"):
        Compiler(replace(graph_of(LLAMA), batch=2), vhk158)
    with pytest.raises(MappingError, match="are not a multiple of the 16 of a block; pad the model"):
        Compiler(graph_of({**LLAMA, "intermediate_size": 168}), vhk158).compile()
    with pytest.raises(MappingError, match="expected a prefill or decode graph, found phase 'single'"):
        Compiler(load("gemm:16x16x16:int8"), vhk158)
    with pytest.raises(MappingError, match="boundary 'on_chip' is for decode with fused layers"):
        Compiler(graph_of(LLAMA), vhk158, Options(boundary="on_chip", fuse=False))


def test_masks_choose_which_blocks_of_attention_are_computed(graph_of: Any, vhk158: Any) -> None:
    graph = graph_of(LLAMA, phase="prefill", context=None, seq=256, logits="all")
    name = "model.layers.0.self_attn.attention"

    def products(mask: Any) -> int:
        stream = Compiler(graph, vhk158, masks={} if mask is None else {name: mask}).compile(256)
        return int((isa.decode(stream.words)[:, 0] == isa.MM).sum())

    causal = np.broadcast_to(np.tri(4, dtype=np.bool_), (4, 4, 4))
    diagonal = np.broadcast_to(np.eye(4, dtype=np.bool_), (4, 4, 4))
    assert products(causal) == products(None)
    # two tiles of 128 rows, 4 heads, 2 layers: columns of 16 in kept blocks fall from 8 + 16 to 8 + 8
    assert products(None) - products(diagonal) == 2 * 4 * 8
    with pytest.raises(MappingError, match="some row keeps no block at all"):
        products(np.zeros((4, 4, 4), np.bool_))
    with pytest.raises(MappingError, match=r"expected \[4, 4, 4\] or more, found \[4, 2, 2\]"):
        products(np.ones((4, 2, 2), np.bool_))


def test_on_chip_decode_moves_no_vector_but_new_keys_and_values(graph_of: Any, vhk158: Any) -> None:
    stream = Compiler(graph_of(LLAMA), vhk158, Options(boundary="on_chip")).compile()
    table = isa.decode(stream.words)
    stores = table[table[:, 0] == isa.ST]
    kinds = {stream.memory.find(a, False).kind for a in stores[:, isa.SPECS[isa.ST].column("address")].tolist()}
    assert (len(stores), kinds) == (2 * 2, {"keys", "values"})
    loads = table[table[:, 0] == isa.LD]
    kinds = {stream.memory.find(a, False).kind for a in loads[:, isa.SPECS[isa.LD].column("address")].tolist()}
    assert kinds == {"weight", "keys", "values"}


def test_tokens_of_a_stream_match_up_pair_by_pair(graph_of: Any, vhk158: Any) -> None:
    for graph in (graph_of(LLAMA), graph_of(LLAMA, phase="prefill", context=None, seq=128, logits="all")):
        table = isa.decode(Compiler(graph, vhk158, AS_RELEASED).compile().words)
        balance: dict[tuple[int, int], int] = {}
        for queue, wait, release in table[:, :3].tolist():
            for other in isa.partners(queue, wait):
                balance[other, queue] = balance.get((other, queue), 0) - 1
                assert balance[other, queue] >= 0  # every wait comes after its release
            for other in isa.partners(queue, release):
                balance[queue, other] = balance.get((queue, other), 0) + 1
        assert set(balance.values()) == {0}


# Sparsity -------------------------------------------------------------------------------------------------------------------
def test_a_pruned_format_counts_values_indices_and_block_counts() -> None:
    assert parse_format("int4-8of16").bits == Fraction(1, 2) * (4 + 4) + Fraction(8, 256)
    assert kept_of(parse_format("int3-11.2of16")) == (Fraction(56, 5), 16)
    assert kept_of(parse_format("int4-g128")) is None


@pytest.mark.parametrize("kept", [Fraction(8), Fraction(56, 5), Fraction(3), Fraction(16), Fraction(1)])
def test_a_mean_is_spread_over_supported_blocks_without_drift(kept: Fraction) -> None:
    counts = spread(kept, 64, 48)
    assert set(np.unique(counts).tolist()) <= {0, 2, 4, 8, 16}
    partial = np.cumsum(counts.T.reshape(-1))
    ideal = kept * np.arange(1, counts.size + 1)
    assert np.abs(partial - ideal.astype(float)).max() < 8 + 1e-9


def test_pruning_keeps_the_largest_of_every_window() -> None:
    rng = np.random.default_rng(0)
    weights = rng.permutation(np.arange(1, 32 * 32 + 1)).reshape(32, 32)
    pruned, counts = prune_matrix(weights, 4)
    assert counts.tolist() == [[4, 4], [4, 4]]
    windows, kept = weights.reshape(2, 16, 32), pruned.reshape(2, 16, 32)
    assert np.array_equal(np.sort(kept, axis=1)[:, -4:], np.sort(windows, axis=1)[:, -4:])
    assert ((kept != 0).sum(axis=1) == 4).all()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"kept": 3}, r"3:16 is not supported, expected N of 2, 4, 8, 16, or a mean"),
        ({"kept": 17}, r"keeping 17 of 16 is not possible"),
        ({"kept": 4, "window": 8}, r"M = 8 is not supported, expected 16"),
        ({"kept": 4, "layers": ("qproj",)}, r"no linear layer matches 'qproj'"),
    ],
)
def test_unsupported_pruning_is_refused(graph_of: Any, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(WorkloadError, match=reason):
        prune(graph_of(LLAMA), **arguments)


def test_a_pruned_graph_says_what_it_keeps_and_cannot_be_pruned_twice(graph_of: Any) -> None:
    graph = prune(graph_of(LLAMA), 8, ("q_proj",))
    weight = graph.tensors["model.layers.0.self_attn.q_proj.weight"]
    assert weight.format.name == "int4-8of16"
    assert graph.notes[-1] == "linear layers q_proj keep 8 of 16 weights"
    with pytest.raises(WorkloadError, match="is pruned already"):
        prune(graph, 4)


# The unit -------------------------------------------------------------------------------------------------------------------
def test_the_unit_charges_what_instructions_charge() -> None:
    core = FlightCore()
    assert core.cycles(Gemm(1, 11008, 4096, "int8")) == 22 * 512 * 4096 // 1024  # outputs padded to 512
    assert core.cycles(Gemm(200, 4096, 4096, "int8")) == 256 * 4096 * 4096 // 4096  # rows padded to 128
    assert core.cycles(Vector(4096)) == 4096 // 16
    assert core.cycles(Vector(4096, specials=1)) == 2 * 4096 // 16


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"chain": 3}, r"3 groups of 2 multipliers make 6, expected a divisor or a multiple of the 16"),
        ({"mv_start": 100}, r"mv_start: expected a multiple of 128"),
        ({"same_channel": "1.5"}, r"efficiencies are at most 1"),
        ({"speedup": "fast"}, r"expected a number such as 3.2 or 16/5, not 'fast'"),
        ({"speedup": 0}, r"expected a number above 0"),
        ({"a_depth": 8192}, r"a_depth: instructions address 4096 entries, found 8192"),
    ],
)
def test_impossible_cores_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(HardwareError, match=reason):
        FlightCore(**fields)


def test_a_coarser_chain_stores_zeros_that_a_finer_one_skips(graph_of: Any, vhk158: Any) -> None:
    graph = prune(graph_of(OPT), 2, ("fc1",))
    fine = Compiler(graph, vhk158, bits={"model.decoder.embed_tokens.weight": 4})
    coarse = replace(fine, device=vhk158.with_settings({"units.core.chain": 4, "units.core.group": 4}))
    name = "model.decoder.layers.0.fc1.weight"
    assert (set(np.unique(fine.weights[name].counts)), set(np.unique(coarse.weights[name].counts))) == ({2}, {4})


@pytest.mark.parametrize("name", ["flightllm-u280", "flightllm-vhk158"])
def test_every_constant_of_the_boards_names_its_origin_and_its_value(name: str) -> None:
    device = devices.load(name)
    for path, constant in device.constants.items():
        assert constant.source
        value: Any = device
        for step in path.split("."):
            value = value[step] if isinstance(value, dict) else getattr(value, step)
        assert Fraction(str(constant.value).split()[0]) == Fraction(value)

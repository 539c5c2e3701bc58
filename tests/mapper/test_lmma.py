"""Look-up instead of multiplication: chosen by cost, exact in time, never better than what the arrays and memories allow."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.devices import load as device_called
from hw.errors import HardwareError
from hw.units.lmma_core import LmmaCore
from mapper import CapacityError, Mapping, MappingError, compile_graph
from mapper.lmma import of_tables, tabled, with_tables
from tests.mapper.cases import attention, checked, experts, graph, product, tensor
from workloads import load, quantise
from workloads.graph import Operator

DEVICES = ("a100-lut-4x", "a100-lut-8x", "h100-lut-8x")


def device(name="a100-lut-4x", **changes):
    return device_called(name).with_settings({f"units.tensor.{key}": value for key, value in changes.items()})


def normed(m=256, k=1024, n=1024, acts="int8", weights="int2"):
    """A norm, two products of it, and one of their sum."""
    tensors = [
        tensor("x", (m, k)),
        tensor("scale", (k,), role="weight"),
        tensor("a", (m, k), acts),
        tensor("left", (k, n), weights, "weight"),
        tensor("right", (k, n), weights, "weight"),
        tensor("p", (m, n)),
        tensor("q", (m, n)),
        tensor("s", (m, n), acts),
        tensor("last", (n, k), weights, "weight"),
        tensor("y", (m, k)),
    ]
    operators = [
        Operator("norm", "norm", ("x", "scale"), ("a",), {"rows": m, "width": k}, "", "rms_norm"),
        Operator("l", "matmul", ("a", "left"), ("p",), {"batch": 1, "m": m, "n": n, "k": k}),
        Operator("r", "matmul", ("a", "right"), ("q",), {"batch": 1, "m": m, "n": n, "k": k}),
        Operator("add", "elementwise", ("p", "q"), ("s",), {"elements": m * n, "operations": 1, "specials": 0}, "", "add"),
        Operator("out", "matmul", ("s", "last"), ("y",), {"batch": 1, "m": m, "n": k, "k": n}),
    ]
    return graph(tensors, operators, ["x"], ["y"], count=3)


def looked_up(result):
    return {p.kernel.name for p in result.kernels if of_tables(p.kernel)}


# What every estimate keeps ---------------------------------------------------------------------------------------------------
WORKLOADS = {
    "normed": normed(),
    "one row": normed(m=1),
    "odd sizes": normed(m=77, k=1001, n=259),
    "fp16": normed(acts="fp16", weights="int4-g128"),
    "ternary": normed(weights="ternary"),
    "bare": product(300, 4096, 512, "int8", "int1"),
    "attention beside": attention(2, 4, 2, 64, 100, 64),
}


@pytest.mark.parametrize("tables", ["by_cost", "fused", "separate", "none"])
@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_prediction_is_simulation_in_both_engines_and_above_the_lower_bound(workload, name, tables):
    result = compile_graph(WORKLOADS[workload], device(name, tables=tables))
    checked(result)
    if tables == "none":
        assert not looked_up(result)


@pytest.mark.parametrize("workload", [w for w in WORKLOADS if w != "attention beside"])
@pytest.mark.parametrize("name", DEVICES)
def test_the_choice_by_cost_is_the_fastest_of_all_fused_all_separate_and_none(workload, name):
    times = {t: checked(compile_graph(WORKLOADS[workload], device(name, tables=t))) for t in ("by_cost", "fused", "separate", "none")}
    assert times["by_cost"] <= min(times.values())


@pytest.mark.parametrize("workload", ["normed", "odd sizes", "bare"])
def test_compute_and_traffic_of_the_lower_bound_do_not_know_how_products_are_lowered(workload):
    def bounds(tables):
        kernels = compile_graph(WORKLOADS[workload], device(tables=tables)).kernels
        found = [p.bound.scaled(p.count) for p in kernels]
        return sum(b.matrix_fs for b in found), sum(b.vector_fs for b in found), sum(sum(b.sizes) for b in found)

    assert bounds("by_cost") == bounds("fused") == bounds("separate") == bounds("none")


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(1, 600),
    k=st.integers(1, 1500),
    n=st.integers(1, 1500),
    weights=st.sampled_from(["int1", "int2", "int3", "int4", "ternary"]),
    acts=st.sampled_from(["int8", "fp16"]),
    arrays=st.integers(1, 40),
    rows=st.integers(1, 4),
    depth=st.integers(2, 6),
    mirrored=st.booleans(),
    bits=st.sampled_from([8, 16]),
)
def test_any_shape_of_array_keeps_the_laws(m, k, n, weights, acts, arrays, rows, depth, mirrored, bits):
    lut = device(arrays=arrays, rows=rows, depth=depth, symmetric=mirrored, table_bits=bits)
    checked(compile_graph(product(m, k, n, acts, weights), lut))
    checked(compile_graph(product(m, k, n, acts, weights), lut.with_settings({"units.tensor.tables": "separate"})))


@pytest.mark.parametrize("tables", ["by_cost", "fused", "separate", "none"])
def test_a_saved_mapping_replays_to_the_same_tasks(tables):
    first = compile_graph(normed(), device(tables=tables))
    saved = Mapping.loads(first.mapping.dumps())
    again = compile_graph(normed(), device(tables="by_cost"), saved)
    assert again.program == first.program
    assert looked_up(again) == looked_up(first)


def test_a_saved_mapping_for_tables_of_another_shape_is_refused():
    saved = compile_graph(normed(), device(tables="fused")).mapping
    with pytest.raises(MappingError, match=r"format: expected one of table8-k2xint2, found 'table8-k4xint2'"):
        compile_graph(normed(), device(depth=2), saved)


# Which lowering -----------------------------------------------------------------------------------------------------------
def unconstrained(**changes):
    """Look-up arrays of 8192 / b sums per cycle beside 2048 int8 and 1024 fp16 products, and nothing else that takes time."""
    base = device().to_dict()
    base |= {"generation": "", "name": "ideal", "launch": "0 s", "power": "100 kW"}
    fitted = ("port", "lone_rate", "step_latency", "drain", "split_latency", "attention_overhead", "efficiency", "mac_power")
    base["units"]["tensor"] = {k: v for k, v in base["units"]["tensor"].items() if k not in fitted} | {"shared_bandwidth": 10**6} | changes
    base["units"]["vector"] |= {"lanes": 10**6, "special_lanes": 10**6}
    base["memories"]["l2"] |= {"bandwidth": "10000 TB/s", "latency": "0 s"}
    base["memories"]["hbm"] = {"kind": "hbm", "capacity": "80 GiB", "bandwidth": "10000 TB/s", "energy": "3.92 pJ"}
    return type(device()).from_dict({k: v for k, v in base.items() if k != "constants"})


@pytest.mark.parametrize(("acts", "multiplied", "rate"), [("int8", "int8", 2048), ("fp16", "fp16", 1024)])
@pytest.mark.parametrize("bits", range(1, 9))
def test_a_large_product_is_looked_up_exactly_where_bit_planes_are_faster_than_multipliers(bits, acts, multiplied, rate):
    # 16 arrays x 2 rows x 64 columns x 4 activations = 8192 sums per cycle and plane
    result = compile_graph(product(4096, 4096, 8192, acts, f"int{bits}"), unconstrained(widest=8))
    checked(result)
    chosen = next(p for p in result.kernels if p.kernel.kind == "matmul").number_format
    if 8192 / bits > rate:
        assert chosen == f"table8-k4xint{bits}"
    elif 8192 / bits < rate:
        assert chosen == multiplied
    else:
        assert chosen in (f"table8-k4xint{bits}", multiplied)


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("tables", ["by_cost", "fused", "separate"])
@pytest.mark.parametrize("m", [1, 64, 2048])
def test_wider_weights_are_never_faster(name, tables, m):
    times = [checked(compile_graph(normed(m=m, weights=f"int{b}"), device(name, tables=tables))) for b in (1, 2, 3, 4)]
    assert times == sorted(times)


def test_more_arrays_are_never_slower():
    times = [checked(compile_graph(normed(m=2048), device(arrays=arrays, tables="fused"))) for arrays in (1, 2, 4, 8, 16, 32, 64)]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(("name", "plain"), [("a100-lut-4x", "a100-80g"), ("a100-lut-8x", "a100-80g"), ("h100-lut-8x", "h100-sxm")])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_device_without_look_ups_is_the_gpu_that_it_extends(workload, name, plain):
    without_look_ups, gpu = (checked(compile_graph(WORKLOADS[workload], d)) for d in (device(name, tables="none"), device_called(plain)))
    assert without_look_ups == gpu
    assert checked(compile_graph(WORKLOADS[workload], device(name))) <= gpu


def test_what_cannot_be_looked_up_is_multiplied():
    for weights in ("int8", "fp8", "mxfp4", "bitmod4", "bcq2-g128"):  # wider than the arrays take here, or no integers
        result = compile_graph(product(256, 1024, 1024, "fp16", weights), device(widest=4))
        assert not looked_up(result)
        checked(result)
    activations = graph(
        [tensor("x", (8, 64), "int8"), tensor("w", (64, 64), "int2"), tensor("y", (8, 64))],  # both known only as it runs
        [Operator("gemm", "matmul", ("x", "w"), ("y",), {"batch": 1, "m": 8, "n": 64, "k": 64})],
        ["x", "w"],
        ["y"],
    )
    assert not looked_up(compile_graph(activations, device(tables="fused")))


def test_experts_look_up_tables_too():
    moe = experts(256, 8, 8, 1024, 512)
    moe = replace(moe, tensors={n: replace(t, format=tensor("w", (1,), "int2").format) if n == "w" else t for n, t in moe.tensors.items()})
    result = compile_graph(moe, device(tables="separate"))
    assert looked_up(result) == {"moe"}
    checked(result)


# Who builds the tables -----------------------------------------------------------------------------------------------------
def test_fused_tables_are_written_by_the_kernel_before_and_separate_ones_by_their_own():
    fused, separate = (compile_graph(normed(), device(tables=t)) for t in ("fused", "separate"))
    assert [k.kernel.name for k in fused.kernels] == ["norm", "l+r", "out"]
    assert [op.function for op in fused.kernels[0].kernel.fused] == ["tables"]
    assert [op.function for op in fused.kernels[1].kernel.fused] == ["add", "tables"]
    assert [k.kernel.name for k in separate.kernels] == ["norm", "a.tables", "l+r", "s.tables", "out"]


def test_products_of_one_input_share_its_tables():
    result = with_tables(normed(), device().units["tensor"], dict.fromkeys(tabled(normed(), device().units["tensor"]), "fused"))
    assert [op.name for op, _ in result.operators() if op.function == "tables"] == ["a.tables", "s.tables"]
    assert {op.inputs[0] for op, _ in result.operators() if op.name in ("l", "r")} == {"a.tables"}


@pytest.mark.parametrize(("mirrored", "entries"), [(True, 8), (False, 16)])
def test_tables_move_as_many_bytes_as_their_entries_have(mirrored, entries):
    m, k = 512, 4096
    result = compile_graph(product(m, k, 256, "int8", "int2"), device(tables="separate", symmetric=mirrored))
    building = next(p for p in result.kernels if p.kernel.name == "x.tables")
    (written,) = building.kernel.writes
    assert written.size == m * k // 4 * entries + m * k // 64 * 2  # one byte per entry, one 2-byte scale per 64 activations
    (tables,) = [o for o in result.kernels[-1].kernel.reads if o.tensor == "x.tables"]
    assert tables.size == written.size


def test_tables_of_sixteen_bits_are_twice_those_of_eight_without_scales():
    eight, sixteen = (LmmaCore(macs={"fp16": 1024}, table_bits=bits).table_bits_per_activation for bits in (8, 16))
    assert sixteen == 2 * (eight - 16 / 64)


@pytest.mark.parametrize("m", [1, 64, 1024])
@pytest.mark.parametrize("tables", ["fused", "separate"])
def test_mirrored_tables_never_work_longer_than_whole_ones(tables, m):
    def working(mirrored):  # first accesses count by the share of a kernel's bytes that the cache lacks, which larger tables dilute
        kernels = compile_graph(normed(m=m), device(tables=tables, symmetric=mirrored)).kernels
        return sum(p.count * (p.plan.latency_fs - sum(fs for _, fs in p.plan.setup)) for p in kernels)

    assert working(True) <= working(False)


def test_tables_that_do_not_fit_in_memory_are_not_built():
    m, k, n = 4096, 4096, 64
    plain, tables = m * k, m * k * 65 // 32  # int8 activations; 16 + 1/4 bits each as tables
    rest = k * n // 4 + m * n  # 2-bit weights, int8 results
    small = device().with_settings({"memories.hbm.capacity": f"{plain + tables // 2 + rest} B"})
    result = compile_graph(product(m, k, n, "int8", "int2"), small)
    assert not looked_up(result)
    checked(result)
    with pytest.raises(CapacityError, match="holds"):
        compile_graph(product(m, k, n, "int8", "int2"), small.with_settings({"units.tensor.tables": "separate"}))


def test_a_model_that_does_not_fit_is_refused_as_on_any_device():
    large = quantise(load("llama-2-7b", phase="decode", batch=512, context=2048), weights="int2", acts="int8")
    with pytest.raises(CapacityError, match=r"a100-lut-4x.*80\.00 GiB"):
        compile_graph(large, device())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": "9"}, "depth"),
        ({"table_bits": "12"}, r"table_bits: expected 8 \(quantised tables\) or 16, found 12"),
        ({"tables": "sometimes"}, "tables"),
        ({"arrays": "0"}, "arrays"),
        ({"array": "16"}, "no 'array', expected one of .*did you mean `arrays`"),
    ],
)
def test_impossible_arrays_are_refused(change, message):
    with pytest.raises(HardwareError, match=message):
        device(**change)

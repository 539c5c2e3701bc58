"""Placement by cost: crossovers emerge, units share kernels, copies work in lockstep, saved mappings replay."""

import json
from fractions import Fraction
from math import ceil

import pytest

from hw import Device
from hw.devices import load as device_called
from mapper import CapacityError, Mapping, MappingError, compile_graph
from mapper.cut import extents, piece
from mapper.kernels import fuse
from mapper.placement import independent
from mapper.target import Target
from sim import simulate
from tests.mapper.cases import GHZ, INSIDE, NEAR, OUTSIDE, RICH, attention, checked, experts, graph, near_memory, only, product, tensor
from workloads import cost, load
from workloads.graph import Operator


# The crossover of two rooflines ----------------------------------------------------------------------------------------------
def rooflines(m, k, n):
    """Femtoseconds of a product on the array behind the interface and on the lanes in the memory, by their rooflines."""
    macs, size = m * k * n, 2 * (m * k + k * n + m * n)
    outside = max(Fraction(macs, RICH * GHZ), Fraction(size, OUTSIDE))
    inside = max(Fraction(macs, NEAR * GHZ), Fraction(size, INSIDE))
    return outside * 10**15, inside * 10**15


K, N = 1024, 4096
# The lanes are compute-bound and the array memory-bound where they meet: m k n / NEAR = 2 (m k + k n + m n) / OUTSIDE
CROSSOVER = 1 / (Fraction(OUTSIDE, 2 * NEAR * GHZ) - Fraction(1, N) - Fraction(1, K))


def test_the_rooflines_cross_where_the_derivation_says():
    assert 16 < CROSSOVER < 17
    for m in range(1, 64):
        outside, inside = rooflines(m, K, N)
        assert (inside < outside) == (m < CROSSOVER)


@pytest.mark.parametrize("m", [1, 4, 8, 12, 14, 15, 16, 17, 18, 20, 32, 64])
def test_without_co_processing_a_product_runs_where_its_roofline_is_higher(m):
    result = compile_graph(product(m, K, N), near_memory(), co_processing=False)
    time = checked(result)
    assert only(result).plan.mapping.unit == ("lanes" if m < CROSSOVER else "array")
    assert min(rooflines(m, K, N)) <= time <= min(rooflines(m, K, N)) * Fraction(104, 100)  # fills and drains


@pytest.mark.parametrize("m", [1, 4, 8, 12, 14, 15, 16, 17, 18, 20, 32, 64])
def test_with_co_processing_the_larger_part_runs_where_the_roofline_is_higher(m):
    result = compile_graph(product(m, K, N), near_memory())
    time = checked(result)
    outside, inside = rooflines(m, K, N)
    sizes = {part.unit: part.placement["size"] for part in only(result).plan.mapping.parts}
    # both end at the same time where their parts are as their speeds
    share = Fraction(sizes["lanes"], sum(sizes.values()))
    assert abs(share - outside / (outside + inside)) <= Fraction(3, 64)
    if abs(m - CROSSOVER) > 1:  # a fold of the lanes is a 64th of the columns
        assert (sizes["lanes"] > sizes["array"]) == (m < CROSSOVER)
    assert time <= 1 / (1 / outside + 1 / inside) * Fraction(107, 100)


@pytest.mark.parametrize("workload", [product(4, K, N), product(16, K, N), experts(64, 8, 8, 512, 512), attention(16, 4, 2, 1, 1000, 128)])
def test_co_processing_is_never_slower_and_may_be_switched_off(workload):
    device = near_memory()
    together, apart = (checked(compile_graph(workload, device, co_processing=on)) for on in (True, False))
    assert together < apart


def test_where_the_memory_serves_one_way_at_a_time_units_that_wait_for_it_gain_nothing():
    # both memory-bound: whoever reads, the memory is busy, and the way inside is the faster one
    result = compile_graph(product(2, K, N), near_memory("exclusive"))
    assert only(result).plan.mapping.unit == "lanes"
    checked(result)
    # the array bound by its arithmetic leaves the memory idle, and the lanes may use it meanwhile
    checked(compile_graph(product(256, 64, 256), near_memory("exclusive")))


def test_a_unit_near_memory_takes_no_kernel_whose_epilogue_it_cannot_run():
    device = near_memory()
    description = device.to_dict()
    del description["units"]["near_vector"]
    description["links"] = [link for link in description["links"] if "near_vector" not in (link["source"], link["sink"])]
    bare = Device.from_dict(description)
    workload = attention(4, 4, 2, 1, 1000, 128)
    assert only(compile_graph(workload, bare)).plan.mapping.unit == "array"
    assert only(compile_graph(workload, device, co_processing=False)).plan.mapping.unit == "lanes"


def test_the_interface_stays_free_beside_a_way_of_banks_of_their_own():
    result = compile_graph(product(4, K, N), near_memory())
    busy = simulate(result.program, "fast").busy
    assert busy["dram"]
    assert busy["dram.buffer"]
    assert result.program.traffic()["dram"][0] >= 2 * (4 * K + K * N)


# Lowerings --------------------------------------------------------------------------------------------------------------------
def test_a_unit_that_multiplies_stored_formats_competes_with_converting_them():
    # tables of 2-bit weights that make 256 products per cycle, against arrays of int8 that make 16 and 1024
    lut = {"kind": "lut_tensor_core", "rows": 2, "columns": 64, "weight_bits": 2}
    rates = {"lut": 2 * 64 * 4 // 2, "array": None}
    for rows, winner in ((4, "lut"), (32, "array")):
        rates["array"] = rows * rows
        description = device_called("systolic-32").to_dict()
        description["units"] = {"array": {**description["units"]["array"], "rows": rows, "columns": rows}, "lut": lut}
        device = Device.from_dict(description)
        result = compile_graph(product(32, 256, 128, "int8", "int2"), device, co_processing=False)
        assert only(result).plan.mapping.unit == winner == max(rates, key=rates.get)
        checked(result)


# Copies -------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(
    "workload",
    [product(512, 512, 512), product(1, 100, 4096), product(100, 77, 333), experts(33, 5, 5, 64, 130), attention(3, 2, 2, 64, 64, 64)],
    ids=["square", "vector", "odd", "experts", "attention"],
)
def test_copies_share_a_kernel_in_lockstep_and_move_no_byte_twice(count, workload):
    device = device_called("edge-npu").with_settings({"memories.dram.bandwidth": "10 TB/s"})
    one = compile_graph(workload, device)
    many = compile_graph(workload, device.with_settings({"units.array.count": count}))
    assert checked(many) <= checked(one)
    (placed,) = many.kernels
    read, written = many.program.traffic()["dram"]
    compulsory = sum(o.size for o in placed.kernel.reads)
    assert read >= compulsory
    assert written >= sum(o.size for o in placed.kernel.writes)


def test_copies_of_an_array_divide_the_time_of_a_product_bound_by_it():
    device = device_called("edge-npu").with_settings({"memories.dram.bandwidth": "100 TB/s"})
    one, four = (checked(compile_graph(product(1024, 1024, 1024), device.with_settings({"units.array.count": count}))) for count in (1, 4))
    assert four * 3 < one <= 4 * four


def test_copies_of_a_vector_unit_divide_its_work():
    operator = Operator("e", "elementwise", ("x",), ("y",), {"elements": 2**20, "operations": 100, "specials": 0})
    workload = graph([tensor("x", (2**20,)), tensor("y", (2**20,))], [operator], ["x"], ["y"])
    one, four = (checked(compile_graph(workload, device_called("edge-npu").with_settings({"units.vector.count": c}))) for c in (1, 4))
    assert four * 3 < one <= 4 * four


# Pieces -------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("workload", [product(7, 5, 11, "int8", "int4-g128"), experts(33, 5, 5, 8, 6), attention(3, 5, 2, 4, 3, 8)])
def test_the_pieces_of_a_kernel_are_the_whole(workload):
    ((_, (kernel,)),) = fuse(workload)
    for dimension, size in extents(kernel).items():
        for cut in range(1, size):
            first, second = piece(kernel, dimension, 0, cut), piece(kernel, dimension, cut, size - cut)
            assert cost.macs(first.operator) + cost.macs(second.operator) == cost.macs(kernel.operator)
            for one, other, whole in zip(first.writes, second.writes, kernel.writes, strict=True):
                assert one.size + other.size == whole.size
            weights = [sum(o.size for o in k.reads if o.tensor == kernel.operator.inputs[1]) for k in (first, second, kernel)]
            assert weights[0] + weights[1] == (2 if dimension == "m" else 1) * weights[2]


# Independent kernels ------------------------------------------------------------------------------------------------------------
def two_products(m, shared):
    """Two products that do not depend on each other, of different inputs, or (`shared`) the second of the first's result."""
    tensors = [
        *(tensor(f"x{i}", (m, K)) for i in "12"),
        *(tensor(f"w{i}", (K, K), role="weight") for i in "12"),
        *(tensor(f"y{i}", (m, K)) for i in "12"),
    ]
    dims = {"batch": 1, "m": m, "n": K, "k": K}
    second = Operator("second", "matmul", ("y1" if shared else "x2", "w2"), ("y2",), dims)
    operators = [Operator("first", "matmul", ("x1", "w1"), ("y1",), dims), second]
    return graph(tensors, operators, ["x1"] if shared else ["x1", "x2"], ["y2"] if shared else ["y1", "y2"])


def test_kernels_are_independent_unless_one_needs_what_another_writes():
    for shared, runs in ((True, [range(1), range(1, 2)]), (False, [range(2)])):
        ((_, kernels),) = fuse(two_products(16, shared))
        assert independent(kernels) == runs


# Mapping files ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("workload", "device"),
    [
        (product(12, K, N), near_memory()),
        (product(256, 64, 256), near_memory("exclusive")),
        (two_products(16, shared=False), near_memory()),
        (experts(33, 5, 5, 64, 130), device_called("edge-npu").with_settings({"units.array.count": 3})),
    ],
    ids=["shared", "in turns", "two", "copies"],
)
def test_a_saved_placement_replays_to_the_same_program(workload, device):
    first = compile_graph(workload, device)
    text = first.mapping.dumps()
    again = compile_graph(workload, device, Mapping.loads(text))
    assert again.mapping.dumps() == text
    assert json.dumps(again.program.to_json()) == json.dumps(first.program.to_json())
    assert again.kernels[0].lower_bound_fs == first.kernels[0].lower_bound_fs


def edited(change):
    """The saved mapping of a shared product after `change` of its JSON."""
    document = json.loads(compile_graph(product(12, K, N), near_memory()).mapping.dumps())
    change(document["operators"][0])
    return Mapping.loads(json.dumps(document))


def test_an_edited_split_replays_with_its_own_time():
    def half(operator):
        for part in operator["parts"]:
            part["placement"]["size"] = N // 2

    result = compile_graph(product(12, K, N), near_memory(), edited(half))
    assert checked(result) > checked(compile_graph(product(12, K, N), near_memory()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o["parts"][0]["placement"].update(size=1), r"sizes of its parts must add up to 4096 along n"),
        (lambda o: o["parts"][0]["placement"].update(size="many"), r"size: expected an integer of at least 1, found 'many'"),
        (lambda o: o["parts"][0].update(unit="tensor"), r"unit 'tensor' cannot run it, expected one of array, lanes"),
        (lambda o: o["parts"][0]["placement"].update(color="red"), r"placement has no 'color', expected one of format"),
        (lambda o: o["parts"][0]["placement"].update(share="9/8"), r"share: expected a share such as 1/2"),
        (lambda o: o["parts"][0]["placement"].update(copies=2, split="n"), r"copies: unit 'array' has 1, found 2"),
        (lambda o: o["parameters"].update(split="k"), r"split: expected one of n, m, found 'k'"),
        (lambda o: o["parts"][1].update(o["parts"][0]), r"its parts need the same unit|sizes of its parts"),
        (lambda o: o["parts"][0]["placement"].update(share="0"), r"share: expected a share such as 1/2"),
        (lambda o: o["parts"][0]["placement"].update(copies=1, split="q"), r"split: expected one of n, m, found 'q'"),
        (lambda o: o["parts"][0]["placement"].update(keep="y"), r"placement has no 'keep', expected one of format"),
        (lambda o: o["parts"][0]["placement"].update(tokens="1 2"), r"tokens belong to parts split along experts, not along n"),
        (lambda o: o["parts"][0].update(parts=[dict(o["parts"][0])]), r"a part cannot have parts of its own"),
        (lambda o: o.update(placement={"share": "1/2"}), r"placement has no 'share', its parts have placements of their own"),
        (lambda o: o["parts"].pop(), r"sizes of its parts must add up to 4096 along n"),
    ],
)
def test_a_placement_that_cannot_be_is_refused_with_its_reason(change, message):
    with pytest.raises(MappingError, match=message):
        compile_graph(product(12, K, N), near_memory(), edited(change))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, {"together": "other"}, r"'first': together: nothing that is independent of it and next to it runs together with 'other'"),
        (1, {"prefetch": 64}, r"'second': prefetch: no kernel runs before it by itself that could load its weights"),
        (0, {"prefetch": 64}, r"'first': prefetch: no kernel runs before it"),
    ],
)
def test_what_runs_together_needs_a_partner_and_loads_nothing_ahead(index, change, message):
    workload = two_products(16, shared=False)
    document = json.loads(compile_graph(workload, near_memory()).mapping.dumps())
    document["operators"][index]["placement"] |= change
    with pytest.raises(MappingError, match=message):
        compile_graph(workload, near_memory(), Mapping.loads(json.dumps(document)))


def test_an_operator_that_is_mapped_twice_is_refused():
    document = json.loads(compile_graph(product(12, K, N), near_memory()).mapping.dumps())
    document["operators"] *= 2
    with pytest.raises(MappingError, match="has operator 'gemm' more than once"):
        compile_graph(product(12, K, N), near_memory(), Mapping.loads(json.dumps(document)))


@pytest.mark.parametrize("count", [1, 2, 1000, 10**9])
def test_more_copies_than_there_is_work_are_never_slower(count):
    few = near_memory(units={"lanes": {**near_memory().to_dict()["units"]["lanes"], "count": max(1, count // 2)}})
    many = near_memory(units={"lanes": {**near_memory().to_dict()["units"]["lanes"], "count": count}})
    workload = product(12, 256, 512)
    assert checked(compile_graph(workload, many)) <= checked(compile_graph(workload, few))


def test_units_that_would_take_hours_leave_the_work_to_others_and_alone_are_refused():
    slow = near_memory().with_settings({"memories.dram.bandwidth": "1 B/s"})
    assert only(compile_graph(product(12, 256, 512), slow)).plan.mapping.unit == "lanes"
    with pytest.raises(CapacityError, match="takes hours on 'array', more femtoseconds than 64 bits hold"):
        compile_graph(product(12, 256, 512), device_called("edge-npu").with_settings({"memories.dram.bandwidth": "1 B/s"}))


def test_two_matrix_units_without_a_vector_unit_run_what_needs_none():
    description = near_memory().to_dict()
    for name in ("vector", "near_vector"):
        del description["units"][name]
    gone = {"vector", "near_vector"}
    description["links"] = [link for link in description["links"] if not gone & {link["source"], link["sink"]}]
    bare = Device.from_dict(description)
    checked(compile_graph(product(12, 256, 512), bare))
    with pytest.raises(MappingError, match="has no unit that executes it; add a vector unit"):
        compile_graph(attention(4, 4, 2, 1, 100, 64), bare)


@pytest.mark.parametrize("capacity", ["1 B", "1 KiB", "33 KiB"])
def test_a_near_unit_with_a_tiny_scratchpad_takes_what_fits_or_nothing(capacity):
    last = checked(compile_graph(product(12, 256, 512), near_memory().with_settings({"memories.buffer.capacity": "1 B"})))
    device = near_memory().with_settings({"memories.buffer.capacity": capacity})
    assert checked(compile_graph(product(12, 256, 512), device)) <= last


def test_what_fits_on_no_unit_is_refused_with_the_missing_bytes():
    tiny = near_memory().with_settings({"memories.pad.capacity": "64 B", "memories.buffer.capacity": "64 B"})
    with pytest.raises(CapacityError, match=r"needs \d+ B in '(pad|buffer)', which holds 64 B"):
        compile_graph(product(12, K, N), tiny)


# Staying on the chip, loading ahead ------------------------------------------------------------------------------------------
def chain(m, layers=3, count=1):
    """Products one behind the other, each result the next one's input."""
    tensors = [tensor("x0", (m, 512)), *(tensor(f"x{i + 1}", (m, 512)) for i in range(layers))]
    tensors += [tensor(f"w{i}", (512, 512), role="weight") for i in range(layers)]
    dims = {"batch": 1, "m": m, "n": 512, "k": 512}
    operators = [Operator(f"p{i}", "matmul", (f"x{i}", f"w{i}"), (f"x{i + 1}",), dims) for i in range(layers)]
    return graph(tensors, operators, ["x0"], [f"x{layers}"], count=count)


def linked():
    """The edge device with a connection from the results' scratchpad to that of the activations."""
    description = device_called("edge-npu").to_dict()
    return Device.from_dict({**description, "links": [*description["links"], ["outputs", "activations"]]})


def test_results_stay_on_the_chip_where_the_scratchpads_are_linked():
    m = 64
    apart, near = (compile_graph(chain(m), device) for device in (device_called("edge-npu"), linked()))
    size, weights = m * 512 * 2, 512 * 512 * 2
    # the graph's input, the weights and the result; between the products nothing goes through memory
    assert near.program.traffic()["dram"] == (size + 3 * weights, size)
    assert apart.program.traffic()["dram"] == (3 * size + 3 * weights, 3 * size)
    assert [p.plan.mapping.placement.get("keep") for p in near.kernels] == ["x1", "x2", None]
    assert checked(near) < checked(apart)
    assert near.occupancy["activations"]["results that stay"] == 2 * size  # x1 is read while x2 is written


def test_what_stays_leaves_room_for_kernels_that_units_share_meanwhile():
    # y stays from the first kernel to the last; the product between them is shared by both units and cannot make room
    m, wide = 64, 2048
    tensors = [*(tensor(name, (m, wide)) for name in "xyzo"), tensor("w", (wide, wide), role="weight")]
    operators = [
        Operator("norm", "norm", ("x",), ("y",), {"rows": m, "width": wide}),
        Operator("gemm", "matmul", ("x", "w"), ("z",), {"batch": 1, "m": m, "n": wide, "k": wide}),
        Operator("mean", "softmax", ("y",), ("o",), {"rows": m, "width": wide}),
    ]
    for capacity in ("300 KiB", "400 KiB", "600 KiB", "4 MiB"):
        device = near_memory().with_settings({"memories.pad.capacity": capacity, "memories.buffer.capacity": capacity})
        result = compile_graph(graph(tensors, operators, ["x"], ["z", "o"]), device)
        checked(result)
    assert [one.tensor for one in result.kept] == ["y"]


def test_a_result_that_is_too_large_or_leaves_the_body_goes_through_memory():
    small = linked().with_settings({"memories.activations.capacity": "128 KiB"})
    result = compile_graph(chain(256), small)
    assert all("keep" not in p.plan.mapping.placement for p in result.kernels)
    checked(result)


def test_weights_are_loaded_while_the_kernel_before_computes_and_nothing_becomes_slower():
    device = linked().with_settings({"memories.dram.bandwidth": "50 GB/s"})
    workload = chain(400)
    result = compile_graph(workload, device)
    ahead = [p.plan.mapping.placement.get("prefetch", 0) for p in result.kernels]
    assert sum(ahead) > 0
    assert ahead[0] == 0
    document = json.loads(result.mapping.dumps())
    for operator in document["operators"]:
        operator.get("placement", {}).pop("prefetch", None)
    without = compile_graph(workload, device, Mapping.loads(json.dumps(document)))
    assert checked(result) < checked(without)
    assert result.program.traffic()["dram"] == without.program.traffic()["dram"]


@pytest.mark.parametrize("workload", [chain(400), chain(64, count=5)], ids=["once", "repeated"])
def test_a_mapping_that_keeps_and_loads_ahead_replays_to_the_same_program(workload):
    device = linked().with_settings({"memories.dram.bandwidth": "50 GB/s"})
    first = compile_graph(workload, device)
    again = compile_graph(workload, device, Mapping.loads(first.mapping.dumps()))
    assert again.mapping.dumps() == first.mapping.dumps()
    assert json.dumps(again.program.to_json()) == json.dumps(first.program.to_json())
    checked(again)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("keep", "x9", r"keep: 'x9' cannot stay on the chip; what can: x1, x2"),
        ("keep", "x3", r"keep: 'x3' cannot stay on the chip"),
        ("prefetch", 10**9, r"prefetch: 1000000000 B cannot be loaded ahead, at most \d+ B can"),
        ("prefetch", "all", r"prefetch: expected a number of bytes of at least 1, found 'all'"),
    ],
)
def test_what_cannot_be_kept_or_loaded_ahead_is_refused_with_its_reason(key, value, message):
    document = json.loads(compile_graph(chain(64), linked()).mapping.dumps())
    document["operators"][1].setdefault("placement", {})[key] = value
    with pytest.raises(MappingError, match=message):
        compile_graph(chain(64), linked(), Mapping.loads(json.dumps(document)))


def test_a_scratchpad_of_any_size_leads_to_a_program_that_obeys_the_laws():
    last = None
    for capacity in ("66 KiB", "100 KiB", "200 KiB", "1 MiB", "4 MiB", "64 MiB"):
        pads = {f"memories.{pad}.capacity": capacity for pad in ("activations", "weights", "outputs")}
        time = checked(compile_graph(chain(64), linked().with_settings(pads)))
        assert last is None or time <= last
        last = time


# Bounds -------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("access", ["concurrent", "exclusive"])
@pytest.mark.parametrize("workload", [product(1, 64, 64), product(128, 64, 256), attention(4, 4, 2, 1, 1000, 128)])
def test_the_bound_of_a_device_counts_what_all_its_units_and_ways_can_do(access, workload):
    device = near_memory(access)
    result = compile_graph(workload, device)
    checked(result)
    total = INSIDE if access == "exclusive" else INSIDE + OUTSIDE
    assert Target(device).peak_bandwidth == total
    size = sum(o.size for p in result.kernels for o in p.kernel.compulsory)
    macs = sum(cost.macs(p.kernel.operator) for p in result.kernels)
    expected = max(size * 10**15 / total, Fraction(macs * 10**15, (RICH + NEAR) * GHZ))
    assert abs(result.lower_bound_fs - expected) <= 1


def test_a_real_model_obeys_the_laws_on_a_device_of_two_units():
    workload = load("llama-2-7b", phase="decode", batch=4, context=512)
    device = near_memory()
    together, apart = (compile_graph(workload, device, co_processing=on) for on in (True, False))
    times = [simulate(result.program, "fast").makespan for result in (together, apart)]
    assert together.lower_bound_fs <= times[0] <= times[1]
    assert ceil(times[0]) > 0

"""Costs of iterations and the laws of a server that runs them."""

import dataclasses
from functools import lru_cache

import numpy as np
import pytest

import workloads
from dovetail.serving import serve
from dovetail.serving.arrivals import NS, Requests
from dovetail.serving.costs import SECTIONS_OF_CACHE, Iteration, StepCosts, decoding
from dovetail.serving.errors import ServingError
from dovetail.serving.front import step_costs
from dovetail.serving.server import population_ns, weighted_percentiles
from dovetail.serving.shares import expert_graph, expert_span, resized, tensor_parallel
from hw.collectives import closed_form
from hw.devices import load
from mapper.compile import compile_graph
from sim import simulate
from workloads import cost

MODEL = "mixtral-8x7b"


@lru_cache
def template(model=MODEL):
    return workloads.load(model, phase="decode", batch=1, context=2048)


@lru_cache
def costs(device="duplex", model=MODEL, devices=4, **options):
    return StepCosts(template(model), load(device), devices, **options)


def routed(tokens, layers=32, experts=8, seed=0):
    draw = np.random.default_rng(seed)
    counts = np.zeros((layers, experts), dtype=np.int64)
    for layer in range(layers):
        for _ in range(tokens):
            counts[layer, draw.choice(experts, 2, replace=False)] += 1
    return counts


# Shares of a model ---------------------------------------------------------------------------------------------------------
def test_a_step_of_many_tokens_has_the_work_of_one_many_times():
    one, many = template(), resized(template(), 24)
    for (before, _), (after, _) in zip(one.operators(), many.operators(), strict=True):
        factor = 1 if before.name.endswith("rope_table") else 24
        assert cost.flops(after) == factor * cost.flops(before), before.name
    assert cost.role_bytes(many, "weight") == cost.role_bytes(one, "weight")
    assert cost.role_bytes(many, "kv_cache") == 24 * cost.role_bytes(one, "kv_cache")


@pytest.mark.parametrize("model", [MODEL, "llama-3-70b", "opt-66b"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_shares_add_up_to_the_whole_and_two_all_reduces_a_layer_remain(model, ranks):
    graph = template(model)
    shared = tensor_parallel(graph, ranks)
    whole = {op.name: cost.macs(op) for op, _ in graph.operators()}
    for op, _ in shared.graph.operators():
        kept = op.kind == "grouped_matmul" or op.name.endswith("gate")  # experts are shared elsewhere, every device routes
        assert cost.macs(op) * (1 if kept else ranks) == whole[op.name], op.name
    assert cost.role_bytes(shared.graph, "kv_cache") * ranks == cost.role_bytes(graph, "kv_cache")
    (body,) = shared.reduced.values()
    hidden = graph.tensors[graph.segments[1].operators[0].outputs[0]].shape[-1]
    assert body == (2 * hidden, 2 * hidden)  # bytes of a token after attention and after the feed-forward network, fp16


def test_more_devices_than_key_value_heads_keep_one_head_each():
    shared = tensor_parallel(template("llama-3-70b"), 16)  # eight key/value heads
    (op,) = [op for op, _ in shared.graph.operators() if op.kind == "attention"]
    assert (op["heads"], op["kv_heads"]) == (4, 1)


def test_an_expert_is_an_eighth_of_the_experts_weights_and_slices_divide_it():
    graph = template()
    segment = next(s for s in graph.segments if expert_span(s))
    layer = sum(graph.tensors[op.inputs[1]].elements for op in segment.operators if op.kind == "grouped_matmul")
    for slices in (1, 2, 4):
        one = expert_graph(graph, segment, slices)
        assert 8 * slices * sum(t.elements for t in one.tensors.values() if t.role == "weight") == layer
        assert sum(cost.macs(op) for op, _ in one.operators()) * 8 * slices == layer


@pytest.mark.parametrize(("devices", "message"), [(3, "cannot be cut over 3 devices"), (0, "expected at least 1, found 0")])
def test_a_number_of_devices_that_does_not_divide_the_model_is_refused(devices, message):
    with pytest.raises(ServingError, match=message):
        step_costs(MODEL, "duplex", devices=devices)


def test_experts_that_cannot_be_spread_evenly_are_refused_with_the_way_out():
    with pytest.raises(ServingError, match="8 experts cannot be spread evenly over 16 devices; slice each of them instead"):
        step_costs(MODEL, "duplex", devices=16)


# Costs ---------------------------------------------------------------------------------------------------------------------
def test_a_part_takes_what_the_simulator_takes():
    found = costs()
    graph = resized(found._dense_graph, 32)
    trace = simulate(compile_graph(graph, found.device, co_processing=False).program)
    assert found.dense(32).fs == trace.makespan


def test_sizes_between_two_exact_ones_are_near_the_truth_and_experts_never_below_it():
    found = costs("duplex-gpu")
    for tokens in (300, 777):
        exact = found._map(resized(found._dense_graph, tokens), found.device).fs
        assert found.dense(tokens).fs == pytest.approx(exact, rel=0.06)
        expert = found._map(resized(found._expert_template, tokens), found.host).fs
        assert expert <= found.expert("host", tokens).fs <= 1.06 * expert


def test_remembered_costs_are_those_that_are_not():
    work = decoding([700] * 8, routed(8, seed=3))
    mixed = Iteration(8, 5600, ((512, 512), (100, 400)), 10, routed(620, seed=4))
    known, forgetful = costs("duplex-gpu"), costs("duplex-gpu", memo=False)
    for step in (work, mixed, work):
        assert known.step(step) == forgetful.step(step)


def test_systems_that_remember_together_cost_what_they_cost_alone():
    work = Iteration(4, 400, ((50, 50),), 5, routed(54, seed=9))
    for options in ({"strategy": "single", "co_processing": False}, {"slice_experts": True}):
        assert costs().alike(**options).step(work) == costs(**options).step(work)


def test_a_run_without_memory_is_the_same():
    options = {"device": "duplex-gpu", "devices": 4, "requests": 3, "max_batch": 2, "inputs": "9:2", "outputs": "2"}
    one, two = serve(MODEL, **options), serve(MODEL, memo=False, **options)
    assert one.served == two.served
    assert two.mapped > one.mapped


def test_experts_take_no_longer_by_the_optimum_than_by_the_rule_and_no_longer_by_the_rule_than_by_one_kind_of_units():
    found = {name: costs().alike(name) for name in ("single", "split", "optimum")}
    for tokens in (1, 8, 64):
        counts = routed(tokens, seed=tokens)
        single, split, optimum = (found[name].experts_cost(counts)[0].fs for name in found)
        assert optimum <= split <= single


def test_the_optimum_is_that_of_all_assignments_of_experts_to_both_kinds_of_units():
    found = costs().alike("optimum")
    counts = routed(40, layers=1, seed=5)
    mine = counts.reshape(4, 2)  # two experts on each of four devices, in sections of their own
    device_fs = []
    for rows in mine:
        x = [found.expert("host", int(n)).fs for n in rows]
        p = [found.expert("near", int(n)).fs for n in rows]
        alone = [found.expert("bundle", int(n)).fs for n in rows]
        ways = [sum(x), sum(p), max(x[0], alone[1]), max(alone[0], x[1])]
        device_fs.append(min(ways))
    assert found.experts_cost(counts)[0].fs == max(device_fs)


def test_the_rule_moves_the_experts_with_fewest_tokens_first():
    counts = np.array([[3, 60, 1, 50, 2, 70, 4, 40]])
    _, share = costs().alike(slice_experts=True).experts_cost(counts)
    # sections {0, 4}, {1, 5}, {2, 6}, {3, 7} have 5, 130, 5 and 90 rows: what goes is a prefix of 5, 5, 90, 130
    assert round(share * counts.sum()) in (0, 5, 10, 100, 230)
    assert 0 < share < 1


def test_more_bandwidth_near_memory_is_never_slower():
    slow = load("duplex")
    links = tuple(link.model_copy(update={"bandwidth": 2 * link.bandwidth}) if link.bandwidth else link for link in slow.links)
    fast = slow.model_copy(update={"links": links})
    found = StepCosts(template(), fast, 4)
    for tokens in (1, 16):
        work = decoding([2048] * tokens, routed(tokens))
        assert found.step(work).fs <= costs().step(work).fs


def test_near_memory_never_makes_a_decoding_step_slower():
    for tokens in (1, 16):
        work = decoding([1024] * tokens, routed(tokens))
        plain = costs("duplex-gpu").step(work).fs
        assert costs().step(work).fs <= plain
        assert costs("duplex-bank-pim").step(work).fs <= plain


def test_prompts_run_beside_decoding_attention_where_memory_serves_both_and_in_turns_where_not():
    work = Iteration(64, 64 * 4096, ((2048, 2048),), 65, routed(2112))
    for device, together in (("duplex", True), ("duplex-bank-pim", False)):
        found = costs(device)
        ((op, layers),) = found._attentions
        there = found.attention(found.near, "near", op, 64, 1, 4096).fs
        prompt = found.attention(found.host, "host", op, 1, 2048, 2048).fs
        moved = found._migrated(op, 2048).fs if together else 0
        expected = max(there, prompt + moved) if together else there + prompt
        assert found.step(work).parts["attention"] == layers * expected


def test_keys_and_values_lie_in_three_of_four_sections():
    found, plain = costs(), costs("duplex-gpu")
    assert found.bundles == 4
    assert found.room == plain.room * SECTIONS_OF_CACHE // 4
    assert plain.room == plain.device.dram.total - plain.weight_bytes
    assert costs(co_processing=False).room == plain.room


def test_halves_of_a_batch_take_turns_only_where_that_is_faster():
    """Attention in the banks of one half runs while the other half is in its dense layers."""
    plain = costs("neupims", model="opt-6.7b", devices=1)
    halves = dataclasses.replace(plain, sub_batches=True)
    for batch, keys in ((2, 64), (64, 200)):
        work = decoding([keys] * batch)
        one, two = plain.step(work), halves.step(work)
        assert two.fs <= one.fs
        ((op, layers),) = halves._attentions
        dense, attention = halves.dense(batch // 2).fs, halves.attention(halves.near, "near", op, batch // 2, 1, keys).fs
        overlapped = dense // layers + (2 * layers - 1) * max(dense // layers, attention) + attention
        whole = one.parts["dense"] + one.parts["attention"]
        assert two.parts.get("interleaved", whole) == min(overlapped, whole)


@pytest.mark.parametrize(
    ("model", "device", "message"),
    [
        (MODEL, "duplex", "--sub-batches: mixtral-8x7b has experts, whose weights each half would read again"),
        ("llama-3-70b", "duplex-gpu", "--sub-batches: duplex-gpu has no units near memory that work beside the others"),
        ("llama-3-70b", "duplex-bank-pim", "--sub-batches: duplex-bank-pim has no units near memory that work beside the others"),
    ],
)
def test_halves_that_cannot_take_turns_are_refused(model, device, message):
    with pytest.raises(ServingError, match=message):
        step_costs(model, device, devices=4, sub_batches=True)


def test_collectives_are_rings_of_the_stated_links():
    tokens, hidden, layers, vocabulary = 48, 4096, 32, 32000
    ring = 2 * layers * closed_form("all-reduce", "ring", 4, tokens * hidden * 2, 450e9, 0.8e-6)
    gather = closed_form("all-gather", "ring", 4, tokens * vocabulary * 2, 450e9, 0.8e-6)
    assert costs().collectives(tokens, tokens) == pytest.approx((ring + gather) * 1e15, rel=1e-9)
    assert costs("duplex-gpu", model="llama-3-70b", devices=2).collectives(tokens, 0) > 0


def test_a_stretch_is_its_steps_one_by_one():
    for device in ("duplex", "duplex-gpu"):
        found = costs(device)
        routes = [routed(6, seed=seed) for seed in range(3)]
        one_by_one = [found.step(Iteration(6, 600 + 6 * i, (), 6, counts)) for i, counts in enumerate(routes)]
        for step, of_stretch in zip(one_by_one, found.stretch(6, 600, routes), strict=True):
            assert step.parts == of_stretch.parts
            assert step.fs == of_stretch.fs
            assert step.joules == pytest.approx(of_stretch.joules)


# Serving -------------------------------------------------------------------------------------------------------------------
@lru_cache
def run(**options):
    options = {"device": "duplex", "requests": 40, "max_batch": 8, "inputs": "60:20", "outputs": "12:4", **options}
    return serve(MODEL, devices=4, costs=costs(options["device"]), **options)


RUNS = [{}, {"arrivals": "poisson:200"}, {"arrivals": "poisson:5"}, {"chunk": 48}, {"routing": "zipf:1"}, {"device": "duplex-gpu"}]


@pytest.mark.parametrize("options", RUNS)
def test_tokens_are_conserved(options):
    report = run(**options)
    assert report.output_tokens == sum(report.requests.outputs)
    assert sum(report.served.prompts) == sum(report.requests.inputs)
    assert sum(report.served.decoding) == sum(report.requests.outputs) - len(report.requests)  # the first comes with the prompt


@pytest.mark.parametrize("options", RUNS)
def test_the_population_over_time_is_the_sum_of_the_times_in_the_system(options):
    served = run(**options).served
    assert population_ns(served) == sum(done - at for done, at in zip(served.done, served.arrived, strict=True))


def test_a_closed_batch_obeys_littles_law():
    report = run()
    data, served = report.to_json(), report.served
    rate, answer = data["throughput"]["requests_per_s"], data["e2e_s"]["mean"]
    assert rate * answer == pytest.approx(data["population"])
    full = max(served.arrived)  # until the last request arrives, eight are in the system
    events = sorted([(t, 1) for t in served.arrived] + [(t, -1) for t in served.done])
    level = 0
    for at, change in events:
        level += change
        assert at >= full or change < 0 or level <= 8
    assert all(sum(a <= t < d for a, d in zip(served.arrived, served.done, strict=True)) == 8 for t in served.lasts if 0 < t < full)


@pytest.mark.parametrize("options", RUNS)
def test_no_request_ends_before_its_iterations_and_percentiles_are_ordered(options):
    report = run(**options)
    served, data = report.served, report.to_json()
    shortest = min(last - start for start, last, d in zip(served.starts, served.lasts, served.decoding, strict=True) if d)
    for number, output in enumerate(report.requests.outputs):
        assert served.arrived[number] < served.first[number] <= served.done[number]
        assert served.done[number] - served.first[number] >= (output - 1) * shortest
    assert served.starts == sorted(served.starts)
    assert all(start < last for start, last in zip(served.starts, served.lasts, strict=True))
    for key in ("ttft_s", "tbt_s", "e2e_s"):
        found = data[key]
        assert found["p50"] <= found["p90"] <= found["p95"] <= found["p99"] <= found["max"]
        assert found["mean"] <= found["max"]
    assert max(served.decoding) <= data["max_batch"]
    assert sum(data["time"].values()) == pytest.approx(1)


def test_iterations_never_overlap_and_time_is_what_they_cost():
    served = run().served
    assert served.starts[1:] == served.lasts[:-1]  # a closed population never lets the server idle
    assert served.lasts[-1] == pytest.approx(sum(served.parts.values()) / 1e6, rel=1e-6)


def test_a_request_alone_takes_its_prompt_and_its_steps():
    found = costs("duplex-gpu", model="llama-3-70b", devices=4)
    report = serve("llama-3-70b", device="duplex-gpu", costs=found, requests=1, max_batch=4, inputs="100", outputs="5")
    steps = [found.step(Iteration(0, 0, ((100, 100),), 1))]
    steps += [found.step(Iteration(1, 100 + done, (), 1)) for done in range(1, 5)]  # the new token attends to itself
    assert report.served.done == [sum(round(step.fs / 1e6) for step in steps)]
    assert report.served.first == [round(steps[0].fs / 1e6)]


def test_chunks_bound_the_tokens_of_prompts_in_an_iteration():
    report = run(chunk=48)
    assert max(report.served.prompts) == 48
    assert max(run().served.prompts) > 48


def test_requests_wait_where_keys_and_values_do_not_fit():
    small = load("duplex-gpu").with_settings({"memories.hbm.capacity": "22 GiB"})  # weights take 21.9 of them
    found = StepCosts(template(), small, 4)
    most = found.tokens_held
    assert most < 5000
    requests = Requests((most - 10, most - 10, 5), (5, 5, 2), (0, 0, 0), "test")
    report = serve(MODEL, device=small, costs=found, arrivals=requests, max_batch=8)
    first, second, third = report.served.done
    assert max(report.served.held) <= most
    assert report.served.first[1] > first  # the second has to wait for the first
    assert third >= second or report.served.first[2] > 0


def test_a_request_that_never_fits_is_refused_with_the_missing_bytes():
    found = costs()
    length = found.tokens_held
    short = (length + 1) * found.cache_bytes - found.room
    with pytest.raises(ServingError, match=rf"request 1 \({length} \+ 1 tokens\) needs .* GiB .*: {short} B short, {length} tokens fit"):
        serve(MODEL, device="duplex", costs=found, requests=1, inputs=str(length), outputs="1")


def test_weights_that_do_not_fit_are_refused_with_the_numbers():
    with pytest.raises(ServingError, match=r"1 x duplex cannot hold it: weights take 86\.99 GiB of 80\.00 GiB of each device"):
        step_costs(MODEL, "duplex")


def test_an_interrupt_leaves_the_requests_until_then(monkeypatch):
    import signal

    found = costs("duplex-gpu")
    step, calls = found.step, []

    def interrupted(work):
        calls.append(work)
        if len(calls) == 20:
            signal.raise_signal(signal.SIGINT)
        return step(work)

    monkeypatch.setattr(found, "step", interrupted)
    report = serve(MODEL, device="duplex-gpu", costs=found, requests=100, max_batch=4, inputs="10", outputs="6")
    data = report.to_json()
    assert data["ended"] == "interrupted"
    assert len(calls) == 20
    assert 0 < data["finished"] < 100
    assert data["e2e_s"]["max"] > 0


def test_weighted_percentiles_count_every_token():
    values, weights = np.array([30, 10, 20]), np.array([1, 98, 1])
    assert weighted_percentiles(values, weights, (0.5, 0.98, 0.99, 1.0)) == [10, 10, 20, 30]


def test_poisson_arrivals_below_capacity_are_served_at_their_rate():
    report = run(arrivals="poisson:5", requests=60)
    data = report.to_json()
    last = report.requests.arrivals_ns[-1] / NS
    assert data["duration_s"] == pytest.approx(last, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"requests": 0}, "--requests: expected at least 1, found 0"),
        ({"max_batch": 0}, "--max-batch: expected at least 1, found 0"),
        ({"chunk": 0}, "--chunk: expected at least 1, found 0"),
        ({"experts": "best"}, "experts: expected one of single, split, optimum, not 'best'"),
    ],
)
def test_odd_numbers_are_refused(options, message):
    with pytest.raises(ServingError, match=message):
        serve(MODEL, device="duplex", devices=4, **options)


def test_a_dense_model_has_nothing_to_route():
    with pytest.raises(ServingError, match="llama-3-70b has no experts to route to"):
        serve("llama-3-70b", device="duplex", devices=4, routing="zipf:1", requests=1)


def test_only_a_decode_step_of_one_sequence_is_a_template():
    graph = workloads.load("llama-2-7b", phase="prefill", batch=1, seq=2048)
    with pytest.raises(ServingError, match="expected a model, or the decode step of one sequence, found prefill of batch 1"):
        serve(graph, device="duplex")

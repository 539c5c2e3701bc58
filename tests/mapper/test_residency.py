"""What a kernel finds in the cache, in bodies that repeat."""

from dataclasses import replace

import pytest

from hw.memory import Cache
from mapper.kernels import fuse
from mapper.residency import Residency, carried, residents
from workloads import load


@pytest.fixture(scope="module")
def bodies():
    graph = load("llama-2-7b", phase="decode", context=128)
    return [(segment.count, kernels) for segment, kernels in fuse(graph)]


def cache(capacity):
    return Cache(capacity=capacity, bandwidth="1 TB/s")


def test_a_layer_hands_on_the_one_activation_that_no_kernel_of_it_reads(bodies):
    _, layer = bodies[1]
    assert carried(layer) == {"model.layers.0.add_1": "model.embed_tokens"}


def test_the_first_kernel_of_a_layer_finds_what_the_layer_before_wrote_last(bodies):
    """The embedding wrote it for the first layer, the last product of the layer before for every other one; weights of 400 MB lie between
    two uses of anything else."""
    layer = residents(bodies, cache(2**20))[1]
    assert layer[0].share("model.embed_tokens") == 1
    assert layer[0].keys() == {"model.embed_tokens"}


def test_weights_and_caches_of_another_layer_are_never_found(bodies):
    """Not even where every layer's would fit."""
    for kernel, found in zip(bodies[1][1], residents(bodies, cache(2**40))[1], strict=True):
        own = {o.tensor for o in kernel.reads if o.role in ("weight", "kv_cache")}
        written = {o.tensor for k in bodies[1][1] for o in k.writes}
        assert own & set(found) <= written


def test_a_body_that_leaves_two_alike_hands_on_neither(bodies):
    _, layer = bodies[1]
    twin = replace(layer[-1], writes=tuple(replace(o, tensor="twin") for o in layer[-1].writes))
    assert carried([*layer, twin]) == {}
    assert carried(layer[:-1]) == {}


def test_a_new_name_keeps_its_place():
    held = Residency(100)
    for name in "abc":
        held.held[name] = 30
    held.rename({"c": "a"})
    assert list(held.held.items()) == [("b", 30), ("a", 30)]

"""Loop nests in Timeloop's YAML: there and back, and what cannot be expressed is refused with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import workloads
from dovetail import estimate
from hw.devices import load
from mapper.errors import MappingError
from mapper.kernels import fuse
from mapper.nest import Nest
from mapper.target import Target
from mapper.timeloop import TimeloopMapping, export_nest, import_nest

DEVICES = {
    "outputs": load("systolic-32").with_settings({"units.array.rows": 4, "units.array.columns": 8}),
    "weights": load("systolic-32").with_settings(
        {"units.array.rows": 4, "units.array.columns": 8, "units.array.dataflow": "weight_stationary"}
    ),
}


def space(stationary: str, m: int, k: int, n: int) -> Nest:
    return Nest(Target(DEVICES[stationary]), fuse(workloads.load(f"gemm:{m}x{k}x{n}:int8"))[0][1][0])


@settings(max_examples=60, deadline=None)
@contextmanager
def suppress_only(reason: str) -> Iterator[None]:
    """Lets a `MappingError` with this reason pass, and no other."""
    try:
        yield
    except MappingError as error:
        if reason not in str(error):
            raise


@given(
    stationary=st.sampled_from(sorted(DEVICES)),
    m=st.integers(1, 300),
    k=st.integers(1, 300),
    n=st.integers(1, 300),
    pick=st.integers(0, 10**6),
)
def test_a_loop_nest_comes_back_with_the_same_tiles_and_takes_the_same_time(stationary: str, m: int, k: int, n: int, pick: int) -> None:
    nest = space(stationary, m, k, n)
    mapping = nest.mapping(pick % nest.table.size)
    text = ""
    with suppress_only("is no multiple of the unit"):
        text = export_nest(nest, mapping)
    if not text:
        return
    back = import_nest(TimeloopMapping.loads(text), nest)
    assert export_nest(nest, back) == text
    assert {d: back.parameters[d] for d in "mnk"} == {d: mapping.parameters[d] for d in "mnk"}
    one, other = nest.plan(mapping), nest.plan(back)
    assert one.effort["dram"] == other.effort["dram"]
    assert one.latency_fs == other.latency_fs


@given(m=st.integers(1, 5000), n=st.integers(1, 5000), k=st.integers(1, 5000))
@settings(max_examples=30, deadline=None)
def test_the_factors_of_a_dimension_cover_it_exactly(m: int, n: int, k: int) -> None:
    """The last round counts what is left: size = (trips - 1) x tile + (folds left - 1) x spatial + spatial left."""
    nest = space("outputs", m, k, n)
    assume(nest.table.size)
    document = yaml.safe_load(export_nest(nest, nest.mapping(0)))
    sizes = dict.fromkeys("MNK", 1)
    unit = {"temporal": {}, "spatial": {}}
    for directive in document["mapping"]:
        if directive["type"] == "bypass":
            continue
        for part in directive["factors"].split():
            dimension, count = part.split("=")
            whole, _, rest = count.partition(",")
            if directive["target"] == "array":
                unit[directive["type"]][dimension] = (int(whole), int(rest or whole))
            else:
                sizes[dimension] *= int(whole)
    for dimension, size in {"M": m, "N": n, "K": k}.items():
        (folds, folds_left), (side, side_left) = unit["temporal"][dimension], unit["spatial"][dimension]
        assert (sizes[dimension] - 1) * folds * side + (folds_left - 1) * side + side_left == size


FOREIGN = """
mapping:
- {target: dram, type: temporal, factors: M=2 N1 K=1, permutation: NMK}
- {target: ifmap, type: datatype, keep: [Inputs], bypass: [Weights, Outputs]}
- {target: ifmap, type: temporal, factors: 'M1 N4 K1', permutation: KNM}
- {target: array, type: temporal, factors: M=4 N=2 K=64, permutation: KMN}
- {target: array, type: spatial, factors: M=4 N=8 K=1}
"""


def test_a_nest_from_elsewhere_is_costed_and_its_placed_loops_decide_what_is_held() -> None:
    """The loop over N stands inside the left operand's scratchpad: that operand is loaded once, 32 x 64, the other for each M."""
    nest = space("outputs", 32, 64, 64)
    mapping = import_nest(TimeloopMapping.loads(FOREIGN), nest)
    assert dict(mapping.parameters) == {"m": 16, "n": 16, "k": 64, "order": "mnk", "hold": "none", "sums": "local"}
    assert nest.plan(mapping).effort["dram"].read == 32 * 64 + 2 * 64 * 64  # N innermost: nothing changes it, so nothing is reloaded


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("target: ifmap, type: temporal", "target: ifmpa, type: temporal"), "no level 'ifmpa', expected one of .*did you mean `ifmap`"),
        (("type: spatial", "type: spacial"), "type 'spacial': expected temporal, spatial or bypass; did you mean `spatial`"),
        (("M=2 N1", "M=3 N1"), "factors of M cover 48 elements, the operator has 32"),
        (("M=2 N1", "M=2 Q1"), "expected M=, N= and K= with a count.*found 'Q1'"),
        (("M=2 N1", "M=0 N1"), "M=0: expected a count of at least 1"),
        (("M=2 N1 K=1", "'M=2,1 N1 K=1'"), "an incomplete round is possible inside a tile only, not at 'dram'"),
        (("'M1 N4 K1'", "'M2 N4 K1'"), "a second loop over M: tiles of tiles"),
        (("permutation: NMK", "permutation: NMM"), "expected each of M, N and K at most once"),
        (("M=4 N=8 K=1}", "M=2 N=8 K=1}"), "factors of M cover 16 elements"),
        (("M=4 N=8 K=1}", "M=8 N=8 K=1}"), "spatial M=8: unit 'array' has 4 in that direction"),
        (("bypass: [Weights", "bypass: [Inputs, Weights"), "Inputs bypass 'ifmap'"),
        (("- {target: dram,", "- {level: dram,"), "expected a directive with target and type"),
        (("mapping:", "mappings:"), "a YAML document with a list `mapping`"),
        (("{target: dram", "{target: [dram"), "not valid YAML"),
        (("mapping:", "problem: {instance: {M: 33}}\nmapping:"), "M=33, but operator 'gemm' has M=32: it is for another shape"),
    ],
)
def test_mistakes_in_a_nest_are_named_with_their_place(change: tuple[str, str], reason: str) -> None:
    text = FOREIGN.replace(*change)
    assert text != FOREIGN
    with pytest.raises(MappingError, match=reason):
        import_nest(TimeloopMapping.loads(text, "found.yaml"), space("outputs", 32, 64, 64))


def test_an_order_that_the_unit_does_not_run_is_refused() -> None:
    text = FOREIGN.replace("M=2 N1 K=1, permutation: NMK", "M=2 N1 K=2, permutation: NMK").replace("K=64, permutation", "K=32, permutation")
    with pytest.raises(MappingError, match="a unit with stationary outputs runs MNK, NMK"):
        import_nest(TimeloopMapping.loads(text), space("outputs", 32, 64, 64))


def test_a_report_writes_its_nest_and_an_estimate_replays_it() -> None:
    found = estimate("gemm:500x1000x700:int8", device="systolic-32", strategy="output_stationary")
    again = estimate("gemm:500x1000x700:int8", device="systolic-32", mapping=TimeloopMapping.loads(found.timeloop()))
    assert again.latency_fs == found.latency_fs
    assert again.timeloop() == found.timeloop()


def test_what_a_loop_nest_cannot_say_is_refused_with_the_reason() -> None:
    with pytest.raises(MappingError, match=r"spreads loads over several iterations.*--strategy output_stationary"):
        estimate("gemm:512x4096x4096:int8", device="systolic-32").timeloop()
    with pytest.raises(MappingError, match="runs thread blocks, not loop nests"):
        estimate("gemm:64x64x64", device="a100-80g").timeloop()
    with pytest.raises(MappingError, match="Timeloop's mappings are of one operator"):
        estimate("llama-2-7b", device="a100-80g", phase="decode").timeloop()

"""Devices: the YAML and the Python object are the same thing, every number has a source, and data sheets agree with themselves."""

import copy
import re
from fractions import Fraction

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hw import UNITS, Device, Dram, HardwareError, Link, Scratchpad, Systolic, VectorUnit, json_schema
from hw.devices import FOLDER, load, names
from hw.memory import MEMORIES
from hw.unit import unit_class
from hw.work import Gemm, Vector

GPUS = ["a100-80g", "h100-sxm", "h200-sxm"]
ARRAYS = ["edge-npu", "systolic-128", "systolic-32"]


def small(**fields):
    """A device of one array, one vector unit, one scratchpad and a DRAM."""
    return Device(
        **{
            "name": "small",
            "clock": "1 GHz",
            "units": {"array": Systolic(rows=4, columns=8), "vector": VectorUnit(lanes=16, special_lanes=4)},
            "memories": {"sram": Scratchpad(capacity="64 KiB", bandwidth="32 GB/s"), "dram": Dram(capacity="1 GiB", bandwidth="4 GB/s")},
            "links": [("dram", "sram"), ("sram", "array")],
            **fields,
        }
    )


# The same thing in two spellings --------------------------------------------------------------------------------------------
def test_the_six_first_devices_are_shipped():
    assert set(GPUS + ARRAYS) <= set(names())


@pytest.mark.parametrize("name", names())
def test_a_shipped_device_survives_yaml_and_python_unchanged(name, tmp_path):
    device = load(name)
    assert device.name == name
    path = tmp_path / "copy.yaml"
    path.write_text(device.to_yaml(), encoding="utf-8")
    again = Device.from_yaml(path)
    assert again == device
    assert again.to_yaml() == device.to_yaml()
    assert again.digest == device.digest
    assert Device(**{field: getattr(device, field) for field in Device.model_fields}) == device


def test_the_python_spelling_of_a_device_equals_its_yaml_spelling():
    text = """
    schema: 1
    name: small
    clock: 1 GHz
    units:
      array: {kind: systolic, rows: 4, columns: 8}
      vector: {kind: vector, lanes: 16, special_lanes: 4}
    memories:
      sram: {kind: scratchpad, capacity: 64 KiB, bandwidth: 32 GB/s}
      dram: {kind: dram, capacity: 1 GiB, bandwidth: 4 GB/s}
    links:
    - [dram, sram]
    - {source: sram, sink: array}
    """
    assert Device.from_dict(yaml.safe_load(text)) == small()


quantities = {
    "clock": st.integers(1, 10**11),
    "units.array.rows": st.integers(1, 512),
    "units.array.columns": st.integers(1, 512),
    "units.array.dataflow": st.sampled_from(["output_stationary", "weight_stationary"]),
    "units.array.preload": st.sampled_from(["serial", "hidden"]),
    "units.array.fold_overlap": st.sampled_from(["none", "full"]),
    "units.array.dtypes": st.lists(st.sampled_from(["int8", "fp16", "fp8"]), unique=True),
    "units.array.operation_energy": st.none() | st.integers(0, 10**6).map(lambda n: Fraction(n, 1000)),
    "units.array.clock": st.none() | st.integers(1, 10**11),
    "memories.sram.capacity": st.integers(1, 2**45),
    "memories.sram.latency": st.integers(0, 10**15),
    "memories.dram.bandwidth": st.integers(1, 10**15),
    "memories.dram.refresh": st.fractions(0, "99/100"),
    "memories.dram.sharing": st.sampled_from(["shared", "per_operand"]),
    "memories.dram.cold_fill": st.sampled_from(["counted", "excluded"]),
    "launch": st.integers(0, 10**12),
    "power": st.none() | st.integers(0, 10**6).map(lambda n: Fraction(n, 1000)),
    "price": st.none() | st.floats(1, 1e6),
    "title": st.text(max_size=20),
}


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional=quantities))
def test_any_variant_survives_yaml_and_has_what_it_was_given(changes):
    device = small().with_settings(changes)
    for path, value in changes.items():
        found = device
        for step in path.split("."):
            found = found[step] if isinstance(found, dict) else getattr(found, step)
        assert found == (tuple(value) if isinstance(value, list) else value)
    again = Device.from_dict(yaml.safe_load(device.to_yaml()))
    assert again == device
    assert again.digest == device.digest
    validate(yaml.safe_load(device.to_yaml()), SCHEMA, SCHEMA)


# The schema that editors use ----------------------------------------------------------------------------------------------
SCHEMA = json_schema()
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int, "number": (int, float)}


def validate(value, schema, root, where="$"):
    """The part of JSON Schema that `json_schema` uses; any other keyword fails the test."""
    if "$ref" in schema:
        target = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        validate(value, target, root, where)
    for keyword, rule in schema.items():
        match keyword:
            case "type":
                options = [rule] if isinstance(rule, str) else rule
                fits = any(isinstance(value, TYPES[o]) and not (isinstance(value, bool) and o != "boolean") for o in options)
                assert fits, f"{where}: {value!r} is no {rule}"
            case "const":
                assert value == rule, f"{where}: {value!r} is not {rule!r}"
            case "enum":
                assert value in rule, f"{where}: {value!r} is none of {rule}"
            case "minimum" if isinstance(value, (int, float)):
                assert value >= rule, f"{where}: {value!r} < {rule}"
            case "maximum" if isinstance(value, (int, float)):
                assert value <= rule, f"{where}: {value!r} > {rule}"
            case "exclusiveMinimum" if isinstance(value, (int, float)):
                assert value > rule, f"{where}: {value!r} <= {rule}"
            case "minLength" if isinstance(value, str):
                assert len(value) >= rule, f"{where}: {value!r} is shorter than {rule}"
            case "oneOf" | "anyOf":
                fitting = 0
                reasons = []
                for option in rule:
                    try:
                        validate(value, option, root, where)
                        fitting += 1
                    except AssertionError as error:
                        reasons.append(str(error))
                assert fitting == 1 if keyword == "oneOf" else fitting, f"{where}: fits {fitting} of {len(rule)}: {reasons}"
            case "required" if isinstance(value, dict):
                assert set(rule) <= set(value), f"{where}: misses {set(rule) - set(value)}"
            case "properties" if isinstance(value, dict):
                for name, inner in rule.items():
                    if name in value:
                        validate(value[name], inner, root, f"{where}.{name}")
            case "additionalProperties" if isinstance(value, dict):
                for name in set(value) - set(schema.get("properties", {})):
                    assert rule is not False, f"{where}: unknown {name!r}"
                    validate(value[name], rule, root, f"{where}.{name}")
            case "items" if isinstance(value, list):
                for number, item in enumerate(value[len(schema.get("prefixItems", [])) :]):
                    validate(item, rule, root, f"{where}[{number}]")
            case "prefixItems" if isinstance(value, list):
                for number, (item, inner) in enumerate(zip(value, rule, strict=False)):
                    validate(item, inner, root, f"{where}[{number}]")
            case "minItems" | "maxItems" | "minProperties":
                assert len(value) <= rule if keyword == "maxItems" else len(value) >= rule, f"{where}: {len(value)} items"
            case _:
                assert keyword in {
                    "$ref", "$defs", "$schema", "title", "description", "default", "examples",
                    "required", "properties", "additionalProperties", "items", "prefixItems",
                    "minimum", "maximum", "exclusiveMinimum", "minLength", "format",
                }, f"the validator of this test does not know {keyword!r}"  # fmt: skip


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_schema_accepts_every_shipped_file(path):
    validate(yaml.safe_load(path.read_text(encoding="utf-8")), SCHEMA, SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(nome="x"),
        lambda d: d.pop("clock"),
        lambda d: d["units"]["array"].pop("kind"),
        lambda d: d["units"]["array"].update(kind="sistolic"),
        lambda d: d["units"]["array"].update(rows=0),
        lambda d: d["units"]["array"].update(rows="many"),
        lambda d: d["units"]["array"].update(dataflow="row_stationary"),
        lambda d: d["memories"]["dram"].update(bandwith="1 GB/s"),
        lambda d: d["memories"]["dram"].pop("capacity"),
        lambda d: d.update(links=[["dram"]]),
        lambda d: d.update(units={}),
        lambda d: d.update(schema=2),
    ],
)
def test_the_schema_refuses_what_the_device_refuses(change):
    data = yaml.safe_load(small().to_yaml())
    validate(data, SCHEMA, SCHEMA)
    change(data)
    with pytest.raises(AssertionError):
        validate(data, SCHEMA, SCHEMA)
    with pytest.raises(HardwareError):
        Device.from_dict(data)


def test_the_schema_knows_every_unit_and_memory_kind():
    for kinds in (UNITS, MEMORIES):
        for kind, cls in kinds.items():
            assert SCHEMA["$defs"][cls.__name__]["properties"]["kind"] == {"const": kind}


# Sources ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", names())
def test_every_number_of_a_shipped_device_has_a_source(name):
    device = load(name)
    assert device.source, "device"
    for group in (device.units, device.memories, device.constants):
        for part, description in group.items():
            assert description.source, f"{name}: {part} names no source"
    for path, constant in device.constants.items():
        assert constant.value, path
        assert constant.meaning, path


@pytest.mark.parametrize("name", names())
def test_a_constant_names_a_field_and_states_its_value(name):
    device = load(name)
    for path, constant in device.constants.items():
        found = device
        for step in path.split("."):
            if isinstance(found, tuple):
                found = {f"{link.source}-{link.sink}": link for link in found}
            known = found if isinstance(found, dict) else type(found).model_fields
            assert step in known, f"{name}: constants.{path} names no field"
            found = found[step] if isinstance(found, dict) else getattr(found, step)
        stated = constant.value.removesuffix("/bit")  # energies of memories are per bit
        again = device.with_settings({path: stated})
        assert again == device, f"{name}: constants.{path} states {constant.value}, the field is {found}"


# Data sheets agree with themselves ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "number_format", "tera"),
    [
        ("a100-80g", "fp16", 312.0),  # A100 white paper, table 1: 108 SM x 1024 MAC x 2 x 1.41 GHz
        ("a100-80g", "bf16", 312.0),
        ("a100-80g", "int8", 624.0),
        ("a100-80g", "int4", 1248.0),
        ("h100-sxm", "fp16", 989.4),  # H100 white paper, table 1: 132 SM x 2048 MAC x 2 x 1.83 GHz
        ("h100-sxm", "bf16", 989.4),
        ("h100-sxm", "fp8", 1978.9),
        ("h100-sxm", "int8", 1978.9),
        ("h200-sxm", "fp16", 989.4),
        ("h200-sxm", "fp8", 1978.9),
    ],
)
def test_peak_rates_are_those_of_the_data_sheet(name, number_format, tera):
    device = load(name)
    tensor = device.units["tensor"]
    by_hand = tensor.count * tensor.macs[number_format] * 2 * device.clock
    assert device.peak_flops("tensor", number_format) == by_hand
    assert by_hand == pytest.approx(tera * 1e12, rel=1e-3)


@pytest.mark.parametrize(("name", "tera"), [("a100-80g", 19.5), ("h100-sxm", 66.9)])
def test_vector_lanes_give_the_stated_fp32_rate(name, tera):
    # the data sheets count a fused multiply-add as two FLOPs, the device one operation per lane and cycle; H100's fp32
    # figure is at a higher boost clock than its tensor figure, so two tenths of it are allowed
    assert 2 * load(name).peak_flops("vector", "fp32") == pytest.approx(tera * 1e12, rel=0.1)


@pytest.mark.parametrize(("name", "giga"), [("a100-80g", 2039), ("h100-sxm", 3350), ("h200-sxm", 4800)])
def test_hbm_bandwidth_is_that_of_the_data_sheet(name, giga):
    assert load(name).dram.bandwidth == giga * 10**9
    assert load(name).main_memory == "hbm"


@pytest.mark.parametrize("name", GPUS)
def test_on_chip_bandwidths_follow_from_widths_and_clock(name):
    device = load(name)
    units, memories = device.units, device.memories
    # 5120 B per cycle: of Ampere at its one clock, of Hopper at the clock that it keeps where power does not limit it
    clock = device.clock if name.startswith("a100") else device.unit_clock("vector")
    assert memories["l2"].bandwidth == 5120 * clock
    assert memories["shared"].bandwidth == units["tensor"].count * units["tensor"].shared_bandwidth * device.clock
    registers = units["vector"].count * units["vector"].lanes * 3 * 4 * device.clock  # two operands and a result of 4 B each
    assert memories["registers"].bandwidth == pytest.approx(registers, rel=1e-3)
    assert memories["registers"].capacity == 64 * 1024 * 4


@pytest.mark.parametrize("name", ["systolic-32", "systolic-128"])
def test_scratchpads_of_the_arrays_feed_one_edge_per_cycle(name):
    device = load(name)
    array = device.units["array"]
    assert array.rows == array.columns == int(name.split("-")[1])
    assert device.memories["ifmap"].bandwidth == array.rows * device.clock
    assert device.memories["filter"].bandwidth == array.columns * device.clock
    assert device.memories["ofmap"].bandwidth == array.columns * 4 * device.clock


def test_the_edge_npu_has_the_bandwidth_of_its_channels_and_the_rate_of_its_cells():
    device = load("edge-npu")
    assert device.dram.bandwidth == 8 * 16 // 8 * 6400 * 10**6  # eight 16-bit channels, 6400 MT/s
    assert device.peak_flops("array", "int8") == 128 * 128 * 2 * 10**9


# What the mapper asks ------------------------------------------------------------------------------------------------------
def test_work_takes_the_cycles_of_the_unit_at_its_own_clock():
    device = small().with_settings({"units.vector.clock": "500 MHz"})
    assert device.work_fs("vector", Vector(32)) == 2 * 2 * 10**6  # 2 cycles of 2 ns
    assert device.work_fs("array", Gemm(4, 8, 10, "int8")) == (10 + 4 + 8 - 2) * 10**6
    assert device.units_for("gemm") == ["array"]
    assert device.units_for("vector") == ["vector"]


def test_the_linked_scratchpad_serves_an_operand_before_any_other():
    pads = {
        "other": Scratchpad(capacity="1 KiB", bandwidth="1 GB/s", holds="weights"),
        "mine": Scratchpad(capacity="1 KiB", bandwidth="1 GB/s", holds="weights"),
        "dram": Dram(capacity="1 GiB", bandwidth="4 GB/s"),
    }
    device = small(memories=pads, links=[("mine", "array")])
    assert device.scratchpad("weights", "array") == "mine"
    assert small(memories=pads, links=[]).scratchpad("weights", "array") == "other"
    assert device.scratchpad("activations", "array") is None


def test_main_memory_is_the_dram_or_the_largest():
    assert small().main_memory == "dram"
    pads = {n: Scratchpad(capacity=c, bandwidth="1 GB/s") for n, c in (("a", "1 KiB"), ("b", "3 KiB"), ("c", "2 KiB"))}
    assert small(memories=pads, links=[]).main_memory == "b"


def test_equal_descriptions_have_equal_digests_and_any_change_another():
    assert small().digest == small().digest
    assert small().with_settings({"units.array.rows": 5}).digest != small().digest
    assert small(clock=10**9).digest == small(clock="1000 MHz").digest


def test_a_device_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        small().clock = 1
    assert repr(small()) == "Device(small: array, vector; sram, dram)"


def test_a_variant_leaves_the_original_alone():
    device = small()
    before = copy.deepcopy(device)
    variant = device.with_settings({"units.array.rows": "32", "memories.dram.bandwidth": "48 GB/s", "launch": "1 us"})
    assert device == before
    assert (variant.units["array"].rows, variant.dram.bandwidth, variant.launch) == (32, 48 * 10**9, 10**9)
    assert variant.units["vector"] == device.units["vector"]


def test_a_link_is_set_by_the_names_of_its_ends():
    device = load("duplex")
    slower = device.with_settings({"links.hbm-near_buffer.bandwidth": "5 TB/s"})
    ways = {(link.source, link.sink): link.bandwidth for link in slower.links}
    before = {(link.source, link.sink): link.bandwidth for link in device.links}
    assert ways == before | {("hbm", "near_buffer"): 5 * 10**12}


def test_no_settings_are_the_same_device():
    assert load("edge-npu").with_settings({}) == load("edge-npu")


# Mistakes -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("units.arrya.rows", 1, "units.arrya.rows: units has no 'arrya', expected one of array, vector; did you mean `array`?"),
        ("foo", 1, "foo: small has no 'foo', expected one of source, name, title, clock"),
        ("memories.dram.bandwith", 1, "memories.dram has no 'bandwith', expected one of"),
        ("units.array", 1, "units.array: is a group, set one of its fields: source, count, clock"),
        ("units", 3, "units: is a group, set one of its fields: array, vector"),
        ("units.array.rows.x", 1, "units.array.rows.x: units.array.rows has no 'x'"),
        ("units.array.kind", "vector", "units.array has no 'kind'"),
        ("units.array.rows", 0, "small with units.array.rows=0: units.array.rows: input should be greater than or equal to 1, found 0"),
        ("units.array.rows", "x", "units.array.rows: input should be a valid integer, unable to parse string as an integer, found 'x'"),
        ("units.array.rows", 3.5, "units.array.rows: input should be a valid integer, got a number with a fractional part, found 3.5"),
        ("units.array.dataflow", "ws", "units.array.dataflow: input should be 'output_stationary' or 'weight_stationary', found 'ws'"),
        ("memories.dram.bandwidth", "5 GHz", "memories.dram.bandwidth: expected a number with B/s, KiB/s"),
        (
            "memories.sram.capacity",
            "64 KB",
            "memories.sram.capacity: expected a number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB, not '64 KB'",
        ),
        ("memories.dram.refresh", "2", "memories.dram.refresh: expected a ratio from 0 to below 1, not '2'"),
        ("links.dram-srma.bandwidth", "1 GB/s", "links has no 'dram-srma', expected one of "),
        ("links", [["dram", "nowhere"]], "links.0: 'nowhere' is neither a unit nor a memory"),
    ],
)
def test_a_setting_that_cannot_be_made_says_where_and_why(path, value, message):
    with pytest.raises(HardwareError, match=re.escape(message)):
        small().with_settings({path: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["units"]["array"].update(kind="sistolic"), "device: units.array: unknown unit kind 'sistolic', expected one of "),
        (lambda d: d["units"]["array"].update(kind="sistolic"), "; did you mean `systolic`?"),
        (lambda d: d["units"]["array"].pop("kind"), "device: units.array: unknown unit kind None, expected one of "),
        (lambda d: d["units"].update(array=3), "device: units.array: expected a mapping with a `kind`, found 3"),
        (lambda d: d.update(units=[1]), "device: units: input should be a valid dictionary, found [1]"),
        (lambda d: d["units"]["array"].update(row=3), "device: units.array.row: unknown field; did you mean `rows`?"),
        (
            lambda d: d["memories"]["dram"].update(kind="dramm"),
            "unknown memory kind 'dramm', expected one of cache, dram, ",
        ),
        (lambda d: d["memories"]["dram"].update(kind="dramm"), "; did you mean `dram`?"),
        (lambda d: d.update(units={}), "device: units: expected at least one"),
        (lambda d: d.update(memories={}), "device: memories: expected at least one"),
        (lambda d: d["memories"].update(array=d["memories"]["dram"]), "device: units and memories share the name 'array'; rename one"),
        (lambda d: d.update(schema=2), "device: schema 2 cannot be read, expected 1"),
        (lambda d: d.pop("clock"), "device: clock: missing field"),
        (lambda d: d.update(clok=1), "device: clok: unknown field; did you mean `clock`?"),
        (lambda d: d.update(links=[["dram", "arry"]]), "device: links.0: 'arry' is neither a unit nor a memory; did you mean `array`?"),
        (lambda d: d.update(links=[["dram"]]), "device: links.0: expected a pair (source, sink), found ['dram']"),
        (lambda d: d.update(links=[["a", "b", "c"]]), "device: links.0: expected a pair (source, sink), found ['a', 'b', 'c']"),
    ],
)
def test_a_wrong_description_is_refused_with_its_place_and_the_nearest_name(change, message):
    data = copy.deepcopy(small().to_dict())
    change(data)
    with pytest.raises(HardwareError, match=re.escape(message)):
        Device.from_dict(data)


def test_every_mistake_of_a_file_is_reported_at_once(tmp_path):
    path = tmp_path / "wrong.yaml"
    data = small().to_dict()
    data["clock"] = "1 GB"
    data["units"]["array"]["rows"] = -1
    data["memories"]["dram"]["capacity"] = "3 b"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(HardwareError) as caught:
        Device.from_yaml(path)
    assert str(caught.value).splitlines() == [
        f"{path}: clock: expected a number with Hz, kHz, MHz or GHz, not '1 GB'",
        f"{path}: units.array.rows: input should be greater than or equal to 1, found -1",
        f"{path}: memories.dram.capacity: expected a number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB, not '3 b'",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [x\n", "not valid YAML: while parsing a flow sequence"),
        (b"", "expected a mapping with name, clock, units and memories, found NoneType"),
        (b"- 1\n", "expected a mapping with name, clock, units and memories, found list"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_description_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "device.yaml"
    path.write_bytes(content)
    with pytest.raises(HardwareError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        Device.from_yaml(path)


def test_unknown_devices_and_missing_files_are_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(HardwareError, match=r"^unknown device 'a100-8g', expected one of .* or a YAML file; did you mean `a100-80g`\?$"):
        load("a100-8g")
    with pytest.raises(HardwareError, match=r"mine\.yaml: no such device file$"):
        load(tmp_path / "mine.yaml")


@pytest.mark.parametrize(("kind", "hint"), [("systolc", "; did you mean `systolic`?"), (7, "")])
def test_an_unknown_unit_kind_is_told_the_nearest(kind, hint):
    with pytest.raises(HardwareError) as caught:
        unit_class(kind)
    assert str(caught.value).startswith(f"unknown unit kind {kind!r}, expected one of ")
    assert str(caught.value).endswith(hint)


def test_a_link_is_a_pair_or_a_mapping():
    assert Link.model_validate(("dram", "sram")) == Link(source="dram", sink="sram")
    assert small(links=[Link(source="dram", sink="sram", bandwidth="1 GB/s", latency="2 ns")]).links[0].latency == 2 * 10**6

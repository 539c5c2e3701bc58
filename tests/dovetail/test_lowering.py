"""Number formats and lowerings in reports: what was asked for is what is named, stored, moved and multiplied."""

import json
from fractions import Fraction
from math import ceil

import pytest

from dovetail import estimate
from dovetail.cli import main
from hw.devices import names
from mapper.lmma import looks_up, tabled
from mapper.target import Target, converts, native
from workloads import quantise
from workloads.format import parse_format
from workloads.graph import Graph

LUT = [name for name in names() if name in ("a100-lut-4x", "a100-lut-8x", "h100-lut-8x")]
LINEAR = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096  # weights of llama-2-7b's linear layers
REST = 6_738_415_616 - LINEAR
CACHED = 2 * 32 * 4096 * 2048  # keys and values of 2048 tokens


def decode(device, **formats):
    return estimate("llama-2-7b", device=device, phase="decode", batch=1, context=2048, **formats)


@pytest.mark.parametrize("device", ["a100-80g", "a100-lut-4x", "edge-npu"])
def test_formats_of_weights_activations_and_cache_are_named_stored_and_moved(device):
    report = decode(device, weights="bitmod3", acts="int8", kv="kivi2")
    assert report.formats == {"weights": "bitmod3", "acts": "int8", "kv": "kivi2"} == report.to_json()["formats"]
    assert "weights bitmod3/acts int8/kv kivi2" in report.text()
    main = next(m for m in report.memories if "kv cache" in m.parts)
    bits = 3 + Fraction(10, 128)  # an 8-bit scale and a 2-bit selector per 128
    assert main.parts["weights"] == LINEAR * bits / 8 + 2 * REST
    assert main.parts["kv cache"] == CACHED * 3 // 8  # 2 bits, and 32 bits of scale and minimum per 32
    table = 32000 * 4096 * 2 - 2 * 4096  # of the embedding one row is read
    assert main.parts["weights"] + main.parts["kv cache"] - table <= main.read <= 1.02 * (main.parts["weights"] + main.parts["kv cache"])


def test_an_unlike_unit_takes_narrow_activations_converted_and_says_so():
    narrow, wide = (estimate("gemm:16x4096x1024", device="bitmod", weights="bitmod3", acts=acts) for acts in ("int8", "fp16"))
    assert narrow.formats == {"weights": "bitmod3", "acts": "int8"}
    assert [o.lowering for o in narrow.operators] == ["fp16xbitmod3 from int8"]
    assert [o.lowering for o in wide.operators] == ["fp16xbitmod3 as stored"]
    assert wide.operators[0].bytes - narrow.operators[0].bytes == 16 * 4096  # a byte less each
    assert any(note.startswith("int8 operands are converted to fp16") for note in narrow.assumptions)
    assert not any("are converted" in note for note in wide.assumptions)


@pytest.mark.parametrize(
    ("number_format", "stored", "position", "converted"),
    [("fp16", "fp16", 0, False), ("int8", "int2", 1, True), ("fp16xint4", "int3", 1, False), ("fp16xint4", "int8", 0, True)],
)
def test_what_is_converted(number_format, stored, position, converted):
    assert converts(number_format, parse_format(stored), position) == converted


def test_formats_of_a_model_whose_embedding_is_larger_than_its_layers_are_those_of_its_layers(tmp_path):
    config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    path = tmp_path / "wide.json"
    path.write_text(json.dumps({**config, "intermediate_size": 64, "vocab_size": 50000, "tie_word_embeddings": True}))
    report = estimate(str(path), device="a100-80g", phase="decode", batch=1, context=8, weights="int4", acts="int8", kv="int8")
    assert report.formats == {"weights": "int4", "acts": "int8", "kv": "int8"}


def test_a_second_format_replaces_the_note_of_the_first():
    product = _product()
    notes = quantise(quantise(product, weights="ternary", acts="int8"), weights="int2").notes
    assert [note for note in notes if note.startswith("weights of")] == [notes[-1]]
    assert "int2" in notes[-1]
    assert any("int8" in note for note in notes)


def _product() -> Graph:
    from workloads import load

    return load("gemm:8x64x64")


# Look-ups in reports --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("device", LUT)
@pytest.mark.parametrize("weights", ["int1", "int2", "int3", "int4"])
def test_every_linear_layer_names_its_instruction_and_who_builds_its_tables(device, weights):
    report = decode(device, weights=weights, acts="int8")
    products = [o for o in report.operators if o.kind == "matmul"]
    planes = weights[3:]
    looked_up = [o for o in products if o.lowering.startswith("lmma")]
    assert looked_up
    for row in looked_up:
        instruction, _, builder = row.lowering.partition(", tables ")
        assert instruction == f"lmma.m2n64k4.int8.int{planes}.int32.int32"
        assert builder.split(" ")[0] in ("by", "fused")
        assert builder.split(" ")[-1] in {o.name for o in report.operators}
        assert f"format=table8-k4xint{planes}" in row.mapping
    for row in products:
        if row not in looked_up:
            assert row.lowering in (f"int8 from {weights}", "int8 as stored")
    assert report.text().splitlines()[-1].startswith("lowering: lmma.")
    assert {o["name"]: o["lowering"] for o in report.to_json()["operators"]} == {o.name: o.lowering for o in report.operators}


@pytest.mark.parametrize("device", LUT)
def test_wider_weights_never_decode_faster(device):
    times = [decode(device, weights=f"int{bits}", acts="int8").latency_fs for bits in (1, 2, 3, 4)]
    assert times == sorted(times)


def test_a_device_that_only_multiplies_has_no_line_of_lowerings():
    report = decode("a100-80g", weights="int2", acts="int8")
    assert "lowering:" not in report.text()
    assert {o.lowering for o in report.operators if o.kind == "matmul"} == {"int8 from int2"}


@pytest.mark.parametrize(("path", "value"), [("rows", 4), ("columns", 32), ("depth", 2), ("arrays", 3), ("symmetric", "false")])
def test_settings_of_the_array_work_from_the_command_line(path, value, capsys):
    arguments = ["estimate", "gemm:256x1024x1024", "--device", "a100-lut-4x", "--weights", "int2", "--acts", "int8", "--json"]
    assert main([*arguments, "--set", f"units.tensor.{path}={value}", "--set", "units.tensor.tables=separate"]) == 0
    (built, row) = json.loads(capsys.readouterr().out)["operators"]
    sizes = {"rows": 2, "columns": 64, "depth": 4} | ({path: value} if path != "symmetric" else {})
    assert row["lowering"].startswith(f"lmma.m{sizes['rows']}n{sizes['columns']}k{sizes['depth']}.int8.int2")
    assert row["lowering"].endswith("tables by a.tables")
    entries = 2 ** (sizes["depth"] - (path != "symmetric"))
    tables = 256 * 1024 * Fraction(entries * 8, sizes["depth"]) / 8 + 256 * 1024 // 64 * 2
    assert built["bytes"] <= ceil(256 * 1024 + tables)  # what it reads and writes, less what stays in the cache


@pytest.mark.parametrize(("setting", "message"), [("depth=0", "depth"), ("tables=maybe", "'by_cost', 'fused', 'separate' or 'none'")])
def test_impossible_settings_end_with_one_message(setting, message, capsys):
    arguments = ["estimate", "gemm:8x64x64", "--device", "a100-lut-4x", "--set", f"units.tensor.{setting}"]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out


def test_a_page_names_the_lowering_of_every_product(tmp_path):
    report = decode("a100-lut-4x", weights="int2", acts="int8")
    report.save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("lmma.m2n64k4.int8.int2.int32.int32") >= sum(o.lowering.startswith("lmma") for o in report.operators)


def test_look_ups_take_integers_and_floats_of_eight_and_sixteen_bits_by_integers():
    from hw.devices import load

    unit = load("a100-lut-4x").units["tensor"]
    for acts in ("int8", "fp16", "bf16", "fp8"):
        for weights, planes in (("int1", 1), ("ternary", 2), ("int3-g128", 3), ("bipolar4", 4), ("int8", 8)):
            assert looks_up(unit, parse_format(acts), parse_format(weights)) == f"table8-k4xint{planes}"
    assert looks_up(unit, parse_format("fp32"), parse_format("int2")) is None
    assert looks_up(unit, parse_format("int8"), parse_format("mxfp4")) is None
    assert tabled(_product(), unit) == []  # fp16 weights
    assert native(unit.formats(), parse_format("int8"), parse_format("int2")) is None  # activations are no tables
    assert Target(load("a100-lut-4x")).lowerings("tensor", parse_format("int8"), parse_format("int2")) == ("int8",)

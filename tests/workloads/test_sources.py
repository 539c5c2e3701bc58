"""Where graphs come from: names, files, single products; and every way to get them wrong."""

from __future__ import annotations

import gzip
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workloads import catalogue, cost, load, names, save_graph, source, sources
from workloads.errors import WorkloadError
from workloads.graph import Graph
from workloads.traces import SHIPPED

ROOT = Path(__file__).parents[2]


# --- single products --------------------------------------------------------------------------------------------------
def test_a_gemm_is_one_product_in_one_format():
    graph = load("gemm:100x300x77:int8")
    (op,) = graph.segments[0].operators
    assert dict(op.attributes) == {"batch": 1, "m": 100, "k": 300, "n": 77}
    assert {t.name: (t.shape, t.role, t.format.name) for t in graph.tensors.values()} == {
        "a": ((100, 300), "activation", "int8"), "b": ((300, 77), "weight", "int8"), "c": ((100, 77), "activation", "int8"),
    }  # fmt: skip
    assert (graph.phase, graph.inputs, graph.outputs) == ("single", ("a",), ("c",))
    assert cost.total_flops(graph) == 2 * 100 * 300 * 77


def test_a_gemm_is_in_fp16_unless_told_otherwise():
    assert {t.format.name for t in load("gemm:1x2x3").tensors.values()} == {"fp16"}


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ("gemm:1x2", "expected gemm:MxKxN"),
        ("gemm:", "expected gemm:MxKxN"),
        ("gemm:axbxc", "expected gemm:MxKxN"),
        ("gemm:1.5x2x3", "expected gemm:MxKxN"),
        ("gemm:0x2x3", "M must be at least 1, not 0"),
        ("gemm:1x-2x3", "K must be at least 1, not -2"),
        ("gemm:1x2x0:int8", "N must be at least 1, not 0"),
        ("gemm:1x2x3:int9", "format 'int9': unknown number format"),
    ],
)
def test_a_bad_gemm_is_refused(workload, message):
    with pytest.raises(WorkloadError, match=message):
        load(workload)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"phase": "decode"}, "has no phase"), ({"seq": 8}, "has no seq"), ({"batch": 2}, "has no batch; multiply M by it")],
)
def test_a_gemm_takes_no_model_options(options, message):
    with pytest.raises(WorkloadError, match=message):
        load("gemm:1x2x3", **options)


# --- options ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("option", ["batch", "seq", "context"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True])
def test_sizes_are_whole_numbers_of_at_least_one(option, value):
    with pytest.raises(WorkloadError, match=rf"{option}: expected a whole number of at least 1, not {value!r}"):
        load("llama-2-7b", **{option: value})


def test_an_unknown_phase_is_refused_with_the_nearest():
    with pytest.raises(WorkloadError, match="phase: expected one of prefill, decode, not 'decoding'; did you mean `decode`"):
        load("llama-2-7b", phase="decoding")


def test_unknown_logits_are_refused():
    with pytest.raises(WorkloadError, match="logits: expected one of last, all, not 'first'"):
        load("llama-2-7b", logits="first")


def test_decode_takes_a_context_not_a_prompt():
    with pytest.raises(WorkloadError, match="decode takes one new token per sequence; give `context`=8 instead of `seq`"):
        load("llama-2-7b", phase="decode", seq=8)


def test_prefill_attends_to_its_own_prompt():
    with pytest.raises(WorkloadError, match="expected `context` equal to `seq`=8, not 9"):
        load("llama-2-7b", phase="prefill", seq=8, context=9)


# --- names ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("wrong", "right"), [("llama-2-7", "llama-2-7b"), ("deepseek-v2", "deepseek-v3"), ("opt66b", "opt-66b")])
def test_an_unknown_model_is_refused_with_the_nearest(wrong, right):
    with pytest.raises(WorkloadError, match=rf"workload '{wrong}': no such model, expected one of bert-base, .*did you mean `{right}`"):
        load(wrong)


def test_names_are_sorted_and_described():
    assert list(names()) == sorted(names())
    assert len(names()) == 30
    for name in names():
        row = catalogue.describe(name)
        assert (row.name, bool(row.source)) == (name, True)
        assert min(row.layers, row.hidden, row.heads, row.vocabulary, row.parameters) > 0


def test_an_alias_and_capitals_are_understood():
    assert catalogue.describe("mamba-2") is catalogue.describe(" Mamba-2-2.7B ")


def test_the_catalogue_and_the_package_import_neither_torch_nor_transformers():
    code = "import sys, workloads; workloads.names(); workloads.describe('llama-2-7b'); print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# --- config.json ------------------------------------------------------------------------------------------------------
def write_config(folder: Path, **changes: object) -> Path:
    config = json.loads((Path(__file__).parent / "data/tiny-llama/config.json").read_text())
    path = folder / "config.json"
    path.write_text(json.dumps({**config, **changes}))
    return path


@pytest.mark.parametrize("place", ["config.json", ""])
def test_a_config_and_its_folder_are_the_same_model(place, data):
    graph = load(str(data / "tiny-llama" / place), phase="decode", context=16)
    assert graph.name == "tiny-llama"
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160 + 2 * 64
    assert cost.parameters(graph) == 2 * layer + 64 + 2 * 256 * 64


def test_a_length_defaults_to_what_the_model_has_positions_for(data):
    assert load(str(data / "tiny-llama")).context == 128


def test_keys_that_are_not_dimensions_do_no_harm(tmp_path):
    path = write_config(tmp_path, torch_dtype="bfloat16", transformers_version="4.1", _name_or_path="x", architectures=["LlamaForCausalLM"])
    assert load(str(path), seq=8).tokens == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size: expected a whole number of at least 1, not 0"),
        ({"num_hidden_layers": -2}, "num_hidden_layers: expected a whole number of at least 1, not -2"),
        ({"vocab_size": "256"}, "vocab_size: expected a whole number of at least 1, not '256'"),
        ({"model_type": "lama"}, "model_type 'lama' is not an architecture .*did you mean `llama`"),
        ({"model_type": 7}, "model_type: expected a name"),
        ({"model_type": "t5"}, "model_type 't5' is neither a causal nor a masked language model"),
        ({"num_attention_heads": 5}, "the model cannot be built from this config"),
    ],
)
def test_a_config_with_wrong_values_is_refused_naming_the_file(changes, message, tmp_path):
    path = write_config(tmp_path, **changes)
    with pytest.raises(WorkloadError, match=f"config.json: {message}") as error:
        load(str(path), seq=8)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_config_that_is_cut_short_is_refused_with_the_place(tmp_path):
    path = write_config(tmp_path)
    path.write_text(path.read_text()[:40])
    with pytest.raises(WorkloadError, match=r"config.json:1:\d+: not valid JSON .*is the file cut short\?"):
        load(str(path))


@pytest.mark.parametrize("text", ["[]", "{}", '"llama"', '{"hidden_size": 64}'])
def test_json_that_is_no_config_is_refused(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=r"expected a Hugging Face config .*`model_type`.* or a saved trace"):
        load(str(path))


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(WorkloadError, match="not a text file"):
        load(str(path))


@pytest.mark.parametrize("name", ["missing/config.json", "missing.json", "missing.json.gz"])
def test_a_missing_file_is_refused(name, tmp_path):
    with pytest.raises(WorkloadError, match="no such file"):
        load(str(tmp_path / name))


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(WorkloadError, match=r"config.json: no such file"):
        load(str(tmp_path))


# --- saved traces -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_a_saved_trace_loads_to_an_equal_graph(suffix, tmp_path):
    graph = load("gemm:3x4x5")
    path = tmp_path / f"g{suffix}"
    save_graph(graph, path)
    assert load(str(path)) == graph


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_the_same_graph_gives_the_same_bytes_and_leaves_nothing_else(suffix, tmp_path):
    paths = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for path in paths:
        save_graph(load("gemm:3x4x5"), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == paths


def test_a_trace_that_cannot_be_written_is_one_message_and_no_file(tmp_path):
    with pytest.raises(WorkloadError, match=r"nowhere/g.json: the trace cannot be written"):
        save_graph(load("gemm:3x4x5"), tmp_path / "nowhere" / "g.json")
    assert not list(tmp_path.iterdir())


def test_a_damaged_trace_is_refused(tmp_path):
    path = tmp_path / "g.json.gz"
    save_graph(load("gemm:3x4x5"), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(WorkloadError, match="the compressed file is damaged or cut short"):
        load(str(path))


@pytest.mark.parametrize(("options", "message"), [({"phase": "prefill"}, "has phase 'single'"), ({"batch": 3}, "has batch 1, not 3")])
def test_a_saved_trace_is_what_it_is(options, message, tmp_path):
    path = tmp_path / "g.json"
    save_graph(load("gemm:3x4x5"), path)
    with pytest.raises(WorkloadError, match=f"the saved trace {message}"):
        load(str(path), **options)


# --- sources of the user ----------------------------------------------------------------------------------------------
def test_a_registered_source_reads_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_SOURCES", {})

    @source(".dims")
    def read(path: Path, **options: object) -> Graph:
        assert options == {"phase": "decode", "batch": 2, "seq": None, "context": None, "logits": None}
        return load(f"gemm:{path.read_text()}")

    (tmp_path / "a.dims").write_text("2x3x4")
    assert load(str(tmp_path / "a.dims"), phase="decode", batch=2).tensors["a"].shape == (2, 3)
    with pytest.raises(WorkloadError, match=r"b.dims: no such file"):
        load(str(tmp_path / "b.dims"))


def test_a_source_names_a_suffix():
    with pytest.raises(WorkloadError, match="expected a file suffix with its dot"):
        source("onnx")


# --- the cache on disk ------------------------------------------------------------------------------------------------
def traces_in(folder: Path) -> list[Path]:
    return sorted((folder / "traces").glob("*"))


def test_a_second_load_comes_from_disk(data, tmp_path, monkeypatch):
    told: list[str] = []
    first = load(str(data / "tiny-llama"), seq=8, cache_dir=tmp_path, progress=told.append)
    assert len(traces_in(tmp_path)) == 1
    assert any("tracing tiny-llama" in line for line in told)
    from workloads import tracer

    monkeypatch.setattr(tracer, "trace", lambda *_, **__: pytest.fail("traced again"))
    told.clear()
    assert load(str(data / "tiny-llama"), seq=8, cache_dir=tmp_path, progress=told.append) == first
    assert not told


@pytest.mark.parametrize("change", [{"seq": 9}, {"batch": 2}, {"phase": "decode", "seq": None, "context": 8}, {"logits": "all"}])
def test_another_request_is_another_trace(change, data, tmp_path):
    one = load(str(data / "tiny-llama"), seq=8, cache_dir=tmp_path)
    other = load(str(data / "tiny-llama"), **{"seq": 8, **change}, cache_dir=tmp_path)
    assert one != other
    assert len(traces_in(tmp_path)) == 2


def test_another_config_or_another_tracer_is_another_trace(data, tmp_path, monkeypatch):
    load(str(data / "tiny-llama"), seq=8, cache_dir=tmp_path)
    load(str(write_config(tmp_path, num_hidden_layers=3)), seq=8, cache_dir=tmp_path)
    assert len(traces_in(tmp_path)) == 2
    monkeypatch.setattr(sources, "_tracer_digest", lambda: "another")
    load(str(data / "tiny-llama"), seq=8, cache_dir=tmp_path)
    assert len(traces_in(tmp_path)) == 3


@pytest.mark.parametrize(
    "damage",
    [b"", b"no gzip", gzip.compress(b"{}", mtime=0), gzip.compress(b'{"type": "graph", "schema": 1}', mtime=0)],
    ids=["empty", "no gzip", "no graph", "half a graph"],
)
def test_a_damaged_cache_entry_is_made_again(damage, data, tmp_path, caplog):
    first = load(str(data / "tiny-llama"), seq=8, cache_dir=tmp_path)
    (entry,) = traces_in(tmp_path)
    whole = entry.read_bytes()
    entry.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert load(str(data / "tiny-llama"), seq=8, cache_dir=tmp_path) == first
    assert "a damaged trace is made again" in caplog.text
    assert entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_a_warning(data, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        assert load(str(data / "tiny-llama"), seq=8, cache_dir=blocked).tokens == 8
    assert "the trace of tiny-llama is not kept" in caplog.text


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"DOVETAIL_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/dovetail")),
        ({"HOME": "/c"}, Path("/c/.cache/dovetail")),
    ],
)
def test_where_the_cache_is(environment, folder, monkeypatch):
    for name in ("DOVETAIL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sources.cache_folder() == folder
    assert sources.cache_folder("/d") == Path("/d")


def test_a_cached_load_imports_no_torch_and_takes_a_moment(data, tmp_path):
    arguments = f"{str(data / 'tiny-llama')!r}, seq=8, cache_dir={str(tmp_path)!r}"
    load(str(data / "tiny-llama"), seq=8, cache_dir=tmp_path)
    code = (
        "import sys, time; start = time.process_time(); from workloads import load; "
        f"load({arguments}); print(time.process_time() - start, {{'torch', 'transformers'}} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, loaded = result.stdout.split(maxsplit=1)
    assert loaded.strip() == "set()"
    assert float(seconds) < 0.5  # 0.15 s on an idle machine


# --- without torch ----------------------------------------------------------------------------------------------------
@pytest.fixture
def without_torch(monkeypatch):
    sources._library_version.cache_clear()
    monkeypatch.setattr(sources, "_library_version", lambda: None)


@pytest.mark.parametrize(("model", "phase", "batch", "length"), SHIPPED)
def test_shipped_traces_need_no_torch(model, phase, batch, length, without_torch):
    lengths = {"context": length} if phase == "decode" else {"seq": length}
    graph = load(model, phase=phase, batch=batch, **lengths)
    assert (graph.name, graph.phase, graph.batch, graph.context) == (model, phase, batch, length)
    assert cost.parameters(graph) == catalogue.describe(model).parameters


def test_a_model_that_is_not_shipped_needs_torch_and_says_so(without_torch):
    with pytest.raises(WorkloadError, match=r"llama-2-7b: tracing needs torch and transformers, .*pip install torch transformers"):
        load("llama-2-7b", seq=77)


@pytest.mark.parametrize(("model", "phase", "batch", "length"), SHIPPED)
def test_shipped_traces_are_what_the_tracer_makes_today(model, phase, batch, length, traced, tmp_path):
    shipped = sources.shipped_trace(model, {"phase": phase, "batch": batch, "length": length, "logits": "last"})
    save_graph(traced(model, phase, batch=batch, length=length), tmp_path / "fresh.json.gz")
    assert json.loads(gzip.decompress((tmp_path / "fresh.json.gz").read_bytes())) == json.loads(gzip.decompress(shipped.read_bytes()))


def test_nothing_is_shipped_that_is_not_listed():
    listed = {sources.shipped_trace(m, {"phase": p, "batch": b, "length": n, "logits": "last"}).name for m, p, b, n in SHIPPED}
    assert {name for name in os.listdir(sources.TRACES) if name.endswith(".gz")} == listed


TINY_TRACES = {
    "tiny-llama.prefill.json.gz": {"phase": "prefill", "seq": 64},
    "tiny-llama.decode.json.gz": {"phase": "decode", "context": 64},
}


@pytest.mark.parametrize("name", TINY_TRACES)
def test_the_tiny_traces_for_tests_are_what_the_tracer_makes_today(name, data):
    """Made with `save_graph(load("tests/workloads/data/tiny-llama", **request), "tests/workloads/data/" + name)`."""
    assert load(str(data / name)) == load(str(data / "tiny-llama"), **TINY_TRACES[name])

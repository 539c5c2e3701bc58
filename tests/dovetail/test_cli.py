import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dovetail.cli import main
from dovetail.report import Report

ROOT = Path(__file__).parents[2]
LLAMA = ("estimate", "llama-2-7b", "--device", "a100-80g")


@dataclass(frozen=True)
class Run:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, object]:
        document: dict[str, object] = json.loads(self.out)
        return document


Command = Callable[..., Run]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Run:
        capsys.readouterr()
        status = main(arguments)
        captured = capsys.readouterr()
        return Run(status, captured.out, captured.err)

    return command


def process(*arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "dovetail", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, **options
    )  # type: ignore[call-overload, no-any-return]


def assert_mistake(result: Run, *parts: str) -> None:
    """Status 2, nothing on stdout, one message without a traceback that has all `parts`."""
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("dovetail: ")
    assert "Traceback" not in result.err
    for part in parts:
        assert part in result.err


# Good runs ----------------------------------------------------------------------------------------------------------------
def test_estimate_prints_five_lines(run: Command) -> None:
    result = run(*LLAMA, "--phase", "decode", "--context", "2048")
    assert result.status == 0
    lines = result.out.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("llama-2-7b fp16 decode, batch 1, context 2048 on a100-80g: ")


def test_estimate_json_is_one_document_with_the_documented_keys(run: Command) -> None:
    result = run(*LLAMA, "--phase", "decode", "--json")
    assert result.err == ""
    document = result.json
    documented = (
        "latency_s cycles clock_hz energy_j lower_bound_s bound bytes utilization stalls tasks assumptions constants operators elapsed_s"
    )
    assert set(documented.split()) <= set(document)


def test_estimate_writes_report_timeline_and_mapping_and_says_where(run: Command, tmp_path: Path) -> None:
    result = run(
        "estimate", "gemm:64x64x64:int8", "--device", "systolic-32", "--report", "r.html", "--trace", "t.json", "--save-mapping", "m.json"
    )
    assert result.status == 0
    assert result.err.splitlines() == ["report: r.html", "timeline: t.json", "mapping: m.json"]
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert json.loads((tmp_path / "m.json").read_text())["type"] == "mapping"
    assert sorted(os.listdir(tmp_path)) == ["m.json", "r.html", "t.json"]


def test_a_saved_mapping_replays_to_the_same_cycles(run: Command) -> None:
    first = run("estimate", "gemm:100x77x300:int8", "--device", "systolic-32", "--save-mapping", "m.json", "--json").json
    again = run("estimate", "gemm:100x77x300:int8", "--device", "systolic-32", "--mapping", "m.json", "--json").json
    assert again["cycles"] == first["cycles"]


def test_a_set_field_changes_the_device(run: Command) -> None:
    # stall-free output-stationary array: ceil(M/R)*ceil(N/C)*(K+R+C-2); 64x64x64 on 32x32 -> 4*126, on 64x64 -> 190
    fields = ("units.array.preload=serial", "memories.dram.bandwidth=100 TB/s", "memories.dram.cold_fill=excluded")
    settings = [argument for field in fields for argument in ("--set", field)]
    for size, cycles in ((32, 4 * (64 + 62)), (64, 64 + 126)):
        shape = ("--set", f"units.array.rows={size}", "--set", f"units.array.columns={size}")
        result = run("estimate", "gemm:64x64x64:int8", "--device", "systolic-32", *settings, *shape, "--json")
        assert result.json["cycles"] == cycles


def test_both_engines_agree(run: Command) -> None:
    cycles = {
        engine: run("estimate", "gemm:100x77x300:int8", "--device", "systolic-32", "--engine", engine, "--json").json["cycles"]
        for engine in ("simpy", "fast")
    }
    assert cycles["simpy"] == cycles["fast"]


def test_a_loaded_file_is_imported_before_the_estimate(run: Command, tmp_path: Path) -> None:
    (tmp_path / "idea.py").write_text(
        "from hw import Unit\n\n\nclass Idea(Unit, kind='idea_of_a_test', executes={'gemm'}):\n    pass\n", encoding="utf-8"
    )
    result = run("estimate", "gemm:32x32x32:int8", "--device", "systolic-32", "--load", "idea.py")
    assert result.status == 0
    from hw import UNITS

    assert UNITS.pop("idea_of_a_test").__name__ == "Idea"


def test_devices_lists_peaks_and_sources(run: Command) -> None:
    devices = {d["name"]: d for d in run("devices", "--json").json["devices"]}  # type: ignore[attr-defined]
    a100 = devices["a100-80g"]
    tensor = next(u for u in a100["units"] if u["kind"] == "tensor_core")
    assert tensor["peak_flops"]["fp16"] == 108 * 1410 * 10**6 * 2048  # 108 SMs x 1.41 GHz x 1024 MACs, 312 TFLOP/s
    assert all(d["source"] for d in devices.values())
    table = run("devices").out
    assert all(name in table for name in devices)
    assert "312 TFLOP/s" in table


def test_models_lists_dimensions(run: Command) -> None:
    models = {m["name"]: m for m in run("models", "--json").json["models"]}  # type: ignore[attr-defined]
    assert models["llama-2-7b"]["parameters"] == 6_738_415_616
    assert models["llama-2-7b"]["kv_bytes_per_token"] == 524_288  # 2 x 32 layers x 4096 x 2 bytes
    table = run("models").out
    assert all(name in table for name in models)


@pytest.mark.parametrize("what", ["devices", "models"])
def test_show_and_the_verb_print_the_same_list(run: Command, what: str) -> None:
    assert run("show", what).out == run(what).out
    assert run("show", what, "--json").json == run(what, "--json").json


def test_show_units_says_which_faces_are_not_modelled(run: Command) -> None:
    units = {u["name"]: u for u in run("show", "units", "--json").json["units"]}  # type: ignore[attr-defined]
    assert set(units["systolic_array"]) == {"name", "cost", "golden", "vectors", "rtl", "cycles_verified", "proved", "synthesised"}
    assert units["systolic_array"]["cost"] is True
    assert "not modelled" in run("show", "units").out


def test_show_prints_a_saved_report(run: Command, report: Report, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(report.to_json()))
    shown = run("show", "r.json")
    assert shown.out.startswith(report.text())
    assert all(row.name in shown.out for row in report.operators)
    assert run("show", "r.json", "--json").json == report.to_json()


def test_show_prints_a_saved_mapping_and_a_device_file(run: Command, tmp_path: Path) -> None:
    run("estimate", "gemm:64x64x64:int8", "--device", "systolic-32", "--save-mapping", "m.json")
    assert "on systolic-32" in run("show", "m.json").out
    device = ROOT / "hw" / "devices" / "edge-npu.yaml"
    (tmp_path / "d.yaml").write_bytes(device.read_bytes())
    assert "102 GB/s" in run("show", "d.yaml").out
    assert run("show", "d.yaml", "--json").json["name"] == "edge-npu"


def test_show_prints_a_saved_graph(run: Command) -> None:
    trace = sorted((ROOT / "workloads" / "traces").glob("llama-2-7b.decode*.json.gz"))[0]
    shown = run("show", str(trace))
    assert "6 738 415 616 parameters" in shown.out


def test_help_names_every_verb(run: Command) -> None:
    result = run()
    assert result.status == 0
    assert all(verb in result.out for verb in ("estimate", "devices", "models", "show"))


def test_module_runs_as_the_command() -> None:
    assert process("--version").stdout.startswith("dovetail")


# Mistakes -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("estimte",), ("'estimte'", "did you mean `estimate`?")),
        (("estimate", "llama-2-7b"), ("estimate: missing option '--device'",)),
        (("estimate",), ("estimate: missing argument",)),
        ((*LLAMA, "--devce", "x"), ("no such option --devce; did you mean `--device`?",)),
        ((*LLAMA, "--phase", "prefil"), ("--phase", "not 'prefil'", "did you mean `prefill`?")),
        ((*LLAMA, "--engine", "simpi"), ("--engine", "did you mean `simpy`?")),
        ((*LLAMA, "--batch", "0"), ("--batch: expected at least 1, not 0",)),
        ((*LLAMA, "--seq", "-5"), ("--seq: expected at least 1, not -5",)),
        ((*LLAMA, "--context", "2k"), ("--context: expected a whole number of at least 1, not '2k'",)),
        ((*LLAMA, "--set", "units.tensor.count"), ("--set: expected PATH=VALUE", "not 'units.tensor.count'")),
        ((*LLAMA, "--set", "clock=1 GHz", "--set", "clock=2 GHz"), ("--set: clock is set twice",)),
        (("show", "modles"), ("'modles' is neither a file nor one of", "did you mean `models`?")),
        (("show", "nothing.json"), ("'nothing.json' is neither a file",)),
    ],
)
def test_a_mistyped_command_line_is_refused_with_the_nearest_name(run: Command, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    assert_mistake(run(*arguments), *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("estimate", "lama-2-7b", "--device", "a100-80g"), ("lama-2-7b", "did you mean `llama-2-7b`?")),
        (("estimate", "gemm:64x64", "--device", "systolic-32"), ("gemm:64x64",)),
        (("estimate", "gemm:64x0x64:int8", "--device", "systolic-32"), ("gemm:64x0x64",)),
        (("estimate", "gemm:64x64x64:int9", "--device", "systolic-32"), ("int9",)),
        (("estimate", "llama-2-7b", "--device", "a100-80gb"), ("a100-80gb", "did you mean `a100-80g`?")),
        (("estimate", "llama-2-7b", "--device", "nowhere.yaml"), ("nowhere.yaml: no such device file",)),
        ((*LLAMA, "--weights", "fpp16"), ("fpp16", "did you mean `fp16`?")),
        ((*LLAMA, "--kv", "kivi3"), ("kivi3", "did you mean `kivi")),
        ((*LLAMA, "--set", "memories.hbm.bandwith=1 TB/s"), ("bandwith", "did you mean `bandwidth`?")),
        ((*LLAMA, "--set", "memories.hbm.bandwidth=1 TB"), ("expected a number with", "not '1 TB'")),
        ((*LLAMA, "--set", "clock=-1 GHz"), ("clock", "-1 GHz")),
        ((*LLAMA, "--mapping", "none.json"), ("none.json",)),
    ],
)
def test_a_wrong_name_unit_or_size_is_refused(run: Command, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    assert_mistake(run(*arguments), *parts)


def test_a_context_longer_than_memory_holds_names_the_memory_and_the_missing_bytes(run: Command, tmp_path: Path) -> None:
    # 13.5 GB of weights and 524 288 B per token leave room for about 140 000 tokens in 80 GiB
    result = run(*LLAMA, "--phase", "decode", "--context", "200000", "--report", "r.html")
    assert_mistake(result, "hbm", "GiB")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ('{"model_type": "llama", "hidden_size": 40', "config.json"),
        ("", "config.json"),
        ("[1, 2]", "config.json"),
        ('{"a": 1}', "model_type"),
    ],
)
def test_a_broken_config_is_refused_and_named(run: Command, tmp_path: Path, content: str, part: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert_mistake(run("estimate", "config.json", "--device", "a100-80g"), part)


@pytest.mark.parametrize("option", ["--report", "--trace", "--save-mapping"])
@pytest.mark.parametrize("place", ["missing/x", ".", "file/x"])
def test_an_output_that_cannot_be_written_is_refused_before_anything_runs(run: Command, tmp_path: Path, option: str, place: str) -> None:
    (tmp_path / "file").write_text("")
    # the model does not exist either: that the path is complained about shows that it is looked at first
    assert_mistake(run("estimate", "no-such-model", "--device", "a100-80g", option, place), option, place)
    assert os.listdir(tmp_path) == ["file"]


def test_two_outputs_in_one_file_are_refused(run: Command) -> None:
    assert_mistake(run(*LLAMA, "--report", "x", "--trace", "./x"), "--trace and --report name the same file")


def test_a_failed_estimate_leaves_no_file(run: Command, tmp_path: Path) -> None:
    assert_mistake(run("estimate", "no-such-model", "--device", "a100-80g", "--report", "r.html", "--trace", "t.json"), "no-such-model")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "parts"),
    [("x = 1\ny = x / 0\n", ("idea.py:2", "ZeroDivisionError")), ("def f(:\n", ("idea.py:1", "SyntaxError")), (None, ("no such file",))],
)
def test_a_loaded_file_that_does_not_import_is_named_with_its_line(
    run: Command, tmp_path: Path, content: str | None, parts: tuple[str, ...]
) -> None:
    if content is not None:
        (tmp_path / "idea.py").write_text(content)
    assert_mistake(run(*LLAMA, "--load", "idea.py"), "--load: ", *parts)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.json", b'{"type": "report"', "a.json: not valid JSON"),
        ("a.json", b'{"type": "photo"}', "a.json: expected the `type` of a saved report, graph, mapping or program, found 'photo'"),
        ("a.json", b'{"traceEvents": []}', "Perfetto"),
        ("a.json", b'{"type": "report", "schema": 1}', "a.json: not a complete saved report"),
        ("a.json.gz", b"\x1f\x8b\x08\x00broken", "a.json.gz: a damaged gzip file"),
        ("a.bin", b"\xff\xfe\x00", "a.bin: neither text nor gzip"),
        ("a.yaml", b"name: x\n", "a.yaml: "),
    ],
)
def test_show_refuses_what_it_cannot_read(run: Command, tmp_path: Path, name: str, content: bytes, part: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert_mistake(run("show", name), part)


def test_an_error_of_ours_keeps_its_traceback(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(as_json: bool) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("dovetail.listing.show_models", broken)
    with pytest.raises(ValueError, match="a bug"):
        run("models")


# Manners ------------------------------------------------------------------------------------------------------------------
def test_a_reader_that_closes_the_pipe_early_gets_no_traceback() -> None:
    command = f"'{sys.executable}' -m dovetail models | head -n 1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1] in ("0", "141")  # 0 when all was written before the reader went


def test_an_interrupt_ends_with_130_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    child = subprocess.Popen(
        [sys.executable, "-m", "dovetail", *LLAMA, "--load", str(tmp_path / "slow.py"), "--report", str(tmp_path / "r.html")],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert err.splitlines() == ["dovetail: interrupted; no file was left half-written"]
    assert os.listdir(tmp_path) == ["slow.py"]


def test_listing_devices_loads_no_torch() -> None:
    code = "import sys; from dovetail.cli import main; main(['devices', '--json']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, timeout=60, check=False).returncode == 0

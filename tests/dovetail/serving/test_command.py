"""The verb `serve` as a user types it."""

import json

import pytest

from dovetail.cli import main

DEVICE = ["--device", "duplex-gpu", "--devices", "4"]
SMALL = ["serve", "mixtral-8x7b", *DEVICE, "--requests", "5", "--max-batch", "2", "--input", "20:4", "--output", "4:1"]


def run(capsys, *arguments):
    status = main([*arguments])
    found = capsys.readouterr()
    return status, found.out, found.err


def test_json_has_the_documented_keys_and_nothing_else_on_stdout(capsys):
    status, out, _ = run(capsys, *SMALL, "--json")
    data = json.loads(out)
    assert status == 0
    assert {"throughput", "ttft_s", "tbt_s", "e2e_s", "batch", "kv", "time", "energy_j", "assumptions", "elapsed_s", "ended"} <= set(data)
    assert data["finished"] == data["requests"] == 5
    assert data["ended"] == "finished"
    assert {"mean", "p50", "p90", "p95", "p99", "max"} == set(data["tbt_s"])
    assert data["throughput"]["output_tokens_per_s"] == pytest.approx(data["tokens"]["output"] / data["duration_s"])


def test_text_says_throughput_latencies_and_assumptions(capsys):
    status, out, _ = run(capsys, *SMALL)
    assert status == 0
    assert out.startswith("mixtral-8x7b on 4 x duplex-gpu: ")
    for words in ("first token", "between tokens", "whole answer", "energy", "assumed: "):
        assert words in out


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(capsys, tmp_path):
    page = tmp_path / "run.html"
    status, _, err = run(capsys, *SMALL, "--report", str(page))
    text = page.read_text()
    assert status == 0
    assert f"report: {page}" in err
    assert text.count("<svg") == 6
    assert "<script" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert list(tmp_path.iterdir()) == [page]


def test_the_same_seed_gives_the_same_run_and_another_one_another(capsys):
    def one(seed):
        data = json.loads(run(capsys, *SMALL, "--json", "--arrivals", "poisson:50", "--seed", seed)[1])
        return {key: value for key, value in data.items() if key not in ("elapsed_s",)}

    assert one("1") == one("1")
    assert one("1")["duration_s"] != one("2")["duration_s"]


def test_a_trace_is_served_whole(capsys, tmp_path):
    trace = tmp_path / "requests.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,10,3\n0.5,20,2\n0.5,5,1\n")
    arguments = ["serve", "mixtral-8x7b", "--device", "duplex-gpu", "--devices", "4", "--arrivals", str(trace), "--json"]
    data = json.loads(run(capsys, *arguments)[1])
    assert data["requests"] == 3
    assert data["tokens"] == {"input": 35, "output": 6}
    assert data["duration_s"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--requests", "0"], "--requests: expected at least 1, not 0"),
        (["--max-batch", "many"], "--max-batch: expected a whole number of at least 1, not 'many'"),
        (["--devices", "1"], "cannot hold it: weights take 86.99 GiB of 80.00 GiB"),
        (["--devices", "3"], "cannot be cut over 3 devices"),
        (["--input", "2000000"], "B short"),
        (["--output", "x"], "--output: expected MEAN or MEAN:DEVIATION"),
        (["--arrivals", "clozed"], "expected closed, poisson:RATE or a trace file"),
        (["--routing", "zip:1"], "expected uniform, zipf:S or a trace file"),
        (["--experts", "all"], "experts: expected one of single, split, optimum, not 'all'"),
        (["--co-processing", "of"], "--co-processing: expected on or off, not 'of'; did you mean `off`"),
        (["--seed", "-1"], "--seed: expected at least 0"),
        (["--report", "no-such-folder/run.html"], "--report: "),
        (["--device", "dupleks"], "unknown device 'dupleks'"),
        (["--set", "units.tensr.count=1"], "units has no 'tensr'"),
        (["--reqests", "4"], "no such option --reqests"),
    ],
)
def test_mistakes_end_with_status_two_and_one_message(capsys, arguments, message):
    status, out, err = run(capsys, *SMALL, *arguments)
    assert status == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_a_model_that_is_not_known_is_refused_with_the_nearest_name(capsys):
    status, _, err = run(capsys, "serve", "mixtral-8x7", "--device", "duplex")
    assert status == 2
    assert "mixtral-8x7b" in err

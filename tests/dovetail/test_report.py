import dataclasses
import json

import pytest

from dovetail.human import capacity, decimal, digits, percent, seconds
from dovetail.report import OperatorRow, Report, ReportError


def test_text_has_five_lines_each_with_its_subject(report: Report) -> None:
    lines = report.text().split("\n")
    assert len(lines) == 5
    assert [line.split(":")[0] for line in lines[1:]] == ["bound", "time", "memory", "assumed"]


def test_first_line_is_the_answer_in_time_cycles_and_tokens(report: Report) -> None:
    # 13 008 035 312 + ... fs in all; cycles = latency x 1.41 GHz, tokens/s = 1 / latency
    line = report.text().split("\n")[0]
    cycles = f"{report.latency_fs * 1_410_000_000 // 10**15:,}".replace(",", " ")
    assert line == (
        "llama-2-7b fp16 decode, batch 1, context 2048 on a100-80g: "
        f"{report.latency_fs / 10**12:.2f} ms per step ({cycles} cycles @ 1.41 GHz; {10**15 / report.latency_fs:.0f} tokens/s)"
    )


def test_prefill_states_its_tokens_and_its_unit_of_latency(report: Report) -> None:
    prefill = dataclasses.replace(report, phase="prefill", tokens=512, context=512)
    assert "prefill, batch 1, 512 tokens on a100-80g" in prefill.text()
    assert "per prefill" in prefill.text()


def test_a_bare_operator_has_no_tokens_per_second(report: Report) -> None:
    single = dataclasses.replace(report, workload="gemm:64x64x64", phase="single", formats={"weights": "int8"})
    assert single.text().startswith("gemm:64x64x64 int8 on a100-80g: ")
    assert "tokens/s" not in single.text()
    assert "per run" in single.text()


def test_formats_that_differ_are_named_with_their_roles(report: Report) -> None:
    mixed = dataclasses.replace(report, formats={"weights": "int4-g128", "acts": "fp16", "kv": "fp8"})
    assert "llama-2-7b weights int4-g128/acts fp16/kv fp8 decode" in mixed.text()


def test_energy_names_what_is_not_modelled_instead_of_counting_it_as_zero(report: Report) -> None:
    assert "energy at least 453 mJ (hbm 446 mJ, tensor 7.14 mJ, not modelled: leakage)" in report.text()
    nothing = dataclasses.replace(report, energy_j=None, energy_parts={"hbm": None})
    assert "energy not modelled" in nothing.text()
    whole = dataclasses.replace(report, energy_j=0.5, energy_parts={"hbm": 0.5})
    assert "energy 500 mJ (hbm 500 mJ)" in whole.text()


def test_only_main_memories_are_in_the_memory_line(report: Report) -> None:
    line = report.text().split("\n")[3]
    assert line.startswith("memory: hbm holds 13.6 GiB of 80 GiB at peak (weights 12.6 GiB, kv cache 1 GiB, activations 1 MiB)")
    assert "l2" not in line


def test_the_assumption_line_counts_what_it_does_not_show(report: Report) -> None:
    assert report.text().endswith("; 2 more in the HTML and JSON reports")
    few = dataclasses.replace(report, assumptions=("one",))
    assert few.text().endswith("assumed: one")


def test_the_fixture_accounts_for_all_time(report: Report) -> None:
    for resource, waits in report.stalls.items():
        assert report.utilization[resource] + sum(waits.values()) == pytest.approx(1, abs=1e-12)
        assert report.trace.busy[resource] + sum(report.trace.stalls[resource].values()) == report.trace.makespan
    assert max(span.end for span in report.trace.spans()) == report.latency_fs


def test_json_round_trip_keeps_all_but_the_trace(report: Report) -> None:
    document = json.loads(json.dumps(report.to_json()))
    read = Report.from_json(document)
    assert dataclasses.replace(read, trace=report.trace) == report
    assert read.text() == report.text()


def test_json_has_the_keys_that_scripts_depend_on(report: Report) -> None:
    document = report.to_json()
    documented = (
        "latency_s cycles clock_hz energy_j lower_bound_s bound bytes utilization stalls tasks assumptions constants operators elapsed_s"
    )
    assert set(documented.split()) <= set(document)
    assert set(document["bound"]) == {"resource", "utilization"}
    assert set(document["bytes"]["hbm"]) == {"read", "write"}
    assert {"name", "kind", "latency_s", "flops", "bytes", "bound", "unit"} <= set(document["operators"][0])
    assert set(document["elapsed_s"]) == {"trace", "map", "simulate"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "graph"}, 'r.json: expected a saved report .*"type": "report"'),
        ({"schema": 99}, "r.json: schema 99 cannot be read, expected 1"),
        ({"operators": [{"name": "x"}]}, "r.json: not a complete saved report"),
        ({"memory": None}, "r.json: not a complete saved report"),
    ],
)
def test_a_document_that_is_no_report_is_refused(report: Report, change: dict[str, object], message: str) -> None:
    with pytest.raises(ReportError, match=message):
        Report.from_json({**report.to_json(), **change}, "r.json")


def test_repr_is_one_line_and_str_is_the_text(report: Report) -> None:
    assert repr(report) == "Report(llama-2-7b decode on a100-80g: 7.98 ms)"
    assert str(report) == report.text()


def test_notebook_table_escapes_names(hostile: Report) -> None:
    table = hostile._repr_html_()
    assert "<script" not in table
    assert "<img" not in table
    assert table.count("<tr>") == 4


def test_total_time_of_an_operator_counts_its_runs() -> None:
    row = OperatorRow("a", "matmul", "tensor", 32, 10, 8, 1, 1, "hbm", "")
    assert row.total_fs == 320


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00123, "0.00123"), (9.994, "9.99"), (9.996, "10"), (99.96, "100"), (999.4, "999"), (999.6, "1 000"), (-2.5, "-2.5")],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_units_step_up_before_the_digits_overflow() -> None:
    assert decimal(999_600, "B") == "1 MB"
    assert capacity(1023.7 * 2**20) == "1 GiB"
    assert seconds(0.99996) == "1 s"
    assert seconds(3e-16) == "0.3 fs"


@pytest.mark.parametrize(("share", "text"), [(0.9995, "99.9 %"), (0.99, "99 %"), (1.0, "100 %"), (0.0999, "10 %"), (2.5, "250 %")])
def test_a_share_is_never_rounded_up_to_the_whole(share: float, text: str) -> None:
    assert percent(share) == text

"""What a report says of the choice between units: the command line's switches, candidates, parts, and the pictures."""

import json
from fractions import Fraction

import pytest

from dovetail import estimate
from dovetail.cli import main
from dovetail.html import render
from dovetail.report import Report
from sim.trace import Span, expand
from tests.mapper.cases import near_memory, product
from tests.mapper.test_placement import CROSSOVER, rooflines


@pytest.fixture(scope="module")
def device_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "near.yaml"
    path.write_text(near_memory().to_yaml())
    return str(path)


def run(capsys, *arguments):
    assert main(["estimate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("rows", [8, 14, 18, 32])
def test_the_command_line_shows_the_crossover_of_the_rooflines(capsys, device_file, rows):
    """Without co-processing a product runs where its roofline is higher; with it, the larger part does."""
    workload = (f"gemm:{rows}x1024x4096", "--device", device_file)
    apart, together = (run(capsys, *workload, "--co-processing", switch) for switch in ("off", "on"))
    outside, inside = rooflines(rows, 1024, 4096)
    faster, slower = ("lanes", "array") if rows < CROSSOVER else ("array", "lanes")
    (alone,), (shared,) = apart["operators"], together["operators"]
    assert alone["unit"] == faster
    times = {c["unit"]: c["latency_fs"] for c in alone["candidates"]}
    assert times[faster] == alone["latency_fs"] < times[slower]
    for unit, roof in (("array", outside), ("lanes", inside)):
        assert 1 <= Fraction(times[unit]) / roof <= Fraction(104, 100)  # what is weighed are the rooflines, with fills and drains
    assert {part["unit"] for part in shared["parts"]} == {"array", "lanes"}
    assert shared["latency_fs"] == max(part["latency_fs"] for part in shared["parts"]) < alone["latency_fs"]
    assert apart["lower_bound_fs"] == together["lower_bound_fs"] <= together["latency_fs"]


@pytest.fixture(scope="module")
def shared():
    return estimate(product(12, 1024, 4096), device=near_memory())


def test_the_report_names_what_every_unit_would_take(shared):
    (row,) = shared.operators
    known = {c.unit: c.latency_fs for c in row.candidates}
    assert set(known) == {"array", "lanes", "array+lanes"}
    assert known["array+lanes"] == row.latency_fs == min(known.values())
    (line,) = (line for line in shared.text().splitlines() if line.startswith("units: "))
    assert line.startswith("units: gemm on array+lanes ")
    assert "(array " in line
    assert "lanes " in line


def test_a_device_without_a_choice_says_nothing_of_units():
    report = estimate("gemm:8x64x64:int8", device="systolic-32")
    assert "units: " not in report.text()
    assert "candidates" not in report.to_json()["operators"][0]
    assert 'id="units"' not in render(report)


def test_a_unit_that_cannot_run_an_operator_says_why():
    report = estimate("gemm:8x64x64:int8", device="hbm-pim")
    (row,) = report.operators
    (other,) = (c for c in row.candidates if c.unit == "pim")
    assert other.latency_fs is None
    assert "int8" in other.reason


def test_a_saved_report_keeps_candidates_and_parts(shared):
    again = Report.from_json(json.loads(json.dumps(shared.to_json())))
    assert again.operators == shared.operators


def test_the_page_lists_candidates_and_draws_both_units_at_the_same_time(shared):
    page = render(shared)
    assert 'id="units"' in page
    for text in ("array+lanes", "Weighed", "Mapping, or why not"):
        assert text in page
    timeline = page[page.index('id="timeline"') : page.index('id="resources"')]
    assert "array" in timeline
    assert "lanes" in timeline
    spans = [span for span in expand(shared.trace.entries) if isinstance(span, Span)]
    busy = {unit: [(s.start, s.end) for s in spans if s.on == unit] for unit in ("array", "lanes")}
    assert any(a < d and c < b for a, b in busy["array"] for c, d in busy["lanes"])


def test_the_rule_for_experts_is_a_switch_and_tokens_are_read_with_care(capsys):
    assert main(["estimate", "mixtral-8x7b", "--device", "duplex", "--experts", "1,2,x"]) == 2
    assert "--experts: expected whole numbers with commas between them" in capsys.readouterr().err
    assert main(["estimate", "llama-2-7b", "--device", "duplex", "--phase", "decode", "--experts", "1,2"]) == 2
    assert "has no mixture of experts" in capsys.readouterr().err
    assert main(["estimate", "mixtral-8x7b", "--device", "duplex", "--co-processing", "rules"]) == 2
    assert "expected on or off or rule" in capsys.readouterr().err


def test_a_unit_that_is_only_slower_is_listed_with_its_time():
    """Kernels that read past the cache stay there while the others are placed: what they left is weighed, not called unable."""
    report = estimate("llama-2-7b", device="duplex", phase="decode", context=512, co_processing=False)
    products = [row for row in report.operators if row.kind == "matmul"]
    assert {row.unit for row in products} == {"near"}
    for row in products:
        known = {c.unit: c.latency_fs for c in row.candidates}
        assert set(known) == {"tensor", "near"}
        assert known["near"] == row.latency_fs < known["tensor"]
    assert "cannot" not in report.text()

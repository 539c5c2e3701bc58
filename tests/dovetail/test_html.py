import dataclasses
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dovetail.gantt import MAX_BARS, Bar, Unfolding, merged, nice_ticks
from dovetail.html import energy_bar, render, stall_bars
from dovetail.report import OperatorRow, Report
from dovetail.roofline import ranges
from sim.trace import Fold, Span, Trace


class Page(HTMLParser):
    """What a page refers to, its ids, and its balance of tags."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.used: list[str] = re.findall(r"url\(#([^)]*)\)", text)
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in self.VOID:
            self.open.append(tag)
        self.handle_attributes(attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.handle_attributes(attributes)

    def handle_attributes(self, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.ids.append(value)
            elif name in ("href", "src", "xlink:href", "action", "data") and value:
                self.references.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_refers_to_nothing_outside_itself(report: Report) -> None:
    text = render(report)
    page = Page(text)
    assert all(reference.startswith(("#", "data:")) for reference in page.references), page.references
    assert page.tags["script"] == 0
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert "http:" not in without_namespaces
    assert "https:" not in without_namespaces
    assert "@import" not in text


def test_ids_are_unique_and_every_reference_has_a_target(report: Report) -> None:
    page = Page(render(report))
    assert [i for i, n in Counter(page.ids).items() if n > 1] == []
    assert {r[1:] for r in page.references if r.startswith("#")} | set(page.used) <= set(page.ids)


def test_tags_are_balanced(report: Report) -> None:
    assert Page(render(report)).open == []


def test_page_has_every_operator_assumption_and_constant(report: Report) -> None:
    text = "".join(Page(render(report)).text)
    for row in report.operators:
        assert row.name in text
        assert row.mapping in text
    for constant in report.constants:
        assert constant.source in text
    for assumption in report.assumptions:
        assert assumption in text


def test_names_are_escaped(hostile: Report) -> None:
    page = Page(render(hostile))
    assert page.tags["script"] == 0
    assert page.tags["img"] == 0
    text = "".join(page.text)
    assert '<script>alert("x")</script>&amp;' in text
    assert "</title><img src=x>" in text
    assert "<i>none</i>" in text


def test_a_dollar_sign_in_a_name_is_a_dollar_sign(report: Report) -> None:
    roofs = tuple(dataclasses.replace(r, unit="$u$") for r in report.roofs)
    odd = dataclasses.replace(report, bound_resource="$x_$", device="$a$", roofs=roofs)
    assert "$u$ fp16" in "".join(Page(render(odd)).text)


def test_stall_bars_fill_the_whole(report: Report) -> None:
    bars, legend = stall_bars(report)
    assert [bar.name for bar in bars] == list(report.utilization)
    for bar in bars:
        assert sum(part.share for part in bar.parts) == pytest.approx(1, abs=1e-9)
    assert [label for label, _ in legend] == ["busy", "waiting for hbm", "waiting for launch"]


def test_energy_that_is_not_modelled_has_no_bar_and_is_named(report: Report) -> None:
    nothing = dataclasses.replace(report, energy_j=None, energy_parts={"hbm": None, "tensor": None})
    assert energy_bar(nothing) == (None, [])
    assert "so not in the sum: hbm, tensor" in render(nothing)


def test_page_of_a_run_of_nothing_still_renders(report: Report) -> None:
    empty = dataclasses.replace(
        report, latency_fs=0, lower_bound_fs=0, operators=(), roofs=(), trace=Trace((), 0), utilization={}, stalls={}, memories=(),
        energy_j=None, energy_parts={}, assumptions=(), constants=(),
    )  # fmt: skip
    assert Page(render(empty)).tags["svg"] == 0


def test_operators_without_flops_or_bytes_are_counted_beside_the_roofline(report: Report) -> None:
    # embed_tokens computes nothing
    assert "compute nothing or move nothing at the main memory: 1 of 13 operators" in render(report)


def test_many_operators_fit_the_page(report: Report) -> None:
    rows = tuple(
        OperatorRow(
            f"layer.{i}.expert", "matmul", "tensor", 1, 10**9 * (1 + i % 7), 10**8, 10**6 * (i + 1), 10**4 * (1 + i % 13), "hbm", ""
        )
        for i in range(400)
    )
    text = "".join(Page(render(dataclasses.replace(report, operators=rows))).text)
    assert text.count("layer.399.expert") == 1


def test_the_same_report_gives_the_same_page(report: Report) -> None:
    assert render(report) == render(report)


def shown(entries: tuple[Span | Fold, ...], limit: int = 1000) -> Unfolding:
    """With tasks named `operator/step`."""
    return Unfolding(entries, lambda task: task.partition("/")[0], limit)


def test_a_layer_is_shown_once_and_what_follows_moves_up() -> None:
    layer = Fold(32, 100, (Span("mxu", "a", 10, 60), Span("mxu", "b", 60, 110)))
    picture = shown((Span("mxu", "in", 0, 10), layer, Span("mxu", "out", 3210, 3220)))
    assert [(b.operator, b.start, b.end) for b in picture.bars] == [("in", 0, 10), ("a", 10, 60), ("b", 60, 110), ("out", 110, 120)]
    assert [(r.start, r.end, r.count) for r in picture.repeats] == [(10, 110, 32)]
    assert not picture.cut


def test_layers_within_layers_are_shown_once_at_every_level() -> None:
    inner = Fold(4, 10, (Span("mxu", "a", 0, 4), Span("mxu", "b", 4, 10)))
    picture = shown((Fold(3, 50, (inner, Span("mxu", "c", 40, 50))), Span("mxu", "out", 150, 155)))
    expected = [("a", 0, 4), ("b", 4, 10), ("c", 10, 20), ("out", 20, 25)]
    assert [(b.operator, b.start, b.end) for b in picture.bars] == expected
    assert sorted((r.start, r.end, r.count) for r in picture.repeats) == [(0, 10, 4), (0, 20, 3)]


def test_a_short_loop_of_one_operator_is_drawn_span_by_span() -> None:
    loop = Fold(5, 10, (Span("mxu", "a/tile", 0, 8),))
    picture = shown((loop, Span("mxu", "b", 50, 60)))
    assert [(b.start, b.end) for b in picture.bars] == [(0, 8), (10, 18), (20, 28), (30, 38), (40, 48), (50, 60)]
    assert picture.repeats == []


def test_a_long_loop_of_one_operator_keeps_its_time_in_one_bar_per_resource() -> None:
    # 1000 tiles of 10: the array works 8 of 10, the memory 3 of 10; what follows stays where it was
    loop = Fold(100, 100, (Fold(10, 10, (Span("mxu", "a/tile", 2, 10), Span("hbm", "a/load", 0, 3))),))
    picture = shown((loop, Span("mxu", "b", 10_002, 10_012)))
    assert picture.bars == [Bar("mxu", "a", 2, 10_000, 8000), Bar("hbm", "a", 0, 9993, 3000), Bar("mxu", "b", 10_002, 10_012, 10)]
    assert picture.repeats == []


def test_joined_bars_add_their_busy_time() -> None:
    bars = [Bar("mxu", "a", 10 * i, 10 * i + 4, 4) for i in range(10)]
    assert merged(bars, pixel=6) == [Bar("mxu", "a", 0, 94, 40)]
    assert merged(bars, pixel=5) == bars


def test_a_long_trace_is_cut_and_says_so(report: Report) -> None:
    entries = tuple(Span("hbm", f"t{i}", 10 * i, 10 * i + 5) for i in range(100))
    assert shown(entries, limit=60).cut
    assert len(shown(entries, limit=60).bars) == 60
    long = tuple(Span("hbm", "layer.q_proj", 10 * i, 10 * i + 5) for i in range(MAX_BARS + 1))
    assert f"stops after {MAX_BARS} bars" in render(dataclasses.replace(report, trace=Trace(long, 10 * MAX_BARS + 10)))


def test_row_numbers_are_shortened_to_runs() -> None:
    assert ranges([5, 1, 2, 4]) == "1, 2, 4, 5"
    assert ranges([3, 2, 1, 8]) == "1-3, 8"


@pytest.mark.parametrize("length", [1, 9, 47, 10**9 + 7, 3 * 10**13])
def test_ticks_are_few_round_and_inside(length: int) -> None:
    ticks = nice_ticks(length, 6)
    assert 1 <= len(ticks) <= 6
    assert ticks[-1] <= length
    assert len(ticks) >= 2 or length < 2


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no chromium on this machine; install Debian's package `chromium` to look at pages")
    return found


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1280])
def test_page_is_no_wider_than_the_screen(report: Report, out: Callable[[str], Path], tmp_path: Path, width: int) -> None:
    browser = chromium()
    probe = """<script>addEventListener("load", () => {
      const root = document.documentElement, seen = [...document.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().width > 0);
      document.body.innerHTML = "<pre id=probe>" + JSON.stringify({scroll: root.scrollWidth, client: root.clientWidth, shown: seen.length,
        wide: Math.max(...seen.map(s => s.getBoundingClientRect().right))}) + "</pre>"; })</script></body>"""
    out("page.html").write_text(render(report).replace("</body>", probe), encoding="utf-8")
    # a window cannot be as narrow as a phone, a frame can
    frame = """<body style="margin:0"><iframe src="page.html" style="border:0;width:WIDTHpx;height:900px"></iframe><script>
      addEventListener("load", () => {
        document.body.innerHTML = document.querySelector("iframe").contentDocument.getElementById("probe").outerHTML })
      </script></body>"""
    out("frame.html").write_text(frame.replace("WIDTH", str(width)))
    command = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
        "--disable-sync --hide-scrollbars --allow-file-access-from-files --virtual-time-budget=5000 --dump-dom --window-size=1400,1000"
    )
    result = subprocess.run(
        [browser, *command.split(), f"--user-data-dir={tmp_path / 'profile'}", out("frame.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="probe">(.*?)</pre>', result.stdout)
    assert found, result.stdout[-500:]
    measured = json.loads(found[1])
    assert measured["client"] == width
    assert measured["scroll"] <= measured["client"]
    assert measured["wide"] <= width
    assert measured["shown"] == 2  # one shape of the roofline, one of the timeline

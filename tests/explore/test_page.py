from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dovetail import estimate, sweep
from dovetail.cli import main
from dovetail.explore.compare import comparison, on_common_front, volumes
from dovetail.explore.errors import ExploreError
from dovetail.explore.spec import read
from dovetail.explore.study import Study
from tests.explore.cases import GEMM, ROOT, array

EXAMPLES = sorted((ROOT / "examples").glob("*-*.yaml"))


class Page(HTMLParser):
    """What a page refers to, and its balance of tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "img", "hr", "input"):
            self.open.append(tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.references += [v for n, v in attributes if n in ("href", "src", "action", "data") and v]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def study(**more: Any) -> Study:
    given = {"rows": [8, 16, 128], "sram": [1, 32, 64], "objectives": ("latency", "area", "dram_traffic"), "workers": 0, **more}
    return sweep(array, workload=given.pop("workload", GEMM), **given)


def test_the_page_has_front_coordinates_designs_and_reasons(tmp_path: Path) -> None:
    found = study()
    found.save_html(tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_text())
    assert page.open == []
    text = "".join(page.text)
    for title in ("Front", "Parallel coordinates", "Designs", "Infeasible designs", "What moves the objectives"):
        assert title in text
    assert found.infeasible
    assert "no mapping fits" in text
    assert "rows=128, sram=1" in text


def test_the_page_refers_to_nothing_but_files_beside_it_that_exist(tmp_path: Path) -> None:
    study().save_html(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    links = [r for r in Page(text).references if r != "data:,"]
    assert links
    for link in links:
        assert link.startswith("r-points/")
        assert (tmp_path / link).is_file()
        assert "<h2>Operators</h2>" in (tmp_path / link).read_text()


def test_the_same_study_gives_the_same_page(tmp_path: Path) -> None:
    found = study()
    found.save_html(tmp_path / "r.html")
    first = (tmp_path / "r.html").read_bytes()
    found.save_html(tmp_path / "r.html")
    assert (tmp_path / "r.html").read_bytes() == first


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    found = sweep(lambda tag: array(), workload=GEMM, tag=['"><script>alert(1)</script>', "b"], workers=0, name="</title><img src=x>")
    found.save_html(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<script>alert" not in text
    assert "<img" not in text


def test_a_study_without_a_feasible_design_has_a_page_with_the_reasons(tmp_path: Path) -> None:
    found = study(sram=[1], rows=[128])
    assert not found.feasible
    found.save_html(tmp_path / "r.html")
    assert "no mapping fits" in (tmp_path / "r.html").read_text()
    with pytest.raises(ExploreError, match="no design is feasible: CapacityError"):
        found.best()


def test_a_page_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="there is no folder"):
        study().save_html(tmp_path / "missing" / "r.html")
    monkeypatch.setattr("dovetail.explore.page.parallel", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        study().save_html(tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


# Commands ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "workload",
    [GEMM, {"workload": "llama-2-7b", "phase": "decode", "layers": 1, "weights": "int8", "acts": "int8"}],
    ids=["product", "layer"],
)
def test_the_command_of_a_design_reproduces_it(
    workload: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hw.devices import load

    def npu(rows: int) -> Any:
        return load("edge-npu").with_settings({"units.array.rows": rows})

    found = sweep(npu, workload=workload, rows=[16, 32], workers=0)
    found.save_html(tmp_path / "r.html")
    commands = re.findall(r"<pre>(dovetail estimate [^<]*)</pre>", (tmp_path / "r.html").read_text())
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    latencies = []
    for command in commands:
        capsys.readouterr()
        assert main([*shlex.split(command)[1:], "--json"]) == 0
        latencies.append(json.loads(capsys.readouterr().out)["latency_s"])
    assert sorted(latencies) == sorted(p.objectives["latency"] for p in found.points)


def test_a_design_of_a_study_file_is_reproduced_by_settings(spec: Path) -> None:
    exploration = read(spec).exploration
    found = sweep(exploration, workers=0)
    point = found.points[0]
    (command,) = found.reproduce(point)
    arguments = shlex.split(command)
    settings = dict(a.split("=", 1) for a, option in zip(arguments[1:], arguments, strict=False) if option == "--set")
    assert arguments[:5] == ["dovetail", "estimate", GEMM, "--device", "systolic-32"]
    assert estimate(GEMM, device="systolic-32", settings=settings).latency_s == point.objectives["latency"]


# Comparison ---------------------------------------------------------------------------------------------------------------------
def test_a_study_is_compared_by_the_shares_of_the_front_of_both() -> None:
    slow, fast = (study(bandwidth=[rate], objectives=("latency", "area")) for rate in ("1 GB/s", "16 GB/s"))
    assert volumes(fast, fast) == (1.0, 1.0)
    mine, theirs = volumes(fast, slow)
    assert mine == pytest.approx(1)  # more bandwidth is never slower, and costs no area in this model
    assert theirs < 1
    assert on_common_front(fast, slow)[0] >= len(fast.pareto()) > 0
    text = "\n".join(comparison(fast, slow))
    assert "best latency" in text
    assert "of its volume" in text
    with pytest.raises(ExploreError, match="share no objective: latency against area"):
        volumes(study(objectives=("latency",)), study(objectives=("area",)))


# In a browser ----------------------------------------------------------------------------------------------------------------------
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no chromium on this machine; install Debian's package `chromium` to look at pages")
    return found


PROBE = """<script>addEventListener("load", () => {
  const root = document.documentElement, seen = [...document.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().width > 0);
  const mark = document.querySelector('.mark[data-p="1"]'), row = document.querySelector('tr[data-p="1"]');
  mark.dispatchEvent(new MouseEvent("mouseenter"));
  const lit = document.querySelectorAll('[data-p="1"].on').length;
  mark.dispatchEvent(new MouseEvent("click"));
  const opened = row.querySelector("details").open;
  row.querySelector("details").open = false;
  const asked = performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:"));
  const found = {asked, scroll: root.scrollWidth, client: root.clientWidth, pictures: seen.length, lit, opened,
    right: Math.max(...seen.map(s => s.getBoundingClientRect().right))};
  document.body.innerHTML = "<pre id=probe>" + JSON.stringify(found) + "</pre>"; })</script></body>"""


def look(page: Path, folder: Path, width: int) -> tuple[dict[str, Any], str, list[str]]:
    """What a page measures at a width, what the console said, and the addresses that were asked for."""
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("</body>", PROBE))
    frame = page.with_name("frame.html")  # a window cannot be as narrow as a phone, a frame can
    frame.write_text(
        f'<body style="margin:0"><iframe src="probed.html" style="border:0;width:{width}px;height:900px"></iframe><script>'
        'addEventListener("load", () => { document.body.innerHTML = '
        'document.querySelector("iframe").contentDocument.getElementById("probe").outerHTML })</script></body>'
    )
    command = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
        "--disable-sync --hide-scrollbars --allow-file-access-from-files --virtual-time-budget=5000 --dump-dom --window-size=1400,1000 "
        "--enable-logging=stderr --v=0"
    )
    result = subprocess.run(
        [chromium(), *command.split(), f"--user-data-dir={folder / f'profile-{width}'}", frame.as_uri()],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="probe">(.*?)</pre>', result.stdout)
    assert found, result.stdout[-500:] + result.stderr[-500:]
    console = "\n".join(line for line in result.stderr.splitlines() if "CONSOLE" in line)
    measured = json.loads(found[1])
    return measured, console, measured["asked"]


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_the_screen_and_asks_for_nothing(tmp_path: Path, width: int) -> None:
    chromium()
    found = study()
    (tmp_path / "page").mkdir()
    found.save_html(tmp_path / "page" / "r.html")
    measured, console, asked = look(tmp_path / "page" / "r.html", tmp_path, width)
    assert measured["client"] == width
    assert measured["scroll"] <= width
    assert measured["right"] <= width
    assert measured["pictures"] == 3 + 1  # three pairs of objectives and the parallel coordinates, in one shape each
    assert measured["lit"] == 2 * (3 + 1) + 1  # three marks and a line, each in both shapes, and the row of the table
    assert measured["opened"]
    assert console == ""
    assert asked == []


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs_and_its_page_opens_without_errors(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page").mkdir()
    assert main(["sweep", str(example), "--report", "page/r.html", "--sensitivity", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["pareto"]
    assert set(document["sensitivity"]) == {o["name"] for o in document["objectives"]}
    chromium()
    for width in (400, 1280):
        measured, console, asked = look(tmp_path / "page" / "r.html", tmp_path, width)
        assert measured["scroll"] <= measured["client"] == width
        assert console == ""
        assert asked == []

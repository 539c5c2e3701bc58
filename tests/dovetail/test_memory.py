"""The verb `memory`: its keys, its words, its picture and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from dovetail.memory import memory
from hw.errors import HardwareError

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(memory)

KEYS = {"bytes", "time_s", "bandwidth_gbps", "peak_gbps", "fraction", "activates", "row_hits", "latency_ns", "limited_by"}


def run(*arguments: str) -> None:
    app(args=list(arguments), standalone_mode=False)


@pytest.mark.parametrize("mode", ["burst", "chunk"])
def test_json_is_one_document_with_the_documented_keys(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("HBM2-PC", "--pattern", "stream", "--bytes", "1048576", "--refresh", "off", "--mode", mode, "--json")
    document = json.loads(capsys.readouterr().out)
    assert document.keys() >= KEYS
    assert document["latency_ns"].keys() == {"mean", "p50", "p99"}
    assert document["bytes"] == 1 << 20
    assert document["peak_gbps"] == 16
    assert document["fraction"] == pytest.approx(1, abs=0.01)
    assert document["bandwidth_gbps"] == pytest.approx((1 << 20) / document["time_s"] * 1e-9)


def test_text_names_the_limit_the_source_and_what_is_not_modelled(capsys: pytest.CaptureFixture[str]) -> None:
    run("DDR5-4800", "--pattern", "random", "--bytes", "1 MiB")
    text = capsys.readouterr().out
    assert "limited by  tFAW" in text
    assert "energy      not modelled" in text
    assert "Ramulator 2.1" in text


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_load_latency_curve_is_drawn_on_request(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"curve.{suffix}"
    run("DDR4-3200", "--bytes", "64 KiB", "--picture", str(path), "--json")
    assert path.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert str(path) in captured.err
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("HBM-2",), "unknown memory preset 'HBM-2', expected one of DDR4-3200"),
        (("HBM2-PC", "--pattern", "streem"), r"unknown pattern 'streem'.*did you mean `stream`"),
        (("HBM2-PC", "--refresh", "maybe"), "--refresh: expected on or off, not 'maybe'"),
        (("HBM2-PC", "--bytes", "1 XB"), "--bytes: expected a number with B, KiB"),
        (("HBM2-PC", "--bytes", "1 GiB"), "536870912 B missing"),
        (("HBM2-PC", "--mode", "fast"), "unknown mode 'fast', expected burst or chunk"),
        (("HBM2-PC", "--picture", "curve.pdf"), r"--picture: expected a file ending in \.svg or \.png"),
    ],
)
def test_a_mistake_is_answered_in_words(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        run(*arguments)


def test_a_preset_of_ones_own_is_a_file_beside_a_known_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "denser.yaml"
    path.write_text("like: HBM2-PC\nn_rfc: 350\n", encoding="utf-8")
    fractions = []
    for preset in ("HBM2-PC", str(path)):
        run(preset, "--bytes", "4 MiB", "--json")
        fractions.append(json.loads(capsys.readouterr().out)["fraction"])
    # the refresh takes 350 - 260 of 3900 clocks more
    assert fractions[0] - fractions[1] == pytest.approx(90 / 3900, rel=0.05)
    run(str(path), "--bytes", "64 KiB")
    assert "as HBM2-PC, changed by denser.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "like: HBM2-PC\nn_rc: 30\nrows: 3000\n",
            r"denser.yaml: rows: expected a power of two, found 3000.*\n.*denser.yaml: n_rc: expected at least",
        ),
        ("like: HBM2-P\n", "denser.yaml: unknown memory preset 'HBM2-P'.*did you mean `HBM2-PC`"),
        ("like: HBM2-PC\nn_rcf: 3\n", "denser.yaml: n_rcf: unknown field; did you mean `n_rc"),
        ("bus_bits: 64\n", "denser.yaml: name: missing field"),
        ("- 1\n", "expected the fields of a memory preset"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_preset_file_with_mistakes_is_refused_with_all_of_them(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "denser.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(HardwareError, match=message):
        run(str(path))


def test_a_preset_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match=r"none.yaml: cannot be read"):
        run(str(tmp_path / "none.yaml"))

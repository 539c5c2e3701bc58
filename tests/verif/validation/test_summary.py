"""The residuals behind error bands are written from scored measurements by a command."""

import json
import subprocess
import sys
from pathlib import Path

from verif.validation.__main__ import spelled
from verif.validation.bands import SUMMARY

ROOT = Path(__file__).parents[3]
SYNTHETIC = Path(__file__).parent / "synthetic.csv"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "verif.validation", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_committed_summary_is_spelled_as_the_command_writes_it():
    text = SUMMARY.read_text(encoding="utf-8")
    assert spelled(json.loads(text)) == text


def test_few_measurements_make_a_summary_without_classes(tmp_path):
    done = run("--data", str(SYNTHETIC), "--out", str(tmp_path / "bands.json"), "--source", "made up")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bands.json").read_text(encoding="utf-8"))
    assert (found["source"], found["classes"]) == ("made up", [])
    assert [path.name for path in tmp_path.iterdir()] == ["bands.json"]


def test_a_missing_folder_is_a_message_and_leaves_the_summary_alone(tmp_path):
    before = SUMMARY.read_bytes()
    done = run("--data", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert SUMMARY.read_bytes() == before

"""Every example in the README runs: console lines that start with `$ dovetail`, and Python blocks, in one folder in order."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from dovetail.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|console)\n(.*?)^```$", README, flags=re.M | re.S)


def commands() -> list[str]:
    return [line.removeprefix("$ ") for kind, text in BLOCKS if kind == "console" for line in text.splitlines() if line.startswith("$ ")]


def test_the_readme_has_examples_of_both_kinds() -> None:
    assert {kind for kind, _ in BLOCKS} == {"python", "console"}
    assert any(command.startswith("dovetail estimate") for command in commands())


def test_make_commands_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert named
    assert named <= targets


def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text, "README.md", "exec"), scope)
            continue
        for command in (line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ dovetail")):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                status = main(shlex.split(command)[1:])
            assert status == 0, f"{command}: {printed.getvalue()}"


def test_console_examples_are_commands_of_ours_or_make() -> None:
    assert [command for command in commands() if not command.startswith(("dovetail ", "make ", "git clone ", "cd "))] == []

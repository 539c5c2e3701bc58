"""Who imports whom: rooms import to their left only, and heavy libraries stay where they belong."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LEFT_OF: dict[str, frozenset[str]] = {
    "workloads": frozenset(),
    "hw": frozenset(),
    "mapper": frozenset({"workloads", "hw"}),
    "sim": frozenset({"workloads", "hw", "mapper"}),
    "verif": frozenset({"workloads", "hw", "mapper", "sim"}),
    "dovetail": frozenset({"workloads", "hw", "mapper", "sim", "verif"}),
    "studies": frozenset({"workloads", "hw", "mapper", "sim", "verif", "dovetail"}),
}

HOMES: dict[str, tuple[str, ...]] = {
    "torch": ("workloads/tracer", "verif/kernels", "verif/record", "verif/latency"),
    "transformers": ("workloads/tracer", "verif/latency"),
    "simpy": ("sim",),
    "numba": ("sim",),
    "cocotb": ("verif",),
    "cocotb_tools": ("verif",),
    "amaranth": ("hw/rtl", "hw/units", "verif"),
    "matplotlib": ("dovetail", "studies"),
    "jinja2": ("dovetail", "studies"),
    "typer": ("dovetail",),
}
"""Where a library may be imported: folders, or files without `.py`."""

LAZY = ("torch", "transformers", "amaranth", "cocotb", "matplotlib", "simpy", "numba", "jinja2")
"""What importing a room must not load."""


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import in a file, those inside functions and type-checking blocks included."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            yield node.lineno, ".".join(part for part in (base, node.module or "") if part)


def sources() -> list[Path]:
    return sorted(path for room in LEFT_OF for path in (ROOT / room).rglob("*.py"))


def at_home(path: Path, homes: tuple[str, ...]) -> bool:
    place = path.relative_to(ROOT).with_suffix("").as_posix()
    return any(place == home or place.startswith(f"{home}/") for home in homes)


def test_a_room_imports_only_rooms_to_its_left() -> None:
    wrong = []
    for path in sources():
        room = path.relative_to(ROOT).parts[0]
        for line, name in imports(path):
            other = name.partition(".")[0]
            if other in LEFT_OF and other != room and other not in LEFT_OF[room]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} must not import {name}")
    assert wrong == []


def test_heavy_libraries_are_imported_where_they_belong() -> None:
    wrong = []
    for path in sources():
        for line, name in imports(path):
            library = name.partition(".")[0]
            if library in HOMES and not at_home(path, HOMES[library]):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {library} belongs to {', '.join(HOMES[library])}")
    assert wrong == []


def test_no_room_imports_the_tests() -> None:
    assert [str(path) for path in sources() if any(name.partition(".")[0] == "tests" for _, name in imports(path))] == []


def test_the_import_reader_sees_relative_and_nested_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = tmp_path / "hw" / "units"
    room.mkdir(parents=True)
    (room / "a.py").write_text("from ..part import Part\ndef f():\n    import torch.nn\n    from sim import x\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert list(imports(room / "a.py")) == [(1, "hw.part"), (3, "torch.nn"), (4, "sim")]


@pytest.mark.parametrize("room", [room for room in LEFT_OF if (ROOT / room / "__init__.py").is_file()])
def test_importing_a_room_loads_no_heavy_library(room: str) -> None:
    code = f"import sys, {room}; print(*(name for name in {LAZY!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("room", list(LEFT_OF))
def test_every_room_says_that_it_is_typed(room: str) -> None:
    assert (ROOT / room / "py.typed").is_file()

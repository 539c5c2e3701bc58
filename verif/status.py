"""What is known about each unit, as data: the outcome of the last full verification, tied to the sources it was made from.

    python -m verif.status [UNIT ...]     verifies, proves, and writes verif/verified.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hw import UNITS
from hw.area import characterisation
from hw.unit import Unit
from verif.fingerprint import fingerprint
from verif.record import provenance, write_atomically

FILE = Path(__file__).parent / "verified.json"


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
        found = outcome(kind)  # minutes: others may have written meanwhile
        document: dict[str, Any] = {"schema": 1, "units": {}}
        if path.is_file():
            document = json.loads(path.read_text(encoding="utf-8"))
        document["units"][kind] = found
        write_atomically(path, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
        print(f"{kind}: {found}", file=sys.stderr)


if __name__ == "__main__":
    from verif.conformance import units_with_rtl

    write(sys.argv[1:] or units_with_rtl())

"""All theorems about a unit: its arithmetic at every sample's size, and its streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from verif.conformance import describe, samples
from verif.formal import Verdict, prove
from verif.protocol import prove_protocol

WORST = ("refuted", "undecided", "proved")


def verdicts(kind: str, limit_s: float = 300.0, progress: Callable[[str], None] = lambda text: None) -> Iterator[tuple[str, Verdict]]:
    """(configuration, verdict) of each theorem; streams are proved for the smallest configuration. `progress` is told the next one."""
    found = samples(kind)
    for unit in found:
        for name, theorem in unit.proofs().items():
            progress(f"{name} of {describe(unit)}")
            yield describe(unit), prove(name, theorem, limit_s)
    progress("the protocol of the streams")
    for verdict in prove_protocol(found[-1], limit_s):
        yield describe(found[-1]), verdict


def prove_unit(kind: str, limit_s: float = 300.0) -> dict[str, str]:
    """Each property with its result; where configurations differ, the worst one."""
    results: dict[str, str] = {}
    for _, verdict in verdicts(kind, limit_s):
        results[verdict.name] = min(verdict.result, results.get(verdict.name, "proved"), key=WORST.index)
    return results

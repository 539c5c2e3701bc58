"""Checks that every unit with RTL must pass: what it computes, when, and how it behaves on its streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import yaml

from hw import UNITS, Device, Scratchpad, Unit
from hw.area import parameters
from hw.errors import nearest
from hw.work import Case
from verif.errors import VerificationError
from verif.simulate import Batch, Run, simulate
from verif.stalls import STALLS, Stall, never
from verif.tools import require

SEED = 20240927
"""Of the random cases, so that a failure comes back."""


@dataclass(frozen=True, slots=True)
class Check:
    """Findings about one unit: how many cases and cycle counts were compared, the sums of those, and what was wrong, in words."""

    unit: str
    cases: int = 0
    cycles_checked: int = 0
    cycles_exact: int = 0
    rtl_cycles: int = 0
    model_cycles: int = 0
    failures: tuple[str, ...] = field(default=())

    def __add__(self, other: Check) -> Check:
        return Check(
            self.unit,
            self.cases + other.cases,
            self.cycles_checked + other.cycles_checked,
            self.cycles_exact + other.cycles_exact,
            self.rtl_cycles + other.rtl_cycles,
            self.model_cycles + other.model_cycles,
            self.failures + other.failures,
        )


def units_with_rtl() -> list[str]:
    """Kinds of every registered unit that the suite can build."""
    return [kind for kind, cls in sorted(UNITS.items()) if cls.samples()]


def kind_of(name: str) -> str:
    """The kind of a unit from its kind or its title. Raises `VerificationError` with the nearest name."""
    titles = {cls.title: kind for kind, cls in UNITS.items()}
    if name in UNITS:
        return name
    if name in titles:
        return titles[name]
    raise VerificationError(f"unknown unit {name!r}, expected one of {', '.join(sorted(titles))}{nearest(name, {**titles, **UNITS})}")


def samples(name: str) -> tuple[Unit, ...]:
    """The configurations of a unit that are checked. Raises `VerificationError` with the nearest name, or when there is no RTL."""
    cls = UNITS[kind_of(name)]
    found = cls.samples()
    if not found:
        titles = sorted(UNITS[kind].title for kind in units_with_rtl())
        raise VerificationError(f"unit {cls.title!r} has no RTL to verify; units with RTL: {', '.join(titles)}")
    return found


def describe(unit: Unit) -> str:
    """A unit and the parameters in which it differs from the defaults of its class."""
    changed = {k: v for k, v in parameters(unit).items() if k in unit.model_fields_set}
    return f"{unit.kind}({', '.join(f'{k}={v}' for k, v in changed.items())})"


def draw(unit: Unit, count: int, seed: int = SEED) -> list[Case]:
    """The first `count` cases of a unit."""
    return list(islice(unit.cases(np.random.default_rng(seed)), count))


def batches(unit: Unit, cases: Sequence[Case]) -> list[Batch]:
    return [Batch(unit.encode(*case.operands), unit.results(case.work)) for case in cases]


def differences(unit: Unit, cases: Sequence[Case], results: Sequence[Sequence[int]]) -> list[str]:
    """Where result words are not what `golden` says, in words."""
    found = []
    for number, (case, words) in enumerate(zip(cases, results, strict=True)):
        want = np.asarray(unit.golden(*case.operands))
        got = np.asarray(unit.decode(list(words), case.work))
        if got.shape != want.shape:
            found.append(f"{describe(unit)} case {number} {case.work}: expected a result of shape {want.shape}, found {got.shape}")
        elif not np.array_equal(got, want):
            place = tuple(int(i) for i in np.argwhere(got != want)[0])
            found.append(f"{describe(unit)} case {number} {case.work}: at {place} golden is {want[place]}, RTL {got[place]}")
    return found


def component_of(unit: Unit) -> Any:
    require("amaranth", "simulations and proofs of RTL")
    component = unit.rtl()
    if component is None:
        raise VerificationError(f"{describe(unit)}: rtl() returned nothing to simulate")
    return component


def check_results(
    unit: Unit, count: int, *, offer: Stall = never, take: Stall = never, component: Any = None, seed: int = SEED
) -> Check:
    """RTL = golden over `count` cases sent as one stream, with either side stalling; breaches of the stream protocol fail too."""
    cases = draw(unit, count, seed)
    run = _run(unit, cases, component, offer=offer, take=take)
    if isinstance(run, str):
        return Check(unit.kind, len(cases), failures=(run,))
    return Check(unit.kind, len(cases), failures=(*differences(unit, cases, run.results), *run.breaches))


def check_cycles(unit: Unit, count: int, *, component: Any = None, seed: int = SEED) -> Check:
    """Cycles from the first word accepted to the last result = `cycles(work)`, and RTL = golden, each case by itself."""
    cases = draw(unit, count, seed)
    run = _run(unit, cases, component, apart=True)
    if isinstance(run, str):
        return Check(unit.kind, len(cases), len(cases), failures=(run,))
    model = [unit.cycles(case.work) for case in cases]
    wrong = [
        f"{describe(unit)} case {number} {case.work}: the model says {said} cycles, RTL takes {took}"
        for number, (case, said, took) in enumerate(zip(cases, model, run.cycles, strict=True))
        if said != took
    ]
    failures = (*differences(unit, cases, run.results), *wrong, *run.breaches)
    return Check(unit.kind, len(cases), len(cases), len(cases) - len(wrong), sum(run.cycles), sum(model), failures)


def _run(unit: Unit, cases: list[Case], component: Any, **how: Any) -> Run | str:
    """The simulation, or why there is no result to compare."""
    dut = component or component_of(unit)
    try:
        return simulate(dut, batches(unit, cases), rng=np.random.default_rng(SEED), **how)
    except VerificationError as error:
        return f"{describe(unit)}: {error}"


def verilog(unit: Unit) -> str:
    """The unit's RTL as Verilog, module `dut`."""
    from amaranth.back import verilog as backend

    text: str = backend.convert(component_of(unit), name="dut", emit_src=False)
    return text


def check_yaml(unit: Unit) -> Check:
    """A unit comes back equal from a device file."""
    memory = Scratchpad(capacity=1 << 20, bandwidth=10**9)
    device = Device(name="round-trip", clock=10**9, units={"unit": unit}, memories={"ram": memory})
    again = Device.from_dict(yaml.safe_load(device.to_yaml())).units["unit"]
    failures = () if again == unit else (f"{describe(unit)} comes back from YAML as {describe(again)}",)
    return Check(unit.kind, failures=failures)


def check_large_sets(kind: str, progress: Callable[[str], None] = lambda text: None) -> Check:
    """Golden = the kernel on every recorded large set, of which the results' hash was recorded; a set counts as one case."""
    from verif.kernels import kernels
    from verif.record import digest, large_set, provenance

    origin, kernel = provenance(kind), kernels().get(kind)
    if origin is None or kernel is None:
        return Check(kind)
    failures = []
    for number, found in enumerate(origin["sets"]):
        unit = UNITS[kind](**found["parameters"])
        progress(f"{describe(unit)}: {found['combinations']['distinct']:,} operand combinations in golden arithmetic")
        if digest(np.asarray(unit.golden(*operands)) for operands in large_set(kind, kernel, number)) != found["bulk_sha256"]:
            failures.append(f"{describe(unit)}: golden differs from the kernel on the large set")
    return Check(kind, len(origin["sets"]), failures=tuple(failures))


def check_vectors(kind: str) -> Check:
    """Golden = what torch computed on the machine that the vectors were recorded on, small cases only."""
    from verif.record import load

    failures = []
    vectors = load(kind)
    for number, vector in enumerate(vectors):
        unit = UNITS[kind](**vector.parameters)
        if not np.array_equal(np.asarray(unit.golden(*vector.operands)), vector.result):
            failures.append(f"{describe(unit)}: golden differs from recorded vector {number}")
    return Check(kind, len(vectors), failures=tuple(failures))


PATTERNS = (("never", "random_half"), ("every_third", "never"), ("random_half", "random_half"))
"""Stalls of the operand and of the result stream that results are compared under."""


def verify(kind: str, *, results: int = 24, cycles: int = 200) -> Check:
    """Results under every pair of `PATTERNS`, cycles of `cycles` shapes in all, and the YAML round trip, for every sample of a kind."""
    found = samples(kind)
    total = Check(kind)
    for unit in found:
        total += check_yaml(unit)
        for offer, take in PATTERNS:
            total += check_results(unit, max(results // len(PATTERNS), 1), offer=STALLS[offer], take=STALLS[take])
        total += check_cycles(unit, -(-cycles // len(found)))
    return total

"""Proofs over the whole input space: Amaranth to SMT-LIB through Yosys, decided by Bitwuzla."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from verif.errors import VerificationError
from verif.tools import require, yosys

PREPARE = (
    "read_rtlil design.il; hierarchy -top top; proc; memory -nomap; flatten; chformal -lower; opt; memory_map; opt_clean; dffunmap; "
    "write_smt2 -wires design.smt2"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the solver answered. `result`: `proved`, `refuted` (with a `counterexample`) or `undecided` at the time limit."""

    name: str
    result: str
    seconds: float
    counterexample: Mapping[str, int]


def smt_model(design: Any, ports: Mapping[str, Any]) -> str:
    """The transition system of a design in SMT-LIB, as Yosys writes it: sorts and functions prefixed with `top_`."""
    from amaranth.back import rtlil

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "design.il").write_text(rtlil.convert(design, name="top", ports=list(ports.values())), encoding="utf-8")
        yosys(PREPARE, folder)
        return Path(folder, "design.smt2").read_text(encoding="utf-8")


def decide(name: str, model: str, question: str, watch: Mapping[str, str], limit_s: float) -> Verdict:
    """Whether `question` (assertions of the negated claim) has no solution. `watch` maps names to the terms to show if it has."""
    bitwuzla = require("bitwuzla", "proofs")
    terms = bitwuzla.TermManager()
    options = bitwuzla.Options()
    options.set(bitwuzla.Option.PRODUCE_MODELS, True)
    options.set(bitwuzla.Option.TIME_LIMIT_PER, int(limit_s * 1000))
    parser = bitwuzla.Parser(terms, options)
    start = time.perf_counter()
    parser.parse("(set-logic ALL)\n" + model + question, True, False)
    answer = parser.bitwuzla().check_sat()
    seconds = time.perf_counter() - start
    if answer == bitwuzla.Result.UNSAT:
        return Verdict(name, "proved", seconds, {})
    if answer != bitwuzla.Result.SAT:
        return Verdict(name, "undecided", seconds, {})
    solver = parser.bitwuzla()
    values = {}
    for label, term in watch.items():
        bits = str(solver.get_value(parser.parse_term(term)))
        values[label] = int(bits.removeprefix("#b"), 2) if bits.startswith("#b") else int(bits == "true")
    return Verdict(name, "refuted", seconds, values)


def prove(name: str, theorem: Any, limit_s: float = 120.0) -> Verdict:
    """Decides a `hw.rtl.proof.Theorem` for every state and input.

    Raises `VerificationError` when a tool is missing or the claim names an unknown port.
    """
    model = smt_model(theorem.design, theorem.ports)
    if theorem.cycles:
        states = [f"s{cycle}" for cycle in range(theorem.cycles)]
        wires = {
            f"{label}_{cycle}": port_term(model, port.name, state)
            for label, port in theorem.ports.items()
            for cycle, state in enumerate(states)
        }
        question = "".join(f"(declare-fun {state} () |top_s|)\n(assert (not (|top_n rst| {state})))\n" for state in states)
        question += "(assert (|top_i| s0))\n" + "".join(f"(assert (|top_t| {a} {b}))\n" for a, b in pairwise(states))
    else:
        wires = {label: port_term(model, port.name, "s0") for label, port in theorem.ports.items()}
        question = "(declare-fun s0 () |top_s|)\n"
    if theorem.claim:
        try:
            question += f"(assert (not {theorem.claim.format(**wires)}))\n"
        except KeyError as error:
            raise VerificationError(f"{name}: the claim names port {error}, the theorem has {', '.join(wires)}") from None
    else:
        question += "(assert (not (|top_a| s0)))\n"
    return decide(name, model, question, wires, limit_s)


def port_term(model: str, name: str, state: str) -> str:
    """The bit vector of a port in a state; Yosys makes ports of one bit Booleans."""
    found = re.search(rf"\(define-fun \|top_n {re.escape(name)}\| \(\(state \|top_s\|\)\) (Bool|\(_ BitVec \d+\))", model)
    if not found:
        raise VerificationError(f"port {name!r} is not in the SMT model; name it in the theorem's ports")
    term = f"(|top_n {name}| {state})"
    return f"(ite {term} #b1 #b0)" if found[1] == "Bool" else term

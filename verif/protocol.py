"""Proofs about a unit's streams, for any RTL of the common form and from every state, reachable or not."""

from __future__ import annotations

import re

from hw import Unit
from verif.conformance import component_of
from verif.formal import Verdict, decide, port_term, smt_model


def prove_protocol(unit: Unit, limit_s: float = 120.0) -> list[Verdict]:
    """The stream properties that hold for `unit`, each decided:

    - `stable_while_stalled`: a result that is not taken is offered again, unchanged, in the next cycle;
    - `stalled_units_stand_still`: while a result waits, no operand is accepted and no register changes, so that a stall of the
      result stream stretches time and neither loses, repeats nor reorders anything. Units that work on beside a waiting result
      say so (`rigid = False`) and are left to simulation for this one.
    """
    component = component_of(unit)
    signals = {
        "payload": component.operands.payload,
        "valid": component.operands.valid,
        "accepts": component.operands.ready,
        "takes": component.result.ready,
        "offers": component.result.valid,
        "result": component.result.payload,
    }
    from amaranth.hdl import Value

    ports = {name: Value.cast(value) for name, value in signals.items()}
    model = smt_model(component, ports)
    registers = _registers(model)

    def term(name: str, state: str) -> str:
        return port_term(model, ports[name].name, state)

    def is_set(name: str, state: str) -> str:
        return f"(= {term(name, state)} #b1)"

    def same(left: str, right: str) -> str:
        return f"(and true {' '.join(f'(= (|top_n {r}| {left}) (|top_n {r}| {right}))' for r in registers)})"

    step = "(declare-fun s0 () |top_s|)\n(declare-fun s1 () |top_s|)\n(assert (|top_t| s0 s1))\n(assert (not (|top_n rst| s0)))\n"
    stalled = f"(and {is_set('offers', 's0')} (not {is_set('takes', 's0')}))"
    claims = {
        "stable_while_stalled": f"(=> {stalled} (and {is_set('offers', 's1')} (= {term('result', 's0')} {term('result', 's1')})))",
    }
    if component.rigid:
        claims["stalled_units_stand_still"] = f"(=> {stalled} (and (not {is_set('accepts', 's0')}) {same('s0', 's1')}))"
    return [decide(name, model, step + f"(assert (not {claim}))\n", {}, limit_s) for name, claim in claims.items()]


def _registers(model: str) -> list[str]:
    """Names of every register of a design, as Yosys lists them; one without any would leave a claim empty."""
    return re.findall(r"^; yosys-smt2-register (\S+) \d+$", model, flags=re.MULTILINE)

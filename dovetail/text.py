"""A report as text: five lines for the terminal, a small table for notebooks."""

from __future__ import annotations

from html import escape

from dovetail.human import capacity, decimal, digits, integer, joules, percent, ratio, seconds
from dovetail.report import MemoryUse, OperatorRow, Report

PER = {"prefill": "per prefill", "decode": "per step", "single": "per run"}
SHOWN = 3
"""Resources, operators and assumptions that a line names before it counts the rest."""


def five_lines(report: Report) -> list[str]:
    """Answer and clock; bound; where the time goes; memory and energy; assumptions."""
    return [answer(report), bound(report), time(report), f"{memory(report)}; {energy(report)}", assumed(report)]


def look_ups(report: Report) -> list[str]:
    """How each product is lowered where some look up tables: those first, then the ones that are multiplied; nothing where none does."""
    rows = [o for o in report.operators if o.lowering]
    if not any(o.lowering.startswith("lmma") for o in rows):
        return []
    names = short_names([o.name for o in report.operators])
    grouped: dict[str, list[str]] = {}
    for o in rows:
        what, _, who = o.lowering.partition(", tables ")
        step, _, builder = who.rpartition(" ")
        told = f" (tables {step} {names.get(builder, builder)})" if who else ""
        grouped.setdefault(what, []).append(f"{names[o.name]}{times(o.count)}{told}")
    order = sorted(grouped, key=lambda what: not what.startswith("lmma"))
    return ["lowering: " + "; ".join(f"{what}: {', '.join(grouped[what])}" for what in order)]


def units(report: Report) -> list[str]:
    """Where the operators that take the most time run, and what the other units would take; nothing where there was no choice."""
    kernels = [o for o in report.operators if o.candidates]
    kernels.sort(key=lambda o: (sum(c.latency_fs is not None for c in o.candidates) < 2, -o.total_fs))  # those with a choice first
    if not kernels:
        return []
    names = short_names([o.name for o in report.operators])
    shown = [f"{names[o.name]}{times(o.count)} on {o.unit} {seconds(o.latency_fs / 10**15)}{_others(o)}" for o in kernels[:SHOWN]]
    more = len(kernels) - SHOWN
    return ["units: " + "; ".join(shown) + (f"; {more} more in the HTML and JSON reports" if more > 0 else "")]


def _others(row: OperatorRow) -> str:
    """The candidates that an operator does not run on."""
    other = [c for c in row.candidates if c.unit != row.unit]
    texts = [f"{c.unit} {seconds(c.latency_fs / 10**15) if c.latency_fs is not None else 'cannot'}" for c in other]
    return f" ({', '.join(texts)})" if texts else ""


def commands(report: Report) -> list[str]:
    """The commands of one memory channel, by kernel, for kernels in its banks; nothing where there is none."""
    kernels = [o for o in report.operators if o.commands]
    if not kernels:
        return []
    names = short_names([o.name for o in report.operators])
    shown = [f"{names[o.name]}{times(o.count)} " + ", ".join(f"{integer(n)} {name}" for name, n in o.commands.items()) for o in kernels]
    return ["commands per channel: " + "; ".join(shown)]


def formats(report: Report) -> str:
    """One format name where all agree, else each with its role."""
    names = dict(report.formats)
    if len(set(names.values())) == 1:
        return next(iter(names.values()))
    return "/".join(f"{role} {name}" for role, name in names.items())


def subject(report: Report) -> str:
    """What was estimated: workload, formats, phase, sizes and device."""
    what = " ".join(part for part in (report.workload, formats(report)) if part)
    if report.phase == "single":
        return f"{what} on {report.device}"
    length = f"{report.tokens} tokens" if report.phase == "prefill" else f"context {report.context}"
    return f"{what} {report.phase}, batch {report.batch}, {length} on {report.device}"


def tokens_per_second(report: Report) -> float | None:
    """Tokens read (prefill) or generated (decode) per second; None for a bare operator or an empty run."""
    if report.phase == "single" or not report.latency_fs:
        return None
    return report.batch * report.tokens / report.latency_s


def answer(report: Report) -> str:
    rate = tokens_per_second(report)
    rated = f"; {digits(rate)} tokens/s" if rate is not None else ""
    return (
        f"{subject(report)}: {seconds(report.latency_s)} {PER.get(report.phase, 'per run')} "
        f"({integer(report.cycles)} cycles @ {decimal(report.clock_hz, 'Hz')}{rated})"
    )


def accuracy(report: Report) -> str:
    """Where measurements are expected, or that none of the kind are known."""
    band = report.error_band
    if band.low_fs is None or band.high_fs is None:
        return band.basis
    measured = f", from measurements on {' and '.join(band.devices)}" if band.devices else ""
    return f"error band {seconds(band.low_fs / 10**15)} to {seconds(band.high_fs / 10**15)}{measured}"


def gap(report: Report) -> str:
    """The lower bound and how far above it the estimate is."""
    if not report.lower_bound_fs:
        return "no lower bound"
    return (
        f"lower bound {seconds(report.lower_bound_fs / 10**15)}, the estimate is {ratio(report.latency_fs / report.lower_bound_fs)} of it"
    )


def bound(report: Report) -> str:
    parts = [f"{report.bound_resource} ({percent(report.bound_utilization)} of peak)", gap(report), accuracy(report), searched(report)]
    return "bound: " + "; ".join(part for part in parts if part)


def searched(report: Report) -> str:
    """How good the mappings are known to be, and why a search ended early; empty for a replayed mapping."""
    search = report.search
    if not search:
        return ""
    found = f"strategy {search['strategy']}" if search["strategy"] != "search" else "mappings"
    if search["proven"] == search["operators"]:
        text = f"{found}: each proven best of its space"
    else:
        worst = search["mappings_fs"] / search["mappings_bound_fs"] - 1 if search["mappings_bound_fs"] else None
        text = f"{found}: {search['proven']} of {search['operators']} proven best"
        text += f", at most {percent(worst)} above their bounds" if worst is not None else ""
    why = {"budget": "the budget ended the search", "interrupted": "the search was interrupted"}.get(search["ended"])
    return f"{text} ({why})" if why else text


def time(report: Report) -> str:
    """Busy and waiting shares per resource, and the operators that take the most time."""
    busiest = sorted(report.utilization, key=lambda name: -report.utilization[name])
    parts = []
    for name in [n for n in busiest if report.utilization[n] > 0][:SHOWN]:
        waits = sorted(report.stalls.get(name, {}).items(), key=lambda item: -item[1])
        waiting = [waited(reason, share) for reason, share in waits[:2] if share >= 0.01]
        parts.append(", ".join([f"{name} {percent(report.utilization[name])} busy", *waiting]))
    total = sum(o.total_fs for o in report.operators) or 1
    top = sorted(report.operators, key=lambda o: -o.total_fs)[:SHOWN]
    if top:
        names = short_names([o.name for o in report.operators])
        parts.append("mostly " + ", ".join(f"{names[o.name]}{times(o.count)} {percent(o.total_fs / total)}" for o in top))
    if report.trace.skipped:
        folded = f"{integer(report.trace.skipped)} of {integer(report.tasks)} tasks"
        parts.append(f"{integer(report.trace.repetitions)} repetitions folded, exactly ({folded})")
    return "time: " + "; ".join(parts)


def short_names(names: list[str]) -> dict[str, str]:
    """For each dotted name its last steps, as few as tell it from the others, but two where there are two.

    >>> short_names(["model.layers.0.mlp.up", "model.layers.0.attn.up", "lm_head"])
    {'model.layers.0.mlp.up': 'mlp.up', 'model.layers.0.attn.up': 'attn.up', 'lm_head': 'lm_head'}
    """
    out = {}
    for name in names:
        steps = name.split(".")
        for kept in range(min(2, len(steps)), len(steps) + 1):
            short = ".".join(steps[-kept:])
            if sum(other == short or other.endswith(f".{short}") for other in names) == 1:
                break
        out[name] = short
    return out


def waited(reason: str, share: float) -> str:
    return f"{percent(share)} done" if reason == "drained" else f"{percent(share)} waiting for {reason}"


def times(count: int) -> str:
    return f" x{count}" if count > 1 else ""


def main_memories(report: Report) -> list[MemoryUse]:
    """The memories that the roofline is about; where no roof names one, the largest."""
    named = {roof.memory for roof in report.roofs}
    main = [m for m in report.memories if m.name in named]
    return main or sorted(report.memories, key=lambda m: -m.capacity)[:1]


def memory(report: Report) -> str:
    """Peak occupancy with its parts, and traffic, of each main memory."""
    uses = []
    for use in main_memories(report):
        parts = ", ".join(f"{name} {capacity(size)}" for name, size in sorted(use.parts.items(), key=lambda p: -p[1]) if size)
        uses.append(
            f"{use.name} holds {capacity(use.peak)} of {capacity(use.capacity)} at peak{f' ({parts})' if parts else ''}, "
            f"{decimal(use.read, 'B')} read, {decimal(use.written, 'B')} written"
        )
    return "memory: " + ("; ".join(uses) or "none")


def energy(report: Report) -> str:
    """Energy with its parts; what is not modelled is named."""
    known = {name: value for name, value in report.energy_parts.items() if value is not None}
    unknown = [name for name, value in report.energy_parts.items() if value is None]
    if report.energy_j is None and not known:
        return "energy not modelled"
    parts = [f"{name} {joules(value)}" for name, value in sorted(known.items(), key=lambda p: -p[1])]
    if unknown:
        parts.append(f"not modelled: {', '.join(unknown)}")
    total = report.energy_j if report.energy_j is not None else sum(known.values())
    label = "energy" if not unknown and report.energy_j is not None else "energy at least"
    return f"{label} {joules(total)}" + (f" ({', '.join(parts)})" if parts else "")


def assumed(report: Report) -> str:
    shown = "; ".join(report.assumptions[:SHOWN]) or "nothing"
    more = len(report.assumptions) - SHOWN
    return f"assumed: {shown}" + (f"; {more} more in the HTML and JSON reports" if more > 0 else "")


def notebook_table(report: Report) -> str:
    """A compact HTML table of the five lines for notebooks; every name escaped."""
    rows = (line.partition(": ") for line in five_lines(report)[1:])
    head = escape(subject(report))
    result = escape(f"{seconds(report.latency_s)} {PER.get(report.phase, 'per run')}")
    body = "".join(
        f'<tr><th style="text-align:left;vertical-align:top">{escape(label)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for label, _, value in rows
    )
    return f'<table><caption style="text-align:left">{head}: <b>{result}</b></caption>{body}</table>'

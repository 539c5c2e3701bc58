"""Estimates for machines that run instruction streams: the compiled words of a model, timed instruction by instruction.

A layer of such a stream starts when the layer before has stored its result, so the latencies of layers add up to the whole.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from dovetail.report import FS, Constant, MemoryUse, OperatorRow, Report, Roof

if TYPE_CHECKING:
    from hw.device import Device
    from mapper.flightllm.compile import Stream
    from sim.flightllm import LayerTime, Run
    from workloads.graph import Graph, Operator


def runs_streams(device: Device) -> bool:
    """Whether a device is programmed by instruction streams."""
    from hw.units.flightllm import FlightCore

    return any(isinstance(unit, FlightCore) for unit in device.units.values())


def stream_report(
    graph: Graph,
    device: Device,
    formats: Mapping[str, str],
    engine: str,
    traced_s: float,
    tell: Callable[[str], None],
    program: object = None,
) -> Report:
    """Compiles a graph to instruction words, runs them on an engine, and reports. `traced_s` is what tracing took.

    `program` is a stream to run instead of a compiled one. Raises `MappingError` for formats and operators that the machine lacks
    and for a `program` that is not of this workload, `CapacityError` for a model that does not fit.
    """
    from mapper.errors import MappingError
    from mapper.flightllm.compile import DECODE_STEP, MAX_TOKENS, PREFILL_STEP, Compiler, aligned
    from sim.flightllm import run

    products = [operator for segment in graph.segments for operator in segment.operators if operator.kind == "matmul"]
    shared = {o.inputs[1] for o in products if graph.tensors[o.inputs[1]].format.family == "float" and "embed" in o.inputs[1]}
    left = [graph.tensors[o.inputs[0]] for o in products if o.inputs[1] not in shared]
    kinds = {"--acts int8": left, "--kv int8": [t for t in graph.tensors.values() if t.role == "kv_cache"]}
    wrong = {flag: t.format.name for flag, tensors in kinds.items() for t in tensors if t.format.name != "int8"}
    if wrong:
        found = " and ".join(f"{flag.split()[0].strip('-')} in {name}" for flag, name in wrong.items())
        raise MappingError(f"{device.name} computes with int8 and caches int8, found {found}; add {' '.join(wrong)} (and --weights int4)")
    start = time.perf_counter()
    longest = max(MAX_TOKENS, aligned(graph.context, PREFILL_STEP))
    compiler = Compiler(graph, device, bits=dict.fromkeys(shared, 8), max_tokens=longest)
    if program is None:
        stream = compiler.compile()
    else:
        stream = _given(program, graph, aligned(graph.context, PREFILL_STEP if graph.phase == "prefill" else DECODE_STEP))
    tell(f"simulating {len(stream.words)} instruction words")
    compiled = time.perf_counter()
    ran = run(stream, device, engine)
    elapsed = {"trace": traced_s, "map": compiled - start, "simulate": time.perf_counter() - compiled}
    notes = ["the product with the embedding table, which stays in floating point elsewhere, reads a copy in int8"] if shared else []
    return _report(graph, device, stream, ran, formats, engine, elapsed, notes)


def _given(program: object, graph: Graph, context: int) -> Stream:
    """A stream of the user's, if it is one of this workload."""
    from mapper.errors import MappingError
    from mapper.flightllm.compile import Stream

    if not isinstance(program, Stream):
        raise MappingError("this device runs instruction streams: expected an instruction file, found a mapping of loop nests")
    expected, found = ((s.name, s.phase, length) for s, length in ((graph, context), (program, program.context)))
    if expected != found:
        what = ("{} {} for {} tokens".format(*each) for each in (found, expected))
        raise MappingError("the instruction file was compiled for {}, expected {}".format(*what))
    return program


def _report(
    graph: Graph,
    device: Device,
    stream: Stream,
    ran: Run,
    formats: Mapping[str, str],
    engine: str,
    elapsed: Mapping[str, float],
    notes: Sequence[str],
) -> Report:
    from hw.quantity import cycles_to_fs
    from mapper.flightllm.compile import LABELS, core_of
    from mapper.flightllm.isa import QUEUES
    from sim.flightllm import layer_times

    core = core_of(device)
    unit = next(name for name, candidate in device.units.items() if candidate is core)
    trace, total, main = ran.trace, ran.trace.makespan, device.main_memory
    rate = core.mm_macs * core.count * device.unit_clock(unit)
    operators = _Operators(graph, device, rate)
    rows = _rows(layer_times(stream, device), trace, operators, unit, main)
    peak = {
        main: (ran.read + ran.written) * FS / (device.dram.bandwidth * total),
        unit: ran.macs * FS / (rate * total),
    }
    slowest = max(QUEUES, key=lambda queue: trace.busy.get(queue, 0))
    resource = main if slowest in ("LD", "ST") else unit
    parts = {LABELS[kind]: size for kind, size in stream.memory.by_kind().items() if size}
    return Report(
        workload=graph.name,
        phase=graph.phase,
        batch=graph.batch,
        tokens=graph.tokens,
        context=graph.context,
        formats=formats,
        device=device.name,
        clock_hz=device.clock,
        engine=engine,
        latency_fs=total,
        lower_bound_fs=operators.bound_fs,
        bound_resource=resource,
        bound_utilization=peak[resource],
        utilization={queue: trace.busy[queue] / total for queue in QUEUES if trace.busy.get(queue)},
        peak_fraction=peak,
        stalls={queue: {reason: fs / total for reason, fs in trace.stalls[queue].items()} for queue in QUEUES if trace.busy.get(queue)},
        memories=(MemoryUse(main, device.dram.total, sum(parts.values()), ran.read, ran.written, parts),),
        energy_j=None,
        energy_parts={unit: None, main: None, "static power": None},
        tasks=len(trace),
        operators=rows,
        roofs=(Roof(unit, "int8", 2.0 * rate, main, float(device.dram.bandwidth)),),
        assumptions=(
            *stream.notes,
            *notes,
            f"the stream is compiled for {stream.context} tokens, the next step of length-adaptive compilation",
            "every layer loads its input from HBM and stores its result there; joining a token to a cache costs its own store alone",
            "instruction times are those of the authors' released profiler, without latency of memory and refresh; one cycle of a "
            f"core is {cycles_to_fs(1, device.unit_clock(unit)) / 1e6:.3g} ns over a speed-up of {float(core.speedup):g} for all cores",
            f"instructions ({stream.size} B) are read ahead of time and cost nothing",
        ),
        constants=tuple(Constant(name, c.value, f"{c.meaning}; {c.source}") for name, c in device.constants.items()),
        elapsed_s=elapsed,
        trace=trace,
        mapping=stream,
    )


class _Operators:
    """Products of a graph by name, with the bytes and multiply-accumulates that no schedule avoids."""

    def __init__(self, graph: Graph, device: Device, rate: int) -> None:
        self.graph, self.device, self.rate = graph, device, rate
        self.by_name: dict[str, Operator] = {}
        sizes, macs = Fraction(0), Fraction(0)
        for segment in graph.segments:
            for operator in segment.operators:
                self.by_name[_plain(operator.name)] = operator
                sizes += segment.count * self._fixed(operator)
                macs += segment.count * self._kept(operator)
        self.bound_fs = self._fs(sizes, macs)

    def _fixed(self, operator: Operator) -> Fraction:
        """Bytes of weights and of the cache before this step."""
        total = Fraction(0)
        for tensor in self.graph.reads(operator):
            if tensor.role == "weight" and operator.kind == "matmul":
                total += tensor.bytes
            elif tensor.role == "kv_cache" and operator.kind == "attention" and self.graph.phase == "decode":
                total += Fraction(tensor.bytes * (self.graph.context - self.graph.tokens), self.graph.context)
        return total

    def _kept(self, operator: Operator) -> Fraction:
        """Multiply-accumulates with weights that are kept."""
        from workloads import cost
        from workloads.format import kept_of

        macs = Fraction(cost.macs(operator)) if operator.kind in ("matmul", "attention") else Fraction(0)
        if operator.kind == "matmul":
            kept = kept_of(self.graph.tensors[operator.inputs[1]].format)
            macs *= Fraction(kept[0]) / kept[1] if kept is not None else 1
        return macs

    def _fs(self, sizes: Fraction, macs: Fraction) -> int:
        return int(max(sizes * FS / self.device.dram.bandwidth, macs * FS / self.rate))

    def of(self, layer: str) -> tuple[str, int, int]:
        """Kind, FLOPs and lower bound of a layer. The two halves of an attention share its products evenly."""
        name = layer.removesuffix(".scores")
        operator = self.by_name.get(name)
        if operator is None:
            return "elementwise", 0, 0
        share = 2 if operator.kind == "attention" else 1
        macs = self._kept(operator) / share
        return operator.kind, int(2 * macs), self._fs(self._fixed(operator) / share, macs)


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if not part.isdecimal())


def _rows(layers: list[LayerTime], trace: Any, operators: _Operators, unit: str, main: str) -> tuple[OperatorRow, ...]:
    """A row per layer that differs from those before; `count` says how often it runs."""
    from mapper.flightllm.isa import QUEUES

    ends = [span.end for span in trace.spans() if span.on == "SYS"]
    found: Counter[tuple[LayerTime, int]] = Counter()
    before = 0
    for layer, end in zip(layers, ends, strict=True):
        found[layer, end - before] += 1
        before = end
    rows = []
    for (layer, latency), count in found.items():
        kind, flops, bound = operators.of(layer.name)
        slowest = max(range(len(QUEUES)), key=lambda q: layer.busy[q])
        words = ", ".join(f"{n} {queue}" for queue, n in zip(QUEUES, layer.instructions, strict=True) if n)
        rows.append(
            OperatorRow(
                name=layer.name,
                kind=kind,
                unit=unit,
                count=count,
                latency_fs=latency,
                lower_bound_fs=bound,
                flops=flops,
                bytes=layer.read + layer.written,
                bound=main if QUEUES[slowest] in ("LD", "ST") else unit,
                mapping=words,
            )
        )
    return tuple(rows)

"""FlightLLM in time: the decoded instruction stream, each instruction with its duration, on the program engines.

Durations are those of the authors' released profiler (github.com/FlightLLM/flightllm_test_demo, `profile/inst_gen/inst_profiler.py`):
a load or store takes its bytes over the bandwidth of the channels it uses, a product its multiply-accumulates over those of the
array, a row operation one or two passes at `lanes` elements per cycle; all divided by the speed-up of the cores together.
What the profiler writes beside an instruction is found in the words and the memory map here:

- loads in a row for one buffer, with no token in between, run in parallel on as many channels as they name;
- buffer B has a channel of its own, so its loads cross channels; all others stay in theirs; indices, counts and biases come
  from the one side channel;
- a value takes the bits of its region in memory;
- a sparse product takes the weights that were loaded for it, a dense one all of them; both are padded to the whole array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hw.device import Device
from hw.quantity import FS_PER_S
from hw.units.flightllm import FlightCore, InstructionMemory
from mapper.errors import MappingError
from mapper.flightllm import isa
from mapper.flightllm.compile import Compiler, Stream, aligned, core_of
from mapper.flightllm.isa import LD, MISC, MM, MV, QUEUES, SPECS, ST, SYS, Table
from mapper.program import Item, Move, Program, Repeat, Task, stored
from sim import simulate
from sim.trace import Trace

CHANNELS = 32
"""HBM channels (AXI ports) of both boards; AMD UG1285 and PG276."""
PASSES = {"add": 1, "mul": 1, "silu": 1, "softmax": 2, "layernorm": 2, "rmsnorm": 2}
"""How often MISC reads its row: normalisations need the whole row before they can write."""
_COLUMN = {(spec.queue, field.name): spec.column(field.name) for spec in SPECS for field in spec.fields}


@dataclass(frozen=True)
class Timing:
    """Femtoseconds of each instruction of a table, and the bytes it moves from or to HBM."""

    duration: NDArray[np.int64]
    moved: NDArray[np.int64]


def column(table: Table, queue: int, name: str) -> NDArray[np.int64]:
    """A field of rows that are all of one queue."""
    return table[:, _COLUMN[queue, name]]


def bursts(loads: Table) -> NDArray[np.int64]:
    """For each load the number of distinct channels that its burst names. `loads` are the rows of LD or ST, in order.

    A burst is a run of loads for the same buffer of which only the first waits and only the last releases.
    """
    if not len(loads):
        return np.zeros(0, np.int64)
    queue = int(loads[0, 0])
    mode = column(loads, LD, "mode") if queue == LD else np.zeros(len(loads), np.int64)
    starts = np.ones(len(loads), np.bool_)
    starts[1:] = (mode[1:] != mode[:-1]) | (loads[1:, 1] != 0) | (loads[:-1, 2] != 0)
    number = np.cumsum(starts) - 1
    channel = column(loads, queue, "channel")
    distinct = np.zeros(int(number[-1]) + 1, np.int64)
    np.bitwise_or.at(distinct, number, 1 << channel)
    found: NDArray[np.int64] = np.bitwise_count(distinct).astype(np.int64)[number]
    return found


def timing(table: Table, stream: Stream, device: Device) -> Timing:
    """Durations by the rules of this module; exact fractions, rounded up to whole femtoseconds once per instruction."""
    core = core_of(device)
    duration = np.zeros(len(table), np.int64)
    moved = np.zeros(len(table), np.int64)
    queue = table[:, 0]
    channel_bandwidth = Fraction(device.dram.bandwidth, CHANNELS)
    ddr = next((m.bandwidth for m in device.memories.values() if isinstance(m, InstructionMemory)), None)
    cycle = Fraction(FS_PER_S, device.unit_clock(_name(device, core))) / core.speedup

    loads = np.flatnonzero(queue == LD)
    rows = table[loads]
    mode = column(rows, LD, "mode")
    size = column(rows, LD, "length") * column(rows, LD, "loop1") * column(rows, LD, "loop2") * column(rows, LD, "loop3")
    zero = column(rows, LD, "zero")
    side = np.isin(mode, [isa.MODES.index(name) for name in ("meta", "bias", "mask")])
    bits = np.full(len(rows), 8)
    address = column(rows, LD, "address")
    for which in (False, True):
        chosen = (side == which) & (zero == 0)
        bits[chosen] = stream.memory.bits(address[chosen], which)
    crossing = mode == isa.MODES.index("B")
    channels = np.where(side, 1, bursts(rows))  # the side channel is one, whichever bank its data go to
    key = np.stack([size, bits, crossing, channels, zero, column(rows, LD, "memory")], axis=1)

    def ddr_time(moved: Fraction) -> Fraction:
        if ddr is None:
            raise MappingError(
                f"device {device.name!r}: an instruction moves data in DDR, but there is no memory of kind 'instruction_memory'"
            )
        return moved / ddr * FS_PER_S

    def load_time(values: Sequence[int]) -> Fraction:
        length, width, crosses, channels, fill, hbm = values
        if fill:
            return Fraction(length, core.a_width * channels) * cycle
        if not hbm:
            return ddr_time(Fraction(length * width, 8))
        efficiency = core.cross_channel if crosses else core.same_channel
        return Fraction(length * width, 8) / (channel_bandwidth * channels * efficiency * core.speedup) * FS_PER_S

    duration[loads] = _each(key, load_time)
    moved[loads] = np.where(zero == 1, 0, -(-size * bits // 8))

    stores = np.flatnonzero(queue == ST)
    rows = table[stores]
    size = column(rows, ST, "length") * column(rows, ST, "loop1")

    def store_time(values: Sequence[int]) -> Fraction:
        if not values[2]:
            return ddr_time(Fraction(values[0]))
        return Fraction(values[0]) / (channel_bandwidth * values[1] * core.same_channel * core.speedup) * FS_PER_S

    duration[stores] = _each(np.stack([size, bursts(rows), column(rows, ST, "memory")], axis=1), store_time)
    moved[stores] = size

    macs = multiplied(table, core)
    for kind, per_cycle in ((MM, core.mm_macs), (MV, core.mv_macs)):
        chosen = np.flatnonzero(queue == kind)
        duration[chosen] = _each(macs[chosen, None], partial(_rate, per_cycle=per_cycle, cycle=cycle))

    chosen = np.flatnonzero(queue == MISC)
    rows = table[chosen]
    passes = np.array([PASSES[name] for name in isa.OPERATIONS])[column(rows, MISC, "operation")]
    work = column(rows, MISC, "k") * core.tile * passes
    duration[chosen] = _each(work[:, None], partial(_rate, per_cycle=core.lanes, cycle=cycle))
    duration[queue == SYS] = _each(np.zeros((int((queue == SYS).sum()), 1), np.int64), lambda v: cycle)
    return Timing(duration, moved)


def _rate(values: Sequence[int], per_cycle: int, cycle: Fraction) -> Fraction:
    return Fraction(values[0], per_cycle) * cycle


def _name(device: Device, core: FlightCore) -> str:
    return next(name for name, unit in device.units.items() if unit is core)


def _each(keys: NDArray[np.int64], time: Callable[[Sequence[int]], Fraction]) -> NDArray[np.int64]:
    """`time` of every row of `keys` in whole femtoseconds, rounded up; computed once per distinct row."""
    if not len(keys):
        return np.zeros(0, np.int64)
    code = keys[:, 0].copy()
    for number in range(1, keys.shape[1]):  # all columns but the first are small
        code = code * (int(keys[:, number].max()) + 1) + keys[:, number]
    _, first, index = np.unique(code, return_index=True, return_inverse=True)
    values = []
    for row in keys[first].tolist():
        exact = time(row)
        values.append(-(-exact.numerator // exact.denominator))
    return np.array(values, np.int64)[index.reshape(-1)]


def multiplied(table: Table, core: FlightCore) -> NDArray[np.int64]:
    """Multiply-accumulates that each product takes time for: those of kept weights if its sparse flag is set, else all.

    All chains take as long as they do on average; where the counts of an MV say that fewer columns were loaded than it has, the
    others are padding.
    """
    queue = table[:, 0]
    products = np.flatnonzero((queue == MM) | (queue == MV))
    macs = np.zeros(len(table), np.int64)
    rows = table[products]
    vector = rows[:, 0] == MV
    outputs = np.where(vector, core.mv_start, core.mm_start)
    count = np.where(vector, 1, core.start_rows)
    macs[products] = column(rows, MV, "k") * core.tile * outputs * count
    sparse = column(rows, MV, "sparse") == 1
    if not sparse.any():
        return macs
    before = np.concatenate([[0], products])

    def loaded(mode: str, mine: NDArray[np.int64]) -> NDArray[np.int64]:
        """Buffer bytes loaded into a buffer between each product and the one before it."""
        size = np.where((queue == LD) & (column(table, LD, "mode") == isa.MODES.index(mode)), column(table, LD, "length"), 0)
        total = np.concatenate([[0], np.cumsum(size)])
        return np.asarray(total[mine] - total[before[np.searchsorted(products, mine)]])

    mine = products[(rows[:, 0] == MM) & sparse]
    macs[mine] = loaded("B", mine) * core.start_rows
    mine = products[(rows[:, 0] == MV) & sparse]
    kept, blocks = loaded("A", mine), loaded("mask", mine)
    whole = column(table[mine], MV, "k") * (core.mv_start // core.tile)
    macs[mine] = kept * whole // np.where(blocks > 0, blocks, whole)  # chains without a column of their own are idle
    return macs


# Programs -------------------------------------------------------------------------------------------------------------------
def program(stream: Stream, device: Device) -> Program:
    """The stream as a program for the engines: six queues, one channel per ordered pair of them, repetitions folded.

    Decodes the words chunk by chunk. Layers that take the same time, instruction by instruction, become one repeated body.
    """
    pieces: list[tuple[Item, ...]] = []
    keys: list[bytes] = []
    known: dict[bytes, tuple[Item, ...]] = {}
    offset = 0
    for number, chunk in enumerate(stream.chunks):
        table = isa.decode(chunk, offset)
        offset += 4 * len(chunk)
        found = timing(table, stream, device)
        macs = multiplied(table, core_of(device))
        bounds = np.concatenate([[0], np.flatnonzero(table[:, 0] == SYS) + 1])
        if bounds[-1] != len(table):
            bounds = np.append(bounds, len(table))
        rows = np.concatenate([table[:, :3], found.duration[:, None], found.moved[:, None], macs[:, None]], axis=1)
        names = stream.layers[number] if number < len(stream.layers) else ()
        for part, (start, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            piece = rows[start:end]
            key = piece.tobytes()
            if key not in known:
                name = _plain(names[part][0]) if part < len(names) else f"part {part}"
                known[key] = _tasks(name, piece)
            keys.append(key)
            pieces.append(known[key])
    return Program(dict.fromkeys(QUEUES, FS_PER_S), fold(pieces, keys))


def _plain(name: str) -> str:
    """A layer's name without the number of its repetition."""
    return ".".join(part for part in name.split(".") if not part.isdecimal())


_TOKENS = [[tuple(f"{QUEUES[o]}>{QUEUES[q]}" for o in isa.partners(q, value)) for value in range(32)] for q in range(6)]
_RELEASES = [[tuple(f"{QUEUES[q]}>{QUEUES[o]}" for o in isa.partners(q, value)) for value in range(32)] for q in range(6)]


def _tasks(name: str, rows: NDArray[np.int64]) -> tuple[Item, ...]:
    labels = [f"{name} {queue}" for queue in QUEUES]
    made: dict[tuple[int, ...], Task] = {}
    out: list[Task] = []
    for row in map(tuple, rows.tolist()):
        task = made.get(row)
        if task is None:
            queue, wait, release, duration, moved, macs = row
            move = (Move("hbm", moved if queue == LD else 0, moved if queue == ST else 0),) if moved else ()
            task = Task(labels[queue], QUEUES[queue], duration, _TOKENS[queue][wait], _RELEASES[queue][release], move, macs)
            made[row] = task
        out.append(task)
    return tuple(out)


def fold(pieces: Sequence[tuple[Item, ...]], keys: Sequence[bytes]) -> tuple[Item, ...]:
    """Pieces in a row as items, with the longest repeated runs of pieces as `Repeat`."""
    numbers: dict[bytes, int] = {}
    ids = [numbers.setdefault(key, len(numbers)) for key in keys]
    body: list[Item] = []
    position = 0
    while position < len(ids):
        best, period = 1, 1
        for length in range(1, (len(ids) - position) // 2 + 1):
            if ids[position + length] != ids[position]:
                continue
            count = 1
            while ids[position + count * length : position + (count + 1) * length] == ids[position : position + length]:
                count += 1
            if count > 1 and count * length > best * period:
                best, period = count, length
        items = [item for piece in pieces[position : position + period] for item in piece]
        if best > 1:
            body.append(Repeat(best, tuple(items)))
        else:
            body += items
        position += best * period
    return tuple(body)


@dataclass(frozen=True)
class LayerTime:
    """What one layer of a stream does: busy femtoseconds and instructions by queue, bytes of HBM, multiply-accumulates."""

    name: str
    busy: tuple[int, ...]
    instructions: tuple[int, ...]
    read: int
    written: int
    macs: int


def layer_times(stream: Stream, device: Device) -> list[LayerTime]:
    """The layers of a stream in order, repetitions included. A layer ends with its SYS instruction."""
    found: list[LayerTime] = []
    known: dict[bytes, LayerTime] = {}
    offset = 0
    for number, chunk in enumerate(stream.chunks):
        table = isa.decode(chunk, offset)
        offset += 4 * len(chunk)
        spent = timing(table, stream, device)
        rows = np.stack([table[:, 0], spent.duration, spent.moved, multiplied(table, core_of(device))], axis=1)
        ends = np.flatnonzero(table[:, 0] == SYS) + 1
        starts = np.concatenate([[0], ends[:-1]])
        for part, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            piece = rows[start:end]
            names = stream.layers[number] if number < len(stream.layers) else ()
            name = _plain(names[part][0]) if part < len(names) else f"part {part}"
            key = name.encode() + piece.tobytes()
            if key not in known:
                queues = [piece[piece[:, 0] == queue] for queue in range(len(QUEUES))]
                known[key] = LayerTime(
                    name,
                    tuple(int(q[:, 1].sum()) for q in queues),
                    tuple(len(q) for q in queues),
                    int(queues[LD][:, 2].sum()),
                    int(queues[ST][:, 2].sum()),
                    int(piece[:, 3].sum()),
                )
            found.append(known[key])
    return found


# Results --------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Run:
    """One stream in time. Times in seconds; `busy` by queue; `bytes` read and written; `instructions` by queue."""

    stream: Stream
    seconds: float
    busy: Mapping[str, float]
    read: int
    written: int
    macs: int
    instructions: int
    trace: Trace = field(repr=False)

    def bandwidth_use(self, device: Device) -> float:
        """Bytes moved over what HBM could have moved in the same time."""
        return (self.read + self.written) / (self.seconds * device.dram.bandwidth)

    def compute_use(self, device: Device) -> float:
        """Multiply-accumulates over what the arrays, in the mode that the stream uses most, could have done: kept weights only."""
        core = core_of(device)
        peak = core.mv_macs if self.busy["MV"] >= self.busy["MM"] else core.mm_macs
        return self.macs / (peak * core.count * device.unit_clock(_name(device, core)) * self.seconds)


def run(stream: Stream, device: Device, engine: str = "fast") -> Run:
    """Decode a stream and run it. Raises `MappingError` when its tokens do not match up (the engine names the blocked queues)."""
    made = program(stream, device)
    trace = simulate(made, engine)
    read, written = made.traffic().get("hbm", (Fraction(0), Fraction(0)))
    macs = int(sum(task.macs * count for task, count in stored(made.body)))
    busy = {queue: trace.busy.get(queue, 0) / FS_PER_S for queue in QUEUES}
    return Run(stream, trace.makespan / FS_PER_S, busy, int(read), int(written), macs, made.tasks(), trace)


@dataclass(frozen=True)
class Generation:
    """A prompt and the tokens after it. `prefill_s` is None when only the decode was asked for."""

    prompt: int
    generated: int
    prefill_s: float | None
    decode_s: float
    instruction_bytes: int

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens over the time of decode, as the released profiler counts."""
        return self.generated / self.decode_s


def generate(
    decode: Compiler, prompt: int, generated: int, prefill: Compiler | None = None, times: dict[int, Run] | None = None
) -> Generation:
    """Runs the streams of every context from `prompt` + 1 to `prompt` + `generated`, each as often as a token uses it.

    `times` keeps the runs by context, for several generations of one compiler.
    """
    if prompt < 1 or generated < 1:
        raise MappingError(f"a generation needs a prompt and tokens, found {prompt} and {generated}")
    times = {} if times is None else times
    uses: dict[int, int] = {}
    for token in range(generated):
        context = aligned(prompt + token + 1, 16)
        uses[context] = uses.get(context, 0) + 1
    size, total = 0, 0.0
    for context, count in uses.items():
        if context not in times:
            times[context] = run(decode.compile(context), decode.device)
        total += times[context].seconds * count
        size += times[context].stream.size
    first = None
    if prefill is not None:
        stream = prefill.compile(prompt)
        first = run(stream, prefill.device).seconds
        size += stream.size
    return Generation(prompt, generated, first, total, size)

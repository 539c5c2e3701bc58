"""Memory services in programs: what queues cost each other in the same channels, and that both engines say the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.channels import Channels
from hw.dram import PRESETS
from mapper.errors import MappingError
from mapper.program import Move, Program, Repeat, Task, Transfer, flatten
from sim import Trace, simulate

ENGINES = ["simpy", "fast"]
engines = pytest.mark.parametrize("engine", ENGINES)
HBM = Channels(preset="HBM2-PC", channels=8)
FS = 10**15


def load(name: str, on: str, size: int, *, waits: tuple[str, ...] = (), releases: tuple[str, ...] = (), **options: int) -> Task:
    return Task(name, on, 0, waits, releases, (Move("hbm", size),), transfer=Transfer("hbm", size, **options))


def store(name: str, on: str, size: int, **options: int) -> Task:
    return Task(name, on, 0, (), (), (Move("hbm", 0, size),), transfer=Transfer("hbm", 0, size, **options))


def program(*tasks: Task | Repeat, services: dict[str, Channels] | None = None) -> Program:
    return Program.of(tasks, services=services or {"hbm": HBM})


def spans(trace: Trace) -> list[tuple[str, int, int, str]]:
    return sorted((s.on, s.start, s.end, s.name) for s in trace.spans())


# --- what a transfer takes ----------------------------------------------------------------------------------------------


@engines
def test_a_transfer_alone_opens_its_rows_and_streams(engine: str) -> None:
    trace = simulate(program(load("a", "dma", 1 << 20)), engine)
    assert trace.makespan == HBM.first_access_fs("closed") + HBM.busy_fs(1 << 20)
    assert trace.makespan == HBM.transfer_fs(1 << 20, 0)


@engines
def test_reads_and_writes_of_one_transfer_pay_one_turn(engine: str) -> None:
    both = Task("a", "dma", transfer=Transfer("hbm", 4096, 4096))
    p = HBM.preset
    turn = (p.n_rtw + p.n_cwl - p.n_cl - p.n_bl) * p.clock_fs  # last beat of the read to the first of the write
    expected = HBM.first_access_fs() + HBM.busy_fs(4096) + HBM.busy_fs(4096, write=True) + turn
    assert simulate(program(both), engine).makespan == expected == HBM.transfer_fs(4096, 4096)


@engines
def test_short_pieces_take_longer_than_one_run(engine: str) -> None:
    whole, pieces = (simulate(program(load("a", "dma", 1 << 16, piece=piece)), engine).makespan for piece in (0, 512))
    assert pieces == HBM.first_access_fs() + 128 * HBM.busy_fs(512)
    assert pieces > whole


@engines
def test_a_row_that_is_open_answers_sooner_than_one_of_a_busy_bank(engine: str) -> None:
    row = HBM.preset.rows // 2 * HBM.sets * HBM.row_set  # the same banks, another row
    gap = Task("wait", "dma", 10**9)

    def second(address: int) -> int:
        trace = simulate(program(load("a", "dma", 512, address=0), gap, load("b", "dma", 512, address=address)), engine)
        return trace.end("b") - trace.end("wait")

    p = HBM.preset
    on = HBM.busy_fs(512, going_on=True)
    assert second(512) == p.n_cl * p.clock_fs + on
    assert second(row) == HBM.first_access_fs("conflict") + HBM.busy_fs(512)
    assert second(HBM.row_set) == HBM.first_access_fs("closed") + HBM.busy_fs(512)


@engines
def test_two_queues_share_the_channels(engine: str) -> None:
    size = 1 << 20
    one = [load(f"a{i}", "dma", size) for i in range(8)]
    two = [load(f"b{i}", "pim", size) for i in range(8)]
    alone, together = simulate(program(*one), engine), simulate(program(*one, *two), engine)
    # a queue asks for its next transfer when the one before is through, and then waits for other rows
    first, next_rows, each = HBM.first_access_fs("closed"), HBM.first_access_fs("conflict"), HBM.busy_fs(size)
    assert alone.makespan == first + 8 * each + 7 * next_rows
    # two queues hide these waits behind each other's data and take turns
    assert together.makespan == first + 16 * each
    assert [together.end(f"{s}{i}") for i in range(2) for s in "ab"] == [first + n * each for n in (1, 2, 3, 4)]


@engines
def test_what_arrives_together_is_served_in_the_order_of_the_queues(engine: str) -> None:
    tasks = (load("b", "second", 1 << 16), load("a", "first", 1 << 16))
    trace = simulate(Program({"first": FS, "second": FS}, tasks, {}, {"hbm": HBM}), engine)
    assert trace.end("a") < trace.end("b")


@engines
def test_a_queue_that_alternates_directions_turns_the_bus_each_time(engine: str) -> None:
    tasks = [load(f"t{i}", "dma", 4096) if i % 2 == 0 else store(f"t{i}", "dma", 4096) for i in range(20)]
    to_write, to_read = HBM.turns_fs
    # the next transfer is asked for when the one before is through: its rows open while the bus turns
    write, read = (max(HBM.first_access_fs("conflict", write=w), t) for w, t in ((True, to_write), (False, to_read)))
    expected = HBM.first_access_fs() + 10 * (HBM.busy_fs(4096) + HBM.busy_fs(4096, write=True)) + 10 * write + 9 * read
    assert simulate(program(*tasks), engine).makespan == expected


@engines
def test_a_queue_that_is_behind_another_waits_for_the_turn_of_the_bus(engine: str) -> None:
    trace = simulate(program(load("a", "dma", 1 << 20), store("b", "pim", 4096)), engine)
    assert trace.end("b") - trace.end("a") == HBM.turns_fs[0] + HBM.busy_fs(4096, write=True)


@engines
def test_services_do_not_disturb_each_other(engine: str) -> None:
    near = Channels(preset="DDR4-3200", channels=1)
    tasks = (load("a", "dma", 1 << 16), Task("b", "host", transfer=Transfer("ddr", 1 << 16)))
    trace = simulate(program(*tasks, services={"hbm": HBM, "ddr": near}), engine)
    assert trace.end("a") == HBM.transfer_fs(1 << 16, 0)
    assert trace.end("b") == near.transfer_fs(1 << 16, 0)


def test_folding_skips_transfers_whose_service_repeats() -> None:
    body = (
        load("load", "dma", 4096, waits=("empty",), releases=("full",)),
        Task("compute", "mxu", 14_000_000, waits=("full",), releases=("empty",)),
        store("result", "out", 64),
    )
    repeated = Program({"dma": FS, "mxu": FS, "out": FS}, (Repeat(3_000, body),), {"empty": 2}, {"hbm": HBM})
    assert spans(simulate(repeated, "fast")) == spans(simulate(repeated, "simpy"))
    alone = Program({"dma": FS, "mxu": FS}, (Repeat(3_000, body[:2]),), {"empty": 2}, {"hbm": HBM})
    fast = simulate(alone, "fast")
    assert fast.simulated < 50
    assert fast.simulated + fast.skipped == 6_000
    assert spans(fast) == spans(simulate(alone, "simpy"))


# --- both engines, random programs --------------------------------------------------------------------------------------

QUEUES = ("q0", "q1", "q2")
SERVICES = {
    "hbm": HBM,
    "ddr": Channels(preset="DDR4-3200", channels=1, mapping="row"),
    "own": Channels(preset={**PRESETS["HBM3-6.4-CH"].model_dump(), "name": "mine", "n_rfc": 700}, channels=2, refresh=False),
}


@st.composite
def programs(draw: st.DrawFn) -> Program:
    clocks = {q: draw(st.sampled_from([10**15, 10**12, 1_410_000_000])) for q in QUEUES}
    channels = {f"{a}->{b}": (a, b) for a in QUEUES for b in QUEUES if draw(st.integers(0, 2)) == 0}
    sizes = st.sampled_from([0, 1, 64, 4096, 100_000, 1 << 20])

    def task() -> Task:
        on = draw(st.sampled_from(QUEUES))
        waits = tuple(c for c, (_, b) in channels.items() if b == on and draw(st.integers(0, 3)) == 0)
        releases = tuple(c for c, (a, _) in channels.items() if a == on and draw(st.integers(0, 2)) == 0)
        name = f"t{draw(st.integers(0, 9))}"
        if draw(st.booleans()):
            return Task(name, on, draw(st.sampled_from([0, 0, 1, 500, 100_000])), waits, releases)
        read, written = draw(sizes), draw(sizes)
        address = draw(st.sampled_from([-1, -1, 0, 4096, 1 << 20, HBM.sets * HBM.row_set]))
        service, piece = draw(st.sampled_from(sorted(SERVICES))), draw(st.sampled_from([0, 64, 768]))
        transfer = Transfer(service, read, written or 1 - min(read, 1), piece, address)
        return Task(name, on, 0, waits, releases, transfer=transfer)

    def body(depth: int) -> tuple[Task | Repeat, ...]:
        items: list[Task | Repeat] = []
        for _ in range(draw(st.integers(1, 4))):
            if depth and draw(st.integers(0, 2)) == 0:
                items.append(Repeat(draw(st.integers(1, 12)), body(depth - 1)))
            else:
                items.append(task())
        return tuple(items)

    tokens = {c: draw(st.integers(0, 40)) for c in channels}
    return Program(clocks, body(2), tokens, SERVICES)


def outcome(wanted: Program, engine: str) -> object:
    try:
        trace = simulate(wanted, engine)
    except MappingError:
        return "cannot finish"
    return spans(trace), trace.makespan, dict(trace.busy), {q: dict(r) for q, r in trace.stalls.items()}


@settings(max_examples=300, deadline=None)
@given(programs())
def test_engines_agree_on_random_programs_with_services(wanted: Program) -> None:
    unfolded = Program(wanted.queues, tuple(flatten(wanted.body)), wanted.tokens, wanted.services)
    reference = outcome(unfolded, "simpy")
    assert outcome(wanted, "simpy") == reference
    assert outcome(wanted, "fast") == reference
    assert outcome(unfolded, "fast") == reference


@settings(max_examples=100, deadline=None)
@given(programs())
def test_no_service_moves_more_than_its_channels_can(wanted: Program) -> None:
    try:
        trace = simulate(wanted, "fast")
    except MappingError:
        return
    for queue in wanted.queues:
        assert trace.busy[queue] + sum(trace.stalls[queue].values()) == trace.makespan
    moved = dict.fromkeys(SERVICES, 0)
    for task in flatten(wanted.body):
        if task.transfer:
            moved[task.transfer.service] += task.transfer.read + task.transfer.written
    for name, size in moved.items():
        assert size * FS <= SERVICES[name].peak * trace.makespan


@settings(max_examples=50, deadline=None)
@given(programs())
def test_a_program_with_services_survives_its_saved_form(wanted: Program) -> None:
    assert Program.from_json(wanted.to_json()) == wanted


# --- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task("a", "x", transfer=Transfer("hmb", 1)), "unknown memory service 'hmb', expected one of hbm; did you mean `hbm`"),
        (Task("a", "x", 3, transfer=Transfer("hbm", 1)), "expected no cycles, found 3"),
        (Task("a", "x", transfer=Transfer("hbm")), "expected at least one byte and no negative size, found 0 B read"),
        (Task("a", "x", transfer=Transfer("hbm", -1, 2)), "found -1 B read"),
        (Task("a", "x", transfer=Transfer("hbm", 1, 0, -4)), "pieces of -4 B"),
        (Task("a", "x", transfer=Transfer("hbm", 64, 0, 0, HBM.capacity)), f"lie beyond the {HBM.capacity} B of memory service 'hbm'"),
        (Task("a", "x", transfer=Transfer("hbm", HBM.capacity + 1)), "lie beyond"),
        (Task("a", "x", transfer=Transfer("hbm", 64, 0, 0, -2)), "lie beyond"),
    ],
)
def test_a_transfer_that_makes_no_sense_is_refused(task: Task, message: str) -> None:
    with pytest.raises(MappingError, match=message):
        program(task)


def test_a_saved_program_with_an_unknown_preset_is_refused() -> None:
    document = program(load("a", "dma", 64)).to_json()
    document["services"]["hbm"]["preset"] = "HBM2-P"
    with pytest.raises(MappingError, match=r"not a complete saved program .*did you mean `HBM2-PC`"):
        Program.from_json(document)

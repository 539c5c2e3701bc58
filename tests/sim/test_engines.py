"""Program semantics: both engines, folded and unfolded, agree to the femtosecond."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper.errors import MappingError
from mapper.program import Program, Repeat, Task, flatten
from sim import Trace, simulate

ENGINES = ["simpy", "fast"]


def sorted_spans(trace: Trace):
    return sorted((s.on, s.start, s.end, s.name) for s in trace.spans())


@pytest.mark.parametrize("engine", ENGINES)
def test_two_tasks_on_one_unit_run_one_after_the_other(engine):
    trace = simulate([Task("a", on="mxu", cycles=7), Task("b", on="mxu", cycles=5)], engine)
    assert trace.end("b") == 7 + 5


@pytest.mark.parametrize("engine", ENGINES)
def test_a_task_starts_when_its_last_token_arrives(engine):
    load_a = Task("load a", on="dma0", cycles=10, releases=("a",))
    load_b = Task("load b", on="dma1", cycles=25, releases=("b",))
    work = Task("work", on="mxu", cycles=3, waits=("a", "b"))
    trace = simulate([load_a, load_b, work], engine)
    assert trace.end("work") == 25 + 3
    assert trace.stalls["mxu"] == {"dma1": 25}  # the later token decides the reason


@pytest.mark.parametrize("engine", ENGINES)
def test_double_buffering_overlaps_all_but_the_first_load(engine):
    # four tiles, load 10 and compute 4: two credits let a load run ahead, so only the last compute is exposed
    body = (
        Task("load", on="dma", cycles=10, waits=("empty",), releases=("full",)),
        Task("compute", on="mxu", cycles=4, waits=("full",), releases=("empty",)),
    )
    trace = simulate(Program({"dma": 10**15, "mxu": 10**15}, (Repeat(4, body),), {"empty": 2}), engine)
    assert trace.makespan == 4 * 10 + 4
    assert trace.busy == {"dma": 40, "mxu": 16}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_single_buffer_serialises_load_and_compute(engine):
    body = (
        Task("load", on="dma", cycles=10, waits=("empty",), releases=("full",)),
        Task("compute", on="mxu", cycles=4, waits=("full",), releases=("empty",)),
    )
    trace = simulate(Program({"dma": 10**15, "mxu": 10**15}, (Repeat(4, body),), {"empty": 1}), engine)
    assert trace.makespan == 4 * (10 + 4)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_reason_of_a_stall_passes_through_tasks_of_no_duration(engine):
    tasks = [
        Task("load", on="hbm", cycles=9, releases=("loaded",)),
        Task("go", on="control", waits=("loaded",), releases=("go",)),
        Task("work", on="mxu", cycles=1, waits=("go",)),
    ]
    assert simulate(tasks, engine).stalls["mxu"] == {"hbm": 9}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stall_is_split_between_the_late_resource_and_what_that_one_waited_for(engine):
    tasks = [
        Task("stream", on="hbm", cycles=9, releases=("streamed",)),
        Task("launch", on="launch", cycles=2, waits=("streamed",), releases=("go",)),
        Task("work", on="mxu", cycles=1, waits=("go",)),
    ]
    assert simulate(tasks, engine).stalls["mxu"] == {"hbm": 9, "launch": 2}


def test_folding_skips_iterations_and_changes_no_span():
    body = (
        Task("load", on="dma", cycles=10, waits=("empty",), releases=("full",)),
        Task("compute", on="mxu", cycles=14, waits=("full",), releases=("empty",)),
    )
    program = Program({"dma": 10**15, "mxu": 10**15}, (Repeat(10_000, body),), {"empty": 2})
    fast = simulate(program, "fast")
    assert fast.simulated < 50
    assert fast.simulated + fast.skipped == 20_000 == len(fast)
    assert sorted_spans(fast) == sorted_spans(simulate(program, "simpy"))


@pytest.mark.parametrize("engine", ENGINES)
def test_cycles_become_time_by_the_clock_of_their_queue_rounded_up(engine):
    program = Program({"slow": 3}, (Task("a", on="slow", cycles=1), Task("b", on="slow", cycles=1)))
    third = -(-(10**15) // 3)
    assert simulate(program, engine).makespan == 2 * third


@pytest.mark.parametrize("engine", ENGINES)
def test_a_program_that_cannot_finish_names_its_blocked_tasks(engine):
    with pytest.raises(MappingError, match=r"'a' on 'x' waits for never"):
        simulate([Task("a", on="x", cycles=1, waits=("never",))], engine)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Program({"x": 1}, (Task("a", on="y"),)), "unknown queue 'y'"),
        (lambda: Program({"x": 1}, (Task("a", on="x", cycles=-1),)), "at least 0, found -1"),
        (lambda: Program({"x": 1}, (Repeat(0, (Task("a", on="x"),)),)), "at least 1, found 0"),
        (lambda: Program.of([Task("a", on="x", waits=("c",)), Task("b", on="y", waits=("c",))]), "belongs to queue 'x'"),
        (lambda: Program({"x": 1}, (Task("a", on="x"),), {"c": -1}), "at least 0, found -1"),
        (lambda: simulate([], "quick"), "expected one of simpy, fast"),
    ],
)
def test_ill_formed_programs_are_refused(build, message):
    with pytest.raises(MappingError, match=message):
        build()


QUEUES = ("q0", "q1", "q2", "q3")


@st.composite
def programs(draw):
    clocks = {q: draw(st.sampled_from([10**15, 10**12, 7, 1_410_000_000])) for q in QUEUES}
    channels = {f"{a}->{b}": (a, b) for a in QUEUES for b in QUEUES if draw(st.booleans())}

    def task():
        on = draw(st.sampled_from(QUEUES))
        waits = [c for c, (_, b) in channels.items() if b == on and draw(st.integers(0, 3)) == 0]
        releases = [c for c, (a, _) in channels.items() if a == on and draw(st.integers(0, 2)) == 0]
        return Task(f"t{draw(st.integers(0, 9))}", on, draw(st.integers(0, 20)), tuple(waits), tuple(releases))

    def body(depth):
        items = []
        for _ in range(draw(st.integers(1, 4))):
            if depth and draw(st.integers(0, 2)) == 0:
                items.append(Repeat(draw(st.integers(1, 12)), body(depth - 1)))
            else:
                items.append(task())
        return tuple(items)

    tokens = {c: draw(st.integers(0, 40)) for c in channels}
    return Program(clocks, body(2), tokens)


def outcome(program, engine):
    try:
        trace = simulate(program, engine)
    except MappingError:
        return "cannot finish"
    return sorted_spans(trace), trace.makespan, dict(trace.busy), {q: dict(r) for q, r in trace.stalls.items()}


@settings(max_examples=400, deadline=None)
@given(programs())
def test_engines_agree_on_random_programs(program):
    unfolded = Program(program.queues, tuple(flatten(program.body)), program.tokens)
    reference = outcome(unfolded, "simpy")
    assert outcome(program, "simpy") == reference
    assert outcome(program, "fast") == reference
    assert outcome(unfolded, "fast") == reference


@settings(max_examples=150, deadline=None)
@given(programs(), st.data())
def test_making_a_task_shorter_never_makes_the_program_longer(program, data):
    tasks = list(flatten(program.body))
    base = outcome(Program(program.queues, tuple(tasks), program.tokens), "fast")
    if base == "cannot finish":
        return
    index = data.draw(st.integers(0, len(tasks) - 1))
    task = tasks[index]
    tasks[index] = Task(task.name, task.on, task.cycles // 2, task.waits, task.releases)
    assert simulate(Program(program.queues, tuple(tasks), program.tokens), "fast").makespan <= base[1]


@settings(max_examples=150, deadline=None)
@given(programs())
def test_busy_and_stalled_time_sum_to_the_total_on_every_resource(program):
    try:
        trace = simulate(program, "fast")
    except MappingError:
        return
    for queue in program.queues:
        assert trace.busy[queue] + sum(trace.stalls[queue].values()) == trace.makespan


@settings(max_examples=50, deadline=None)
@given(programs())
def test_a_program_survives_its_saved_form(program):
    assert Program.from_json(program.to_json()) == program

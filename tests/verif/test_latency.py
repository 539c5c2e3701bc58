"""The latency recorder: its protocol of warm and cold operands, its clocks, and files that `validate` reads back."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from verif.errors import VerificationError
from verif.latency import recorder, timing
from verif.latency.cases import SIZES, Case, build, designed, tiny
from verif.latency.recorder import COLD_TIMES, MOST_BYTES, MOST_SETS, Session, held, record_latency
from verif.latency.telemetry import Telemetry, card_of
from verif.latency.timing import MOST_CALLS, Timing, spans_for
from verif.validation import evaluate, read
from verif.validation.measurement import DTYPES, SHAPES

torch = pytest.importorskip("torch")

QUICK = [case for case in tiny() if case.operator in ("empty", "gemm", "rmsnorm", "llama-layer")]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "latency.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# The set --------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cases", [designed, tiny])
def test_every_case_states_the_sizes_that_validation_asks_of_its_operator(cases):
    for case in cases():
        assert tuple(sorted(case.shape)) == tuple(sorted(SHAPES[case.operator]))
        assert case.dtype in DTYPES
        assert set(case.shape) <= set(SIZES)


def test_the_designed_set_covers_what_it_promises():
    cases = list(designed())
    assert {c.operator for c in cases} == {c.operator for c in tiny()}
    assert {c.dtype for c in cases if c.operator == "gemm"} == {"bf16", "fp8"}
    assert {"launch", "host"} <= {clock for c in cases for clock in c.clocks}
    assert len({(c.operator, c.dtype, tuple(c.shape.items())) for c in cases}) == len(cases)
    # each case is timed about twice, over WHOLE_S and as much again for operands, graphs and warming up
    assert len(cases) * 2 * (2 * timing.WHOLE_S + 0.5) < recorder.BUDGET_S


@pytest.mark.parametrize("case", list(tiny()), ids=lambda c: c.label)
def test_every_case_computes_what_its_sizes_say(case):
    found = build(case, torch, "cpu")()
    s = case.shape
    expected = {
        "gemm": (s.get("m"), s.get("n")),
        "attention-prefill": tuple(s.get(x) for x in ("batch", "heads", "queries", "head_dim")),
        "attention-decode": tuple(s.get(x) for x in ("batch", "heads", "queries", "head_dim")),
        "llama-layer": tuple(s.get(x) for x in ("batch", "queries", "hidden")),
    }
    shape = expected.get(case.operator, (s["rows"], s["columns"]) if "rows" in s else (s.get("elements", 1),))
    assert tuple(found.shape) == shape
    assert bool(torch.isfinite(found.float()).all())


def test_bytes_of_a_product_are_its_operands_and_result():
    case = Case("gemm", "bf16", {"m": 3, "n": 5, "k": 7})
    assert case.size_bytes == 2 * (3 * 7 + 5 * 7 + 3 * 5)
    assert Case("gemm", "fp8", {"m": 3, "n": 5, "k": 7}).size_bytes == 3 * 7 + 5 * 7 + 2 * 3 * 5


# Timing ---------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("call_s", [1e-7, 3e-6, 1e-4, 0.5])
@pytest.mark.parametrize("sets", [1, 3, 64])
def test_a_span_is_whole_rounds_over_the_sets(call_s, sets):
    calls, spans = spans_for(call_s, sets)
    assert calls % sets == 0
    assert sets <= calls <= max(MOST_CALLS + sets, sets)
    assert 6 <= spans <= 30


def test_a_timing_is_the_median_of_its_spans_per_call():
    assert Timing.of([4.0, 2.0, 30.0], 2) == Timing(2.0, pytest.approx(1.2), pytest.approx(12.4), 2, 3)


def test_the_hosts_clock_counts_a_whole_call():
    found = timing.host(torch, False, [lambda: time.sleep(0.004)])
    assert 0.004 <= found.median_s < 0.02


class Clock:
    """Stands for a GPU: an event takes the time, which each call moves on."""

    def __init__(self):
        self.now = 0.0
        self.replays = 0
        self.captured = []
        clock = self

        class Event:
            def __init__(self, enable_timing):
                self.at = 0.0

            def record(self):
                self.at = clock.now

            def elapsed_time(self, other):
                return (other.at - self.at) * 1e3

        class Stream:
            def wait_stream(self, other):
                pass

        class Graph:
            def replay(self):
                clock.replays += 1
                for call in clock.captured:
                    call()

        class Capture:
            def __init__(self, graph, stream=None):
                pass

            def __enter__(self):
                clock.recording = True
                clock.captured = []

            def __exit__(self, *_):
                clock.recording = False

        class On:
            def __init__(self, stream):
                pass

            __enter__ = __exit__ = lambda self, *_: None

        self.recording = False
        self.cuda = SimpleNamespace(
            Event=Event, Stream=Stream, CUDAGraph=Graph, graph=Capture, stream=On, current_stream=Stream, synchronize=lambda: None
        )


def test_kernels_are_captured_in_turns_and_divided_by_their_number():
    clock = Clock()
    order = []

    def call(index, seconds):
        def run():
            if clock.recording:
                clock.captured.append(lambda: setattr(clock, "now", clock.now + seconds))
                order.append(index)

        return run

    found = timing.kernel(clock, [call(0, 1e-5), call(1, 3e-5)])
    assert order[:4] == [0, 1, 0, 1]
    assert found.median_s == pytest.approx(2e-5)  # the mean of the two that take turns
    assert clock.replays == found.spans + timing.WARM_UP


def test_a_gpu_is_recorded_warm_and_cold_and_by_every_clock_and_predicted(tmp_path, monkeypatch):
    """The whole way of a GPU's recording, with a clock that stands for it: every call takes 10 us, whatever it is."""
    clock = Clock()
    card = SimpleNamespace(L2_cache_size=50 << 20, total_memory=80 << 30)
    clock.cuda.__dict__.update(
        is_available=lambda: True,
        device_count=lambda: 1,
        set_device=lambda device: None,
        get_device_properties=lambda device: card,
        empty_cache=lambda: None,
    )
    clock.no_grad, clock.manual_seed = torch.no_grad, lambda seed: None

    def advance():
        clock.now += 1e-5

    def run():
        clock.captured.append(advance) if clock.recording else advance()

    monkeypatch.setattr(recorder, "_torch", lambda: clock)
    monkeypatch.setattr(recorder, "origin", lambda device: {"card": "NVIDIA H100 80GB HBM3"})
    monkeypatch.setattr(recorder, "build", lambda case, fake, where: run)
    every = ("launch", "host")
    shape = {"m": 16, "n": 4096, "k": 4096}  # 32 MiB: fits into the cache, and a few sets fill it
    found = record_latency(tmp_path, "cuda", cases=[Case("empty", "bf16", {}, every, cold=False), Case("gemm", "bf16", shape, every)])
    assert found["rows"] == 7
    written = [(row["operator"], row["clock"], row["copies"]) for row in rows(tmp_path)]
    assert written[:3] == [("empty", clock, "1") for clock in ("kernel", "launch", "host")]
    assert written[3:] == [("gemm", *rest) for rest in (("kernel", "1"), ("kernel", "0"), ("launch", "1"), ("host", "1"))]
    assert all(float(row["latency_us"]) == pytest.approx(10) for row in rows(tmp_path) if row["clock"] != "host")
    known, other = read(tmp_path)
    assert not other
    assert all(m.device == "h100-sxm" for m in known)
    score = evaluate(known)
    assert not score.refused
    assert len(score.measured) + len(score.excluded) == 7
    cold, warm = (
        next(p for m, p in zip(score.measured, score.predicted, strict=True) if m.copies == c and m.operator == "gemm") for c in (0, 1)
    )
    assert warm < cold


# Warm and cold --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1 << 20, 30 << 20, 600 << 20, 3 << 30])
def test_sets_that_take_turns_fill_the_cache_several_times_over(size):
    session = Session(torch, "cpu", False, 1.0, lambda text: None)
    session.cache, session.memory = 50 << 20, 80 << 30
    sets = session._sets(size)
    assert sets >= 2
    assert (sets - 1) * size >= COLD_TIMES * session.cache
    assert sets * size <= MOST_BYTES or sets == 2


def test_operands_too_small_to_fill_the_cache_are_never_called_cold():
    session = Session(torch, "cpu", False, 1.0, lambda text: None)
    session.cache, session.memory = 50 << 20, 80 << 30
    assert session._sets(COLD_TIMES * session.cache // MOST_SETS - 1) == 0


def test_a_result_stays_until_the_next_call():
    made = []
    run = held(lambda: made.append(object()) or made[-1])
    run()
    assert sys.getrefcount(made[0]) > sys.getrefcount(object())
    run()
    assert len(made) == 2


# Files ----------------------------------------------------------------------------------------------------------------------------
def test_a_recording_is_read_back_row_by_row(tmp_path, monkeypatch):
    """As if the machine had the card of a described device; without one its rows are counted, not predicted."""
    found = record_latency(tmp_path, "cpu", 60.0, cases=QUICK)
    written = rows(tmp_path)
    assert found["rows"] == len(written) == 2 * len(QUICK)
    assert {row["clock"] for row in written} == {"launch", "host"}
    known, other = read(tmp_path)
    assert (known, sum(other.values())) == ([], len(written))
    text = (tmp_path / "latency.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "latency.csv").write_text("\n".join([text[0], *(f"h100-sxm{line}" for line in text[1:])]), encoding="utf-8")
    known, other = read(tmp_path)
    assert not other
    for row, measured in zip(written, known, strict=True):
        assert (measured.operator, measured.clock, measured.dtype) == (row["operator"], row["clock"], row["dtype"])
        assert measured.latency_s == pytest.approx(float(row["latency_us"]) * 1e-6)
        assert measured.host_s == pytest.approx(float(row["host_us"]) * 1e-6)


def test_the_provenance_says_how_and_with_what(tmp_path):
    record_latency(tmp_path, "cpu", 60.0, cases=QUICK[:1])
    found = json.loads((tmp_path / "provenance.json").read_text(encoding="utf-8"))
    assert {"card", "torch", "numpy", "driver", "date", "clocks", "copies", "not_recorded", "skipped", "elapsed_s"} <= set(found)
    assert (found["device"], found["interrupted"], found["not_reached"]) == ("cpu", False, 0)


def test_a_case_that_torch_refuses_is_named_and_the_others_are_measured(tmp_path):
    bad = Case("attention-prefill", "bf16", {"batch": 1, "queries": 2, "keys": 2, "heads": 3, "kv_heads": 2, "head_dim": 8}, ("host",))
    found = record_latency(tmp_path, "cpu", 60.0, cases=[bad, *QUICK[:1]])
    assert len(found["skipped"]) == 1
    assert found["skipped"][0].startswith("attention-prefill bf16 1x2x2x3x2x8: ")
    assert found["rows"] == 2


def test_what_the_time_does_not_suffice_for_is_counted(tmp_path):
    found = record_latency(tmp_path, "cpu", 1e-9, cases=QUICK)
    assert (found["rows"], found["not_reached"]) == (0, len(QUICK))


def test_an_interrupted_recording_keeps_its_rows(tmp_path):
    def stop(text):
        if text.startswith("2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_latency(tmp_path, "cpu", 60.0, stop, QUICK)
    assert len(rows(tmp_path)) == 2
    assert json.loads((tmp_path / "provenance.json").read_text(encoding="utf-8"))["interrupted"]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", r"--device: expected cpu, cuda or cuda:N, not 'gpu'"),
        ("cdua", r"not 'cdua'; did you mean `cuda`"),
        ("cuda:x", r"not 'cuda:x'"),
    ],
)
def test_a_wrong_device_is_named(tmp_path, device, message):
    with pytest.raises(VerificationError, match=message):
        record_latency(tmp_path, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named(tmp_path):
    with pytest.raises(VerificationError, match="sees no GPU on this machine"):
        record_latency(tmp_path, "cuda")


def test_a_folder_that_is_a_file_is_refused_before_measuring(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(VerificationError, match=r"--out: .*file: cannot be made"):
        record_latency(tmp_path / "file", "cpu", cases=QUICK)


# The card -------------------------------------------------------------------------------------------------------------------------
def test_samples_of_the_card_are_means_over_a_time():
    card = Telemetry(None)
    before = time.perf_counter()
    card.take("1980, 2619, 400.0, 50")
    card.take("1800, 2619, [N/A], 52")
    card.take("garbage")
    after = time.perf_counter()
    assert card.between(before, after) == {"sm_mhz": 1890.0, "memory_mhz": 2619.0, "power_w": 400.0, "temperature_c": 51.0}
    assert card.between(after, after + 1)["sm_mhz"] == 1800.0  # the last before
    assert card.between(before - 2, before - 1)["sm_mhz"] is None


def test_a_machine_without_the_vendors_tool_has_no_samples(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with Telemetry("GPU-0") as card:
        assert card.between(0, time.perf_counter())["power_w"] is None


@pytest.mark.parametrize(("uuid", "expected"), [("ab-cd", "GPU-ab-cd"), ("GPU-ab", "GPU-ab"), (None, None)])
def test_a_card_is_named_by_its_uuid(uuid, expected):
    properties = SimpleNamespace(uuid=uuid) if uuid else SimpleNamespace()
    assert card_of(SimpleNamespace(cuda=SimpleNamespace(get_device_properties=lambda device: properties)), "cuda") == expected


def test_the_recorder_needs_torch_and_numpy_alone():
    heavy = "('hw', 'dovetail', 'mapper', 'pydantic', 'typer', 'rich', 'yaml', 'amaranth', 'transformers')"
    code = f"import sys, verif.latency; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_cards_are_described_devices():
    from hw.devices import names

    assert set(recorder.CARDS.values()) <= set(names())

"""Sweeps that are killed, workers that die, and a cluster: the table is always the one of an undisturbed run."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dovetail import sweep
from dovetail.explore.errors import ExploreError
from dovetail.explore.evaluate import Job, Outcome
from dovetail.explore.execute import Pool, _Chunks, execute, ordered
from tests.explore.cases import GEMM, ROOT, array

SLOW = """
name: slow
device: edge-npu
parameters:
  size: [16, 24, 32, 48, 64]
  lanes: [64, 128]
  sram: [64 KiB, 512 KiB, 2 MiB]
settings:
  units.array.rows: "{size}"
  units.array.columns: "{size}"
  units.vector.lanes: "{lanes}"
  memories.activations.capacity: "{sram}"
  memories.weights.capacity: "{sram}"
  memories.outputs.capacity: "{sram}"
workloads: [{workload: llama-2-7b, phase: decode, layers: 1, weights: int8, acts: int8}]
objectives: [latency, dram_traffic]
"""


def stored(place: Path) -> int:
    if not place.exists():
        return 0
    with contextlib.closing(sqlite3.connect(place, timeout=30)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM dovetail_evaluations").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def started(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "dovetail", "sweep", *arguments], cwd=folder, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def members(group: int) -> list[int]:
    """Processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_a_sweep_killed_twice_and_resumed_has_the_table_of_one_that_ran_through(tmp_path: Path) -> None:
    (tmp_path / "slow.yaml").write_text(SLOW)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    run = started("../slow.yaml", "--parquet", "t.parquet", "--workers", "2", folder=whole)
    assert run.wait(300) == 0, run.communicate()
    for kill in (1, 2):
        # a cache of mappings would make the second run too fast to be killed in the middle of it
        before = stored(torn / "slow.sqlite")
        run = started("../slow.yaml", "--workers", "2", *(["--resume"] if kill == 2 else []), folder=torn)
        until(lambda before=before: stored(torn / "slow.sqlite") > before)  # type: ignore[misc]
        os.kill(run.pid, signal.SIGKILL)  # the sweep alone: its workers must notice
        run.wait()
        until(lambda pid=run.pid: not members(pid), 20)
    left = stored(torn / "slow.sqlite")
    assert 2 <= left < 30
    run = started("../slow.yaml", "--resume", "--parquet", "t.parquet", "--workers", "2", folder=torn)
    _, messages = run.communicate(timeout=300)
    assert run.returncode == 0, messages
    assert f"{30 - left} evaluations had to be run" in messages
    assert (torn / "t.parquet").read_bytes() == (whole / "t.parquet").read_bytes()


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_nothing_with_it() -> None:
    before = set(children())
    names: dict[str, Any] = {"rows": [8, 12, 16, 24, 32, 48], "columns": [8, 16, 32], "workload": "gemm:512x1024x1024:int8"}
    killed: list[int] = []

    class Watch:
        """Kills one worker when a third of the points are done."""

        def __call__(self, count: int, total: int, best: str) -> None:
            if count == total // 3:
                killed.append(max(set(children()) - before))
                os.kill(killed[-1], signal.SIGKILL)

        def close(self) -> None:
            return None

    study = sweep(array, workers=2, progress=Watch(), **names)
    assert killed
    assert study.columns() == sweep(array, workers=0, **names).columns()


def children() -> list[int]:
    """Spawned workers of this process."""
    out = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and b"spawn_main" in (entry / "cmdline").read_bytes():
                    out.append(int(entry.name))
    return out


@pytest.mark.slow
def test_a_point_that_kills_its_workers_fails_alone(tmp_path: Path) -> None:
    unit = tmp_path / "deadly.py"
    unit.write_text(
        "import os\nfrom hw import Unit\nfrom hw.units.systolic import Systolic\n\n\n"
        "class Deadly(Systolic, kind='deadly_of_a_test', executes={'gemm'}):\n"
        "    def cycles(self, work):\n        if self.rows == 13:\n            os._exit(9)\n        return super().cycles(work)\n"
    )
    from dovetail.explore.evaluate import load_files

    load_files([str(unit)])
    cls = sys.modules["dovetail_loaded_deadly"].Deadly

    def design(rows: int) -> Any:
        device = array()
        return device.model_copy(update={"units": {"array": cls(rows=rows, columns=8, source="a test")}})

    try:
        study = sweep(design, workload=GEMM, rows=[8, 13, 16, 32], workers=2)
        reasons = {p.parameters["rows"]: p.reason for p in study.points}
        assert reasons[13] == "a worker process died (killed, or out of memory) each of 3 times that it ran this point"
        assert [reasons[n] for n in (8, 16, 32)] == ["", "", ""]
    finally:
        from hw.unit import UNITS

        UNITS.pop("deadly_of_a_test")


SCRIPT = """
from dovetail import sweep
from hw.devices import load
{unit}

def design(rows):
    device = load("systolic-32")
    return device.model_copy(update={{"units": {{"array": {cls}(rows=rows, columns=8, source="a test")}}}})

study = sweep(design, workload="gemm:64x64x64:int8", rows=[8, 16, 32], workers=2)
print(len(study.feasible))
"""


def script(folder: Path, unit: str, cls: str) -> subprocess.CompletedProcess[str]:
    (folder / "mine.py").write_text(SCRIPT.format(unit=unit, cls=cls))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "mine.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_script_needs_no_guard_to_sweep_on_several_processes(tmp_path: Path) -> None:
    done = script(tmp_path, "from hw.units import Systolic", "Systolic")
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_a_script_that_defines_a_unit_is_told_that_it_needs_one(tmp_path: Path) -> None:
    unit = "from hw.units import Systolic\n\nclass Mine(Systolic, kind='mine_of_a_test', executes={'gemm'}):\n    pass\n"
    done = script(tmp_path, unit, "Mine")
    assert done.returncode == 1
    assert "may sweep only under `if __name__ ==" in done.stderr
    guarded = (
        (tmp_path / "mine.py").read_text().replace("\nstudy = ", "\nif __name__ == '__main__':\n  study = ").replace("\nprint", "\n  print")
    )
    (tmp_path / "mine.py").write_text(guarded)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    again = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert again.stdout == "3\n", again.stderr


@contextlib.contextmanager
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A Dask scheduler and two workers, each a process of its own, over TCP."""
    pytest.importorskip("distributed")
    place = tmp_path / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen([*dask, "--scheduler-file", str(place)], **quiet)  # type: ignore[call-overload]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        until(place.exists, 60)
        until(lambda: place.read_text().rstrip().endswith("}"), 10)
        import json

        address = json.loads(place.read_text())["address"]
        one = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard"]
        workers += [subprocess.Popen(one, **quiet) for _ in range(2)]  # type: ignore[call-overload]
        yield address, workers
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_two_workers_over_tcp_of_which_one_is_killed_give_the_same_table(tmp_path: Path) -> None:
    names: dict[str, Any] = {"rows": [8, 12, 16, 24, 32, 48], "columns": [8, 16, 32], "workload": "gemm:512x1024x1024:int8"}
    with cluster(tmp_path) as (address, workers):
        assert address.startswith("tcp://127.0.0.1:")
        from distributed import Client

        with Client(address) as client:
            client.wait_for_workers(2, timeout=60)
        done: list[int] = []

        class Watch:
            """Kills one worker when half of the points are done."""

            def __call__(self, count: int, total: int, best: str) -> None:
                done.append(count)
                if count == total // 2:
                    workers[0].kill()
                    workers[0].wait()

            def close(self) -> None:
                return None

        study = sweep(array, scheduler=address, progress=Watch(), **names)
        assert workers[0].poll() is not None
        assert workers[1].poll() is None
    assert done[-1] == 18
    local = sweep(array, workers=0, **names)
    study.to_parquet(tmp_path / "cluster.parquet")
    local.to_parquet(tmp_path / "local.parquet")
    assert (tmp_path / "cluster.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()


def test_a_scheduler_that_does_not_answer_is_named() -> None:
    pytest.importorskip("distributed")
    with pytest.raises(ExploreError, match="scheduler 'nonsense://1': expected the address of a running Dask scheduler"):
        sweep(array, workload=GEMM, rows=[8], scheduler="nonsense://1")


# How jobs are handed out -----------------------------------------------------------------------------------------------------
def job(rows: int, sram: int) -> Job:
    return Job(f"{rows}.{sram}", array(rows=rows, sram=sram).to_dict(), "graph", "fast")


def test_jobs_that_share_a_search_are_neighbours() -> None:
    mixed = [job(rows, sram) for sram in (64, 32) for rows in (8, 16)]
    assert [j.key for j in ordered(mixed)] == ["8.64", "8.32", "16.64", "16.32"]


def test_every_job_is_handed_out_once_and_idle_workers_take_over() -> None:
    jobs = [Job(str(n), {}, "graph", "fast") for n in range(101)]
    chunks = _Chunks(jobs, 2)
    handed = [j.key for j in chunks.next(0)]
    chunks.measured([Outcome(k, "ok", elapsed_s=0.01) for k in handed])
    for worker in [1, *[0] * 200]:
        handed += [j.key for j in chunks.next(worker)]
    assert sorted(handed, key=int) == [str(n) for n in range(101)]


def test_no_jobs_need_no_workers() -> None:
    assert list(execute([], {}, Pool(4))) == []

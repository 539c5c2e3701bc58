"""Running evaluations: in this process, on a pool of processes, or on a Dask cluster. Results come as they are ready.

Jobs that differ in scratchpad capacities alone go to the same worker one after the other, as they share a search.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dovetail.explore.errors import ExploreError
from dovetail.explore.evaluate import Job, Outcome, run_chunk, warm_up
from dovetail.explore.workload import digest_of

if TYPE_CHECKING:
    from distributed import Client

CHUNK_S = 0.5
"""Time that a chunk of jobs should take: what a killed sweep loses per worker, against the cost of handing it out."""

LONGEST_CHUNK = 64
AHEAD = 2
"""Chunks that a worker has at a time: one that runs, and the next."""

WORKER = "DOVETAIL_WORKER"
"""Set in the environment of worker processes."""

STRIKES = 3
"""Times that a job may be on a worker that dies before it is taken to be the cause."""


@dataclass(frozen=True)
class Pool:
    """Where evaluations run: `workers` processes here (0: this one), or the Dask cluster at `scheduler`."""

    workers: int | None = None
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and (type(self.workers) is not int or self.workers < 0):
            raise ExploreError(f"workers: expected a whole number of at least 0, not {self.workers!r}")
        if self.workers is not None and self.scheduler is not None:
            raise ExploreError("give either workers or a scheduler, not both: a cluster brings its own workers")

    @property
    def processes(self) -> int:
        if self.workers is not None:
            return self.workers
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(jobs: Sequence[Job]) -> list[Job]:
    """Jobs with those that share a search next to each other, the roomiest first: its candidates include those of the others."""

    def shape(job: Job) -> str:
        memories = {n: {k: v for k, v in m.items() if k != "capacity"} for n, m in job.device.get("memories", {}).items()}
        return digest_of([job.graph, {**job.device, "memories": memories, "name": ""}])

    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(shape(job), []).append(job)
    return [job for group in groups.values() for job in group]


def execute(jobs: Sequence[Job], graphs: Mapping[str, bytes], pool: Pool, files: Sequence[str] = ()) -> Iterator[Outcome]:
    """The outcome of every job, in the order in which they are done."""
    if not jobs:
        return
    if WORKER in os.environ:
        raise ExploreError(
            'a worker was asked to run a sweep of its own: a file that defines units may sweep only under `if __name__ == "__main__":`'
        )
    if pool.scheduler is not None:
        yield from _on_cluster(ordered(jobs), graphs, pool.scheduler, files)
    elif min(pool.processes, len(jobs)) <= 1:
        for job in ordered(jobs):
            yield from run_chunk([job], {job.graph: graphs[job.graph]}, files)
    else:
        yield from _on_processes(ordered(jobs), graphs, min(pool.processes, len(jobs)), files)


class _Chunks:
    """Hands out runs of neighbouring jobs in pieces that take about `CHUNK_S`. Each worker has a stretch of the list to itself,
    so that it meets the jobs that share a search; when its own is done it takes over half of the longest."""

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        bounds = [len(jobs) * i // workers for i in range(workers + 1)]
        self._stretches = [deque(jobs[a:b]) for a, b in pairwise(bounds)]
        self._alone: deque[Job] = deque()
        self._seconds_per_job = CHUNK_S

    def measured(self, outcomes: Sequence[Outcome]) -> None:
        if outcomes:
            mean = sum(o.elapsed_s for o in outcomes) / len(outcomes)
            self._seconds_per_job = 0.5 * self._seconds_per_job + 0.5 * mean

    def give_back(self, job: Job) -> None:
        """A job of a worker that died is handed out by itself."""
        self._alone.append(job)

    @property
    def suspects(self) -> bool:
        """Whether jobs wait that were on a worker when it died: those run with nothing else beside or behind them."""
        return bool(self._alone)

    def next(self, worker: int) -> list[Job]:
        if self._alone:
            return [self._alone.popleft()]
        mine = self._stretches[worker]
        if not mine:
            longest = max(self._stretches, key=len)
            mine.extend(reversed([longest.pop() for _ in range((len(longest) + 1) // 2)]))
        size = max(1, min(LONGEST_CHUNK, int(CHUNK_S / max(self._seconds_per_job, 1e-4))))
        return [mine.popleft() for _ in range(min(size, len(mine)))]


@contextmanager
def _main_left_out() -> Iterator[None]:
    """Processes that start here do not import the user's script: nothing that they are sent refers to it, and a script without
    `if __name__ == "__main__"` would begin its sweep again in each of them."""
    main = sys.modules["__main__"]
    place, spec = getattr(main, "__file__", None), main.__spec__
    main.__file__, main.__spec__ = None, None
    try:
        yield
    finally:
        main.__file__, main.__spec__ = place, spec


def _start_worker(parent: int) -> None:
    """Runs first in every worker: it ignores Ctrl-C, which is the parent's to handle, and ends when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ[WORKER] = "1"

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    warm_up()


def _on_processes(jobs: Sequence[Job], graphs: Mapping[str, bytes], workers: int, files: Sequence[str]) -> Iterator[Outcome]:
    """One executor per process, so that a process keeps its stretch of jobs and one that dies takes only its own with it."""
    chunks = _Chunks(jobs, workers)
    strikes: dict[str, int] = {}
    context = multiprocessing.get_context("spawn")

    def start() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))

    def hand(worker: int, chunk: list[Job], payload: dict[str, bytes]) -> Future[list[Outcome]]:
        with _main_left_out():
            return executors[worker].submit(run_chunk, chunk, payload, files)

    executors = [start() for _ in range(workers)]
    running: dict[Future[list[Outcome]], tuple[int, list[Job]]] = {}

    alone: set[int] = set()

    def submit(worker: int) -> bool:
        busy = sum(1 for owner, _ in running.values() if owner == worker)
        if worker in alone or busy >= (1 if chunks.suspects else AHEAD):
            return False
        suspect = chunks.suspects
        if not (chunk := chunks.next(worker)):
            return False
        if suspect:
            alone.add(worker)
        payload = {job.graph: graphs[job.graph] for job in chunk}
        try:
            future = hand(worker, chunk, payload)
        except BrokenProcessPool:  # found out while handing it out; nothing of this chunk has run
            executors[worker] = start()
            future = hand(worker, chunk, payload)
        running[future] = (worker, chunk)
        return True

    try:
        for _ in range(AHEAD):
            for worker in range(workers):
                submit(worker)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, chunk = running.pop(future)
                alone.discard(worker)
                try:
                    outcomes = future.result()
                except BrokenProcessPool:
                    yield from _again(chunk, strikes, chunks, "a worker process died (killed, or out of memory)")
                else:
                    chunks.measured(outcomes)
                    yield from outcomes
                for idle in range(workers):  # a worker that waited for suspects to be over goes on, too
                    while submit(idle):
                        pass
    finally:
        for executor in executors:
            executor.shutdown(wait=not running, cancel_futures=True)


def _again(chunk: Sequence[Job], strikes: dict[str, int], chunks: _Chunks, reason: str) -> Iterator[Outcome]:
    for job in chunk:
        strikes[job.key] = strikes.get(job.key, 0) + 1
        if strikes[job.key] >= STRIKES:
            yield Outcome(job.key, "failed", f"{reason} each of {STRIKES} times that it ran this point")
        else:
            chunks.give_back(job)


# Dask ------------------------------------------------------------------------------------------------------------------------
def _connect(address: str) -> Client:
    try:
        from distributed import Client as DaskClient
    except ImportError:
        raise ExploreError("--scheduler needs dask and distributed; install them with: pip install 'dovetail[dse]'") from None
    try:
        return DaskClient(address, timeout="20s", set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TimeoutError) as error:
        raise ExploreError(
            f"scheduler {address!r}: expected the address of a running Dask scheduler such as tcp://host:8786 ({error})"
        ) from None


def _on_cluster(jobs: Sequence[Job], graphs: Mapping[str, bytes], address: str, files: Sequence[str]) -> Iterator[Outcome]:
    """Chunks on the workers of a cluster. A chunk whose worker dies is run again by the scheduler on another; one that kills
    every worker it meets becomes a failure."""
    from distributed import as_completed

    client = _connect(address)
    try:
        addresses = list(client.scheduler_info(n_workers=-1)["workers"])
        chunks = _Chunks(jobs, max(1, len(addresses)))
        running: dict[object, tuple[int, list[Job]]] = {}
        strikes: dict[str, int] = {}
        completed: Any = as_completed(loop=client.loop)  # type: ignore[no-untyped-call]

        def submit(worker: int) -> bool:
            if not (chunk := chunks.next(worker)):
                return False
            payload = {job.graph: graphs[job.graph] for job in chunk}
            near = {"workers": addresses[worker], "allow_other_workers": True} if addresses else {}
            future = client.submit(run_chunk, chunk, payload, list(files), pure=False, **near)
            running[future.key] = (worker, chunk)
            completed.add(future)
            return True

        for _ in range(AHEAD):
            for worker in range(max(1, len(addresses))):
                submit(worker)
        for future in completed:
            worker, chunk = running.pop(future.key)
            if future.status == "finished":
                outcomes: list[Outcome] = future.result()
                chunks.measured(outcomes)
                yield from outcomes
            else:
                yield from _again(chunk, strikes, chunks, f"a worker of the cluster failed ({future.exception()})")
            future.release()
            submit(worker)
    finally:
        client.close()  # type: ignore[no-untyped-call]

"""The commands of a PIM kernel as one channel gets them: runs of equal commands on three paths, with fences between them.

Array commands (column accesses of a set of banks) share the column path of the channel; moves (transfers between the host, or a
buffer, and registers outside the arrays) share the data path; unit commands occupy a unit of their own, such as a softmax
unit. Each path is in order, and paths run side by side between fences. Rows are not commands of a kernel: the controller
closes and opens them as the accesses need it, so that a refresh in between costs what it must.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

NO_ROW = -1


class Kind(IntEnum):
    """What a command does to the channel."""

    READ = 0  # a column of every bank of a set, for the units or for the host
    WRITE = 1  # a column of every bank of a set, or a register that a reserved row stands for
    HOLD = 2  # the array path stands still: a change of mode
    MOVE = 3  # a beat on the data path, no row involved
    UNIT = 4  # work of a unit behind the data path


ARRAY, DATA, UNIT = range(3)
PATHS = 3
PATH = {Kind.READ: ARRAY, Kind.WRITE: ARRAY, Kind.HOLD: ARRAY, Kind.MOVE: DATA, Kind.UNIT: UNIT}


@dataclass(frozen=True, slots=True)
class Run:
    """`count` commands called `name`, each at least `gap` clocks after the one before on the same path.

    `bank_set`, `row` and the first `column` are those of an access; a run never leaves its row. Negative rows are reserved
    ones, behind which registers lie. `rcd` is the time in clocks from the activate to the first access where it is not the
    channel's own. With `fence` nothing of this run or of later ones starts before all earlier commands are done; with
    `joins` it waits for the unit path alone. Before a fenced run with `turn` the channel may be handed over to ordinary
    requests that wait. `tag` says which data of the kernel the run handles, for the functional model. Inside a
    run with `group` a barrier stands after every so many commands; the order is kept anyway, so that it costs no time.
    """

    name: str
    kind: Kind
    count: int
    gap: int
    bank_set: int = -1
    row: int = NO_ROW
    column: int = 0
    rcd: int = 0
    fence: bool = False
    joins: bool = False
    turn: bool = False
    tag: tuple[int, ...] = ()
    group: int = 0

    @property
    def path(self) -> int:
        return PATH[self.kind]

    @property
    def fences(self) -> int:
        """Barriers before and inside the run."""
        return self.fence + (-(-self.count // self.group) - 1 if self.group else 0)


@dataclass(frozen=True)
class Part:
    """`count` pieces of a stream that differ in rows and data alone: `make(i)` gives the runs of the i-th."""

    count: int
    make: Callable[[int], tuple[Run, ...]]


def once(*runs: Run) -> Part:
    """A piece that comes once."""
    return Part(1, lambda _: runs)


@dataclass(frozen=True)
class Stream:
    """The commands of one channel."""

    parts: tuple[Part, ...]

    def runs(self) -> Iterator[Run]:
        """Every run in order."""
        for part in self.parts:
            for index in range(part.count):
                yield from part.make(index)

    def counts(self) -> dict[str, int]:
        """Commands by name: the closed form, from one piece of each part."""
        found: dict[str, int] = {}
        for part in self.parts:
            if part.count:
                for run in part.make(0):
                    found[run.name] = found.get(run.name, 0) + run.count * part.count
        return found

    def fences(self) -> int:
        """Barriers of the whole stream."""
        return sum(run.fences * part.count for part in self.parts if part.count for run in part.make(0))

    def __len__(self) -> int:
        """Number of runs."""
        return sum(part.count * len(part.make(0)) for part in self.parts if part.count)

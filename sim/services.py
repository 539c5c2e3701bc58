"""Memory services: what a memory remembers from one transfer to the next, in integers that every engine shares.

A service is three arrays: its `configuration`, one row of `request` numbers per distinct transfer, both made from the closed
forms of `hw.channels`, and its state. `serve` changes the state and says when a transfer ends. State 0 is the only time (when
the data buses are free); which way they last moved data, where the last transfer ended and which rows are open are not.
A transfer that arrives while the memory is busy hides its first access behind the one before, unless it needs another row of
the very banks in use and the queue sees nothing else to do meanwhile; one that finds the memory idle pays for it. Turning the
buses around leaves them idle.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hw.channels import Channels
from hw.dram import REQUEST_BYTES
from hw.errors import HardwareError
from mapper.program import Program, Transfer
from sim.dram import QUEUE, energy_parts

Ints = NDArray[np.int64]

LARGEST = 2**63 - 1
MARGIN = 2**40
"""Femtoseconds (1.1 ms) that first accesses, turns of the bus and row cycles of one transfer stay below."""

NONE, READ, WRITE = 0, 1, 2
"""Directions of the data bus; before the first transfer it has none."""
_STATES = ("hit", "closed", "conflict")

# configuration
(G_SETS, G_TO_WRITE, G_TO_READ, G_CYCLE, G_WINDOW, G_FIRST, G_CONFLICT) = (0, 1, 2, 3, 4, 5, 11)
CONFIGURATION = 15  # six first accesses (direction, row state), four conflicts (direction before, direction)
# request
(Q_READ, Q_WRITTEN, Q_READ_ON, Q_WRITTEN_ON, Q_SET, Q_LAST, Q_ADDRESS, Q_END, Q_IN_LAST) = range(9)
WIDTH = 9
# state: when the buses are free, their direction, where the last transfer ended and in which row set, how long its row there has
# been moving data, how many bytes in a row went to that set; the open row of every set
(T_FREE, T_WAY, T_NEXT, T_SET, T_HELD, T_RUN, T_ROWS) = range(7)


def configuration(channels: Channels) -> Ints:
    """The numbers of a memory that do not change."""
    to_write, to_read = channels.turns_fs
    window = 2 * QUEUE * channels.preset.burst_bytes * channels.channels  # in the queue, and on the way while the queue fills
    first = [channels.first_access_fs(state, write=write) for write in (False, True) for state in _STATES]
    conflict = [channels.conflict_fs(after_write=after, write=write) for after in (False, True) for write in (False, True)]
    return np.array([channels.sets, to_write, to_read, channels.row_cycle_fs, window, *first, *conflict], np.int64)


def initial(channels: Channels) -> Ints:
    """A memory that nothing has used yet: all rows closed."""
    return np.array([0, NONE, -1, -1, 0, 0, *[-1] * channels.sets], np.int64)


def request(channels: Channels, transfer: Transfer) -> Ints:
    """What a transfer asks, in numbers: how long its parts keep the channels busy and which rows it touches."""
    ways = ((transfer.read, False), (transfer.written, True))
    apart = [channels.busy_fs(size, piece_bytes=transfer.piece, write=write) for size, write in ways]
    on = [channels.busy_fs(size, piece_bytes=transfer.piece, write=write, going_on=True) for size, write in ways]
    if transfer.address < 0:
        return np.array([*apart, *on, -1, -1, -1, -1, 0], np.int64)
    end = transfer.address + max(transfer.read, transfer.written)
    sets = transfer.address // channels.row_set, (end - 1) // channels.row_set
    in_last = end - max(transfer.address, sets[1] * channels.row_set)
    return np.array([*apart, *on, *sets, transfer.address, end, in_last], np.int64)


@njit(cache=True, nogil=True)
def serve(config: Ints, state: Ints, wanted: Ints, now_fs: int) -> int:
    """Femtosecond at which a transfer that arrives at `now_fs` is through; changes the state. Calls come in order of arrival.

    -1, and no change, when 64 bits may not hold it.
    """
    if max(now_fs, state[T_FREE]) > LARGEST - MARGIN - 2 * (wanted[Q_READ] + wanted[Q_WRITTEN]):
        return -1
    sets = config[G_SETS]
    way = READ if wanted[Q_READ] > 0 else WRITE
    free, before = state[T_FREE], state[T_WAY]
    row_state = 1 if before == NONE else 2  # a place of its own: in banks that hold rows of others
    same_banks = False
    on = False
    first = wanted[Q_SET]
    if first >= 0:
        open_row = state[T_ROWS + first % sets]
        row_state = 0 if open_row == first // sets else 1 if open_row < 0 else 2
        on = row_state == 0 or wanted[Q_ADDRESS] == state[T_NEXT]
        same_banks = row_state == 2 and not on and first % sets == state[T_SET] and state[T_RUN] >= config[G_WINDOW]
    gap = 0
    if before == READ and way == WRITE:
        gap = config[G_TO_WRITE]
    elif before == WRITE and way == READ:
        gap = config[G_TO_READ]
    if same_banks:
        gap = max(gap, config[G_CONFLICT + 2 * (before - READ) + way - READ], config[G_CYCLE] - state[T_HELD])
    start = max(now_fs + config[G_FIRST + 3 * (way - READ) + row_state], free + gap)
    read, written = (wanted[Q_READ_ON], wanted[Q_WRITTEN_ON]) if on or same_banks else (wanted[Q_READ], wanted[Q_WRITTEN])
    end = start + read + written
    if read > 0 and written > 0:
        end += config[G_TO_WRITE]
    state[T_FREE] = end
    state[T_WAY] = WRITE if written > 0 else READ
    state[T_NEXT] = wanted[Q_END]
    if first < 0:
        state[T_SET] = -1
    else:
        if wanted[Q_LAST] == first and first % sets == state[T_SET]:
            state[T_RUN] += wanted[Q_IN_LAST]
            state[T_HELD] = read + written + (state[T_HELD] if on else 0)
        else:
            state[T_RUN], state[T_HELD] = wanted[Q_IN_LAST], read + written
        state[T_SET] = wanted[Q_LAST] % sets
        for k in range(max(first, wanted[Q_LAST] - sets + 1), wanted[Q_LAST] + 1):
            state[T_ROWS + k % sets] = k // sets
    return int(end)


class Memory:
    """A memory service while a program runs. The requests of equal transfers are made once."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.configuration = configuration(channels)
        self.state = initial(channels)
        self._requests: dict[Transfer, Ints] = {}

    def request(self, transfer: Transfer) -> Ints:
        found = self._requests.get(transfer)
        if found is None:
            found = self._requests[transfer] = request(self.channels, transfer)
        return found

    def serve(self, transfer: Transfer, now_fs: int) -> int:
        """Femtosecond at which a transfer that arrives now is through."""
        return int(serve(self.configuration, self.state, self.request(transfer), now_fs))

    def snapshot(self) -> tuple[int, tuple[int, ...]]:
        """The state: its time, and everything else that the future depends on."""
        time, *rest = self.state.tolist()
        return time, tuple(rest)

    def later(self, shift_fs: int) -> None:
        """Moves the state in time."""
        self.state[T_FREE] += shift_fs


def memories(program: Program) -> dict[str, Memory]:
    """The services of a program, all unused."""
    return {name: Memory(channels) for name, channels in program.services.items()}


class DramService(Memory):
    """A memory outside of a program: transfers of one direction each, in order of arrival, with counters.

    Ending times are a deterministic function of the calls so far.
    """

    def __init__(self, channels: Channels) -> None:
        super().__init__(channels)
        self._next = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self.activates = 0

    def transfer(self, now_fs: int, size_bytes: int, *, write: bool, address: int | None = None) -> int:
        """Femtosecond at which the last byte of a transfer that arrives at `now_fs` is through.

        Without `address` the transfer goes on where the one before ended. Calls come in order of arrival.
        Raises `HardwareError` for no bytes, a negative time, or an address beyond the memory.
        """
        channels = self.channels
        if size_bytes < 1 or now_fs < 0:
            raise HardwareError(f"expected at least one byte and no negative time, found {size_bytes} B at {now_fs} fs")
        if address is None:
            address = self._next if self._next + size_bytes <= channels.capacity else 0
        if not 0 <= address <= channels.capacity - size_bytes:
            raise HardwareError(
                f"{size_bytes} B at address {address:#x} lie beyond the {channels.capacity} B of "
                f"{channels.channels} x {channels.preset.name}"
            )
        row_set = channels.row_set
        first, last = address // row_set, (address + size_bytes - 1) // row_set
        opened = last - first + (self.state[T_ROWS + first % channels.sets] != first // channels.sets)
        touched = 1
        if channels.mapping == "interleaved":
            touched = min(row_set // channels.preset.row_bytes, -(-(size_bytes + address % REQUEST_BYTES) // REQUEST_BYTES))
        self.activates += int(opened) * touched
        self._next = address + size_bytes
        if write:
            self.bytes_written += size_bytes
            return self.serve(Transfer("", 0, size_bytes, 0, address), now_fs)
        self.bytes_read += size_bytes
        return self.serve(Transfer("", size_bytes, 0, 0, address), now_fs)

    @property
    def peak(self) -> Fraction:
        """Bytes per second of all channels."""
        return self.channels.peak

    def energy_parts(self, time_s: float) -> dict[str, float | None]:
        """Joules so far by command and location, with standby and refresh over `time_s`; empty where the preset gives no energy."""
        preset, count = self.channels.preset, self.channels.channels
        reads, writes = -(-self.bytes_read // preset.burst_bytes), -(-self.bytes_written // preset.burst_bytes)
        refreshes = int(time_s * 1e15 // (preset.n_refi * preset.clock_fs)) * count * self.channels.refresh
        return energy_parts(preset.energy, preset.burst_bytes, self.activates, reads, writes, refreshes, time_s * count)

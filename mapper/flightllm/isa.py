"""The instruction set: encoding, decoding, assembly text.

Six kinds of instruction of one to seven 32-bit words, each on a queue of its own. Word 0 starts with the opcode (bits 31:28),
`wait` (27:23) and `release` (22:18), a bit for each of the other five queues, in the order LD, ST, MM, MV, MISC, SYS from the
highest bit on. Layout, opcodes and field names follow the instruction set in the authors' released test demo
(github.com/FlightLLM/flightllm_test_demo, `profile/inst_gen/isa.py`); a field in several parts has its low bits in the first.

Three meanings are ours, because the released set names the bits only: `column` of ST (`rs_col` there) puts a result at its place
in a cache or in a matrix of blocks instead of in one piece; `mask` of MISC confines softmax to the valid tokens, and on a sum
exchanges the halves of each 16 elements of the second operand (rotary embedding); `memory` is 1 for HBM and 0 for DDR.

A program is a table of integers, one row per instruction: column 0 the queue, 1 `wait`, 2 `release`, then the fields in the
order of `SPECS`. Tables and words turn into each other whole, with numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapper.errors import MappingError

QUEUES = ("LD", "ST", "MM", "MV", "MISC", "SYS")
LD, ST, MM, MV, MISC, SYS = range(6)
Table = NDArray[np.int64]
Words = NDArray[np.uint32]

MODES = ("B", "meta", "bias", "mask", "A", "global")
"""Destination buffers of LD: activations (MV) or weights (MM), sparse indices, biases, N of each block, weights (MV) or
activations (MM), and the buffer that MISC works in."""
OPERATIONS = ("add", "mul", "softmax", "layernorm", "rmsnorm", "silu")
"""What MISC computes; the two normalisations leave scale and offset to the next layer's weights."""


class InstructionError(MappingError):
    """Words or assembly text that are not a program; the message names the place, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Field:
    """`parts` are (word, high bit, low bit); `limit`: the smallest value that is not allowed; `names` are its values in text."""

    name: str
    parts: tuple[tuple[int, int, int], ...]
    limit: int = 0
    names: tuple[str, ...] = ()

    @property
    def bits(self) -> int:
        return sum(high - low + 1 for _, high, low in self.parts)

    @property
    def end(self) -> int:
        return self.limit or 1 << self.bits


@dataclass(frozen=True, slots=True)
class Spec:
    """One kind of instruction: its queue, opcode, length in words, and fields after `wait` and `release`."""

    queue: int
    opcode: int
    length: int
    fields: tuple[Field, ...]

    @property
    def name(self) -> str:
        return QUEUES[self.queue]

    def column(self, name: str) -> int:
        """The column of a field in a table."""
        return 3 + [field.name for field in self.fields].index(name)

    def reserved(self) -> list[int]:
        """For each word, a mask of the bits that no field uses."""
        masks = [0xFFFFFFFF] * self.length
        for word, high, low in ((0, 31, 18), *(part for field in self.fields for part in field.parts)):
            masks[word] &= ~(((1 << (high - low + 1)) - 1) << low)
        return masks


def _f(name: str, *parts: tuple[int, int, int], limit: int = 0, names: tuple[str, ...] = ()) -> Field:
    return Field(name, parts, limit or len(names), names)


_PRODUCT = (
    _f("k", (0, 17, 4)),
    _f("output", (0, 3, 3)),
    _f("bias", (0, 2, 2)),
    _f("relu", (0, 1, 1)),
    _f("sparse", (0, 0, 0)),
    _f("bias_addr", (1, 31, 24), (2, 3, 0)),
    _f("meta_addr", (1, 23, 12)),
    _f("mask_addr", (1, 11, 0)),
    _f("a_addr", (2, 27, 16)),
    _f("b_addr", (2, 15, 4)),
    _f("out_addr", (3, 11, 0)),
)
SPECS = (
    Spec(
        LD,
        1,
        7,
        (
            _f("mode", (0, 17, 15), names=MODES),
            _f("channel", (0, 14, 12)),
            _f("bank", (0, 11, 0)),
            _f("stride1", (1, 31, 0), (2, 1, 0)),
            _f("stride2", (2, 31, 2), (3, 3, 0)),
            _f("stride3", (3, 31, 4), (4, 5, 0)),
            _f("address", (4, 31, 6), (5, 7, 0)),
            _f("loop1", (5, 31, 24)),
            _f("loop2", (5, 23, 16)),
            _f("loop3", (5, 15, 8)),
            _f("zero", (6, 25, 25)),
            _f("memory", (6, 24, 23), limit=2),
            _f("length", (6, 22, 0)),
        ),
    ),
    Spec(
        ST,
        2,
        3,
        (
            _f("bank", (0, 17, 6)),
            _f("loop1", (0, 5, 1)),
            _f("column", (0, 0, 0)),
            _f("address", (1, 31, 0), (2, 1, 0)),
            _f("memory", (2, 29, 28), limit=2),
            _f("channel", (2, 27, 25)),
            _f("length", (2, 24, 2)),
        ),
    ),
    Spec(MM, 3, 4, _PRODUCT),
    Spec(MV, 4, 4, _PRODUCT),
    Spec(
        MISC,
        5,
        3,
        (
            _f("a_addr", (0, 17, 6)),
            _f("mask", (0, 5, 4), limit=2),
            _f("operation", (0, 3, 0), names=OPERATIONS),
            _f("b_addr", (1, 31, 20)),
            _f("out_addr", (1, 19, 8)),
            _f("k", (2, 31, 18)),
        ),
    ),
    Spec(SYS, 15, 1, ()),
)
COLUMNS = 3 + max(len(spec.fields) for spec in SPECS)
_BY_OPCODE = {spec.opcode: spec for spec in SPECS}
_LENGTHS = np.array([_BY_OPCODE[code].length if code in _BY_OPCODE else 0 for code in range(16)])
_QUEUE_OF = np.array([_BY_OPCODE[code].queue if code in _BY_OPCODE else -1 for code in range(16)])


# Wait and release -----------------------------------------------------------------------------------------------------------
def others(queue: int) -> tuple[int, ...]:
    """The other five queues, highest bit of `wait` and `release` first."""
    return tuple(q for q in range(6) if q != queue)


def mask(queue: int, partners: Iterable[int]) -> int:
    """The `wait` or `release` bits of an instruction on `queue`.

    >>> mask(MV, [LD]), mask(LD, [MV, SYS])
    (16, 5)
    """
    order = others(queue)
    value = 0
    for partner in partners:
        if partner == queue:
            raise InstructionError(f"{QUEUES[queue]}: an instruction cannot wait for or release its own queue; its order is implied")
        value |= 1 << (4 - order.index(partner))
    return value


def partners(queue: int, value: int) -> tuple[int, ...]:
    """The queues that `wait` or `release` bits name."""
    return tuple(other for i, other in enumerate(others(queue)) if value >> (4 - i) & 1)


# Tables and words -----------------------------------------------------------------------------------------------------------
def encode(table: Table) -> Words:
    """The words of a table of instructions. Raises `InstructionError` for a value that its field cannot hold."""
    queue = table[:, 0]
    lengths = np.array([spec.length for spec in SPECS])[queue]
    starts = np.cumsum(lengths) - lengths
    words = np.zeros(int(lengths.sum()), np.uint32)
    for spec in SPECS:
        chosen = np.flatnonzero(queue == spec.queue)
        if not len(chosen):
            continue
        rows, at = table[chosen], starts[chosen]
        for column, field in enumerate((_f("wait", (0, 27, 23)), _f("release", (0, 22, 18)), *spec.fields), 1):
            values = rows[:, column]
            if values.min() < 0 or values.max() >= field.end:
                bad = int(np.flatnonzero((values < 0) | (values >= field.end))[0])
                raise InstructionError(
                    f"instruction {chosen[bad]} ({spec.name}): {field.name} is {values[bad]}, "
                    f"expected 0 to {field.end - 1} ({field.bits} bits)"
                )
            shift = 0
            for word, high, low in field.parts:
                width = high - low + 1
                words[at + word] |= ((values >> shift & ((1 << width) - 1)) << low).astype(np.uint32)
                shift += width
        words[at] |= np.uint32(spec.opcode << 28)
    return words


def starts(words: Words, offset: int = 0) -> NDArray[np.int64]:
    """Where each instruction starts. `offset` is the byte offset of word 0 in its file, for messages.

    Raises `InstructionError` naming the offset of an unknown opcode or of an instruction that is cut off.
    """
    lengths = _LENGTHS[words >> np.uint32(28)].tolist()
    found: list[int] = []
    add = found.append
    position, end = 0, len(lengths)
    while position < end:
        add(position)
        length = lengths[position]
        if not length:
            code = int(words[position]) >> 28
            expected = ", ".join(f"{s.opcode} {s.name}" for s in SPECS)
            raise InstructionError(
                f"offset {offset + 4 * position}: opcode {code} (word {int(words[position]):#010x}) is unknown, expected one of "
                f"{expected}; an instruction before it may have lost or gained a word"
            )
        position += length
    if position > end:
        spec = _BY_OPCODE[int(words[found[-1]]) >> 28]
        raise InstructionError(
            f"offset {offset + 4 * found[-1]}: the {spec.name} instruction has {spec.length} words, but the file ends after "
            f"{end - found[-1]} of them; it is truncated"
        )
    return np.array(found, np.int64)


def decode(words: Words, offset: int = 0) -> Table:
    """The table of a program's words; the inverse of `encode`.

    Raises `InstructionError` naming the byte offset of the first instruction that is unknown, cut off, or has a reserved bit
    set or a value that its field does not allow.
    """
    at = starts(words, offset)
    queue = _QUEUE_OF[words[at] >> np.uint32(28)]
    table = np.zeros((len(at), COLUMNS), np.int64)
    table[:, 0] = queue
    wide = words.astype(np.int64)
    problems: list[tuple[int, str]] = []
    for spec in SPECS:
        chosen = np.flatnonzero(queue == spec.queue)
        if not len(chosen):
            continue
        first = at[chosen]
        for word, free in enumerate(spec.reserved()):
            if free and (bad := np.flatnonzero(wide[first + word] & free)).size:
                value = int(wide[first[bad[0]] + word])
                problems.append(
                    (int(first[bad[0]]), f"{spec.name}: word {word} is {value:#010x}, but its bits {free:#010x} are reserved and must be 0")
                )
        for column, field in enumerate((_f("wait", (0, 27, 23)), _f("release", (0, 22, 18)), *spec.fields), 1):
            values = np.zeros(len(chosen), np.int64)
            shift = 0
            for word, high, low in field.parts:
                width = high - low + 1
                values |= (wide[first + word] >> low & ((1 << width) - 1)) << shift
                shift += width
            if field.end < 1 << field.bits and (bad := np.flatnonzero(values >= field.end)).size:
                problems.append((int(first[bad[0]]), f"{spec.name}: {field.name} is {values[bad[0]]}, expected 0 to {field.end - 1}"))
            table[chosen, column] = values
    if problems:
        position, reason = min(problems)
        raise InstructionError(f"offset {offset + 4 * position}: {reason}")
    return table


# Assembly text --------------------------------------------------------------------------------------------------------------
def row(queue: int, wait: Sequence[int] = (), release: Sequence[int] = (), **fields: int) -> list[int]:
    """One row of a table. Fields that are not named are 0.

    >>> row(SYS, wait=[ST], release=[LD])[:3]
    [5, 8, 16]
    """
    spec = SPECS[queue]
    out = [queue, mask(queue, wait), mask(queue, release), *([0] * (COLUMNS - 3))]
    for name, value in fields.items():
        out[spec.column(name)] = value
    return out


def text(instruction: Sequence[int]) -> str:
    """One instruction as assembly: its queue, then `name=value`; fields that are 0 are left out."""
    spec = SPECS[instruction[0]]
    parts = [spec.name]
    for name, value in zip(("wait", "release"), instruction[1:3], strict=True):
        if value:
            parts.append(f"{name}={','.join(QUEUES[q] for q in partners(spec.queue, value))}")
    for field, value in zip(spec.fields, instruction[3:], strict=False):
        if value or field.names:
            parts.append(f"{field.name}={field.names[value] if field.names else value}")
    return " ".join(parts)


def disassemble(table: Table) -> Iterator[str]:
    """Assembly lines of a table."""
    return (text(instruction) for instruction in table.tolist())


def assemble(source: str) -> Table:
    """The table of an assembly text: one instruction per line, `#` starts a comment.

    Raises `InstructionError` naming the line.
    >>> assemble("SYS wait=ST release=LD")[0, :3].tolist()
    [5, 8, 16]
    """
    rows: list[list[int]] = []
    for number, line in enumerate(source.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            try:
                rows.append(_parse(words))
            except InstructionError as error:
                raise InstructionError(f"line {number}: {error}") from None
    return np.array(rows, np.int64).reshape(-1, COLUMNS)


def _parse(words: list[str]) -> list[int]:
    if words[0] not in QUEUES:
        raise InstructionError(f"unknown instruction {words[0]!r}, expected one of {', '.join(QUEUES)}")
    spec = SPECS[QUEUES.index(words[0])]
    fields = {field.name: field for field in spec.fields}
    given: dict[str, Any] = {}
    tokens: dict[str, list[int]] = {}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if not equals or name in given or name in tokens:
            raise InstructionError(f"{spec.name}: expected name=value, each name once, found {word!r}")
        if name in ("wait", "release"):
            names = value.split(",")
            if unknown := [n for n in names if n not in QUEUES]:
                raise InstructionError(f"{spec.name}: {name} names {unknown[0]!r}, expected queues of {', '.join(QUEUES)}")
            tokens[name] = [QUEUES.index(n) for n in names]
            continue
        if name not in fields:
            raise InstructionError(f"{spec.name}: has no field {name!r}, expected one of {', '.join(('wait', 'release', *fields))}")
        field = fields[name]
        if value in field.names:
            given[name] = field.names.index(value)
        elif value.isdecimal() and int(value) < field.end:
            given[name] = int(value)
        else:
            expected = " or ".join(field.names) if field.names else f"0 to {field.end - 1}"
            raise InstructionError(f"{spec.name}: {name} is {value!r}, expected {expected}")
    return row(spec.queue, tokens.get("wait", []), tokens.get("release", []), **given)

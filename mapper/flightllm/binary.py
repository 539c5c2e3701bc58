"""Instruction files: a header with the memory map, then the words, little-endian. A file of words alone is read, too.

The header starts with a magic number whose first word is no instruction, its length in bytes, and that much JSON.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from mapper.errors import MappingError
from mapper.flightllm import isa
from mapper.flightllm.compile import Stream
from mapper.flightllm.isa import InstructionError
from mapper.flightllm.memory import MemoryMap

MAGIC = b"DVF\x9aFLI1"
"""The top four bits of its first word, 9, are no opcode."""
SCHEMA = 1


def dumps(stream: Stream) -> bytes:
    """A stream as the bytes of a file."""
    header = {
        "schema": SCHEMA,
        "type": "instructions",
        "name": stream.name,
        "phase": stream.phase,
        "tokens": stream.tokens,
        "context": stream.context,
        "words": sum(len(chunk) for chunk in stream.chunks),
        "memory": stream.memory.to_json(),
        "notes": list(stream.notes),
        "layers": [name for names in stream.layers for name, _ in names],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(MAGIC) + 4 + len(text)) % 4)
    return MAGIC + struct.pack("<I", len(text)) + text + stream.words.astype("<u4").tobytes()


def loads(data: bytes, where: str = "program") -> Stream:
    """The stream in a file's bytes, checked to the last instruction.

    Raises `InstructionError` that names the byte offset of what is wrong and the reason.
    """
    header, start = _header(data, where)
    body = data[start:]
    if len(body) % 4:
        raise InstructionError(
            f"{where}: offset {start + len(body) // 4 * 4}: {len(body) % 4} bytes are left over; instructions are whole words of 4 bytes"
        )
    words = np.frombuffer(body, "<u4").astype(np.uint32)
    if header and len(words) != header["words"]:
        raise InstructionError(
            f"{where}: offset {len(data)}: the header announces {header['words']} words, but {len(words)} follow; "
            f"the file is {'truncated' if len(words) < header['words'] else 'too long'}"
        )
    if not len(words):
        raise InstructionError(f"{where}: offset {start}: there is no instruction")
    try:
        table = isa.decode(words, start)
    except InstructionError as error:
        raise InstructionError(f"{where}: {error}") from None
    if not header:
        return Stream(
            where, "unknown", 0, 0, (words,), MemoryMap(), (), ("words alone: there is no memory map, every value is taken to have 8 bits",)
        )
    memory = MemoryMap.from_json(header["memory"], where)
    starts = [0, *(np.flatnonzero(table[:, 0] == isa.SYS) + 1).tolist()]
    layers = tuple(zip(map(str, header["layers"]), starts, strict=False))
    notes = tuple(header["notes"])
    return Stream(header["name"], header["phase"], header["tokens"], header["context"], (words,), memory, (layers,), notes)


def _header(data: bytes, where: str) -> tuple[dict[str, Any], int]:
    if not data.startswith(MAGIC):
        if data[:4] == MAGIC[:4]:
            raise InstructionError(f"{where}: offset 4: expected an instruction file of version {MAGIC[4:].decode()}, found {data[4:8]!r}")
        return {}, 0
    first = len(MAGIC) + 4
    if len(data) < first:
        raise InstructionError(f"{where}: offset {len(data)}: the file ends within its header")
    (size,) = struct.unpack("<I", data[first - 4 : first])
    if len(data) < first + size:
        raise InstructionError(
            f"{where}: offset {len(data)}: the header has {size} bytes, but the file ends after {len(data) - first} of them"
        )
    try:
        header = json.loads(data[first : first + size])
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InstructionError(f"{where}: offset {first}: the header is not JSON ({error})") from None
    wanted = {"name": str, "phase": str, "tokens": int, "context": int, "words": int, "memory": list, "notes": list, "layers": list}
    if not isinstance(header, dict) or header.get("type") != "instructions" or header.get("schema") != SCHEMA:
        raise InstructionError(f"{where}: offset {first}: expected a header of type 'instructions' and schema {SCHEMA}")
    for name, kind in wanted.items():
        if not isinstance(header.get(name), kind):
            raise InstructionError(f"{where}: offset {first}: header field {name!r} is {header.get(name)!r}, expected {kind.__name__}")
    return header, first + size


def save(stream: Stream, path: str | Path) -> None:
    """Writes a stream to a file."""
    Path(path).write_bytes(dumps(stream))


def load(path: str | Path) -> Stream:
    """Reads a stream from a file. Raises `MappingError` when it cannot be read, `InstructionError` when it is no program."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise MappingError(f"{path}: cannot be read ({error.strerror or error})") from None
    return loads(data, str(path))


def is_program(data: bytes) -> bool:
    """Whether a file's first bytes look like an instruction file of this module."""
    return data.startswith(MAGIC[:4])


def summary(stream: Stream) -> dict[str, Any]:
    """What `show` prints of a stream: counts by kind of instruction, bytes, and the memory map by kind."""
    table = isa.decode(stream.words)
    counts = np.bincount(table[:, 0], minlength=6).tolist()
    return {
        "type": "instructions",
        "name": stream.name,
        "phase": stream.phase,
        "tokens": stream.tokens,
        "context": stream.context,
        "bytes": stream.size,
        "instructions": dict(zip(isa.QUEUES, counts, strict=True)),
        "memory_bytes": dict(stream.memory.by_kind()),
        "notes": list(stream.notes),
    }


def show(data: bytes, where: str, lines: int = 40) -> tuple[dict[str, Any], list[str]]:
    """For a command line: the summary of an instruction file and its first `lines` instructions as assembly with offsets."""
    stream = loads(data, where)
    words = stream.words
    at = isa.starts(words)[:lines]
    table = isa.decode(words)[: len(at)]
    start = len(data) - 4 * len(words)
    return summary(stream), [f"{start + 4 * offset:8d}  {text}" for offset, text in zip(at.tolist(), isa.disassemble(table), strict=True)]

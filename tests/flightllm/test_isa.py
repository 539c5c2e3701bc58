"""The instruction set: words and assembly text are the same program, and everything else is refused with place and reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper.flightllm import binary, isa
from mapper.flightllm.compile import Stream
from mapper.flightllm.isa import InstructionError
from mapper.flightllm.memory import MemoryMap


@st.composite
def instructions(draw: Any) -> list[int]:
    spec = draw(st.sampled_from(isa.SPECS))
    values = [draw(st.integers(0, field.end - 1)) for field in spec.fields]
    row = [spec.queue, draw(st.integers(0, 31)), draw(st.integers(0, 31)), *values]
    return row + [0] * (isa.COLUMNS - len(row))


tables = st.lists(instructions(), min_size=1, max_size=20).map(lambda rows: np.array(rows, np.int64))


def test_lengths_and_opcodes_are_the_documented_ones() -> None:
    assert {s.name: (s.opcode, s.length) for s in isa.SPECS} == {
        "LD": (1, 7), "ST": (2, 3), "MM": (3, 4), "MV": (4, 4), "MISC": (5, 3), "SYS": (15, 1)
    }  # fmt: skip


@pytest.mark.parametrize("spec", isa.SPECS, ids=lambda spec: spec.name)
def test_no_bit_of_an_instruction_has_two_owners(spec: isa.Spec) -> None:
    parts = [(0, 31, 28), (0, 27, 23), (0, 22, 18), *(part for field in spec.fields for part in field.parts)]
    bits = [(word, bit) for word, high, low in parts for bit in range(low, high + 1)]
    assert len(bits) == len(set(bits))
    reserved = sum(mask.bit_count() for mask in spec.reserved())
    assert len(bits) + reserved == 32 * spec.length


def test_a_known_load_has_the_words_that_the_layout_gives() -> None:
    # opcode 1, wait MV (bit 2 of ST,MM,MV,MISC,SYS), release MISC (bit 1), mode A = 4, channel 3, bank 5
    first = 1 << 28 | 4 << 23 | 2 << 18 | 4 << 15 | 3 << 12 | 5
    address = 0x2_8765_4321  # 34 bits: the low 26 in word 4 from bit 6, the high 8 in word 5
    row = isa.row(
        isa.LD, [isa.MV], [isa.MISC], mode=4, channel=3, bank=5, address=address, loop1=1, loop2=1, loop3=1, memory=1, length=4096
    )
    words = isa.encode(np.array([row]))
    expected = [first, 0, 0, 0, (address & 0x3FFFFFF) << 6, address >> 26 | 1 << 24 | 1 << 16 | 1 << 8, 1 << 23 | 4096]
    assert words.tolist() == expected


@given(tables)
def test_decoding_inverts_encoding(table: Any) -> None:
    words = isa.encode(table)
    assert np.array_equal(isa.decode(words), table)
    assert np.array_equal(isa.encode(isa.decode(words)), words)


@given(tables)
def test_assembling_inverts_disassembling(table: Any) -> None:
    assert np.array_equal(isa.assemble("\n".join(isa.disassemble(table))), table)


@given(tables, st.data())
def test_a_file_cut_off_anywhere_is_refused_or_ends_at_an_instruction(table: Any, data: Any) -> None:
    whole = isa.encode(table).astype("<u4").tobytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    starts = {4 * int(s) for s in isa.starts(isa.encode(table))}
    if cut in starts - {0}:
        assert binary.loads(whole[:cut]).size == cut
    else:
        with pytest.raises(InstructionError, match=r"offset \d+: "):
            binary.loads(whole[:cut])


@settings(max_examples=200)
@given(tables, st.data())
def test_a_word_that_changed_is_refused_or_decodes_to_exactly_itself(table: Any, data: Any) -> None:
    words = isa.encode(table)
    at = data.draw(st.integers(0, len(words) - 1))
    words[at] ^= np.uint32(1 << data.draw(st.integers(0, 31)))
    found = outcome(words)
    if isinstance(found, int):
        assert found % 4 == 0
        assert found < 4 * len(words)
    else:
        assert np.array_equal(isa.encode(found), words)


def outcome(words: Any) -> Any:
    """The decoded table, or the byte offset that a refusal names."""
    try:
        return isa.decode(words)
    except InstructionError as error:
        return int(str(error).removeprefix("offset ").split(":")[0])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([0xF0000000, 0x60000000], r"offset 4: opcode 6 .* unknown, expected one of 1 LD"),
        ([0xF0000001], r"offset 0: SYS: word 0 .* reserved"),
        ([0x10000000 | 6 << 15, 0, 0, 0, 0, 0, 0], r"offset 0: LD: mode is 6, expected 0 to 5"),
        ([0x50000007, 0, 0], r"offset 0: MISC: operation is 7, expected 0 to 5"),
        ([0xF0000000, 0x20000000, 0], r"offset 4: the ST instruction has 3 words, but the file ends after 2 of them; it is truncated"),
        ([0x20000000, 0, 2 << 28], r"offset 0: ST: memory is 2, expected 0 to 1"),
    ],
)
def test_malformed_words_are_refused_with_offset_and_reason(words: list[int], reason: str) -> None:
    with pytest.raises(InstructionError, match=reason):
        isa.decode(np.array(words, np.uint32))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("JMP", "line 2: unknown instruction 'JMP'"),
        ("LD mode=C", "line 2: LD: mode is 'C', expected B or meta"),
        ("MV depth=3", "line 2: MV: has no field 'depth'"),
        ("MV k=99999", r"line 2: MV: k is '99999', expected 0 to 16383"),
        ("MV wait=MV", "line 2: MV: an instruction cannot wait for or release its own queue"),
        ("MV wait=DMA", "line 2: MV: wait names 'DMA'"),
        ("MV k=1 k=2", "line 2: MV: expected name=value, each name once"),
    ],
)
def test_bad_assembly_is_refused_with_its_line(line: str, reason: str) -> None:
    with pytest.raises(InstructionError, match=reason):
        isa.assemble("SYS wait=ST  # a comment\n" + line)


def test_a_value_that_does_not_fit_its_field_is_refused() -> None:
    with pytest.raises(InstructionError, match=r"instruction 0 \(MV\): k is 16384, expected 0 to 16383 \(14 bits\)"):
        isa.encode(np.array([isa.row(isa.MV, k=1 << 14)]))


def stream_of(table: Any) -> Stream:
    memory = MemoryMap()
    memory.add("w", "weight", 100, 8, bits=4, shift=3, count=2)
    return Stream("m", "decode", 1, 16, (isa.encode(table),), memory, (), ("a note",))


@given(tables)
def test_a_saved_stream_loads_equal(table: Any) -> None:
    stream = stream_of(table)
    back = binary.loads(binary.dumps(stream))
    assert np.array_equal(back.words, stream.words)
    assert (back.name, back.phase, back.context, back.notes) == ("m", "decode", 16, ("a note",))
    assert back.memory.regions == stream.memory.regions


def test_damaged_headers_are_refused_with_offset_and_reason() -> None:
    good = binary.dumps(stream_of(np.array([isa.row(isa.SYS)])))
    for bad, reason in (
        (good[:10], r"offset 10: the file ends within its header"),
        (good[:20], r"offset 20: the header has \d+ bytes, but the file ends after 8"),
        (good[:-4], r"the header announces 1 words, but 0 follow; the file is truncated"),
        (good + bytes(4), r"the header announces 1 words, but 2 follow; the file is too long"),
        (good + b"ab", r"2 bytes are left over; instructions are whole words"),
        (good.replace(b'"words":1', b'"words":x'), r"offset 12: the header is not JSON"),
        (good.replace(b'"phase":"decode"', b'"phase":12345678'), r"header field 'phase' is 12345678, expected str"),
        (good.replace(b"FLI1", b"FLI9"), r"expected an instruction file of version FLI1"),
        (b"", r"there is no instruction"),
    ):
        with pytest.raises(InstructionError, match=reason):
            binary.loads(bad, "program.bin")


def test_show_gives_counts_and_assembly_with_offsets() -> None:
    table = np.array([isa.row(isa.LD, release=[isa.MV], mode=4, length=64, loop1=1, loop2=1, loop3=1), isa.row(isa.MV, [isa.LD], k=1)])
    data = binary.dumps(stream_of(table))
    document, lines = binary.show(data, "program.bin")
    start = len(data) - 4 * 11
    assert document["instructions"] == {"LD": 1, "ST": 0, "MM": 0, "MV": 1, "MISC": 0, "SYS": 0}
    assert document["bytes"] == 44
    assert [line.split(maxsplit=1)[0] for line in lines] == [str(start), str(start + 28)]
    assert lines[1].split()[1:] == ["MV", "wait=LD", "k=1"]
    assert binary.is_program(data)

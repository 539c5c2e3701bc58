"""Devices that contain the same chip describe it alike."""

import pytest

from hw.devices import load


@pytest.mark.parametrize(("node", "chip"), [("dgx-a100", "a100-80g"), ("dgx-h100", "h100-sxm")])
def test_the_chips_of_a_node_are_those_described_alone(node, chip):
    whole, alone = load(node), load(chip)
    assert whole.units == alone.units
    assert {name: memory for name, memory in whole.memories.items() if name != "host"} == alone.memories
    assert (whole.clock, whole.power, whole.launch) == (alone.clock, alone.power, alone.launch)


@pytest.mark.parametrize(
    ("ecc", "without"),
    [("l40s", "rtx-4090"), ("a10", "a6000")],
)
def test_boards_that_ship_with_inline_ecc_give_a_sixteenth_of_their_transfers_to_check_bits(ecc, without):
    assert float(load(ecc).dram.ecc) == 1 / 16
    assert load(without).dram.ecc == 0
    plain = load(ecc).with_settings({"memories.gddr.ecc": 0})
    assert load(ecc).dram.fraction() == plain.dram.fraction() * 15 / 16


def test_instructions_of_new_generations_leave_their_operands_in_shared_memory():
    """Which is why a lone thread block keeps them busy, whatever a constant says of others."""
    for name in ("h100-sxm", "h200-sxm", "b200"):
        core = load(name).units["tensor"]
        assert core.asynchronous
        assert core.model_copy(update={"lone_rate": 1}).lone == 1
    assert load("a100-80g").units["tensor"].lone < 1

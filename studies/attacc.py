"""AttAcc (Park et al., ASPLOS 2024): attention in HBM3 stacks against its authors' simulator and the paper's figures."""

from __future__ import annotations

from math import floor

from hw.pim.attacc import AttAcc, Place
from studies.row import StudyRow

PAPER = "Park et al., AttAcc! Unleashing the Power of PIM for Batched Transformer-based Generative Model Inference, ASPLOS 2024"
SIMULATOR = "AttAcc simulator, github.com/scale-snu/attacc_simulator"
RESULTS = f"{SIMULATOR}, results that ship with it (ramulator.out)"
GIB = 2**30

# (tokens, heads of one stack, power limited, clocks), width 128, units at the banks.
CLOCKS = (
    (128, 461, True, 8434),
    (248, 461, True, 14498),
    (128, 2050, True, 38732),
    (160, 2050, True, 45403),
    (208, 2050, True, 55522),
    (248, 2050, True, 65518),
    (169, 243, False, 4151),
    (289, 243, False, 8263),
    (888, 243, False, 21860),
    (1128, 243, False, 27651),
    (1488, 243, False, 35079),
    (2088, 243, False, 50180),
    (128, 101, True, 1960),
    (145, 101, True, 2296),
    (193, 101, True, 2799),
    (241, 101, True, 3301),
    (177, 2050, True, 52298),
    (225, 2050, True, 62579),
)
# Results of an earlier trace generator: they count 720 (buffer 4422) MV_GB and 10 (67) SFM per head, the released one issues 72 and 1.
EARLIER: tuple[tuple[Place, int, int, int, int], ...] = (
    ("bank", 2094, 3, 4932, 720),
    ("bank group", 2094, 3, 14971, 720),
    ("buffer", 2082, 3, 55175, 4422),
)
GPT3 = {"layers": 96, "width": 12288, "weights": 175e9 * 2, "heads": 96}


def clocks(tokens: int, heads: int, power_limited: bool, place: Place = "bank") -> int:
    """Clocks of one stack for so many heads."""
    return AttAcc(stacks=1, place=place, power_limited=power_limited).attention(heads, tokens, 128).clocks


def sustained(place: Place = "bank") -> float:
    """TB/s that 40 stacks read from their banks in attention over 2048 tokens, rows and refresh included."""
    return float(AttAcc(stacks=40, place=place).attention(40 * 16 * 8, 2048, 128).bandwidth) * 1e-12


def energy_per_bit(place: Place) -> float:
    """Picojoules per bit that the units read, activates included."""
    kernel = AttAcc(stacks=1, place=place).attention(16 * 8, 2048, 128)
    parts = {name: pj for name, pj in kernel.energy_pj.items() if name not in ("compute", "interposer") and pj is not None}
    moves = kernel.stream.counts()
    # what commands other than the MACs move is counted apart by the authors
    other = sum(
        pj * moves[command] * kernel.channels
        for command in ("WR_GB", "MV_SB", "MV_GB")
        for where, pj in kernel.channel.energy_pj[command].items()
        if where != "interposer"
    )
    return (sum(parts.values()) - other) / (8 * kernel.internal_bytes)


def feasible(capacity: float, tokens: int = 2048 + 128) -> int:
    """Sequences of GPT-3 175B whose keys and values fit beside its weights, in bytes of fp16."""
    per_sequence = 2 * GPT3["layers"] * GPT3["width"] * 2 * tokens
    return floor((capacity - GPT3["weights"]) / per_sequence)


def rows() -> list[StudyRow]:
    """Command counts, clocks, bandwidth, energy per bit and capacity."""
    kernel = AttAcc(stacks=1).attention(16, 2048, 128)
    found = [
        StudyRow(
            "attacc",
            "MAC_AB of one head, 2048 tokens of 128",
            2 * 2048 / 16 * 128 / 64,
            kernel.counts["MAC_AB"],
            "commands",
            0.0,
            "certain",
            SIMULATOR,
        )
    ]
    for tokens, heads, limited, published in CLOCKS:
        name = f"clocks of a stack, {heads} heads over {tokens} tokens{'' if limited else ', no power limit'}"
        found.append(StudyRow("attacc", name, published, clocks(tokens, heads, limited), "clocks", 0.05, "certain", RESULTS))
    for place, tokens, heads, published, moves in EARLIER:
        ours = AttAcc(stacks=1, place=place).attention(heads, tokens, 128)
        more = moves - ours.counts["MV_GB"]
        found.append(
            StudyRow(
                "attacc",
                f"clocks of a stack, units at the {place}, {heads} heads over {tokens} tokens",
                published,
                ours.clocks,
                "clocks",
                0.05,
                "certain",
                RESULTS,
                note=f"these rows come from an earlier trace generator: {moves} MV_GB per head where the released one issues "
                f"{ours.counts['MV_GB']}, of four clocks each. With three heads on 16 channels no other head hides them: the difference is "
                f"{(published - ours.clocks) / more:.1f} clocks for each of the {more} further moves; their order is not released",
            )
        )
    found.append(
        StudyRow(
            "attacc",
            "bandwidth inside 40 stacks, power limited",
            242.0,
            sustained(),
            "TB/s",
            0.15,
            "certain",
            PAPER,
            note="published as 9 x the GPUs' bandwidth; ours is what attention over 2048 tokens sustains with row openings and "
            f"refresh, below the cadence limit of {AttAcc(stacks=40).internal_peak * 1e-12:.0f} TB/s",
        )
    )
    places: tuple[tuple[Place, float], ...] = (("bank", 0.55), ("bank group", 1.56), ("buffer", 3.29))
    for place, per_bit in places:
        found.append(
            StudyRow(
                "attacc", f"energy of a read by units at the {place}", per_bit, energy_per_bit(place), "pJ/b", 0.05, "certain", SIMULATOR
            )
        )
    capacities = (
        ("DGX of 1280 GiB", 1280 * GIB, 101, ""),
        (
            "DGX of 640 GiB",
            640 * GIB,
            54,
            "the capacity function of the released simulator gives 33 as well: 348 GB of weights leave 339 GB for 10.3 GB per sequence; 54 "
            "would need 904 GB, and 1280 GiB hold 101 by the same count, so that the published figure is of another length or format",
        ),
    )
    for system, capacity, published, note in capacities:
        name = f"GPT-3 175B sequences of 2048 + 128 tokens on a {system}"
        found.append(StudyRow("attacc", name, published, feasible(capacity), "sequences", 0.05, "certain", PAPER, note=note))
    return found

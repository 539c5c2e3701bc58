"""FlightLLM (Zeng et al., FPGA 2024): Llama-2-7B on FPGAs, from instruction words to tokens per second.

The published figures are the authors' profile of the VHK158 (their log per context, released with the test demo), and what the
paper reports of the U280. The machine is `flightllm-vhk158` with the compiler's choices as released (`AS_RELEASED`): queries and
keys keep 70 % of their weights, weights have 4 bits, activations and caches 8. Nothing is fitted.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from statistics import mean

from hw import devices
from hw.device import Device
from mapper.flightllm.compile import DECODE_STEP, MAX_TOKENS, PREFILL_STEP, Compiler, core_of
from mapper.flightllm.emit import AS_RELEASED, Options
from sim.flightllm import CHANNELS, Run, generate, run
from studies.row import StudyRow
from workloads import load, quantise
from workloads.prune import prune

PAPER = (
    "Zeng et al., FlightLLM: Efficient Large Language Model Inference with a Complete Mapping Flow on FPGAs, FPGA 2024, arXiv:2401.03868"
)
PROFILE = "github.com/FlightLLM/flightllm_test_demo, profiler output"
README = "github.com/FlightLLM/flightllm_test_demo, profile/README.md"
KEPT = 11.2
"""Of 16 weights of the query and key projections: 70 % in the released intermediate representation; all others are dense."""

DECODE = {  # context: milliseconds of LD, MV, MISC, in all
    144: (6.705, 8.8104, 0.2254, 9.2819),
    256: (6.828, 8.8900, 0.2453, 9.4293),
    512: (7.109, 9.0721, 0.2908, 9.8098),
    640: (7.351, 9.2541, 0.3136, 10.1133),
    1024: (7.671, 9.5272, 0.3819, 10.6153),
    1152: (7.913, 9.7092, 0.4046, 10.9188),
    2048: (8.795, 10.4374, 0.5639, 12.2262),
}
PREFILL = {128: (104.41, 274.24, 9.32, 289.88), 512: (426.85, 1109.11, 49.55, 1181.42)}  # LD, MM, MISC, in all
GENERATIONS = {(128, 512): 103.5, (128, 1024): 99.2, (128, 1536): 95.4, (512, 512): 97.2, (512, 1024): 93.5, (512, 1536): 90.1}
A100_VLLM = {(128, 512): 89.4, (128, 1024): 87.9, (128, 1536): 87.5, (512, 512): 87.1, (512, 1024): 86.1, (512, 1536): 87.1}
U280_TESTS = (128, 512)
"""Contexts of the released board test."""


@cache
def compiler(device: str = "flightllm-vhk158", options: Options = AS_RELEASED, phase: str = "decode") -> Compiler:
    """Llama-2-7B as the released intermediate representation has it, for one device and phase."""
    if phase == "prefill":
        graph = load("llama-2-7b", phase=phase, batch=1, seq=PREFILL_STEP, logits="all")
    else:
        graph = load("llama-2-7b", phase=phase, batch=1, context=DECODE_STEP)
    graph = prune(quantise(graph, weights="int4", acts="int8", kv="int8"), KEPT, ("q_proj", "k_proj"))
    return Compiler(graph, devices.load(device), options)


@cache
def decoded(context: int, device: str = "flightllm-vhk158", options: Options = AS_RELEASED) -> Run:
    """One decode token."""
    made = compiler(device, options)
    return run(made.compile(context), made.device)


def rows() -> list[StudyRow]:
    """All comparisons: logs, generations, the U280, ablations, and efficiency against GPUs."""
    return [*profile_rows(), *generation_rows(), *u280_rows(), *ablation_rows(), *efficiency_rows()]


def _row(
    experiment: str, published: float, ours: float, unit: str, tolerance: float | None, source: str, note: str = "", sure: bool = True
) -> StudyRow:
    return StudyRow("flightllm", experiment, published, ours, unit, tolerance, "certain" if sure else "probable", source, note)


def profile_rows() -> list[StudyRow]:
    """Busy times and totals of the VHK158 log."""
    found = []
    for context, published in DECODE.items():
        got = decoded(context)
        ours = (got.busy["LD"], got.busy["MV"], got.busy["MISC"], got.seconds)
        for what, there, here, tolerance in zip(
            ("LD busy", "MV busy", "MISC busy", "total"), published, ours, (0.02, 0.001, 0.02, 0.05), strict=True
        ):
            found.append(_row(f"VHK158 decode, context {context}: {what}", there, here * 1e3, "ms", tolerance, PROFILE))
    for prompt, published in PREFILL.items():
        made = compiler(phase="prefill")
        got = run(made.compile(prompt), made.device)
        ours = (got.busy["LD"], got.busy["MM"], got.busy["MISC"], got.seconds)
        note = "" if prompt == 128 else "causal blocks all kept; the authors' masks, which drop 13 % of them, are not at hand"
        for what, there, here, tolerance in zip(
            ("LD busy", "MM busy", "MISC busy", "total"), published, ours, (0.02, 0.001, 0.02, 0.05), strict=True
        ):
            claimed = None if what == "MISC busy" and note else tolerance
            found.append(_row(f"VHK158 prefill, {prompt} tokens: {what}", there, here * 1e3, "ms", claimed, PROFILE, note))
    return found


@cache
def _generations() -> dict[tuple[int, int], float]:
    times: dict[int, Run] = {}
    return {(prompt, new): generate(compiler(), prompt, new, times=times).tokens_per_s for prompt, new in GENERATIONS}


def generation_rows() -> list[StudyRow]:
    """Tokens per second of decode over whole generations, and against the A100 that the authors measured."""
    ours = _generations()
    found = [_row(f"VHK158 [{p}, {n}]", there, ours[p, n], "tokens/s", 0.05, README) for (p, n), there in GENERATIONS.items()]
    ratio = mean(ours[case] / A100_VLLM[case] for case in GENERATIONS)
    note = "ours over the A100 throughput (vLLM, FP16) that the authors list for the same six cases, mean"
    return [*found, _row("VHK158 over A100, throughput", 1.2, ratio, "x", None, PAPER, note)]


def u280_rows() -> list[StudyRow]:
    """The board itself. Its core is assumed to be that of the VHK158 profile."""
    rates = [1 / decoded(context, "flightllm-u280").seconds for context in U280_TESTS]
    note = (
        f"mean of contexts {' and '.join(map(str, U280_TESTS))} ({', '.join(f'{rate:.1f}' for rate in rates)}), the board test's cases; "
        "core geometry and the factor 2.4 are assumed from the VHK158 profile, bandwidth is the data sheet's"
    )
    return [_row("U280 decode", 55, mean(rates), "tokens/s", 0.05, PAPER, note)]


def ablation_rows() -> list[StudyRow]:
    """The paper's three ideas, each off and on."""
    context, board = 512, devices.load("flightllm-u280")
    on = decoded(context, "flightllm-u280", replace(AS_RELEASED, boundary="on_chip", concatenate="append"))
    off = decoded(context, "flightllm-u280", replace(AS_RELEASED, fuse=False))
    both = replace(AS_RELEASED, concatenate="append")
    vectors = 1 - decoded(context, "flightllm-u280", replace(both, boundary="on_chip")).read / decoded(context, "flightllm-u280", both).read
    core = core_of(board)
    limit = float(core.channels * core.speedup * core.same_channel / CHANNELS)
    reason = (
        "bytes over time x 460 GB/s; every operator through HBM without it, no vector in HBM with it. The released model gives transfers "
        f"no latency, and vectors are {vectors:.1%} of what fused layers read, so its difference is small; its channels, efficiencies and "
        f"cores cap the use at {limit:.0%}. The published pair must count something else"
    )
    found = [
        _row("U280 bandwidth use without always-on-chip decode", 0.356, off.bandwidth_use(board), "of peak", 0.05, PAPER, reason),
        _row("U280 bandwidth use with always-on-chip decode", 0.659, on.bandwidth_use(board), "of peak", 0.05, PAPER, reason),
        _row("U280 tokens per second, always-on-chip decode over without", 0.659 / 0.356, off.seconds / on.seconds, "x", None, PAPER,
             "published: ratio of the two bandwidth uses"),
    ]  # fmt: skip
    sparse, dense = decoded(context), decoded(context, options=replace(AS_RELEASED, sparse=False))
    found.append(
        _row("sparse chain, computation over dense", 1.6, dense.busy["MV"] / sparse.busy["MV"], "x", None, PAPER,
             "ours: MV time of all layers with the released densities (only queries and keys are sparse, 1.43 x there); the densities "
             "behind the published figure are not given")
    )  # fmt: skip
    adaptive, naive = instruction_bytes()
    found.append(
        _row("length-adaptive compilation, instruction bytes saved", 500, naive / adaptive, "x", 0.05, PAPER,
             f"all contexts and prompts up to {MAX_TOKENS}: {naive / 1e9:.0f} GB become {adaptive / 1e9:.1f} GB. Sharing within steps of "
             f"{DECODE_STEP} and {PREFILL_STEP} tokens saves at most {PREFILL_STEP} x; the rest of the published factor has another origin")
    )  # fmt: skip
    return found


@cache
def instruction_bytes(limit: int = MAX_TOKENS) -> tuple[int, int]:
    """Bytes of the instructions for every length up to `limit`: shared within steps, and one stream per length.

    Streams of prefill are a quadratic function of their number of steps (products per tile of rows, and pairs of tiles), taken
    from the first three; a stream per length has the bytes of its step's.
    """
    decode = sum(compiler().size(context) for context in range(DECODE_STEP, limit + 1, DECODE_STEP))
    a, b, c = (compiler(phase="prefill").size(step * PREFILL_STEP) for step in (1, 2, 3))
    steps = range(limit // PREFILL_STEP)
    prefill = sum(a + n * (b - a) + n * (n - 1) // 2 * (c - 2 * b + a) for n in steps)
    return decode + prefill, DECODE_STEP * decode + PREFILL_STEP * prefill


def efficiency_rows() -> list[StudyRow]:
    """Tokens per joule and per second and dollar against GPUs; powers and prices are those of the device files."""
    from dovetail import estimate

    board = devices.load("flightllm-u280")
    rate = 1 / decoded(512, "flightllm-u280").seconds
    found = []
    for name, energy, cost in (("v100s", 6.0, 1.8), ("a100-80g", 4.2, 1.4)):
        other = devices.load(name)
        theirs = 1 / estimate("llama-2-7b", device=name, phase="decode", context=512).latency_s
        note = (
            f"GPU in FP16 as estimated here ({theirs:.1f} tokens/s, its memory nearly at its peak; software on real GPUs reaches less), "
            "at its maximum power, prices of the order of lists; the publication's powers and prices are not at hand"
        )
        found.append(
            _row(f"U280 over {name}, energy efficiency", energy, rate / _power(board) / (theirs / _power(other)), "x", None, PAPER, note)
        )
        found.append(
            _row(f"U280 over {name}, cost efficiency", cost, rate / _price(board) / (theirs / _price(other)), "x", None, PAPER, note)
        )
    return found


def _power(device: Device) -> float:
    return float(device.power or 0)


def _price(device: Device) -> float:
    return device.price or 0.0

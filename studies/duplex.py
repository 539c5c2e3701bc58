"""Duplex (Yun et al., MICRO 2024): an H100-class processor with Logic-PIM stacks serving mixtures of experts and dense models.

Every row is a run of the request layer on device descriptions alone: closed batches with Gaussian lengths and uniform routing, as the
paper has them. What the paper does not state is ours: lengths deviate by an eighth of their mean, each run serves three
batches and is judged between the first tenth of its answers and its last arrival.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean

import workloads
from dovetail.serving import serve
from dovetail.serving.costs import StepCosts
from dovetail.serving.front import step_costs
from hw.devices import load
from hw.pim.logic import BundlePath
from studies.row import StudyRow
from workloads.format import parse_format
from workloads.graph import Graph, Operator, Segment, Tensor

PAPER = (
    "Yun et al., Duplex: A Device for Large Language Models with Mixture of Experts, Grouped Query Attention, and Continuous Batching, "
    "MICRO 2024, arXiv:2409.01141"
)
DEVIATION = 8
WAVES = 3
LENGTHS = (256, 1024, 4096)
BATCHES = (32, 64, 128)
POINTS = tuple((batch, length, length) for batch in BATCHES for length in LENGTHS)
Point = tuple[int, int, int]
"""Batch, tokens of prompts, tokens of answers."""


# Systems -------------------------------------------------------------------------------------------------------------------
SYSTEMS: Mapping[str, tuple[str, bool, Mapping[str, object]]] = {
    "GPU": ("duplex-gpu", False, {}),
    "Duplex": ("duplex", False, {"experts": "single", "co_processing": False}),
    "Duplex+PE": ("duplex", False, {}),
    "Duplex+PE+ET": ("duplex", True, {}),
    "Bank-PIM": ("duplex-bank-pim", False, {}),
    "Bank-PIM+ET": ("duplex-bank-pim", True, {}),
}
"""Device, whether experts are sliced over the devices (+ET), and how its units work together (+PE: at the same time)."""


@dataclass(frozen=True)
class Measured:
    """What a run achieved: tokens and requests per second, joules per token, and latencies in seconds."""

    tokens_per_s: float
    requests_per_s: float
    joules_per_token: float
    tbt_p50: float
    tbt_p99: float
    e2e: float
    ttft: float


@lru_cache
def _device_costs(device: str, model: str, devices: int) -> StepCosts:
    graph = glam() if model == "glam" else workloads.load(model, phase="decode", batch=1, context=2048)
    return step_costs(graph, device, devices=devices)


@lru_cache
def _costs(system: str, model: str, devices: int) -> StepCosts:
    """Costs of a system; systems of one device remember parts of iterations together."""
    device, sliced, options = SYSTEMS[system]
    together = bool(options.get("co_processing", True))
    return _device_costs(device, model, devices).alike(str(options.get("experts", "split")), sliced, together)


@lru_cache(maxsize=512)
def measure(system: str, point: Point, model: str = "mixtral-8x7b", devices: int = 4, waves: int = WAVES) -> Measured:
    """One closed batch on one system."""
    batch, prompt, answer = point
    report = serve(
        model,
        device=SYSTEMS[system][0],
        costs=_costs(system, model, devices),
        requests=waves * batch,
        max_batch=batch,
        inputs=f"{prompt}:{prompt / DEVIATION}",
        outputs=f"{answer}:{answer / DEVIATION}",
    )
    rate = report.steady_tokens_per_s
    energy = report.to_json()["energy_per_token_j"]
    assert rate is not None
    assert report.tbt is not None
    assert report.e2e is not None
    assert report.ttft is not None
    assert energy is not None
    tbt = report.tbt
    return Measured(rate, rate / answer, energy, tbt["p50"], tbt["p99"], report.e2e["mean"], report.ttft["p50"])


def ratio(system: str, base: str, point: Point, **options: object) -> float:
    """Throughput of one system over another's."""
    return measure(system, point, **options).tokens_per_s / measure(base, point, **options).tokens_per_s


# GLaM ----------------------------------------------------------------------------------------------------------------------
@lru_cache
def glam(layers: int = 32, hidden: int = 4096, heads: int = 32, ffn: int = 16384, experts: int = 64, top_k: int = 2) -> Graph:
    """A decode step of GLaM 143B as the paper has it: every other layer a mixture of 64 experts, two matrices each; 256 Ki words."""
    fp16, head, vocabulary = parse_format("fp16"), hidden // heads, 256 * 1024
    tensors: dict[str, Tensor] = {}

    def tensor(name: str, *shape: int, role: str = "activation") -> str:
        tensors[name] = Tensor(name, shape, fp16, role)
        return name

    def product(name: str, source: str, n: int, k: int) -> Operator:
        weight = tensor(f"{name}.weight", n, k, role="weight")
        return Operator(name, "matmul", (source, weight), (tensor(name, 1, n),), {"batch": 1, "m": 1, "n": n, "k": k}, name)

    def element(name: str, inputs: tuple[str, ...], width: int, operations: int, specials: int = 0) -> Operator:
        attributes = {"elements": width, "operations": operations, "specials": specials}
        return Operator(name, "elementwise", inputs, (tensor(name, 1, width),), attributes, name, name.rpartition(".")[2])

    def norm(name: str, source: str) -> Operator:
        weight = tensor(f"{name}.weight", hidden, role="weight")
        return Operator(name, "norm", (source, weight), (tensor(name, 1, hidden),), {"rows": 1, "width": hidden}, name)

    def attention(at: str, source: str) -> tuple[list[Operator], str]:
        ops = [norm(f"{at}.attention_norm", source)]
        q, k, v = (product(f"{at}.{n}_proj", ops[0].name, hidden, hidden) for n in "qkv")
        ops += [q, k, v]
        for made in (k, v):
            cache = tensor(f"{made.name}.cache", 1, heads, 2048, head, role="kv_cache")
            ops.append(Operator(f"{made.name}.append", "append", (made.name, cache), (cache,), {"elements": hidden}, at))
        shape = {"batch": 1, "heads": heads, "kv_heads": heads, "queries": 1, "keys": 2048, "head_dim": head, "value_dim": head}
        inputs = (q.name, f"{k.name}.cache", f"{v.name}.cache")
        out = tensor(f"{at}.attention", 1, 1, heads, head)
        ops.append(Operator(f"{at}.attention", "attention", inputs, (out,), {**shape, "causal": 1, "window": 0}, at))
        ops.append(product(f"{at}.o_proj", out, hidden, hidden))
        ops.append(element(f"{at}.attention_add", (source, ops[-1].name), hidden, 1))
        return ops, ops[-1].name

    def dense(at: str, source: str) -> list[Operator]:
        ops = [norm(f"{at}.ffn_norm", source)]
        ops.append(product(f"{at}.up_proj", ops[-1].name, ffn, hidden))
        ops.append(element(f"{at}.gelu", (ops[-1].name,), ffn, 4, 1))
        ops.append(product(f"{at}.down_proj", ops[-1].name, hidden, ffn))
        return [*ops, element(f"{at}.ffn_add", (source, ops[-1].name), hidden, 1)]

    def mixture(at: str, source: str) -> list[Operator]:
        ops = [norm(f"{at}.ffn_norm", source)]
        ops.append(product(f"{at}.gate", ops[0].name, experts, hidden))
        scores = tensor(f"{at}.softmax", 1, experts)
        ops.append(Operator(scores, "softmax", (f"{at}.gate",), (scores,), {"rows": 1, "width": experts}, f"{at}.gate"))
        best = tensor(f"{at}.topk", 1, top_k)
        ops.append(Operator(best, "topk", (scores,), (best,), {"rows": 1, "width": experts, "k": top_k}, f"{at}.gate"))
        rows = tensor(f"{at}.dispatch", top_k, hidden)
        ops.append(Operator(rows, "copy", (ops[0].name, best), (rows,), {"elements": top_k * hidden}, at))
        source_rows = rows
        for name, n, k in (("up", ffn, hidden), ("down", hidden, ffn)):
            weight = tensor(f"{at}.experts.{name}.weight", experts, n, k, role="weight")
            out = tensor(f"{at}.experts.{name}", top_k, n)
            shape = {"rows": top_k, "experts": experts, "top_k": top_k, "active": top_k, "n": n, "k": k}
            ops.append(Operator(out, "grouped_matmul", (source_rows, weight), (out,), shape, f"{at}.experts"))
            if name == "up":
                source_rows = tensor(f"{at}.experts.gelu", top_k, n)
                work = {"elements": top_k * n, "operations": 4, "specials": 1}
                ops.append(Operator(source_rows, "elementwise", (out,), (source_rows,), work, f"{at}.experts", "gelu"))
        total = tensor(f"{at}.combine", 1, hidden)
        ops.append(Operator(total, "reduce", (f"{at}.experts.down", best), (total,), {"elements": top_k * hidden, "operations": 2}, at))
        return [*ops, element(f"{at}.ffn_add", (source, total), hidden, 1)]

    table, words = tensor("embedding.weight", vocabulary, hidden, role="weight"), tensor("words", 1, 1)
    embedding = Operator("embedding", "embedding", (table, words), (tensor("embedding", 1, hidden),), {"rows": 1, "width": hidden})
    first, middle = attention("layers.0", "embedding")
    body = [*first, *dense("layers.0", middle)]
    second, middle = attention("layers.1", "layers.0.ffn_add")
    body += [*second, *mixture("layers.1", middle)]
    last = norm("norm", "layers.1.ffn_add")
    head_attributes = {"batch": 1, "m": 1, "n": vocabulary, "k": hidden}
    logits = Operator("lm_head", "matmul", ("norm", table), (tensor("lm_head", 1, vocabulary),), head_attributes)
    segments = (Segment("prologue", 1, (embedding,)), Segment("layers", layers // 2, tuple(body)), Segment("epilogue", 1, (last, logits)))
    return Graph("glam-143b", "decode", 1, 1, 2048, tensors, segments, ("words",), ("lm_head",))


# Crossovers ----------------------------------------------------------------------------------------------------------------
def expert_fs(device: str, side: str, tokens: int) -> int:
    """Femtoseconds of one Mixtral expert for so many tokens, on the units near memory or the others."""
    system = next(name for name, (known, sliced, _) in SYSTEMS.items() if known == device and not sliced)
    return _costs(system, "mixtral-8x7b", 4).expert(side, tokens).fs


def ridge() -> float:
    """Operations per byte (tokens of an fp16 expert) from which Logic-PIM computes longer than it reads: where the rising line of its
    times for many tokens meets the level of its time for one."""
    level, low, high = (expert_fs("duplex", "near", tokens) for tokens in (1, 64, 128))
    slope = (high - low) / 64
    return 64 - (low - level) / slope


def processor_crossover() -> float:
    """Operations per byte from which the H100-class units finish an expert earlier than Logic-PIM."""
    tokens = next(n for n in range(1, 257) if expert_fs("duplex", "near", n) > expert_fs("duplex", "host", n))
    near = [expert_fs("duplex", "near", n) for n in (tokens - 1, tokens)]
    host = [expert_fs("duplex", "host", n) for n in (tokens - 1, tokens)]
    before, after = host[0] - near[0], near[1] - host[1]
    return tokens - 1 + before / (before + after)


def bank_crossover() -> float:
    """Operations per byte from which Logic-PIM finishes an expert earlier than Bank-PIM."""
    tokens = next(n for n in range(1, 257) if expert_fs("duplex-bank-pim", "near", n) > expert_fs("duplex", "near", n))
    bank = [expert_fs("duplex-bank-pim", "near", n) for n in (tokens - 1, tokens)]
    logic = [expert_fs("duplex", "near", n) for n in (tokens - 1, tokens)]
    return tokens - 1 + (logic[0] - bank[0]) / (logic[0] - bank[0] + bank[1] - logic[1])


# Rows ----------------------------------------------------------------------------------------------------------------------
def _row(
    what: str,
    published: float,
    ours: float,
    unit: str,
    note: str = "",
    tolerance: float | None = 0.15,
    certainty: str = "certain",
) -> StudyRow:
    sure = "certain" if certainty == "certain" else "probable"
    return StudyRow("duplex", what, published, ours, unit, tolerance, sure, PAPER, note)  # type: ignore[arg-type]


def hardware_rows() -> list[StudyRow]:
    """Rates, and the crossovers that follow from the costs of single experts."""
    near, channel = load("duplex").units["near"], BundlePath().channel.preset
    return [
        _row("Logic-PIM compute per stack", 21.3, load("duplex").peak_flops("near", "fp16") / 5e12, "TFLOP/s", tolerance=0.01),
        _row(
            "Logic-PIM bandwidth over that of HBM3", 4.0, BundlePath().internal_peak / (float(channel.peak) * 160), "x", tolerance=0.01
        ),
        _row("Logic-PIM multiply-accumulate units per stack", 16384, near.count * near.macs_per_cycle("fp16") / 5, "MACs", tolerance=0.0),
        _row(
            "balance of Logic-PIM, from times of experts", 8.0, ridge(), "Op/B",
            "rows and refresh take a tenth of its bandwidth, which moves the balance up",
        ),
        _row(
            "processor crossover, from times of experts", 31.8, processor_crossover(), "Op/B",
            "published peaks: 106.7 TFLOP/s over 3.35 TB/s; the processor's memory loses as much to rows and refresh as the stacks' own",
        ),
        _row(
            "Bank-PIM crossover in time", 8.0, bank_crossover(), "Op/B",
            "the paper's crossover near 8 is of energy x delay x area, for which it gives no area of Bank-PIM; in time alone "
            "Bank-PIM, at 1 Op/B, falls behind earlier", None,
        ),
    ]  # fmt: skip


def mixtral_rows() -> list[StudyRow]:
    """Throughput and energy of Mixtral 47B on four devices."""
    long = [(batch, 4096, 4096) for batch in BATCHES]
    best = max(ratio("Duplex", "GPU", p) for p in long)
    everything = max(ratio("Duplex+PE+ET", "GPU", p) for p in POINTS)
    energies = [measure("Duplex+PE+ET", p).joules_per_token / measure("GPU", p).joules_per_token for p in POINTS]
    over_bank = [ratio("Duplex+PE+ET", "Bank-PIM+ET", p) for p in POINTS]
    short, grid = (64, 256, 256), "batches of 32, 64 and 128, lengths of 256, 1024 and 4096"
    saved = "switching energy alone; the paper's mean is over three models"
    which = "the other reading: the paper does not say here whether experts are sliced; the row above takes them as sliced"
    return [
        _row("Mixtral, Duplex over GPU at (4096, 4096), most", 2.51, best, "x", "batches of 32, 64 and 128"),
        _row("Mixtral, +PE+ET over GPU, most", 2.67, everything, "x", grid),
        _row("Mixtral, +PE over Duplex, mean", 1.04, mean(ratio("Duplex+PE", "Duplex", p) for p in POINTS), "x", grid),
        _row("Mixtral, +PE+ET over Duplex, most", 1.36, max(ratio("Duplex+PE+ET", "Duplex", p) for p in POINTS), "x", grid),
        _row(
            "+PE+ET over GPU, mean", 2.07, mean(ratio("Duplex+PE+ET", "GPU", p) for p in POINTS), "x",
            f"Mixtral, {grid}; the paper's mean is over three models",
        ),
        _row("energy of +PE+ET over GPU, mean", 1 - 0.2819, mean(energies), "x", saved),
        _row("Mixtral, energy of +PE+ET over GPU, least", 1 - 0.3328, min(energies), "x", "switching energy alone"),
        _row(
            "Mixtral, Bank-PIM over GPU at batch 32, (4096, *), most", 2.17,
            max(ratio("Bank-PIM+ET", "GPU", (32, 4096, n)) for n in LENGTHS), "x", "with sliced experts, as its counterpart",
        ),
        _row("Mixtral, Bank-PIM over GPU at batch 64, (256, 256)", 1.18, ratio("Bank-PIM+ET", "GPU", short), "x", "with sliced experts"),
        _row("Mixtral, Duplex over GPU at batch 64, (256, 256)", 2.05, ratio("Duplex+PE+ET", "GPU", short), "x", "+PE+ET"),
        _row("Mixtral, Bank-PIM over GPU at batch 32, (4096, 4096), experts spread", 2.17,
             ratio("Bank-PIM", "GPU", (32, 4096, 4096)), "x", which, None),
        _row("Mixtral, Bank-PIM over GPU at batch 64, (256, 256), experts spread", 1.18, ratio("Bank-PIM", "GPU", short), "x", which, None),
        _row("Mixtral, Duplex without +PE+ET over GPU at batch 64, (256, 256)", 2.05, ratio("Duplex", "GPU", short), "x", which, None),
        _row("Mixtral, Duplex over Bank-PIM, most", 1.80, max(over_bank), "x", "both with sliced experts"),
        _row("Mixtral, Duplex over Bank-PIM, mean", 1.49, mean(over_bank), "x", f"both with sliced experts; {grid}"),
    ]  # fmt: skip


def saturation_rows() -> list[StudyRow]:
    """Requests per second that Mixtral saturates at: prompts of 4096 tokens, answers of 512, at most 128 requests."""
    point = (128, 4096, 512)
    note = "a closed population of 128: what the server does when requests never run out; the paper reads it off Poisson arrivals"
    return [
        _row("Mixtral, saturation of the GPU system, (4096, 512)", 9.0, measure("GPU", point).requests_per_s, "requests/s", note),
        _row("Mixtral, saturation of Duplex, (4096, 512)", 14.0, measure("Duplex+PE", point).requests_per_s, "requests/s", note),
    ]


def ordering_rows() -> list[StudyRow]:
    """Which of Logic-PIM and Bank-PIM serves faster: with grouped-query attention the first, with multi-head attention the second."""
    point, note = (64, 512, 512), "batch 64, (512, 512); an ordering: the published value is that it is above 1"
    llama = ratio("Duplex+PE", "Bank-PIM", point, model="llama-3-70b")
    opt = ratio("Bank-PIM", "Duplex+PE", point, model="opt-66b")
    return [
        _row("Llama3 70B (GQA), Duplex over Bank-PIM, above 1", 1.0, float(llama > 1), "holds", f"{llama:.3f} x; {note}", 0.0),
        _row("OPT 66B (MHA), Bank-PIM over Duplex, above 1", 1.0, float(opt > 1), "holds", f"{opt:.3f} x; {note}", 0.0),
    ]


def glam_rows() -> list[StudyRow]:
    """Latencies of GLaM 143B on eight devices at batch 64, over the GPU system and over twice as many GPUs."""
    points = [(64, length, length) for length in (512, 2048)]
    ours, gpu, twice = (
        [measure(system, p, model="glam", devices=devices) for p in points]
        for system, devices in (("Duplex+PE", 8), ("GPU", 8), ("GPU", 16))
    )
    note = "batch 64, mean over lengths of 512 and 2048"
    pairs, doubles = list(zip(ours, gpu, strict=True)), list(zip(ours, twice, strict=True))
    return [
        _row(
            "GLaM, median time between tokens over GPU", 1 - 0.583, mean(a.tbt_p50 / b.tbt_p50 for a, b in pairs), "x",
            f"{note}; ours is shorter: the median iteration only decodes, and what gating and handing experts to processors cost beyond "
            "the operators themselves is not published and not charged",
        ),
        _row("GLaM, time of answers over GPU", 1 - 0.602, mean(a.e2e / b.e2e for a, b in pairs), "x", note),
        _row("GLaM, time of answers over twice the GPUs", 1 - 0.3538, mean(a.e2e / b.e2e for a, b in doubles), "x", note),
        _row("GLaM, 99th percentile between tokens over twice the GPUs, 512", 1 - 0.1674, ours[0].tbt_p99 / twice[0].tbt_p99, "x",
             "depends on how lengths scatter, which is not published", None),
        _row("GLaM, time to first token over twice the GPUs, 512", 1 - 0.2617, ours[0].ttft / twice[0].ttft, "x",
             "depends on how prompts join the batch, which is not published", None),
    ]  # fmt: skip


def rows() -> list[StudyRow]:
    return [*hardware_rows(), *mixtral_rows(), *saturation_rows(), *ordering_rows(), *glam_rows()]

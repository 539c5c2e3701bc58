"""FlexGen (Sheng et al., ICML 2023): OPT-30B on one T4 with its weights in host memory, by the authors' own cost model.

The rates of the machine are the constants of their released cost model, fitted by them on a 16 GB T4 with 208 GB of host
memory; here GB = 2^30 B, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from studies.row import StudyRow

SOURCE = "Sheng et al., FlexGen: High-Throughput Generative Inference of Large Language Models with a Single GPU, ICML 2023"
GIB = 2**30


@dataclass(frozen=True)
class Host:
    """Bytes per second between GPU, host memory and disk, and operations per second, as the released cost model has them."""

    host_to_gpu: float = 12.89 * GIB
    gpu_to_host_cache: float = 0.97 * GIB
    gpu_to_host_hidden: float = 4.82 * GIB
    disk_to_host: float = 0.473 * GIB
    host_to_disk_cache: float = 0.746 * GIB
    host_to_disk_hidden: float = 2.015 * GIB
    host_to_disk: float = 2.015 * GIB
    matmul_prefill: float = 21.24e12
    matmul_decode: float = 4.3e12
    attention_prefill: float = 9.97e12
    attention_decode: float = 0.079e12
    cpu: float = 0.0123e12


@dataclass(frozen=True)
class Policy:
    """Fractions of weights, cache and hidden states on GPU and host (the rest on disk), and `batch` x `batches` sequences."""

    weights: tuple[float, float]
    cache: tuple[float, float]
    hidden: tuple[float, float]
    batch: int
    batches: int


def throughput(layers: int, width: int, ffn: int, prompt: int, generated: int, policy: Policy, host: Host) -> tuple[float, float, float]:
    """(tokens per second, prefill seconds, decode seconds) of the block schedule: one load of a layer serves the whole block."""
    block = policy.batch * policy.batches
    (wg, wc), (cg, cc), (hg, hc) = policy.weights, policy.cache, policy.hidden
    wn, cn, hn = 1 - wg - wc, 1 - cg - cc, 1 - hg - hc
    weights = 8 * width**2 + 4 * width * ffn  # bytes of a layer in fp16
    states = 2 * width * block  # bytes of one token's hidden states over the block
    to_gpu = (weights * (wc + wn) + prompt * states * (hc + hn)) / host.host_to_gpu
    from_gpu = 4 * (prompt + 1) * width * block * (cc + cn) / host.gpu_to_host_cache + prompt * states * (hc + hn) / host.gpu_to_host_hidden
    from_disk = (weights * wn + prompt * states * hn) / host.disk_to_host
    to_disk = 4 * block * (prompt + 1) * width * cn / host.host_to_disk_cache + prompt * states * hn / host.host_to_disk_hidden
    compute = block * (8 * prompt * width**2 + 4 * prompt * width * ffn) / host.matmul_prefill
    compute += 4 * block * prompt**2 * width / host.attention_prefill
    prefill = max(to_gpu + from_disk, from_gpu + to_disk, compute)

    length = prompt + generated / 2  # mean length of the cache
    to_gpu = (weights * (wc + wn) + states * (hc + hn)) / host.host_to_gpu
    from_gpu = states * (hc + hn) / host.gpu_to_host_hidden
    from_disk = (4 * block * length * width * cn + states * hn) / host.disk_to_host + weights * wn / (0.95 * host.disk_to_host)
    to_disk = (4 * block * width * cn + states * hn) / host.host_to_disk
    small, narrow = max(0.0, log2(64 / policy.batch)), max(0.0, log2(4096 / width))
    cpu = host.cpu * max(0.1, 1 + 0.0168 * small * narrow - 0.0328 * small - 0.0621 * narrow)
    compute = block * (8 * width**2 + 4 * width * ffn) / host.matmul_decode
    compute += 4 * block * length * width * (cg / host.attention_decode + (cc + cn) / cpu)
    decode = to_gpu + max(from_gpu, from_disk, to_disk, compute)
    totals = layers * prefill, (generated - 1) * layers * decode
    return block * generated / sum(totals), *totals


# (prompt, share of weights on the GPU, batch x batches, published tokens per second, tolerance, certainty)
OPT_30B = {"layers": 48, "width": 7168, "ffn": 28672}
EXPERIMENTS = (
    (512, 0.20, 48, 3, 7.32, 0.05, "certain"),
    (1024, 0.04, 20, 4, 3.50, 0.05, "probable"),
    (256, 0.10, 160, 2, 16.0, None, "probable"),
)


def rows() -> list[StudyRow]:
    """Throughput of OPT-30B at three prompt lengths, 32 tokens generated."""
    found = []
    for prompt, on_gpu, batch, batches, published, tolerance, certainty in EXPERIMENTS:
        policy = Policy(weights=(on_gpu, 1 - on_gpu), cache=(0, 1), hidden=(0, 1), batch=batch, batches=batches)
        rate, prefill, decode = throughput(**OPT_30B, prompt=prompt, generated=32, policy=policy, host=Host())
        found.append(
            StudyRow(
                system="flexgen",
                experiment=f"OPT-30B on a T4, prompt {prompt}, 32 tokens, {batch} x {batches} sequences",
                published=published,
                ours=rate,
                unit="tokens/s",
                tolerance=tolerance,
                certainty="certain" if certainty == "certain" else "probable",
                source=SOURCE,
                note=f"prefill {prefill:.2f} s, decode {decode:.2f} s"
                + ("" if tolerance else "; the authors' cost model itself misses this point, so it is reported, not claimed"),
            )
        )
    return found

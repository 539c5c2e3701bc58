"""Small integer models, and the machine they run on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from hw import devices
from hw.device import Device
from mapper.flightllm.compile import DECODE_STEP, Compiler, Stream, aligned
from mapper.flightllm.emit import Options
from mapper.flightllm.layers import Linear
from sim.flightllm_golden import Golden
from sim.flightllm_interpreter import Interpreter, Memory, load_model
from workloads import load, quantise
from workloads.graph import Graph
from workloads.prune import prune_matrix

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
OPT = {
    "model_type": "opt",
    "hidden_size": 64,
    "ffn_dim": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "word_embed_proj_dim": 64,
}
TIED = "model.decoder.embed_tokens.weight"


@pytest.fixture(scope="session")
def vhk158() -> Device:
    return devices.load("flightllm-vhk158")


@pytest.fixture(scope="session")
def cramped(vhk158: Device) -> Device:
    """A machine whose buffers hold only two small tiles, so that loads must wait for products all the time."""
    return vhk158.with_settings({"units.core.meta_depth": 32, "units.core.a_depth": 64})


@pytest.fixture(scope="session")
def graph_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Decode graphs of configurations, 4-bit weights, 8-bit caches."""
    known: dict[str, Graph] = {}

    def make(config: dict[str, Any], **how: Any) -> Graph:
        settings = {"phase": "decode", "context": 32, **how}
        key = json.dumps([config, settings], sort_keys=True)
        if key not in known:
            path = tmp_path_factory.mktemp("model") / "config.json"
            path.write_text(json.dumps(config))
            known[key] = quantise(load(str(path), batch=1, **settings), weights="int4", acts="int8", kv="int8")
        return known[key]

    return make


@dataclass
class Model:
    """A small model with random weights, on the machine and as a golden model."""

    compiler: Compiler
    golden: Golden
    weights: dict[str, list[Any]]
    biases: dict[str, list[Any]]
    memory: Memory | None = None
    streams: dict[int, Stream] | None = None

    def stream(self, position: int) -> Stream:
        self.streams = self.streams or {}
        context = aligned(position + 1, DECODE_STEP)
        if context not in self.streams:
            self.streams[context] = self.compiler.compile(context)
        return self.streams[context]

    def place(self, position: int, hidden: Any, cosines: Any, sines: Any) -> Stream:
        """Puts the inputs of a token into memory, and the weights before the first."""
        stream = self.stream(position)
        if self.memory is None:
            self.memory = load_model(self.compiler, stream, self.weights, self.biases)
        first = self.compiler.bodies[0].layers[0]
        assert not isinstance(first, Linear)
        self.memory.put_vector(getattr(first, "source", ""), hidden)
        if "rope.sin" in stream.memory.regions:
            pairs = stream.memory["rope.sin"].pitch // 16
            self.memory.put_vector("rope.cos", np.tile(np.concatenate([cosines, cosines]), pairs))
            self.memory.put_vector("rope.sin", np.tile(np.concatenate([sines, -sines]), pairs))
        return stream

    def token(self, position: int, rng: Any, scheduled: bool = False) -> tuple[Any, Any]:
        """(machine's logits, golden logits) of a random embedding at a position; positions must follow one another."""
        hidden = rng.integers(-128, 128, 64)
        angles = position / 10.0 ** np.arange(8)
        cosines, sines = (np.rint(127 * f(angles)).astype(np.int64) for f in (np.cos, np.sin))
        stream = self.place(position, hidden, cosines, sines)
        assert self.memory is not None
        Interpreter(stream, self.compiler.device, self.memory).run(position, scheduled)
        expected = self.golden.step(hidden, cosines, sines)
        result = getattr(self.compiler.bodies[-1].layers[-1], "result", "")
        return self.memory.vector(result, len(expected)), expected


@pytest.fixture(scope="session")
def model_of(graph_of: Any, vhk158: Device) -> Any:
    """Models by configuration; `kept` is one N, `mixed`, or None for dense weights."""

    def make(
        config: dict[str, Any],
        kept: int | str | None = None,
        options: Options | None = None,
        bits: dict[str, int] | None = None,
        device: Device = vhk158,
    ) -> Model:
        graph, rng = graph_of(config), np.random.default_rng(7)
        options, bits = options or Options(), bits or {}
        plan = Compiler(graph, device, bits=bits, max_tokens=512)
        weights: dict[str, list[Any]] = {}
        biases: dict[str, list[Any]] = {}
        counts: dict[str, Any] = {}
        shifts = {name: 9 if "k_cache" in name else 7 for name, tensor in graph.tensors.items() if tensor.role == "kv_cache"}
        for body in plan.bodies:
            for layer in body.layers:
                if not isinstance(layer, Linear):
                    continue
                width = plan.weights[layer.weight].bits
                matrices = [rng.integers(-(1 << width - 1), 1 << width - 1, (layer.k, layer.n)) for _ in range(body.count)]
                if kept is not None:
                    shape = (layer.k // 16, layer.n // 16)
                    counts[layer.weight] = rng.choice([0, 2, 4, 8, 16], shape) if kept == "mixed" else np.full(shape, kept)
                    matrices = [prune_matrix(matrix, counts[layer.weight])[0] for matrix in matrices]
                weights[layer.weight] = matrices
                shifts[layer.weight] = int(np.log2(layer.k) / 2) + width - 1
                if layer.bias:
                    biases[layer.weight] = [rng.integers(-500, 500, layer.n) for _ in range(body.count)]
        compiler = Compiler(graph, device, options, counts=counts, shifts=shifts, bits=bits, max_tokens=512)
        return Model(compiler, Golden(graph, weights, biases, shifts), weights, biases)

    return make

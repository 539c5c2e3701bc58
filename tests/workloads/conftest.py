"""Traces made once per test run, with a trace cache of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from workloads import catalogue
from workloads.graph import Graph

DATA = Path(__file__).parent / "data"

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}
"""Dimensions that most decoder configs share."""


@cache
def _traced(name: str, phase: str, batch: int, length: int, logits: str, folded: bool) -> Graph:
    from workloads import tracer

    config = catalogue.describe(name).hf_config()
    return tracer.trace(config, name=name, where=name, phase=phase, batch=batch, length=length, logits=logits, folded=folded)


@pytest.fixture(scope="session")
def traced() -> Callable[..., Graph]:
    """A fresh trace of a catalogue model: no cache on disk, no published formats."""

    def make(name: str, phase: str, *, batch: int = 1, length: int = 64, logits: str = "last", folded: bool = True) -> Graph:
        return _traced(name, phase, batch, length, logits, folded)

    return make


@pytest.fixture(scope="session")
def small_config() -> Callable[..., dict[str, object]]:
    """A small config of some architecture."""

    def make(model_type: str, **config: object) -> dict[str, object]:
        return {"model_type": model_type, **TINY, **config}

    return make


@pytest.fixture(scope="session")
def traced_config(small_config: Callable[..., dict[str, object]]) -> Callable[..., Graph]:
    """A fresh trace of a small config of some architecture."""

    def make(model_type: str, phase: str, *, batch: int = 2, length: int = 20, folded: bool = True, **config: object) -> Graph:
        from workloads import tracer

        whole = small_config(model_type, **config)
        return tracer.trace(whole, name=model_type, where=model_type, phase=phase, batch=batch, length=length, folded=folded)

    return make


@pytest.fixture
def data() -> Path:
    return DATA


@pytest.fixture(autouse=True)
def own_trace_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's traces."""
    folder = tmp_path_factory.mktemp("dovetail")
    monkeypatch.setenv("DOVETAIL_CACHE", str(folder))
    return folder

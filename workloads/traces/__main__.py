"""Trace the shipped models again and write the files of this folder."""

from workloads import catalogue, tracer
from workloads.sources import save_graph, shipped_trace
from workloads.traces import SHIPPED

for model, phase, batch, length in SHIPPED:
    request = {"phase": phase, "batch": batch, "length": length, "logits": "last"}
    graph = tracer.trace(catalogue.describe(model).hf_config(), name=model, where=model, phase=phase, batch=batch, length=length)
    path = shipped_trace(model, request)
    save_graph(graph, path)
    print(f"{path.name}: {path.stat().st_size} bytes, {graph!r}")

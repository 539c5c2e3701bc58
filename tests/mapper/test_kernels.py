"""Fusion: what runs as one kernel, and the bytes that it saves."""

from hw.devices import load as load_device
from mapper import compile_graph
from mapper.kernels import fuse
from workloads import cost, load

GRAPH = load("llama-2-7b", phase="decode", batch=1, context=2048)


def kernels():
    return {kernel.name.removeprefix("model.layers.0."): kernel for _, body in fuse(GRAPH) for kernel in body}


def test_products_of_one_input_run_side_by_side_with_what_follows_them():
    assert [name for name in kernels() if "proj" in name] == [
        "self_attn.q_proj+k_proj+v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj+up_proj",
        "mlp.down_proj",
    ]
    assert [op.function or op.kind for op in kernels()["mlp.gate_proj+up_proj"].fused] == ["silu", "mul"]


def test_a_joined_product_reads_its_input_once_and_all_weights_and_hands_inner_results_on():
    kernel = kernels()["mlp.gate_proj+up_proj"]
    assert kernel.operator["n"] == 2 * 11008
    assert sum(o.size for o in kernel.reads) == (2 * 11008 * 4096 + 4096) * 2
    assert [o.elements for o in kernel.writes] == [11008]  # silu(gate) * up, nothing in between


def test_fusion_loses_no_work():
    fused = sum(kernel.flops * segment.count for segment, body in fuse(GRAPH) for kernel in body)
    assert fused == sum(cost.flops(op) * count for op, count in GRAPH.operators())


def test_compulsory_bytes_do_not_depend_on_fusion():
    sizes = sum(o.size * segment.count for segment, body in fuse(GRAPH) for kernel in body for o in kernel.compulsory if o.role == "weight")
    gathered = 4096 * 2  # one row of the embedding table
    assert sizes == (cost.parameters(GRAPH) - 32000 * 4096) * 2 + gathered


def test_the_report_says_that_products_were_joined():
    assert any("run as one kernel" in note for note in compile_graph(GRAPH, load_device("edge-npu")).assumptions)

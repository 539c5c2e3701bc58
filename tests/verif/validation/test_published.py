"""Published sets: names of systems, frameworks and data types; what is not described is counted, not refused."""

import sys
from pathlib import Path

import pytest

from hw.devices import load
from verif.validation import Measurement, evaluate, read
from verif.validation.cells import LARGEST
from verif.validation.errors import MeasurementError
from verif.validation.measurement import DTYPES, SHAPES, WINDOW
from verif.validation.predict import Predictor
from verif.validation.protocols import Framework, device_of, framework_of, gemm_protocol

GEMM = "gemm_dtype,m,n,k,latency_ms\n"
ATTENTION = "batch_size,isl,num_heads,num_key_value_heads,head_dim,attn_dtype,kv_cache_dtype,step,window_size,latency_ms\n"
MOE = "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,distribution,latency_ms\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# Names --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("a100_sxm", "a100-80g"),
        ("h100_sxm", "h100-sxm"),
        ("h100_pcie", "h100-pcie"),
        ("h200_sxm", "h200-sxm"),
        ("b200_sxm", "b200"),
        ("l40s", "l40s"),
        ("b60", "b60"),
        ("rtx_4090", "rtx-4090"),
        ("mi300x", "mi300x"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA A100-PCIE-40GB", None),  # another power limit and another memory than the board with a socket
        ("gb200_sxm", None),
        ("gb300", None),
        ("b300_sxm", None),
        ("rtx_pro_6000", None),
    ],
)
def test_systems_and_cards_are_known_by_their_names(name, device):
    assert device_of(name) == device


FULL = 50 * 2**20  # the L2 of an H100


@pytest.mark.parametrize(
    ("framework", "dtype", "side", "expected"),
    [
        ("vllm-0.14.0", "bfloat16", 4096, ("bf16", 6, ())),
        ("vllm-0.14.0", "fp8", 4096, ("fp8", 6, ("quantise",))),
        ("vllm-0.14.0", "nvfp4", 4096, ("nvfp4", 1, ("quantise",))),
        ("vllm-0.12.0", "fp8_block", 4096, ("fp8_block", 6, ("quantise",))),
        ("trtllm-1.0.0", "int8_wo", 4096, ("w8a16", 5, ("empty", "empty"))),
        ("trtllm-1.2.0rc5", "bfloat16", 16384, ("bf16", 5, ())),
        ("trtllm-1.3.0rc10", "bfloat16", 4096, ("bf16", -(-FULL // (2 * 4096**2)), ())),  # 2
        ("trtllm-1.3.0rc10", "nvfp4", 4096, ("nvfp4", 5, ("quantise",))),  # 7 would fill the L2, five are the most
        ("trtllm-1.3.0rc10", "fp8", 8192, ("fp8", 1, ("maximum", "empty", "quantise"))),
        ("trtllm-1.3.0rc10", "fp8_static", 8192, ("fp8_static", 1, ())),
        ("trtllm-1.3.0rc10", "float16", 8192, ("bf16", 1, ())),
        ("sglang-0.5.8", "fp8_block", 4096, ("fp8_block", 6, ("quantise",))),
        ("sglang-0.4.6", "fp8_block", 4096, ("fp8_block", 1, ())),
        ("sglang-0.5.8", "float16", 4096, ("fp16", 6, ())),
    ],
)
def test_each_framework_is_measured_by_its_own_protocol(framework, dtype, side, expected):
    assert gemm_protocol(framework_of(framework), "h100-sxm", dtype, {"m": 16, "n": side, "k": side}) == expected


@pytest.mark.parametrize(
    ("framework", "dtype", "why"),
    [
        ("trtllm-1.3.0", "fp8_ootb", "fp8_ootb, which is not described"),
        ("trtllm-1.3.0", "w4a8_mxfp4_mxfp8", "is not described"),
        ("sglang-0.4.6", "int8_wo", "quantises its activations"),
        ("vllm-0.14.0", "fp8_block", "not measured in a graph"),
    ],
)
def test_what_a_framework_does_otherwise_is_named(framework, dtype, why):
    assert why in gemm_protocol(framework_of(framework), "h100-sxm", dtype, {"m": 16, "n": 64, "k": 64})


def test_versions_are_compared_as_numbers():
    assert Framework("trtllm", "1.10.0").numbers > Framework("trtllm", "1.9.0").numbers > Framework("trtllm", "1.3.0rc10").numbers
    assert framework_of("TRTLLM-1.3.0") == framework_of("trtllm-1.3.0")


# Files --------------------------------------------------------------------------------------------------------------------
def test_rows_that_are_not_described_are_counted_and_the_rest_is_read(tmp_path):
    write(tmp_path, "gemm_h200_sxm_trtllm-1.3.0.csv", GEMM + "bfloat16,16,4096,4096,0.02\nfp8_ootb,16,4096,4096,0.02\n")
    write(tmp_path, "gemm_gb300_trtllm-1.3.0.csv", GEMM + "bfloat16,16,4096,4096,0.02\n" * 3)
    (row,), other = read(tmp_path)
    assert (row.device, row.dtype, row.latency_s, row.clock) == ("h200-sxm", "bf16", pytest.approx(2e-5), "kernel")
    assert other == {
        "gemm_h200_sxm_trtllm-1.3.0.csv: products in fp8_ootb, which is not described": 1,
        "gemm_gb300_trtllm-1.3.0.csv: gb300, which no device describes": 3,
    }


@pytest.mark.parametrize(
    ("name", "device", "before"),
    [
        ("gemm_h100_sxm_trtllm-1.0.0.csv", "h100-sxm", ("empty", "empty")),
        ("gemm_h100_pcie_trtllm_1.0.0.csv", "h100-pcie", ("empty", "empty")),
        ("gemm_rtx_4090.csv", "rtx-4090", ()),
        ("gemm_b200_sxm.csv", "b200", ()),
        ("l40s_vllm-0.14.0.csv", "l40s", ()),
    ],
)
def test_a_name_states_the_system_and_the_framework(tmp_path, name, device, before):
    write(tmp_path, name, GEMM + "bfloat16,16,64,64,0.02\n")
    ((row,), _) = read(tmp_path)
    assert (row.device, row.before) == (device, before)


def test_columns_say_what_a_name_does_not(tmp_path):
    """As the collectors write it: cards by their driver's name, frameworks in a column, milliseconds without a unit."""
    header = "framework,version,device,op_name,kernel_source,gemm_dtype,m,n,k,latency,power\n"
    rows = "VLLM,0.14.0,NVIDIA H200,gemm,x,bfloat16,16,64,64,0.02,1\nTRTLLM,1.0.0,NVIDIA L40S,gemm,x,int8_wo,16,64,64,0.03,1\n"
    write(tmp_path, "gemm_perf.csv", header + rows)
    first, second = read(tmp_path)[0]
    assert (first.device, first.copies, first.latency_s) == ("h200-sxm", 6, pytest.approx(2e-5))
    assert (second.device, second.dtype, second.before) == ("l40s", "w8a16", ("empty", "empty"))


def test_folders_say_what_a_name_and_columns_do_not(tmp_path):
    write(tmp_path, "b200_sxm/trtllm/1.0.0/gemm_perf.csv", GEMM + "bfloat16,16,4096,4096,0.02\n")
    ((row,), _) = read(tmp_path)
    assert (row.device, row.copies, row.before) == ("b200", 5, ("empty", "empty"))


def test_a_file_that_states_no_system_is_refused(tmp_path):
    write(tmp_path, "perf.csv", GEMM + "bfloat16,16,4096,4096,0.02\n")
    with pytest.raises(MeasurementError, match=r"perf.csv: .*neither its name nor a column system or device"):
        read(tmp_path)


def test_attention_is_read_by_its_phase_with_windows_and_shared_keys(tmp_path):
    rows = (
        "4,1,64,8,64,bfloat16,fp8,2047,128,0.05\n"
        "4,1,64,0,192,float16,float16,2047,0,0.05\n"
        "4,1,64,7,64,bfloat16,bfloat16,2047,0,0.05\n"
        "4,1,64,8,64,bfloat16,int8,2047,0,0.05\n"
    )
    write(tmp_path, "attention_generation_b200_sxm_trtllm-1.3.0.csv", ATTENTION + rows)
    write(tmp_path, "attention_context_l40s_vllm-0.14.0.csv", ATTENTION + "2,512,8,8,256,bfloat16,bfloat16,0,-1,1.5\n")
    (prompt, windowed, plain), other = read(tmp_path)
    assert (windowed.operator, windowed.dtype, windowed.shape["keys"], windowed.shape["window"]) == (
        "attention-decode",
        "bf16-kv8",
        2048,
        128,
    )
    assert (plain.dtype, plain.shape["kv_heads"], plain.shape["head_dim"], "window" in plain.shape) == ("bf16", 64, 192, False)
    assert (prompt.operator, prompt.shape["queries"], prompt.shape["keys"], "window" in prompt.shape) == (
        "attention-prefill",
        512,
        512,
        False,
    )
    assert {what.partition(": ")[2]: count for what, count in other.items()} == {
        "heads that share no whole number of keys": 1,
        "attention in bfloat16 with a cache in int8": 1,
    }


def test_experts_in_narrow_formats_are_quantised_first_and_odd_routing_is_counted(tmp_path):
    rows = (
        "fp8_block,16,512,1024,2,8,1,4,power_law_1.2,0.1\n"
        "bfloat16,16,512,1024,2,8,1,1,balanced,0.1\n"
        "bfloat16,16,512,1024,2,8,1,1,power_law_x,0.1\n"
        "bfloat16,16,512,1024,2,8,1,1,zipf_1.0,0.1\n"
        "fp6,16,512,1024,2,8,1,1,balanced,0.1\n"
        "bfloat16,16,512,1024,9,8,1,1,balanced,0.1\n"
    )
    write(tmp_path, "moe_h100_sxm_trtllm-1.3.0.csv", MOE + rows)
    (narrow, wide), other = read(tmp_path)
    assert (narrow.dtype, narrow.shape["skew"], narrow.shape["ep"]) == ("fp8_block", 120, 4)
    assert narrow.before.count("quantise") == 1 > wide.before.count("quantise")
    assert sum(other.values()) == 4
    assert len(evaluate([narrow, wide]).measured) == 2


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("matmul.csv", "device,M,N,K,latency_s\nMI210,1,1,1,1e-4\n", "matmul.csv: MI210, of whose host nothing is known"),
        ("allreduce.csv", "system,bytes,latency_us\nTPUv3x8,8,12\n", "allreduce.csv: TPUv3x8, which is not described"),
        (
            "perf_model.csv",
            "model,hardware,prompt_size,batch_size,token_size,prompt_time,token_time,tensor_parallel\ngpt-5,a100-80gb,1,1,1,1,1,1\n",
            "perf_model.csv: gpt-5, which no model here describes",
        ),
        (
            "collectives.csv",
            "network,collective,num_workers,devices_per_node,size,median_ms\na100_dgx,broadcast,2,8,1,1\n",
            "collectives.csv: broadcast, which is not described",
        ),
    ],
)
def test_rows_of_other_sets_that_are_not_described_are_counted(tmp_path, name, text, why):
    write(tmp_path, name, text)
    assert read(tmp_path) == ([], {why: 1})


def test_collectives_of_unknown_kinds_are_counted(tmp_path):
    header = "op_name,nccl_dtype,num_gpus,message_size,latency\n"
    write(
        tmp_path, "nccl_h200_sxm_2.27.csv", header + "all_reduce,half,8,1024,0.02\nbroadcast,half,8,1024,0.02\nall_reduce,fp4,8,1024,0.02\n"
    )
    (row,), other = read(tmp_path)
    assert (row.operator, dict(row.shape)) == ("all-reduce", {"ranks": 8, "bytes": 2048})
    assert sum(other.values()) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gemm_l40s_vllm-0.1.csv", GEMM + "bfloat16,16,64,64,-1\n", "row 2: column latency_ms: expected a latency above 0, found -1"),
        ("gemm_l40s_vllm-0.1.csv", GEMM + "\nbfloat16,16,64,64,inf\n", "row 3: column latency_ms: expected a latency above 0, found inf"),
        ("gemm_l40s_vllm-0.1.csv", GEMM + f"bfloat16,16,64,{LARGEST + 1},1\n", f"row 2: column k: expected at most {LARGEST}"),
        ("attention_context_l40s_vllm-0.1.csv", ATTENTION + "1,99999999,8,8,64,fp8,fp8,0,0,9\n", "column isl: expected at most 16777216"),
        ("gemm_l40s_vllm-0.1.csv", "gemm_dtype,m,n,latency_ms\n", "row 1: column 'k' is missing"),
        ("gemm_l40s_vllm-0.1.csv", "gemm_dtype,m,n,k,k,latency_ms\n", "row 1: column 'k' is there 2 times"),
        ("gemm_l40s_vllm-0.1.csv", "gemm_dtype,m,n,k\n", "row 1: expected one latency column .*found none"),
        ("gemm_l40s_vllm-0.1.csv", "gemm_dtype,m,n,k,latency_us,latency_ms\n", "found latency_ms, latency_us"),
        ("l40s.csv", ATTENTION + "4,1,64,8,64,bfloat16,fp8,2047,128,0.05\n", "context or generation in the file's name"),
        ("rows.csv", "device;operator;dtype;latency_us\n", "found none; rows.csv has device;operator;dtype;latency_us"),
    ],
)
def test_a_bad_published_file_is_refused_with_its_row_and_column(tmp_path, name, text, message):
    write(tmp_path, name, text)
    with pytest.raises(MeasurementError, match=message):
        read(tmp_path)


def test_whole_numbers_may_be_written_with_a_point(tmp_path):
    write(tmp_path, "gemm_l40s_vllm-0.1.csv", GEMM + "bfloat16,16.0,64.0,64.0,1\n")
    assert dict(read(tmp_path)[0][0].shape) == {"m": 16, "n": 64, "k": 64}


def test_parquet_without_its_reader_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    write(tmp_path, "gemm_h200_sxm_trtllm-1.0.0.parquet", "PAR1")
    with pytest.raises(MeasurementError, match="reading Parquet needs pyarrow; install it, or convert the file to CSV"):
        read(tmp_path)


def test_parquet_is_read_like_csv(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"gemm_dtype": ["bfloat16", "fp8"], "m": [16, 16], "n": [64, 64], "k": [64, 64], "latency": [0.02, 0.03]}
    parquet.write_table(arrow.table(columns), tmp_path / "gemm_h200_sxm_trtllm-1.3.0.parquet")
    assert [(m.device, m.dtype, m.latency_s) for m in read(tmp_path)[0]] == [("h200-sxm", "bf16", 2e-5), ("h200-sxm", "fp8", 3e-5)]
    (tmp_path / "gemm_h200_sxm_trtllm-1.3.0.parquet").write_bytes(b"PAR1")
    with pytest.raises(MeasurementError, match="cannot be read"):
        read(tmp_path)


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *arguments: False)
    with pytest.raises(MeasurementError, match=r"cannot be read \(permission denied\)"):
        read(tmp_path)


def test_the_documentation_states_every_operator_with_its_sizes_and_every_data_type():
    text = (Path(__file__).parents[3] / "docs" / "validation.md").read_text(encoding="utf-8")
    text = text[text.index("## Our own format") :]
    for name in (*SHAPES, *DTYPES, WINDOW, *(size for sizes in SHAPES.values() for size in sizes)):
        assert f"`{name}`" in text


# Predictions --------------------------------------------------------------------------------------------------------------
def product(dtype, device="b200", m=8192, **fields):
    return Measurement(device, "gemm", dtype, {"m": m, "n": 8192, "k": 8192}, 1.0, copies=0, **fields)


@pytest.mark.parametrize("m", [16, 8192])
def test_narrower_products_take_less_time_and_never_beat_their_rate_or_their_bytes(m):
    device = load("b200")
    predictor = Predictor(device)
    times = [predictor.seconds(product(dtype, m=m)) for dtype in ("bf16", "fp8", "nvfp4")]
    assert times[0] > times[1] > times[2]
    for dtype, macs, seconds in zip(("bf16", "fp8", "nvfp4"), (4096, 8192, 16384), times, strict=True):
        flops, size = product(dtype, m=m).work
        assert seconds > flops / (2 * macs * 148 * device.clock)
        assert seconds > size / 8e12
    # an nvfp4 value has 4 bits and 8 more for each 16
    assert product("nvfp4", m=m).work[1] == (m * 8192 + 8192**2) * 4.5 / 8 + 2 * m * 8192


def test_scales_known_beforehand_save_the_kernels_that_find_them():
    predictor = Predictor(load("h100-sxm"))
    bare, static = (predictor.seconds(product(dtype, "h100-sxm")) for dtype in ("fp8", "fp8_static"))
    block = predictor.seconds(product("fp8_block", "h100-sxm", before=("quantise",)))
    found = predictor.seconds(product("fp8", "h100-sxm", before=("maximum", "empty", "quantise")))
    assert bare == static < block < found


def test_weights_of_four_bits_are_multiplied_at_the_rate_of_their_activations():
    predictor = Predictor(load("h100-sxm"))
    eight, wide, plain = (predictor.seconds(product(dtype, "h100-sxm")) for dtype in ("w4a8", "w4a16", "fp8"))
    assert plain <= eight < wide


def test_formats_without_a_rate_are_refused_and_the_rest_is_scored():
    score = evaluate([product(dtype, "a100-80g") for dtype in ("bf16", "fp8", "fp8_block", "nvfp4", "w4a8", "w4a16")])
    assert [m.dtype for m in score.measured] == ["bf16", "w4a16"]
    assert sum(score.refused.values()) == 4
    assert "a100-80g gemm fp8: no rate for products of activations in fp8-e4m3, only in bf16, fp16, int4, int8" in score.refused


def attention(device="h100-sxm", queries=1, keys=8192, head_dim=128, dtype="bf16", **extra):
    shape = {"batch": 16, "queries": queries, "keys": keys, "heads": 32, "kv_heads": 8, "head_dim": head_dim}
    operator = "attention-decode" if queries == 1 else "attention-prefill"
    return Measurement(device, operator, dtype, {**shape, "tokens": queries, "step": keys - queries, **extra}, 1.0, copies=0)


@pytest.mark.parametrize("queries", [1, 4096])
def test_a_window_saves_what_lies_outside_it(queries):
    predictor = Predictor(load("h100-sxm"))
    narrow, wide, all_keys, full = (predictor.seconds(attention(queries=queries, window=w)) for w in (512, 2048, 8192, 0))
    assert narrow < wide < full == all_keys
    assert attention(queries=queries, window=8192).work == attention(queries=queries).work
    assert attention(queries=queries, window=512).work[0] == 4 * 16 * 32 * 128 * queries * 512


@pytest.mark.parametrize("device", ["a100-80g", "h100-sxm", "b200", "l40s", "a10", "t4", "v100s", "mi300x", "b60"])
@pytest.mark.parametrize("head_dim", [64, 128, 192, 256])
def test_heads_of_every_usual_width_are_predicted_on_every_card(device, head_dim):
    rows = [attention(device, queries, 4096, head_dim, dtype) for queries in (1, 1024) for dtype in ("fp16", "bf16-kv8")]
    assert not evaluate(rows).refused


def test_a_largest_element_is_found_no_faster_than_a_row_is_read():
    device = load("h100-sxm")
    shape = {"rows": 65536, "columns": 4096, "top_k": 8}
    few, many = (Predictor(device).seconds(Measurement("h100-sxm", "top-k", "bf16", shape | {"top_k": k}, 1.0, copies=0)) for k in (1, 64))
    assert 2 * 65536 * 4096 / 3.35e12 < few <= many


def test_a_group_of_one_is_a_product_and_more_groups_read_more_weights():
    predictor = Predictor(load("h100-sxm"))

    def grouped(experts, rows=256):
        shape = {"rows": rows, "experts": experts, "n": 4096, "k": 4096}
        return Measurement("h100-sxm", "grouped-gemm", "bf16", shape, 1.0, copies=0)

    plain = Measurement("h100-sxm", "gemm", "bf16", {"m": 256, "n": 4096, "k": 4096}, 1.0, copies=0)
    assert predictor.seconds(grouped(1)) == pytest.approx(predictor.seconds(plain), rel=1e-6)
    assert grouped(1).work == plain.work
    assert predictor.seconds(grouped(64)) > 64 * 2 * 4096**2 / 3.35e12 > predictor.seconds(grouped(1))
    assert grouped(64, rows=4).work[1] < grouped(64, rows=64).work[1]  # four rows reach four matrices

"""Arrivals and routing: where requests come from and where their tokens go."""

import json
import math

import numpy as np
import pytest

from dovetail.serving.arrivals import NS, Lengths, draw, read_trace
from dovetail.serving.errors import ServingError
from dovetail.serving.routing import Independent, parse


def rng(seed=0):
    return np.random.default_rng(seed)


# Arrivals ------------------------------------------------------------------------------------------------------------------
def test_poisson_arrivals_have_the_stated_rate_and_exponential_gaps():
    times = np.array(draw("poisson:20", 20_000, Lengths(10), Lengths(10), rng()).arrivals_ns) / NS
    gaps = np.diff(times)
    assert len(times) / times[-1] == pytest.approx(20, rel=4 / math.sqrt(20_000))  # four standard errors
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # of an exponential distribution both are 1 / rate
    assert (gaps >= 0).all()


def test_gaussian_lengths_have_the_stated_mean_and_deviation_and_are_whole_and_positive():
    found = np.array(Lengths.parse("512:64", "--input").draw(20_000, rng()))
    assert found.mean() == pytest.approx(512, abs=4 * 64 / math.sqrt(20_000))
    assert found.std() == pytest.approx(64, rel=0.05)
    assert min(Lengths(2, 2).draw(1000, rng())) == 1
    assert Lengths.parse("7", "--input").draw(3, rng()) == (7, 7, 7)


@pytest.mark.parametrize("text", ["", "x", "512:", "0", "-4", "100:101", "nan", "inf", "1e99", "512:-1"])
def test_lengths_that_are_none_are_refused_by_the_name_of_their_option(text):
    with pytest.raises(ServingError, match="--output: expected"):
        Lengths.parse(text, "--output")


@pytest.mark.parametrize("text", ["poisson", "poisson:", "poisson:0", "poisson:-1", "poisson:nan", "poisson:inf", "poisson:x"])
def test_a_rate_that_is_none_is_refused(text):
    with pytest.raises(ServingError, match="expected poisson:RATE"):
        draw(text, 5, Lengths(1), Lengths(1), rng())


def test_an_arrival_process_that_is_not_known_is_refused():
    with pytest.raises(ServingError, match="expected closed, poisson:RATE or a trace file; 'clsed' is neither"):
        draw("clsed", 5, Lengths(1), Lengths(1), rng())


HEADER = "arrival_s,input_tokens,output_tokens\n"


def test_a_trace_is_read_from_its_first_request_on_and_in_both_spellings(tmp_path):
    ours, azure = tmp_path / "a.csv", tmp_path / "b.csv"
    ours.write_text(HEADER + "1.5,100,7\n2.0,50,1\n\n")
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.2799600,100,7\n2023-11-16 18:17:03.7799600,50,1\n"
    )
    for path in (ours, azure):
        found = read_trace(path)
        assert found.inputs == (100, 50)
        assert found.outputs == (7, 1)
        assert found.arrivals_ns[0] == 0
        assert found.arrivals_ns[1] == pytest.approx(NS // 2, abs=1000)  # microseconds of a date are kept


def test_a_trace_may_be_cut_short(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(HEADER + "0,1,1\n1,2,2\n2,3,3\n")
    assert read_trace(path, 2).inputs == (1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.csv:1: expected a line that names the columns arrival_s, input_tokens, output_tokens, found nothing"),
        ("arrival_s,input\n", r"a\.csv:1: .* input_tokens is missing"),
        (HEADER, r"a\.csv: has no requests"),
        (HEADER + "0,1\n", r"a\.csv:2: expected 3 values, found 2"),
        (HEADER + "0,1,1\nsoon,1,1\n", r"a\.csv:3: arrival_s: expected seconds or a date and time, not 'soon'"),
        (HEADER + "-1,1,1\n", r"a\.csv:2: arrival_s: expected a time of at least 0 s"),
        (HEADER + "nan,1,1\n", r"a\.csv:2: arrival_s: expected a time of at least 0 s"),
        (HEADER + "2,1,1\n1.5,1,1\n", r"a\.csv:3: arrives 0\.5 s before the request of the line before; sort the trace by time"),
        (HEADER + "0,1.5,1\n", r"a\.csv:2: input_tokens: expected a whole number of tokens, not '1\.5'"),
        (HEADER + "0,1,0\n", r"a\.csv:2: output_tokens: expected 1 to 16777216 tokens, not 0"),
    ],
)
def test_a_malformed_trace_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ServingError, match=message):
        read_trace(path)


def test_a_trace_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ServingError, match="cannot be read"):
        read_trace(path)


# Routing -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (64, 2), (128, 8), (4, 4), (2, 1)])
@pytest.mark.parametrize("tokens", [1, 7, 64, 5000])
def test_every_token_goes_to_top_k_experts_of_every_layer(experts, top_k, tokens):
    counts = parse("zipf:1", 3, experts, top_k, rng()).draw(tokens)
    assert counts.shape == (3, experts)
    assert (counts.sum(axis=1) == tokens * top_k).all()
    assert counts.min() >= 0
    assert counts.max() <= tokens  # the experts of a token are distinct


def test_uniform_routing_reaches_each_expert_equally_often():
    counts = parse("uniform", 4000, 8, 2, rng()).draw(32)
    mean = 32 * 2 / 8
    deviation = math.sqrt(32 * (2 / 8) * (6 / 8))  # of a sum of 32 draws that reach an expert with probability 2/8
    assert counts.mean(axis=0) == pytest.approx(np.full(8, mean), abs=4 * deviation / math.sqrt(4000))
    assert counts.std() == pytest.approx(deviation, rel=0.03)


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (40, 8)])
def test_sets_and_single_choices_have_the_same_distribution(experts, top_k):
    """Few experts are drawn set by set, many by keys of every token: shares of the first two experts agree with pencil and paper."""
    shares = np.array([3.0, 2.0, *[1.0] * (experts - 2)])
    shares /= shares.sum()
    counts = Independent(shares[None], 3000, 1, rng()).draw(16)
    assert counts.mean(axis=0) / 16 == pytest.approx(shares, abs=0.01)
    if top_k == 2:  # P(expert 0) = p0 + sum over j of pj p0 / (1 - pj)
        chance = shares[0] + sum(p * shares[0] / (1 - p) for p in shares[1:])
        assert Independent(shares[None], 3000, 2, rng()).draw(16)[:, 0].mean() / 16 == pytest.approx(chance, abs=0.01)


def test_zipf_popularity_falls_with_the_rank_and_its_ranks_differ_from_layer_to_layer():
    found = parse("zipf:1", 16, 8, 1, rng())
    harmonic = sum(1 / k for k in range(1, 9))
    for row in found.shares:
        assert sorted(row, reverse=True) == pytest.approx([1 / k / harmonic for k in range(1, 9)])
    assert len({tuple(row) for row in found.shares}) > 1


def test_a_recorded_token_goes_where_it_went_and_the_trace_is_a_ring(tmp_path):
    path = tmp_path / "routes.jsonl"
    tokens = [[[0, 1], [2, 3]], [[1, 2], [3, 0]], [[0, 3], [0, 1]]]
    path.write_text("\n".join(json.dumps(token) for token in tokens))
    replay = parse(str(path), 2, 4, 2, rng())
    assert replay.draw(2).tolist() == [[1, 2, 1, 0], [1, 0, 1, 2]]  # tokens 0 and 1
    assert replay.draw(2).tolist() == [[2, 1, 0, 1], [1, 1, 1, 1]]  # tokens 2 and 0
    assert replay.draw(3).sum(axis=1).tolist() == [6, 6]
    assert replay.draw(7).sum(axis=1).tolist() == [14, 14]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[[0, 1]]", r"routes\.jsonl:1: expected a list for each of 2 layers with experts, found 1 lists"),
        ("5", "found 5"),
        ("[[0, 1], [0]]", r"layer 1: expected 2 different experts of 0 to 3, found \[0\]"),
        ("[[0, 0], [0, 1]]", "layer 0: expected 2 different experts"),
        ("[[0, 4], [0, 1]]", "experts of 0 to 3"),
        ("[[0, 1], [0, true]]", "layer 1"),
        ("[[0,", "not valid JSON"),
        ("", "has no tokens"),
    ],
)
def test_a_malformed_routing_trace_is_refused_with_its_line(tmp_path, line, message):
    path = tmp_path / "routes.jsonl"
    path.write_text(line)
    with pytest.raises(ServingError, match=message):
        parse(str(path), 2, 4, 2, rng())


@pytest.mark.parametrize("text", ["zipf", "zipf:", "zipf:-1", "zipf:x", "zipf:nan", "zipf:99"])
def test_a_zipf_exponent_that_is_none_is_refused(text):
    with pytest.raises(ServingError, match="expected zipf:S"):
        parse(text, 2, 4, 2, rng())


def test_a_routing_that_is_not_known_is_refused():
    with pytest.raises(ServingError, match="expected uniform, zipf:S or a trace file; 'unifrom' is neither"):
        parse("unifrom", 2, 4, 2, rng())

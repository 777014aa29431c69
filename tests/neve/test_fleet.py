"""Machines for a hit rate: more requests never need less; each need follows from its inputs."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from neve.cli.main import main
from neve.errors import Misuse
from neve.planner.breakeven import Prefill
from neve.planner.fleet import (
    GIB,
    Constants,
    HitCurve,
    Model,
    Traffic,
    assumptions,
    best_hit_rate,
    plan,
)
from neve.planner.parts import PrefixBytes

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
CURVE = HitCurve([(1e6, 0.1), (1e7, 0.3), (1e8, 0.6)], requests_per_s=2.0, prompt_tokens=5_000)
SLOW = Model(70_272, 16, Prefill.at(8_000))  # latent attention, a large model
FAST = Model(131_072, 16, Prefill.at(40_000))
NEEDS = (
    *("engines", "engines_without", "primaries", "hot_machines", "hot_bytes", "memory_bytes"),
    *("cold_bytes", "disk_bytes", "hot_read_bytes_per_s", "hot_written_bytes_per_s"),
    *("cold_read_bytes_per_s", "cold_written_bytes_per_s", "s3_gets_per_s", "s3_puts_per_s"),
    *("heartbeats_per_s", "web_cores", "worker_cores", "clusters"),
    *("spared_per_hour", "cost_per_hour"),
)


@settings(max_examples=200, deadline=None)
@given(
    low=st.floats(0.01, 1e5),
    factor=st.floats(1.0, 1e3),
    hit=st.floats(0.0, 0.6),
    tokens=st.floats(100, 1e5),
    share=st.floats(0, 1),
    model=st.sampled_from([SLOW, FAST]),
    own=st.sampled_from([0, 1e5, 1e6]),
)
def test_more_requests_never_need_less(low, factor, hit, tokens, share, model, own):
    constants = Constants.changed({"engine_cache_tokens": own})
    few, many = (
        plan(Traffic(rate, tokens, hit), model, CURVE, constants, hot_share=share)
        for rate in (low, low * factor)
    )
    for name in NEEDS:
        assert getattr(few, name) <= getattr(many, name) * (1 + 1e-9), name
    assert few.ttft_s == pytest.approx(many.ttft_s, rel=1e-3)
    before = {limit.name: limit.units for limit in few.limits}
    for limit in many.limits:
        if limit.name == "connections" and many.clusters > few.clusters:
            continue  # a further cluster takes a part of the engines
        assert before[limit.name] <= limit.units * (1 + 1e-9), limit.name


@settings(max_examples=100, deadline=None)
@given(low=st.floats(0.01, 0.59), more=st.floats(1.0, 2.0), rate=st.floats(0.1, 1e4))
def test_a_higher_hit_rate_never_stores_less(low, more, rate):
    high = min(0.6, low * more)
    one, two = (plan(Traffic(rate, 5_000, hit), SLOW, CURVE, Constants()) for hit in (low, high))
    stored = [each.hot_bytes + each.cold_bytes for each in (one, two)]
    assert stored[0] <= stored[1] * (1 + 1e-9)


def test_needs_follow_from_the_inputs():
    """By hand: twice the curve's requests, 30 % hits, a quarter of them cold."""
    one = plan(Traffic(4.0, 5_000, 0.3), SLOW, CURVE, Constants(), hot_share=0.75)
    assert one.is_cold_worth
    assert one.cold_bytes == pytest.approx(2 * 1e7 * 70_272)
    # 0.225 lies at 5/8 between the curve's first two points.
    hot_tokens = 2 * (1e6 + 9e6 * 0.625)
    assert one.hot_bytes == pytest.approx(hot_tokens * 70_272)
    written = 4 * 5_000 * 0.7 * 70_272
    cold_read = 4 * 5_000 * 0.075 * 70_272
    assert one.cold_read_bytes_per_s == pytest.approx(cold_read)
    assert one.hot_written_bytes_per_s == pytest.approx(written + cold_read)
    assert one.hot_read_bytes_per_s == pytest.approx(4 * 5_000 * 0.225 * 70_272 + written)
    assert one.cold_written_bytes_per_s == pytest.approx(2 * written)
    assert one.engines == math.ceil(4 * 3_500 / 8_000 / 0.7)
    assert one.engines_without == math.ceil(4 * 5_000 / 8_000 / 0.7)
    blocks = hot_tokens / SLOW.block_tokens
    cold_only = (2e7 - hot_tokens) / SLOW.block_tokens
    memory = hot_tokens * 70_272 * 1.3 + blocks * 390 + cold_only * 271
    assert one.memory_bytes == pytest.approx(memory)
    assert one.primaries >= memory / (128 * GIB)
    load_s = 1_500 * 70_272
    expected = 3_500 / 8_000 + 0.75 * (load_s / 12.5e9 + 0.013) + 0.25 * (load_s / 1.44e9 + 0.013)
    assert one.ttft_s == pytest.approx(expected)


def test_a_target_time_makes_the_hot_tier_as_small_as_it_may_be():
    loose, tight = (
        plan(Traffic(4.0, 5_000, 0.3), SLOW, CURVE, Constants(), ttft_s=target)
        for target in (0.55, 0.48)
    )
    assert loose.hot_hit_rate == 0
    assert loose.ttft_s < 0.55
    assert tight.ttft_s == pytest.approx(0.48)
    assert 0 < tight.hot_hit_rate < 0.3
    with pytest.raises(Misuse, match=r"out of reach: 0\.45. s with every hit from hot"):
        plan(Traffic(4.0, 5_000, 0.3), SLOW, CURVE, Constants(), ttft_s=0.44)


def test_there_are_engines_enough_to_load_what_they_do_not_compute():
    """At 59 % hits of a fast model behind a slow NIC, loads need more engines than computing."""
    wire = Constants.changed({"node_nic_bytes_per_s": 8e9})
    one = plan(Traffic(1_000, 5_000, 0.59), FAST, CURVE, wire)
    assert one.is_hot_worth
    assert one.engine_read_bytes_per_s <= 8e9 * 0.6
    assert one.engines > 1_000 * FAST.prefill.seconds(2_950, 5_000) / 0.7 + 1
    assert one.spared_per_hour < 1_000 * FAST.prefill.seconds(0, 2_950) / 0.7 * 2.35


def test_nothing_is_flushed_where_loading_from_s3_is_slower_than_computing():
    one = plan(Traffic(4.0, 5_000, 0.3), FAST, CURVE, Constants())
    assert (one.is_hot_worth, one.is_cold_worth) == (True, False)
    assert one.hot_hit_rate == pytest.approx(0.3)
    assert (one.cold_bytes, one.s3_puts_per_s, one.s3_gets_per_s, one.worker_cores) == (0, 0, 0, 0)


def test_nothing_is_stored_where_loading_from_hot_is_slower_than_computing():
    slow_wire = Constants.changed({"node_nic_bytes_per_s": 1.25e9})
    one = plan(Traffic(4.0, 5_000, 0.3), FAST, CURVE, slow_wire)
    assert not one.is_hot_worth
    assert (one.hot_bytes, one.hot_read_bytes_per_s, one.hot_written_bytes_per_s) == (0, 0, 0)
    assert one.engines == one.engines_without
    assert one.ttft_s == one.ttft_computed_s


def test_states_are_stored_once_a_request_and_windows_loaded_in_part():
    plain = plan(Traffic(4.0, 5_000, 0.3), SLOW, CURVE, Constants(), hot_share=0.75)
    hybrid = replace(SLOW, state_bytes=35e6, load=PrefixBytes(20_000, 1_000_000))
    one = plan(Traffic(4.0, 5_000, 0.3), hybrid, CURVE, Constants(), hot_share=0.75)
    # 3,500 computed tokens a request: 10,000 bytes of state for each.
    assert one.cold_bytes == pytest.approx(plain.cold_bytes * 80_272 / 70_272)
    assert one.cold_read_bytes_per_s == pytest.approx(4 * 0.25 * (1_500 * 20_000 + 1_000_000))
    assert one.hot_written_bytes_per_s == pytest.approx(
        4 * 3_500 * 80_272 + one.cold_read_bytes_per_s
    )


def test_what_engines_keep_themselves_is_neither_loaded_nor_spared():
    few, own = (
        plan(Traffic(40.0, 5_000, 0.3), SLOW, CURVE, Constants.changed(given))
        for given in ({}, {"engine_cache_tokens": 500_000})
    )
    # 40 × 5,000 / 8,000 / 0.7 engines keep 17.9 million tokens; the curve's 20 times as many.
    capacity = 40 * 5_000 / 8_000 / 0.7 * 500_000 / 20
    assert own.own_hit_rate == pytest.approx(CURVE.hit_rate(capacity))
    assert own.hot_hit_rate + own.cold_hit_rate == pytest.approx(0.3 - own.own_hit_rate)
    assert own.spared_per_hour < few.spared_per_hour
    assert own.engines_without < few.engines_without
    assert own.engines == few.engines
    assert own.cold_bytes == few.cold_bytes
    ample = Constants.changed({"engine_cache_tokens": 1e9})
    enough = plan(Traffic(40.0, 5_000, 0.3), SLOW, CURVE, ample)
    assert (enough.own_hit_rate, enough.hot_bytes, enough.spared_per_hour) == (0.6, 0, 0)


def test_the_best_hit_rate_pays_more_than_any_other():
    traffic = Traffic(4.0, 5_000, 0.0)
    best = best_hit_rate(traffic, SLOW, CURVE, Constants.changed({"gpus_per_engine": 8}))

    def net(hit):
        one = plan(Traffic(4.0, 5_000, hit), SLOW, CURVE, Constants.changed({"gpus_per_engine": 8}))
        return one.spared_per_hour - one.cost_per_hour

    assert best > 0
    assert all(net(best) >= net(0.6 * n / 100) for n in range(101))
    assert best_hit_rate(traffic, FAST, CURVE, Constants()) == 0


def test_curves_give_the_least_capacity_and_say_where_they_end():
    assert CURVE.capacity_for(0.1) == 1e6
    assert CURVE.capacity_for(0.2) == pytest.approx(5.5e6)
    assert CURVE.hit_rate(5.5e6) == pytest.approx(0.2)
    assert CURVE.hit_rate(1e12) == 0.6
    with pytest.raises(Misuse, match=r"70\.0% is out of reach: curve ends at 60\.0%"):
        CURVE.capacity_for(0.7)
    with pytest.raises(Misuse, match="must rise"):
        HitCurve([(2, 0.5), (1, 0.6)], 1, 1)


def test_each_constant_has_words_and_a_source_and_can_be_given():
    for name, value, words, source in assumptions(Constants()):
        assert words, name
        assert source.startswith(
            ("docs/", "Amazon S3", "Valkey", "connector:", "assumed", "platform/")
        ), name
        assert value >= 0
    given_ones = Constants.changed({each.name: 0.5 for each in fields(Constants)})
    assert {source for _, _, _, source in assumptions(given_ones)} == {"given"}
    with pytest.raises(Misuse, match="unknown; known: "):
        Constants.changed({"primary_speed": 1})
    with pytest.raises(Misuse, match="utilisation: 2 is out of range"):
        Constants.changed({"utilisation": 2})


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = [
        {
            "timestamp": 1000 * n,
            "input_length": 1536,
            "output_length": 100,
            "hash_ids": [n % 7, 100 + n % 7, 1000 + n],
        }
        for n in range(200)
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def _run(tmp_path: Path, *options: str):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    given = ["plan", "fleet", str(tmp_path), "--prefill-tokens-per-s", "5000", *options]
    return CliRunner().invoke(main, given)


def test_the_command_reads_a_trace_and_answers_for_several_rates(tmp_path: Path, trace: Path):
    options = ["--trace", str(trace), "--hit-rate", "0.6"]
    rates = ["--requests-per-s", "1", "--requests-per-s", "1000"]
    done = _run(tmp_path, *options, *rates, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    one, many = found["plans"]
    # 7 × 2 shared blocks return, each after 21 blocks: two thirds of nearly all blocks hit.
    assert 20 * 512 < one["hot_bytes"] / 131_072 <= 21 * 512
    assert many["hot_bytes"] == pytest.approx(1000 * one["hot_bytes"])
    assert one["traffic"]["stored_output_tokens"] == 100
    assert {each["name"] for each in found["assumptions"]} == {e.name for e in fields(Constants)}
    packed = json.loads(_run(tmp_path, *options, *rates, "--codec", "2", "--json").stdout)["plans"]
    assert packed[0]["hot_bytes"] == pytest.approx(one["hot_bytes"] / 2)
    text = _run(tmp_path, *options, *rates, "--set", "primary_ram_bytes=64e9").output
    assert "primary_ram_bytes = 64000000000: bytes of memory of a primary (given)" in text
    assert "limits first" in text


def test_the_command_reads_the_curve_of_a_simulation(tmp_path: Path):
    answer = {
        "trace": {
            "name": "t.jsonl", "rate": 1.0, "requests": 100, "asked_blocks": 1000,
            "distinct_blocks": 400, "span_s": 50.0, "block_tokens": 512,
        },
        "curve": [
            {"hot": "100blocks", "blocks": 100, "hit_rate": 0.2},
            {"hot": "unlimited", "blocks": None, "hit_rate": 0.6},
        ],
    }  # fmt: skip
    file = tmp_path / "curve.json"
    file.write_text(json.dumps(answer))
    options = ["--curve", str(file), "--requests-per-s", "4", "--hit-rate", "0.2"]
    options += ["--hot-share", "1", "--json"]
    (one,) = json.loads(_run(tmp_path, *options).stdout)["plans"]
    assert one["traffic"]["prompt_tokens"] == 5120
    # Twice the trace's 2 requests/s: twice its 100 blocks.
    assert one["hot_bytes"] == pytest.approx(2 * 100 * 512 * 131_072)
    # Of samples the counts are the whole traffic's, too, and rates may fall by their error.
    answer["trace"]["rate"] = 1 / 16
    lower = {"hot": "200blocks", "blocks": 200, "hit_rate": 0.199}
    answer["curve"] = [answer["curve"][0], lower, answer["curve"][1]]
    file.write_text(json.dumps(answer))
    (sampled,) = json.loads(_run(tmp_path, *options).stdout)["plans"]
    assert sampled["hot_bytes"] == pytest.approx(one["hot_bytes"])
    file.write_text("[]")
    assert "no answer of `neve simulate --curve --json`" in _run(tmp_path, *options).output


def test_a_simulated_curve_and_its_trace_give_one_plan(tmp_path: Path, trace: Path):
    done = CliRunner().invoke(main, ["simulate", str(trace), "--curve", "--json"])
    assert done.exit_code == 0, done.output
    (tmp_path / "curve.json").write_text(done.stdout)
    common = ["--requests-per-s", "3", "--hit-rate", "0.6", "--output-tokens", "100", "--json"]
    sources = (["--trace", str(trace)], ["--curve", str(tmp_path / "curve.json")])
    one, two = (
        json.loads(_run(tmp_path, *source, *common).stdout)["plans"][0] for source in sources
    )
    assert one["traffic"] == two["traffic"]
    assert one["engines"] == two["engines"]
    # The trace's blocks return after 21 others; the simulation lists round sizes only, 20 and 50.
    capacities = [each["hot_bytes"] / 131_072 / 512 / 3 for each in (one, two)]
    assert 20 < capacities[0] <= 21
    assert 20 < capacities[1] <= 50


def test_the_command_says_what_is_missing_or_out_of_reach(tmp_path: Path, trace: Path):
    assert (
        "Give either --trace FILE or --curve FILE" in _run(tmp_path, "--requests-per-s", "1").output
    )
    beyond = _run(tmp_path, "--requests-per-s", "1", "--trace", str(trace), "--hit-rate", "0.9")
    assert "90.0% is out of reach: trace.jsonl ends at 6" in beyond.output
    assert beyond.exit_code == 1

"""Loading against computing, on published configurations and one H100's figures."""

import json
import math

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from neve.cli.main import main
from neve.index.tier import Tier
from neve.planner.breakeven import (
    Prefill,
    Store,
    break_even_bytes_per_s,
    break_even_tokens,
    first_token_s,
    mooncake_bytes_per_s,
)
from neve.planner.parts import PrefixBytes

LLAMA_3_8B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
PLAN = ("plan", "breakeven")
# (prompt tokens, seconds) of the 8B shape in bf16 on one H100 with vLLM 0.26.
H100 = [(2048, 0.051), (8192, 0.211), (16384, 0.486), (32768, 1.17), (65536, 3.24)]


def test_two_terms_describe_measured_prefill():
    prefill = Prefill.through(H100)
    for tokens, seconds in H100:
        assert prefill.seconds(0, tokens) == pytest.approx(seconds, rel=0.06)
    halves = prefill.seconds(0, 16384) + prefill.seconds(16384, 32768)
    assert halves == pytest.approx(prefill.seconds(0, 32768))


def test_at_the_break_even_bandwidth_loading_takes_as_long_as_computing():
    prefill = Prefill.through(H100)
    rate = break_even_bytes_per_s(prefill, tokens=65536, bytes_per_token=131072, round_trip_s=0.01)
    assert rate == pytest.approx(65536 * 131072 / 3.23, rel=0.02)
    store = Store(rate, 0.01)
    assert store.seconds(65536 * 131072) == pytest.approx(prefill.seconds(0, 65536))
    assert break_even_tokens(prefill, store, bytes_per_token=131072) == 65536
    assert break_even_bytes_per_s(prefill, tokens=1, bytes_per_token=1, round_trip_s=1) == math.inf


def test_at_a_constant_speed_the_round_trip_decides():
    prefill = Prefill.at(10_000)  # 1.31 GB/s
    assert break_even_tokens(prefill, Store(1.3e9), bytes_per_token=131072) is None
    tokens = break_even_tokens(prefill, Store(13.1072e9, 0.9), bytes_per_token=131072)
    assert tokens == 10_000
    queued = Store(13.1072e9, 0.0, queue_bytes=int(13.1072e9 * 0.9))
    assert break_even_tokens(prefill, queued, bytes_per_token=131072) == 10_000


def test_a_queue_and_fixed_bytes_move_the_break_even():
    prefill = Prefill.at(10_000)
    size = PrefixBytes(131072, 2**30)
    even = break_even_bytes_per_s(
        prefill, tokens=10_000, bytes_per_token=size, round_trip_s=0.5, queue_bytes=2**30
    )
    assert even == pytest.approx((2**30 + 2**30 + 131072 * 10_000) / 0.5)
    store = Store(even, 0.5, 2**30)
    assert break_even_tokens(prefill, store, bytes_per_token=size) == pytest.approx(10_000, abs=1)
    without = break_even_tokens(prefill, store, bytes_per_token=131072)
    assert without < 10_000 - 100


@given(
    per_token=st.floats(1e-6, 1e-3),
    per_pair=st.sampled_from([0.0, 1e-12, 1e-9, 1e-7]),
    bandwidth=st.floats(1e7, 1e11),
    round_trip_s=st.sampled_from([0.0, 1e-3, 0.5]),
    queue_bytes=st.sampled_from([0, 2**30]),
    fixed=st.sampled_from([0, 2**28]),
    margin=st.sampled_from([0.0, 0.05]),
)
def test_from_the_break_even_length_on_loading_wins_and_not_before(
    per_token, per_pair, bandwidth, round_trip_s, queue_bytes, fixed, margin
):
    prefill, size = Prefill(per_token, per_pair), PrefixBytes(131072, fixed)
    store = Store(bandwidth, round_trip_s, queue_bytes)
    tokens = break_even_tokens(prefill, store, bytes_per_token=size, margin=margin)

    def gains(n):
        compute_s = (1 - margin) * prefill.seconds(0, n)
        return compute_s - store.seconds(size.of(n)) >= -1e-9 * compute_s

    if tokens is None:
        assert not gains(1 << 40)
        return
    assert gains(tokens)
    assert gains(10 * tokens)
    assert tokens <= 2 or not gains(tokens - 2) or tokens > 1 << 30


def test_part_of_a_prefix_is_loaded_and_the_rest_computed_behind_it():
    tiers = [Tier.HOT] * 3 + [Tier.COLD] * 2
    stores = {Tier.HOT: Store(1e6, 0.1), Tier.COLD: Store(1e5)}
    seconds = first_token_s(
        tiers,
        block_bytes=10_000,
        block_ends=[100, 200, 300, 400, 500],
        end=550,
        prefill=Prefill.at(1000),
        stores=stores,
    )
    # Loads of both tiers go on side by side; then the rest of 550 tokens is computed.
    assert seconds.tolist() == pytest.approx([0.56, 0.47, 0.38, 0.28, 0.25])


@pytest.mark.parametrize(
    ("flops_per_s", "gb_per_s"), [(8 * 312e12, 6), (8 * 989e12, 19)], ids=["A800", "H800"]
)
def test_mooncakes_equation_gives_the_papers_bandwidths(flops_per_s, gb_per_s):
    """Source: Qin et al., FAST '25, below equation 2: LLaMA3-70B, a prefix of 8,192 tokens."""
    llama = {"prefix_tokens": 8192, "model_dim": 8192, "gqa": 8}
    found = mooncake_bytes_per_s(flops_per_s=flops_per_s, **llama)
    assert round(found / 1e9) == gb_per_s
    # It is the break-even of that speed of prefill, with the model's 327,680 bytes a token.
    flops = 80 * (4 * 8192**2 * 8192 + 22 * 8192 * 8192**2)
    prefill = Prefill.at(8192 * flops_per_s / flops)
    same = break_even_bytes_per_s(prefill, tokens=8192, bytes_per_token=327_680)
    assert same == pytest.approx(found)


def test_the_command_prints_a_table(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    speeds = [f"--prefill-tokens-per-s={n / s:.0f}@{n}" for n, s in H100]
    done = CliRunner().invoke(
        main, ["plan", "breakeven", str(tmp_path), *speeds, "--bandwidth=12.5", "--tokens=65536"]
    )
    assert done.exit_code == 0, done.output
    assert "LlamaForCausalLM, 32 layers of 8 KV heads × 128, 131,072 bytes a token" in done.output
    row = next(line for line in done.output.splitlines() if line.split()[0] == "65536")
    assert row.split()[1:] == ["8.590", "3.234", "s", "2.66", "GB/s", "0.688", "s", "4.7x"]
    assert "count a round trip of 1 ms." in done.output


def test_the_former_name_works_and_is_not_listed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    more = [str(tmp_path), "--prefill-tokens-per-s=40000"]
    same = [CliRunner().invoke(main, [*name, *more]) for name in (["breakeven"], [*PLAN])]
    assert same[0].exit_code == 0
    assert same[0].output == same[1].output
    assert "breakeven" not in CliRunner().invoke(main, ["--help"]).output


def test_json_has_the_same_numbers_and_null_for_never():
    done = CliRunner().invoke(
        main,
        [*PLAN, "-", "--prefill-tokens-per-s=10000", "--bandwidth=1", "--bandwidth=13.1072",
         "--tokens=1", "--tokens=10000", "--round-trip-ms=900", "--json"],
        input=json.dumps(LLAMA_3_8B),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (model,) = json.loads(done.output)["models"]
    assert model["bytes_per_token"] == 131072
    assert model["from_tokens"] == [None, 10_000]
    short, long = model["rows"]
    assert short["break_even_bytes_per_s"] is None
    assert long["break_even_bytes_per_s"] == pytest.approx(13.1072e9)
    assert long["loads"][1]["times"] == pytest.approx(1.0)


def test_of_a_stored_prefix_the_command_says_how_much_to_load():
    def ask(*stored):
        done = CliRunner().invoke(
            main,
            [*PLAN, "-", "--prefill-tokens-per-s=10000", "--prompt-tokens=32768", "--json",
             *(f"--stored={each}" for each in stored)],
            input=json.dumps(LLAMA_3_8B),
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        return json.loads(done.output)["models"][0]["stored"]

    both = ask("8192@12.5", "16384@0.1")
    assert (both["decision"], both["load_tokens"]) == ("load_prefix", 8192)
    load_s = 0.001 + 8192 * 131072 / 12.5e9
    assert both["first_token_s"] == pytest.approx(load_s + (32768 - 8192) / 10_000)
    assert both["compute_s"] == pytest.approx(3.2768)
    assert ask("8192@12.5", "16384@12.5")["decision"] == "load_all"
    assert ask("8192@1")["first_token_s"] == pytest.approx(3.2768)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--stored=1"], "8192@12.5"),
        (["--stored=512@1"] * 3, "at most 2 times"),
        (["--stored=512@1", "--prompt-tokens=100"], "less than the 512 stored tokens"),
        (["--prefill-tokens-per-s=1@5"], "several that all say @TOKENS"),
    ],
)
def test_a_wrong_argument_is_named(arguments, says):
    done = CliRunner().invoke(
        main, [*PLAN, "-", "--prefill-tokens-per-s=1", *arguments], input=json.dumps(LLAMA_3_8B)
    )
    assert done.exit_code != 0
    assert says in done.output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--prefill-tokens-per-s=fast"], 64), (["--prefill-tokens-per-s=1", "--kv-dtype=x"], 1)],
)
def test_the_command_says_what_is_wrong(tmp_path, arguments, code):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    assert CliRunner().invoke(main, ["breakeven", str(tmp_path), *arguments]).exit_code == code


def test_a_file_that_is_no_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    done = CliRunner().invoke(main, ["breakeven", str(tmp_path), "--prefill-tokens-per-s=1"])
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert "config.json is no model's configuration" in done.output

"""Loading against computing, on published configurations and one H100's figures."""

import json
import math

import pytest
from click.testing import CliRunner

from neve.cli.main import main
from neve.planner.breakeven import (
    Prefill,
    Store,
    break_even_bytes_per_s,
    break_even_tokens,
)

LLAMA_3_8B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
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


def test_the_command_prints_a_table(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    speeds = [f"--prefill-tokens-per-s={n / s:.0f}@{n}" for n, s in H100]
    done = CliRunner().invoke(
        main, ["breakeven", str(tmp_path), *speeds, "--bandwidth=12.5", "--tokens=65536"]
    )
    assert done.exit_code == 0, done.output
    assert "32 layers of 8 KV heads × 128, 131,072 bytes a token" in done.output
    row = next(line for line in done.output.splitlines() if line.split()[0] == "65536")
    assert row.split()[1:] == ["8.590", "3.234", "s", "2.66", "GB/s", "0.688", "s", "4.7x"]


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

"""Absurd numbers and files: commands without a platform name them, and neither crash nor hang."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from neve.cli.exits import USAGE
from neve.cli.main import main

pytestmark = pytest.mark.unit

MODEL = str(Path(__file__).parents[2] / "examples/planning/llama-3-8b.json")
FLEET = ["plan", "fleet", MODEL, "--requests-per-s", "10", "--prefill-tokens-per-s", "10000"]
BREAK_EVEN = ["plan", "breakeven", MODEL, "--prefill-tokens-per-s", "10000"]
DEEP = "[" * 100_000
MANY = "9" * 400
MOONCAKE = '{"timestamp": %s, "input_length": 512, "output_length": 1, "hash_ids": %s}\n'
HEADER = {"neve_samples": 1, "rate_log": 0, "totals": {"requests": [0] * 24, "blocks": [0] * 24}}
SAMPLED = {"timestamp": 0, "asked_blocks": 1, "places": [0], "hash_ids": [1]}
LOG = (
    "INFO 11-30 01:00:00 [request_logger.py:1] Request a details: prompt: 'x', prompt_token_ids: "
    "[%s], prompt_embeds shape: None.\n"
)
TRACE = {"asked_blocks": 1000, "rate": 1, "requests": 10, "span_s": 100, "name": "x"}
CURVE = {
    "trace": {**TRACE, "block_tokens": 512, "distinct_blocks": 500},
    "curve": [{"blocks": 10, "hit_rate": 0.1}, {"blocks": None, "hit_rate": 0.4}],
}


def run(*words):
    done = CliRunner().invoke(main, list(words))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        *((FLEET, "--requests-per-s", value) for value in ("nan", "inf", "1e308")),
        *((FLEET, "--output-tokens", value) for value in ("nan", "inf", "1e308")),
        (FLEET, "--prompt-tokens", "1e308"),
        *((FLEET, "--set", f"utilisation={value}") for value in ("nan", "1e-308")),
        *((BREAK_EVEN, "--round-trip-ms", value) for value in ("nan", "inf", "1e308")),
        *((BREAK_EVEN, "--tokens", value) for value in (MANY, "0")),
        *((BREAK_EVEN, "--stored", value) for value in (f"{MANY}@1", f"8000@{MANY}")),
        (BREAK_EVEN, "--prefill-tokens-per-s", f"10000@{MANY}"),
        *((["plan", "prfaas"], "--link-gbit", value) for value in ("nan", "inf")),
        *((["plan", "prfaas"], "--local-instances", value) for value in (MANY, "1000000000")),
        (["plan", "size", MODEL], "--tokens", MANY),
        (["simulate", MODEL], "--ttl", "99999999999999d"),
    ],
)
def test_absurd_options_are_named(command, option, value):
    done = run(*command, option, value)
    assert done.exit_code == USAGE
    assert option in done.output


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        MOONCAKE % ("0", DEEP),
        MOONCAKE % ("1" + "0" * 400, "[1]"),
        MOONCAKE % ("1" + "0" * 5000, "[1]"),
        MOONCAKE % ("1e308", "[1]"),
        LOG % ",1,,",
        LOG % ("9" * 30),
        *(
            json.dumps(HEADER) + "\n" + json.dumps({**SAMPLED, **wrong})
            for wrong in (
                *({"timestamp": at} for at in (float("nan"), float("inf"), 10**400)),
                *({"block_bytes": size} for size in (float("inf"), -5)),
                {"hash_ids": [2**64]},
                {"asked_blocks": 10**40},
            )
        ),
    ],
)
def test_a_line_that_is_absurd_is_named(tmp_path, text):
    file = tmp_path / "trace.jsonl"
    file.write_text(text)
    done = run("simulate", str(file), "--hot", "10blocks")
    assert done.exit_code == 1
    assert "TRACE: trace.jsonl: " in done.output


@pytest.mark.parametrize("command", [["plan", "size"], ["simulate", "-", "--model"]])
def test_a_deep_configuration_is_named(tmp_path, command):
    file = tmp_path / "config.json"
    file.write_text(DEEP)
    trace = MOONCAKE % ("0", "[1]")
    done = CliRunner().invoke(
        main, [*command, str(file), *(["--hot", "1GiB"] * (len(command) - 2))], trace
    )
    assert done.exit_code == 1
    assert "MODEL: cannot read" in done.output


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        *(
            json.dumps({**CURVE, "trace": {**CURVE["trace"], name: value}})
            for name, value in (
                ("distinct_blocks", float("inf")),
                ("distinct_blocks", 10**400),
                ("span_s", 1e308),
                ("asked_blocks", 10**400),
            )
        ),
    ],
)
def test_an_absurd_curve_is_refused(tmp_path, text):
    file = tmp_path / "curve.json"
    file.write_text(text)
    done = run(*FLEET, "--curve", str(file))
    assert done.exit_code == 1
    assert "curve" in done.output


def test_lengths_without_end_are_refused(tmp_path):
    file = tmp_path / "lengths"
    file.write_text("1e308")
    done = run("plan", "prfaas", "--lengths", str(file))
    assert done.exit_code == 1
    assert "line 1" in done.output

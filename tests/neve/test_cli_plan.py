"""`neve plan size`, as people call it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from neve.cli.main import main
from neve.cli.offline import read_config
from neve.errors import Misuse

CONFIGS = json.loads((Path(__file__).parent / "data/model_configs.json").read_text())


def plan_size(*arguments, config=None):
    given = None if config is None else json.dumps(config)
    return CliRunner().invoke(main, ["plan", "size", *arguments], input=given)


def document(model, *arguments):
    done = plan_size("-", "--json", *arguments, config=CONFIGS[model])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_table_by_group_with_totals_and_lengths():
    done = plan_size("-", "--dtype=bfloat16", "--tokens=1000000", config=CONFIGS["gpt-oss-120b"])
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert lines[0] == "gpt_oss, 1 TP rank"
    assert "full 8 KV heads × 64 18 — 36,864 — 36,864 1,769,472" in lines
    assert "window 8 KV heads × 64 18 128 — 4,718,592 36,864 1,769,472" in lines
    assert "total 36,864 4,718,592 73,728 3,538,944" in lines
    assert "1 GB of store: 13,563 tokens" in done.output
    assert lines[-1].startswith("1,000,000 36,868,718,592 B 34.3 GiB 73,728,000,000 B")


def test_the_documents_example_is_what_the_command_prints(tmp_path, monkeypatch):
    page = (Path(__file__).resolve().parents[2] / "docs/cli.md").read_text()
    command, _, expected = page.partition("$ neve plan size ")[2].partition("\n")
    folder = tmp_path / command.split()[0]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS[folder.name]))
    monkeypatch.chdir(tmp_path)
    assert plan_size(*command.split()).output == expected.partition("```")[0]


def test_json_has_each_group_and_each_length():
    told = document("Qwen3-Next-80B-A3B", "--tp=2", "--tokens=1000", "--codec=zstd=2")
    assert told["bytes_per_token"] == 24_576
    assert told["fixed_bytes"] == 2 * told["rank_fixed_bytes"] == 39_518_208
    assert (told["stored_bytes_per_token"], told["stored_bytes_per_state"]) == (12_288, 19_759_104)
    assert [group["kind"] for group in told["groups"]] == ["full", "state"]
    (weight,) = told["lengths"]
    assert weight["held_bytes"] == 24_576_000 + 39_518_208 == 2 * weight["rank_held_bytes"]
    assert weight["stored_bytes"] == weight["held_bytes"] // 2


def test_blocks_are_as_large_as_neve_makes_them():
    assert document("Llama-3-8B")["block_tokens"] == 16
    assert document("Llama-3-8B", "--tp=8")["block_tokens"] == 128
    assert document("Llama-3-8B", "--block-tokens=64")["groups"][0]["rank_block_bytes"] == 8 << 20
    compressed = document("DeepSeek-V4-Pro", "--index-dtype=bfloat16")
    assert (compressed["engine_block_tokens"], compressed["block_tokens"]) == (256, 256)
    assert round(compressed["bytes_per_token"] / 1024, 2) == 9.62


def test_models_without_kv_by_token_have_states_alone():
    done = plan_size("-", config=CONFIGS["Mamba2-2.7B"])
    assert "store: 85,950,464 bytes a state, none a token" in done.output
    assert "GB of store" not in done.output


def test_a_file_or_the_folder_that_holds_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["DeepSeek-V3"]))
    for model in (tmp_path, tmp_path / "config.json"):
        done = plan_size(str(model), "--json")
        assert json.loads(done.stdout)["bytes_per_token"] == 70_272


@pytest.mark.parametrize(
    ("config", "arguments", "code", "says"),
    [
        ({"model_type": "qwen9"}, [], 1, "model_type: the architecture 'qwen9' is not known"),
        (CONFIGS["Llama-3-8B"] | {"torch_dtype": None}, [], 1, "dtype: config.json names none"),
        (CONFIGS["Llama-3-8B"], ["--tp=3"], 1, "tp: 8 KV heads"),
        (CONFIGS["Llama-3-8B"], ["--kv-dtype=int3"], 64, "--kv-dtype"),
        (CONFIGS["Llama-3-8B"], ["--codec=none"], 64, "write 2.5 or zstd=2.5"),
        (CONFIGS["Llama-3-8B"], ["--block-tokens=24"], 64, "multiple of the engine's 16"),
        (CONFIGS["DeepSeek-V4-Pro"], ["--engine-block-tokens=64"], 64, "multiple of 256"),
        ([1], [], 1, "MODEL: standard input is no model's configuration"),
    ],
)
def test_what_is_wrong_is_named(config, arguments, code, says):
    done = plan_size("-", *arguments, config=config)
    assert (done.exit_code, done.stdout) == (code, "")
    assert says in done.stderr


def test_with_json_an_error_is_a_document(tmp_path):
    done = plan_size(str(tmp_path), "--json")
    told = json.loads(done.stderr)
    assert (told["field"], told["exit_code"], done.stdout) == ("MODEL", done.exit_code, "")


def test_a_configuration_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(Misuse, match="cannot read"):
        read_config(str(tmp_path))

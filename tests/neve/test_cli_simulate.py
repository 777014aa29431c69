"""`neve simulate`: figures that a user reads, and errors that say the fix."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from neve.cli import exits
from neve.cli.main import main
from neve.errors import Closed, Misuse
from neve.formats.samples import KEY_BYTES
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.samples import sample, write_lines
from neve.planner.simulate.sweep import sweep
from neve.planner.simulate.tiers import Setting, TierSetting, run

CONVERSATIONS = Path(__file__).parents[3] / "shared/traces/conversation_trace.jsonl"
MIB = 1 << 20


def neve(*arguments, **options):
    return CliRunner().invoke(main, ["simulate", *map(str, arguments)], **options)


def rows(text):
    """Cells of the table's lines by title: columns are two spaces apart."""
    head, *lines = text.split("\n\n")[1].splitlines()
    titles = re.split(r"  +", head.strip())
    return [dict(zip(titles, re.split(r"  +", line.strip()), strict=True)) for line in lines]


@pytest.fixture
def trace(tmp_path):
    """Three chats of four blocks that take turns, three times, a minute apart."""
    lines = [
        {
            "timestamp": 60_000 * turn,
            "input_length": 4 * 512 - 12,
            "output_length": 1,
            "hash_ids": [10 * (turn % 3) + n for n in range(4)],
        }
        for turn in range(9)
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


@pytest.fixture
def model(tmp_path):
    """Llama-3-8B's attention: 131,072 bytes a token, 64 MiB a block."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_size": 4096,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.skipif(not CONVERSATIONS.exists(), reason="the trace is not part of the project")
def test_exact_lru_figures_of_the_conversation_trace():
    capacities = {1_000: 0.0445, 10_000: 0.2112, 30_000: 0.3257, 50_000: 0.3546, 100_000: 0.3637}
    sizes = [part for each in capacities for part in ("--hot", f"{each}blocks")]
    wanted = [*(f"{rate:.4f}" for rate in capacities.values()), "0.3664"]
    arguments = (CONVERSATIONS, "--policy", "lru", *sizes, "--hot", "unlimited")
    assert [row["hit rate"] for row in rows(neve(*arguments).stdout)] == wanted
    assert [row["hit rate"] for row in rows(neve(*arguments, "--curve").stdout)] == wanted


def test_one_tier_in_blocks(trace):
    done = neve(trace, "--policy", "lru", "--hot", "11blocks", "--hot", "12blocks")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(
        "chats.jsonl: 9 requests in 8m ask for 36 blocks of 512 tokens, 12 of them distinct\n"
    )
    found = [(row["hot"], row["hit rate"], row["hot held"]) for row in rows(done.stdout)]
    assert found == [("11blocks", "0.0000", "10 blocks"), ("12blocks", "0.6667", "10 blocks")]


def test_two_tiers_of_a_model_in_bytes_and_gpu_seconds(trace, model):
    tiers = ("--hot", "256MiB", "--cold", "1GiB", "--model", model)
    done = neve(trace, *tiers, "--prefill-tokens-per-s", 1000, "--bandwidth", "cold=1")
    assert done.exit_code == 0, done.output
    (row,) = rows(done.stdout)
    assert "64.0 MiB each" in done.stdout
    assert (row["hit rate"], row["hot hits"], row["cold hits"]) == ("0.6667", "0.1111", "0.5556")
    assert row["promoted"] == "8"
    # 24 blocks of 512 tokens, less 12 tokens of each of 6 last blocks; 20 × 64 MiB come from S3.
    spared_s = (24 * 512 - 6 * 12) / 1000 - 20 * 64 * MIB / 1e9
    assert row["GPU-s spared"] == f"{spared_s:.0f}"
    assert "less the time of loading from cold at 1 GB/s" in done.stdout
    assert "Loading from hot is taken to cost nothing" in done.stdout


def test_a_tier_slower_than_prefill_spares_nothing(trace, model):
    tiers = ("--hot", "256MiB", "--cold", "1GiB", "--model", model)
    slow = ("--bandwidth", "cold=0.1", "--bandwidth", "hot=0.1")
    options = ("--prefill-tokens-per-s", 1000, *slow)
    (row,) = rows(neve(trace, *tiers, *options).stdout)
    assert (row["hit rate"], row["GPU-s spared"]) == ("0.6667", "0")


def test_a_sweep_has_each_policy_with_each_size_in_the_order_given(trace):
    policies = ("--policy", "2q", "--policy", "belady", "--policy", "lru")
    sizes = ("--hot", "8blocks", "--hot", "4blocks", "--cold", "9blocks", "--cold", "unlimited")
    done = neve(trace, *policies, *sizes, "--processes", 2)
    assert done.exit_code == 0, done.output
    found = [(row["policy"], row["cold"], row["hot"]) for row in rows(done.stdout)]
    assert found == [
        (policy, cold, hot)
        for policy in ("2q", "belady", "lru")
        for cold in ("9blocks", "unlimited")
        for hot in ("8blocks", "4blocks")
    ]


def test_json_has_each_tier_and_slice_of_time(trace):
    tiers = ("--hot", "4blocks", "--cold", "unlimited", "--block-bytes", MIB, "--codec", "cold=2")
    done = neve(trace, *tiers, "--every", "3m", "--json")
    found = json.loads(done.stdout)
    assert found["trace"] | {"name": ""} == {
        "name": "",
        "format": "mooncake",
        "rate": 1.0,
        "requests": 9,
        "asked_blocks": 36,
        "distinct_blocks": 12,
        "span_s": 480.0,
        "block_tokens": 512,
        "block_bytes": MIB,
    }
    (setting,) = found["settings"]
    assert setting["hit_rate"] == pytest.approx(2 / 3)
    assert setting["tiers"]["cold"]["peak_bytes"] == 12 * MIB // 2
    assert setting["tiers"]["cold"]["written_bytes"] == 12 * MIB // 2
    assert setting["tiers"]["hot"]["peak_bytes"] == 4 * MIB
    buckets = [(b["start_s"], b["asked_blocks"], b["hit_blocks"]) for b in setting["buckets"]]
    assert [(start_s, asked) for start_s, asked, _ in buckets] == [(0, 12), (180, 12), (360, 12)]
    assert [sum(hits.values()) for _, _, hits in buckets] == [0, 12, 12]


def test_slices_of_time_of_one_setting_are_a_second_table(trace):
    done = neve(trace, "--hot", "unlimited", "--every", "3m")
    second = "\n\n".join(["", done.stdout.split("\n\n")[3]])
    assert [(row["from"], row["hot hits"]) for row in rows(second)] == [
        ("+0s", "0.0000"), ("+3m", "1.0000"), ("+6m", "1.0000"),
    ]  # fmt: skip


def test_rules_of_time(trace):
    """Each chat comes back after three minutes."""
    hits = {
        options: rows(neve(trace, "--hot", "unlimited", *options).stdout)[0]["hit rate"]
        for options in [(), ("--ttl", "2m"), ("--hot-idle", "4m"), ("--warm-up", "3m")]
    }
    assert list(hits.values()) == ["0.6667", "0.0000", "0.6667", "1.0000"]


def test_the_curve_of_one_tier(trace):
    done = neve(trace, "--curve")
    found = {row["hot"]: row["hit rate"] for row in rows(done.stdout)}
    assert found["10blocks"] == "0.0000"
    assert found["20blocks"] == found["unlimited"] == "0.6667"
    points = json.loads(neve(trace, "--curve", "--hot", "12blocks", "--json").stdout)["curve"]
    (point,) = points
    assert point["hit_rate"] == pytest.approx(2 / 3)
    assert (point["hot"], point["blocks"], point["hit_rate_error"]) == ("12blocks", 12, None)


@pytest.mark.parametrize("mode", [["--curve"], ["--hot", "4blocks", "--hot", "12blocks"]])
def test_a_figure_has_a_line_for_each_policy(trace, tmp_path, mode):
    pytest.importorskip("matplotlib")
    file = tmp_path / "hits.svg"
    done = neve(trace, *mode, "--plot", file)
    assert done.exit_code == 0, done.output
    assert "hot tier, blocks" in file.read_text()


def test_samples_give_estimates_with_their_error(tmp_path):
    """Chats of 20 blocks each, every one asked for twice in a row: half of the blocks are hits."""
    whole = [
        BlockRequest(tuple(range(100 * chat, 100 * chat + 20)), float(2 * chat + turn))
        for chat in range(400)
        for turn in range(2)
    ]
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(write_lines(sample(whole, rate_log=3, key=bytes(KEY_BYTES)))))
    sizes = ("--hot", "4000blocks", "--hot", "unlimited")
    for mode in (("--policy", "lru"), ("--curve",)):
        done = neve(file, *sizes, *mode)
        assert done.exit_code == 0, done.output
        assert "800 requests" in done.stdout
        assert "ask for 16,000 blocks," in done.stdout  # how many tokens, samples do not say
        assert "Estimated from samples of 1/8 of the blocks" in done.stdout
        for row in rows(done.stdout.replace("lie within ±.", "")):
            hit_rate, band = map(float, row["hit rate"].split(" ± "))
            assert abs(hit_rate - 0.5) <= max(band, 0.02)
            assert 0 < band < 0.1
    curve = json.loads(neve(file, "--curve", "--json").stdout)["curve"]
    assert curve[0]["blocks"] == 10  # of 1 in 8 blocks, smaller tiers hold less than one
    (row,) = json.loads(neve(file, "--hot", "4000blocks", "--json").stdout)["settings"]
    assert row["tiers"]["hot"]["hit_rate"] == pytest.approx(row["hit_rate"])
    two = (file, "--hot", "40blocks", "--cold", "4000blocks")
    assert "hot hits" not in neve(*two).stdout
    done = neve(*two, "--prefill-tokens-per-s", 1000, "--block-tokens", 16)
    assert (done.exit_code, "needs a whole trace or one tier" in done.output) == (exits.USAGE, True)
    done = neve(file, "--hot", "4000blocks", "--every", "1m")
    assert (done.exit_code, "--every needs a whole trace" in done.output) == (exits.USAGE, True)


def test_a_trace_on_standard_input(trace):
    done = neve("-", "--hot", "12blocks", input=trace.read_text())
    assert done.stdout.startswith("standard input: 9 requests")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], exits.USAGE, "give at least one --hot size"),
        (["--hot", "10"], exits.USAGE, "'10' is no size; write 50000blocks, 64GiB or unlimited"),
        (["--hot", "-1GiB"], exits.USAGE, "'-1GiB' is no size"),
        (["--hot", "0blocks"], exits.USAGE, "'0blocks' is no size"),
        (["--hot", "1.5blocks"], exits.USAGE, "'1.5blocks' is no size"),
        (["--hot", "64GiB"], exits.USAGE, "--hot 64GiB needs the bytes of a block: give"),
        (["--hot", "1MiB", "--block-bytes", 2 * MIB], exits.ERROR, "--hot: 1MiB hold not even"),
        (["--hot", "1blocks", "--policy", "arc"], exits.USAGE, "'arc' is not one of 'lru', '2q'"),
        (["--hot", "1blocks", "--ttl", "5"], exits.USAGE, "'5' is no duration; write 90s"),
        (["--hot", "1blocks", "--codec", "cold=2"], exits.USAGE, "--codec needs the bytes"),
        (["--hot", "1blocks", "--codec", "cold=-2"], exits.USAGE, "a number above 0"),
        (["--hot", "1blocks", "--block-bytes", 9, "--codec", "cold=2"], exits.USAGE, "give --cold"),
        (["--hot", "1blocks", "--flush-after", "5s"], exits.USAGE, "give --cold"),
        (["--hot", "1blocks", "--bandwidth", "hot=5"], exits.USAGE, "needs --prefill-tokens-per-s"),
        (["--hot", "1blocks", "--block-bytes", 0], exits.USAGE, "--block-bytes"),
        (["--hot", "1blocks", "--warm-up", "1h"], exits.ERROR, "no request after 3600 s"),
        (["--hot", "1blocks", "--every", "1s", "--warm-up", "1s"], 0, ""),
        (["--curve", "--cold", "1blocks"], exits.USAGE, "--curve is of one LRU tier"),
        (["--curve", "--plot", "x.png"], exits.ERROR, ".svg"),
    ],
)
def test_an_option_without_sense_says_the_fix(trace, options, code, words):
    done = neve(trace, *options)
    assert (done.exit_code, words in done.output) == (code, True), done.output


def test_a_missing_or_wrong_trace_says_where(tmp_path):
    done = neve(tmp_path / "none.jsonl", "--hot", "1blocks")
    assert done.exit_code == exits.ERROR
    assert re.search(r"TRACE: cannot read .*none\.jsonl: No such file", done.output)
    (tmp_path / "bad.jsonl").write_text('{"timestamp": 0}\n')
    told = json.loads(neve(tmp_path / "bad.jsonl", "--hot", "1blocks", "--json").stderr)
    assert told["field"] == "TRACE"
    assert "line 1" in told["error"]


def requests_of_a_sweep():
    return [BlockRequest(tuple(range(n % 5, 2 * n % 7 + n % 5)), float(n)) for n in range(50)]


def test_a_sweep_gives_the_same_with_any_number_of_processes():
    settings = [Setting(TierSetting(n, policy)) for n in (1, 3, 5) for policy in ("lru", "gdsf")]
    told = []
    found = sweep(
        settings, requests_of_a_sweep(), processes=2, bucket_s=10, count_from_s=20,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert found == [
        run(each, requests_of_a_sweep(), bucket_s=10, count_from_s=20) for each in settings
    ]
    assert (told[0], told[-1]) == ((0, 6), (6, 6))
    assert told == sorted(told)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_sweep_may_be_cancelled(processes):
    settings = [Setting(TierSetting(n)) for n in range(1, 201)]
    done = []
    with pytest.raises(Closed):
        sweep(
            settings, requests_of_a_sweep(), processes=processes,
            progress=lambda finished, total: done.append(finished), cancelled=lambda: len(done) > 2,
        )  # fmt: skip
    assert max(done) < len(settings)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_sweep_passes_on_what_is_wrong_with_the_requests(processes):
    backwards = [BlockRequest((1,), 2.0), BlockRequest((1,), 1.0)]
    with pytest.raises(Misuse) as error:
        sweep([Setting(TierSetting(1))] * 2, backwards, processes=processes)
    assert error.value.field == "at_s"

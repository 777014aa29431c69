"""Readers of traces: formats by their first line, what is read, and errors that name the line."""

import json
from itertools import islice
from pathlib import Path

import pytest

from neve.errors import Misuse
from neve.planner.simulate import samples
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.traces import Format, block_ids, mooncake, read, vllm_log
from neve.replay.generator import Generator, Workload

LOG = Path(__file__).parent / "data/vllm-requests.txt"  # of vLLM 0.32.0: its API server on CPU
RECORDED = Path(__file__).parents[3] / "shared/traces/conversation_trace.jsonl"
ROW = {"timestamp": 2500, "input_length": 513, "output_length": 7, "hash_ids": [1, 2]}


def lines_of(*rows):
    return [json.dumps(ROW | row) + "\n" for row in rows]


def test_a_mooncake_trace_is_read_as_it_was_written():
    rows = list(islice(Generator(Workload.MIXED, seed=1), 50))
    lines = lines_of(
        *(
            {
                "timestamp": row.timestamp_ms,
                "input_length": row.input_tokens,
                "hash_ids": list(row.hash_ids),
            }
            for row in rows
        )
    )
    trace = read(["\n", *lines])
    assert (trace.format, trace.rate, trace.samples) == (Format.MOONCAKE, 1.0, None)
    assert trace.requests == [
        BlockRequest(row.hash_ids, row.timestamp_ms / 1000, tokens=row.input_tokens) for row in rows
    ]


def test_readers_read_no_further_than_asked():
    def endless():
        while True:
            yield from lines_of({})

    assert len(list(islice(mooncake(endless()), 3))) == 3


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{}, {"timestamp": 2499}], "line 2: timestamp: 2499 is earlier than before; sort"),
        ([{"hash_ids": [1]}], r"line 1: hash_ids: expected 2 ids \(input_length 513 / 512"),
        ([{}, {"input_length": 0}], "line 2: input_length: expected an integer from 1 up, got 0"),
    ],
)
def test_a_wrong_line_is_named_with_its_field_and_the_expected_value(rows, why):
    with pytest.raises(Misuse, match=why):
        read(lines_of(*rows))


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([], "holds no line"),
        (["\n", " \n"], "holds no line"),
        (['{"timestamp": 1\n'], "line 1: expected a JSON object, but"),
        (
            ["timestamp,input_length\n", "1,2\n"],
            "is neither JSON Lines nor a log of requests; expected the",
        ),
    ],
)
def test_a_file_that_is_no_trace_is_refused(lines, why):
    with pytest.raises(Misuse, match=why):
        read(lines)


def test_blocks_of_another_length_are_read_if_it_is_given():
    assert next(mooncake(lines_of({"input_length": 20}), block_tokens=16)).ids == (1, 2)


def test_a_log_of_vllm_gives_prompts_as_blocks():
    trace = read(LOG.read_text().splitlines(keepends=True), block_tokens=16)
    assert (trace.format, trace.rate) == (Format.VLLM, 1.0)
    first, longer, adapted, again, _, chat = trace.requests
    assert [each.tokens for each in trace.requests] == [69, 129, 69, 69, 6, 70]
    assert [len(each.ids) for each in trace.requests] == [4, 8, 4, 4, 0, 4]
    assert again.ids == first.ids == chat.ids == longer.ids[:4]
    assert not set(adapted.ids) & set(first.ids)  # the same tokens with a LoRA adapter
    assert {each.at_s for each in trace.requests} == {0.0}  # all within a second


def test_prompts_shorter_than_a_block_ask_for_smaller_blocks():
    with pytest.raises(Misuse, match=r"block_tokens: no prompt fills a block of 512 .* has 129;"):
        read(LOG.read_text().splitlines())


def test_samples_of_traffic_say_at_which_rate_capacities_are_simulated():
    rows = list(islice(Generator(Workload.MIXED, seed=1), 200))
    requests = [BlockRequest(row.hash_ids, row.timestamp_ms / 1000) for row in rows]
    taken = samples.sample(requests, rate_log=2, key=bytes(32))
    trace = read(samples.write_lines(taken))
    assert (trace.format, trace.rate) == (Format.NEVE, 1 / 4)
    assert trace.samples.totals == taken.totals
    assert [each.ids for each in trace.requests] == [each.ids for each in taken.requests]
    assert 0 < sum(len(each.ids) for each in trace.requests) < taken.totals.asked_blocks / 2


def test_block_ids_stand_for_the_whole_prefix():
    one, other = list(range(64)), [99, *range(1, 64)]
    assert len(block_ids(one, block_tokens=16)) == 4
    assert block_ids(one[:40], block_tokens=16) == block_ids(one, block_tokens=16)[:2]
    assert not set(block_ids(one, block_tokens=16)) & set(block_ids(other, block_tokens=16))


def logged(at, name, *, tokens="[1, 2]", level="DEBUG"):
    front = f"(APIServer pid=7) {level} {at} [entrypoints/.../utils/request_logger.py:55]"
    yield (
        f"{front} Request {name} details: prompt: 'a', prompt_token_ids: {tokens}, "
        "prompt_embeds shape: None.\n"
    )
    yield f"{front} Received request {name}: params: None, lora_request: None.\n"


def test_times_of_a_log_count_from_its_first_request_also_over_a_new_year():
    lines = [
        *logged("12-31 23:59:50", "a"),
        *logged("12-31 23:59:59", "b"),
        *logged("01-01 00:00:10", "c"),
    ]
    assert [each.at_s for each in vllm_log(lines)] == [0, 9, 20]


def test_a_coloured_log_and_one_with_a_cut_end_are_read():
    first, second = logged("\x1b[90m11-30 00:45:13\x1b[0m", "a"), logged("11-30 00:45:14", "b")
    assert len(list(vllm_log([*first, next(second)]))) == 1


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (list(logged("11-30 00:45:13", "a"))[1:], "names no prompt's token ids; expected the log"),
        (logged("11-31 00:45:13", "a"), "line 1: expected month-day hours:minutes:seconds, got"),
        (logged("11-30 00:45:13", "a", tokens="None"), "line 1: expected token ids, got None"),
    ],
)
def test_a_log_without_what_is_needed_says_how_to_get_it(lines, why):
    with pytest.raises(Misuse, match=why):
        list(vllm_log(lines))


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded trace is not at ../shared/traces")
def test_the_recorded_trace_is_read_whole():
    with RECORDED.open() as lines:
        requests = read(lines).requests
    assert len(requests) == 12_031
    assert sum(len(each.ids) for each in requests) == 288_500
    assert len({id_ for each in requests for id_ in each.ids}) == 182_790

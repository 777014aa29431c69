"""The table of architectures says what differed, and what memory costs."""

import pytest

from benchmarks.architectures import (
    Answers,
    Row,
    compare,
    describe,
    memory_row,
    reason,
    table,
    written_into,
)

FULL = {"kind": "FullAttentionSpec", "window": None, "layers": 2, "block_tokens": 16}
WINDOW = FULL | {"kind": "SlidingWindowSpec", "window": 65}


def said(tokens, logprob, reused=0):
    return {
        "tokens": tokens,
        "logprobs": [{"7": logprob, "9": -9.0}],
        "params": {"neve": {"reused_tokens": reused}},
    }


def test_tokens_and_logprobs_are_compared_with_the_reference():
    reference = {"a": said([7], -1.0), "b": said([7], -2.0), "not asked": said([7], -3.0)}
    found = compare({"a": said([7], -1.5, 64), "b": said([8], -2.0, 32)}, reference)
    assert (found.asked, found.same_tokens, found.worst_logprob) == (2, 1, 0.5)
    assert found.loaded_tokens == 96
    assert not found.exact


def test_a_row_shows_what_differed_and_an_unfinished_one_its_gaps():
    wrong = Row("gemma3", "differs", groups=[WINDOW, WINDOW, FULL])
    wrong.answers = {"auto": Answers(7, 7, 0.0, 640), "S3 only": Answers(7, 5, 0.5, 320)}
    wrong.damage = {"S3, group 0": "missed, tokens right", "S3, group 1": "missed, tokens wrong"}
    shown = table([wrong, Row("llama4", "not run", "no kernel")])
    assert "| gemma3 | 2 × window 65 (2), Full (2) | differs | — | 640, Δ 0 | — | — " in shown
    assert "| 320, 2 of 7 answers differ | — | 1 of 2 missed |" in shown
    assert "| llama4 | — | not run: no kernel | — | — | — | — | — | — | — |" in shown


def test_a_refusal_is_read_from_the_log_however_it_is_quoted():
    line = "x WARNING neve.unsupported detail={} (serving without Neve)\n"
    assert reason(line.format("'no (a) \"b\"'")) == 'no (a) "b"'
    assert reason("before\n" + line.format('"the model\'s decoder"')) == "the model's decoder"
    assert reason("neve.states.kept chunk_tokens=144") is None


def test_groups_of_one_kind_are_counted():
    assert describe([]) == "—"
    assert describe([FULL]) == "Full (2)"


def test_memory_is_what_the_engine_needs_and_the_store_holds_and_gives():
    """A window of 65 tokens: four blocks of 16 are loaded of it, and all of full attention."""
    groups = [FULL | {"bytes": 1 << 20}, WINDOW | {"bytes": 1 << 20}]
    engine = {"groups": groups, "longest": 1600, "concurrency": 2.5}
    assert memory_row("shape", True, 10 << 20, engine) == [
        "shape", "on", "4.0", "2.5", "131,072", "104.0",
    ]  # fmt: skip
    alone = {"groups": [FULL | {"bytes": 2 << 20, "window": 65}]}  # hybrid manager off
    assert memory_row("shape", False, 10 << 20, engine | alone)[-1] == "200.0"
    refused = memory_row("shape", False, 1, {"error": "ValueError: no"})
    assert refused == ["shape", "off", "does not start: ValueError: no", "—", "—", "—"]


def test_tables_are_written_between_their_marks_again_and_again():
    mark = "<!-- architectures: written by `make bench-architectures` -->"
    page = f"# Title\n{mark}\n<!-- end -->\nbehind\n"
    once = written_into(page, {"architectures": "| a |"})
    assert once == page.replace("-->\n<!-- end", "-->\n\n| a |\n\n<!-- end")
    assert written_into(once, {"architectures": "| a |"}) == once
    with pytest.raises(ValueError, match="memory"):
        written_into(page, {"memory": "| b |"})

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.engine.handover import Prefilled
from neve.engine.params import RequestParams, read_params, response_params


def test_a_request_names_its_context_pin_and_label():
    params = read_params({"neve": {"context": "repo-42", "pin": "2h", "label": "agent"}})
    assert params == RequestParams(name="repo-42", pin_s=7200, label="agent")


@pytest.mark.parametrize(
    ("pin", "seconds"), [(7200, 7200), ("7200", 7200), ("90s", 90), ("30m", 1800), ("1d", 86400)]
)
def test_a_pin_is_seconds_or_has_a_unit(pin, seconds):
    assert read_params({"neve": {"context": "x", "pin": pin}}).pin_s == seconds


@pytest.mark.parametrize(
    "pin",
    [0, -1, True, "soon", "2w", [], {}, float("nan"), float("inf"), 1 << 60, "9999999999d", "366d"],
)
def test_a_malformed_pin_is_ignored_with_a_warning(pin, caplog):
    with caplog.at_level(logging.WARNING):
        assert read_params({"neve": {"context": "x", "pin": pin}}) == RequestParams(name="x")
    assert "field=pin" in caplog.text


@pytest.mark.parametrize("name", ["", " ", 7, ["x"], "x" * 201, "a\nb"])
def test_a_malformed_name_is_ignored_with_a_warning(name, caplog):
    with caplog.at_level(logging.WARNING):
        assert read_params({"neve": {"context": name}}) == RequestParams()
    assert "field=context" in caplog.text


def test_a_label_has_a_length_of_its_own_and_both_are_trimmed():
    assert read_params({"neve": {"context": " x ", "label": "l" * 101}}) == RequestParams(name="x")


def test_labels_are_names_and_texts():
    labels = {"team": "blue", "x.y/z": ""}
    assert read_params({"neve": {"context": "x", "labels": labels}}).labels == labels


@pytest.mark.parametrize(
    "labels", ["team", ["team"], {"0": "x"}, {"team": 5}, {"team": "a\nb"}, {"a" * 64: "x"}]
)
def test_malformed_labels_are_ignored_with_a_warning(labels, caplog):
    asked = {"neve": {"context": "x", "labels": labels}}
    with caplog.at_level(logging.WARNING):
        assert read_params(asked) == RequestParams(name="x")
    assert "field=labels" in caplog.text


@pytest.mark.parametrize(
    "params", [None, {}, {"do_remote_prefill": True}, {"neve": "x"}, "neve", 7]
)
def test_a_request_that_does_not_speak_to_neve_asks_nothing(params):
    assert read_params(params) is None


def test_a_word_that_means_nothing_is_ignored_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert read_params({"neve": {"contxt": "x", "label": "agent"}}) == RequestParams(
            label="agent"
        )
    assert "field=contxt" in caplog.text
    assert "context or pin or label or labels" in caplog.text


BLOCK = "0123456789abcdef" * 2
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(["context", "pin", "label", "prefilled", "unknown"])


@given(JSON | st.fixed_dictionaries({"neve": JSON | st.dictionaries(FIELDS, JSON)}))
def test_whatever_a_request_says_is_read_and_answered(asked):
    """Names that are read fit a context."""
    params = read_params(asked)
    if params is None:
        return
    assert params.name is None or 0 < len(params.name.encode()) <= 4 * 200
    assert params.pin_s is None or 0 < params.pin_s <= 365 * 86400
    answer = response_params(params, hot_tokens=1, cold_tokens=2, prefilled=params.prefilled)
    assert json.loads(json.dumps(answer))["neve"]["reused_tokens"] == 3


def test_the_response_of_a_prefill_is_what_a_decode_asks_with(caplog):
    asked = read_params({"do_remote_decode": True, "remote_host": None})
    assert asked == RequestParams(hands_over=True)
    prefilled = Prefilled(192, bytes.fromhex(BLOCK))
    answer = response_params(asked, hot_tokens=0, cold_tokens=0, prefilled=prefilled)
    assert answer["neve"]["prefilled"] == {"tokens": 192, "block": BLOCK}
    with caplog.at_level(logging.WARNING):
        assert read_params(answer) == RequestParams(prefilled=prefilled)
    assert not caplog.text


@pytest.mark.parametrize("params", [{"neve": 7}, {"neve": None}, {"neve": {"pin": "x"}}])
def test_a_malformed_wish_does_not_keep_a_prompt_from_being_handed_over(params):
    assert read_params(params | {"do_remote_decode": True}).hands_over
    assert not read_params({"neve": {}, "do_remote_decode": "yes"}).hands_over


@pytest.mark.parametrize(
    "prefilled",
    [
        *(7, "x", [], {}, {"tokens": 64}, {"block": BLOCK}),
        *({"tokens": n, "block": BLOCK} for n in (0, -1, True, 1.5, "64", 1 << 40)),
        *({"tokens": 64, "block": block} for block in ("", BLOCK[1:], BLOCK + "00", 5, "x" * 32)),
    ],
)
def test_a_malformed_promise_is_ignored_with_a_warning(prefilled, caplog):
    with caplog.at_level(logging.WARNING):
        assert read_params({"neve": {"prefilled": prefilled}}) == RequestParams()
    assert "field=prefilled" in caplog.text


def test_the_response_tells_what_was_reused_by_tier():
    params = RequestParams(name="repo-42")
    answer = response_params(params, hot_tokens=64, cold_tokens=128, stored_tokens=320)
    told = {"reused_tokens": 192, "hot": 64, "cold": 128}
    assert answer == {"neve": {"context": "repo-42", "stored_tokens": 320} | told}
    answer = response_params(params, hot_tokens=0, cold_tokens=0, context_id="an id")
    assert answer["neve"]["context_id"] == "an id"
    assert read_params(answer) == params  # a proxy may pass it on

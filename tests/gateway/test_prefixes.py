"""Prompts as hashes of their prefixes, and who holds them."""

from neve.gateway.holders import Holders
from neve.gateway.prompts import Prompt, read_prompt

KEY = b"acme"


def chat(*contents, **more):
    roles = ("system", "user", "assistant")
    messages = [
        {"role": roles[min(n, 1 + n % 2)], "content": text} for n, text in enumerate(contents)
    ]
    return read_prompt({"messages": messages} | more)


def common(one: Prompt, other: Prompt, *, key=KEY, other_key=KEY) -> int:
    pairs = zip(one.prefixes(key, 64), other.prefixes(other_key, 64), strict=False)
    equal = [a == b for a, b in pairs]
    return equal.index(False) if False in equal else len(equal)


def test_prompts_share_hashes_as_far_as_their_text_is_the_same():
    rules = "rule " * 100
    first, second = chat(rules, "May I?"), chat(rules, "Must I?")
    assert common(first, second) == len('{"content":"' + rules) // 64
    assert common(first, chat("other " + rules, "May I?")) == 0
    assert common(first, chat(rules, "May I?", "Yes.", "Why?")) == len(first.prefixes(KEY, 64))


def test_keys_tools_and_salts_set_prompts_apart():
    rules = "rule " * 100
    assert common(chat(rules), chat(rules), other_key=b"other") == 0
    assert common(chat(rules), chat(rules, cache_salt="x")) == 0
    assert common(chat(rules), chat(rules, tools=[{"name": "search"}])) == 0


def test_marks_that_agents_move_from_turn_to_turn_change_nothing():
    text = {"type": "text", "text": "rule " * 100}
    marked = {**text, "cache_control": {"type": "ephemeral"}}
    assert common(chat([text]), chat([marked])) == len(chat([text]).prefixes(KEY, 64))


def test_prompts_of_all_apis_are_read():
    assert read_prompt({"prompt": "text"}).query == {"text": "text"}
    assert read_prompt({"prompt": ["text"]}).query == {"text": "text"}
    assert read_prompt({"prompt": [1, 2], "cache_salt": "s"}).query == {
        "tokens": [1, 2],
        "salt": "s",
    }
    assert read_prompt({"prompt": [[1, 2]]}).query == {"tokens": [1, 2]}
    asked = read_prompt({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}).query
    assert asked == {"messages": [{"role": "user", "content": "x"}], "tools": [{}]}
    anthropic = read_prompt({"system": "s", "messages": [{"role": "user", "content": "x"}]})
    assert anthropic.query["messages"][0] == {"role": "system", "content": "s"}
    assert read_prompt({"input": [{"role": "user", "content": "x"}]}).query is None
    gemini = read_prompt({"contents": {"parts": [{"text": "x"}]}, "systemInstruction": {}})
    assert (gemini.items, gemini.query) == ([{"parts": [{"text": "x"}]}], None)
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    assert read_prompt({"messages": [{"role": "user", "content": image}]}).query is None


def test_what_is_no_single_prompt_is_none():
    for body in (
        {},
        {"prompt": ""},
        {"prompt": ["a", "b"]},
        {"prompt": [-1]},
        {"prompt": [1, "x"]},
        {"messages": []},
        {"messages": ["x"]},
        {"messages": 3},
        {"input": "text to embed"},
    ):
        assert read_prompt(body) is None


def test_prompts_stay_out_of_logs():
    assert "secret" not in repr(read_prompt({"prompt": "secret"}))


def test_a_node_holds_what_it_served_until_it_fails_or_time_passes():
    now = [0.0]
    holders = Holders(holds_s=10, clock=lambda: now[0])
    holders.note([b"1", b"2", b"3"], "a")
    holders.note([b"1", b"x"], "b")
    assert holders.held_by([b"1", b"2", b"y"]) == {"a": 2, "b": 1}
    now[0] = 8
    holders.note([b"1", b"2"], "b")
    now[0] = 12
    assert holders.held_by([b"1", b"2", b"3"]) == {"b": 2}
    holders.forget("b")
    assert holders.held_by([b"1", b"2", b"3"]) == {}


def test_what_is_forgotten_first_is_the_end_of_the_oldest_prompt():
    holders = Holders(most=4)
    holders.note([b"1", b"2", b"3"], "a")
    holders.note([b"4", b"5"], "a")
    assert holders.held_by([b"1", b"2", b"3"]) == {"a": 2}
    assert holders.held_by([b"4", b"5"]) == {"a": 2}


def test_a_shared_prefix_has_one_name_for_all_turns():
    holders = Holders()

    def turn(*prefixes):
        name = holders.name_of(prefixes)
        holders.note(prefixes, "a")
        return name

    assert turn(b"s", b"1") is None  # shared with nobody yet
    name = turn(b"s", b"1", b"2")
    assert name == f"prefix-{b'1'.hex()}"
    assert turn(b"s", b"1", b"2", b"3") == name
    assert turn(b"s", b"1", b"2", b"3", b"4") == name
    other = turn(b"s", b"9")  # another conversation, with the same system prompt
    assert other == f"prefix-{b's'.hex()}"
    assert turn(b"s", b"9", b"8") == other
    assert turn(b"q", b"1") is None

"""Contexts named by headers and bodies."""

import pytest

from neve.gateway.naming import MOST_CHARS, ContextName, name_in

SESSION = "e96634a3-fa28-4083-b354-55542e2dca01"


@pytest.mark.parametrize(
    ("headers", "body", "name", "source"),
    [
        ({"X-Neve-Context": "repo-42"}, {}, "repo-42", "header"),
        ({"x-claude-code-session-id": SESSION}, {}, f"session-{SESSION}", "session"),
        ({"x-litellm-session-id": SESSION}, {}, f"session-{SESSION}", "session"),
        ({"x-session-affinity": "ses_0123456789ab"}, {}, "session-ses_0123456789ab", "session"),
        ({"session_id": SESSION, "user-agent": "codex_cli/1"}, {}, f"session-{SESSION}", "session"),
        ({}, {"metadata": {"session_id": SESSION}}, f"session-{SESSION}", "session"),
        ({}, {"litellm_session_id": SESSION}, f"session-{SESSION}", "session"),
        (
            {},
            {"metadata": {"user_id": f"user_aa_account__session_{SESSION}"}},
            f"session-{SESSION}",
            "session",
        ),
        ({}, {"prompt_cache_key": SESSION}, f"session-{SESSION}", "session"),
        (
            {"x-neve-context": "x"},
            {"kv_transfer_params": {"neve": {"context": "mine"}}},
            "mine",
            "request",
        ),
    ],
)
def test_a_context_is_named_by(headers, body, name, source):
    found = name_in(headers, body)
    assert (found.name, found.source) == (name, source)


def test_a_user_is_named_by_a_hash_that_depends_on_the_tenants_key():
    mine = name_in({}, {"user": "ann@example.com"}, b"acme")
    assert mine.source == "user"
    assert "ann" not in mine.name
    assert mine == name_in({}, {"user": "ann@example.com"}, b"acme")
    assert mine != name_in({}, {"user": "ann@example.com"}, b"other")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, {}),
        ({"x-neve-context": ""}, {}),
        ({"x-neve-context": "x" * 201}, {}),
        ({"x-neve-context": "a\nb"}, {}),
        ({"x-claude-code-session-id": "short"}, {}),
        ({"x-claude-code-session-id": "words of a prompt, not an id"}, {}),
        ({"session_id": SESSION}, {}),  # not Codex: may mean anything
        ({}, {"metadata": "x", "kv_transfer_params": 3, "user": 7, "session_id": ["x"]}),
    ],
)
def test_nothing_is_named_by(headers, body):
    assert name_in(headers, body) is None


def test_long_names_stay_apart_in_a_scope():
    scope = "1f3a9c2e"
    assert ContextName("repo-42", "header").within(scope).name == "repo-42.1f3a9c2e"
    names = {"x" * 191, "x" * 192, "x" * 199 + "y", "x" * 200}
    within = [ContextName(name, "header").within(scope).name for name in names]
    assert len(set(within)) == 4
    assert all(len(name) <= MOST_CHARS and name.endswith(f".{scope}") for name in within)

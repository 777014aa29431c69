"""Terms and previews in words. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from contexts.life import Force
from dashboard import formats
from retention.terms import Rule, Terms


def contexts_text(count: int) -> str:
    return f"{count:,} context{'' if count == 1 else 's'}"


def size_text(size_bytes: float) -> str:
    return str(formats.bytes_quantity(size_bytes))


def length_text(seconds: float) -> str:
    return str(formats.duration_quantity(seconds))


def terms_text(terms: Terms) -> str:
    """ "cold 14 d, hot while idle 6 h, flushed at once"."""
    words = []
    if terms.cold_ttl_s is None and terms.max_age_s is None:
        words.append("no end")
    elif terms.cold_ttl_s is not None:
        words.append(f"{length_text(terms.cold_ttl_s)} from storing")
    if terms.max_age_s is not None:
        words.append(f"at most {length_text(terms.max_age_s)} old")
    if terms.hot_idle_s is not None:
        words.append(f"hot for {length_text(terms.hot_idle_s)} unread")
    if terms.flush_after_s is None:
        words.append("never in S3")
    elif terms.flush_after_s:
        words.append(f"in S3 after {length_text(terms.flush_after_s)}")
    return ", ".join(words)


def rule_text(rule: Rule, spaces: Mapping[int, str]) -> str:
    """The conditions of a rule: "context repo-*, label nightly"."""
    conditions = [
        ("context", rule.context),
        ("label", rule.label),
        ("space", None if rule.space_id is None else spaces.get(rule.space_id, rule.space_id)),
    ]
    return ", ".join(f"{name} {value}" for name, value in conditions if value is not None)


def source_text(rules: Iterable[Rule], spaces: Mapping[int, str]) -> str:
    """Which rules give the terms: "policy", or their conditions."""
    return "; ".join(rule_text(rule, spaces) for rule in rules) or "policy"


def force_text(force: Force, spaces: Mapping[int, str]) -> str:
    return f"{source_text(force.rules, spaces)}: {terms_text(force.terms)}"


VERBS: Mapping[str, tuple[str, str]] = {
    # what the button says, what is under way
    "pin": ("Pin", "Pinning"),
    "unpin": ("Unpin", "Unpinning"),
    "extend": ("Extend", "Extending"),
    "expire": ("Expire", "Expiring"),
    "warm": ("Warm", "Warming"),
    "label": ("Label", "Labelling"),
    "delete": ("Delete", "Deleting"),
}


def outcome_text(detail: Mapping[str, Any]) -> str:
    """A bulk job's result: "39 done; not done: 2 (pinned by others)"."""
    done, refused = detail.get("done", 0), detail.get("refused", {})
    words = f"{done:,} done"
    if refused:
        reasons = ", ".join(
            f"{count:,} ({reason.replace('-', ' ')})" for reason, count in sorted(refused.items())
        )
        words += f"; not done: {reasons}"
    return words

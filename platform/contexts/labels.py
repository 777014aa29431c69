"""Labels: names and texts that teams give to contexts, to find and count them by."""

import re
from collections.abc import Mapping

from base.problems import Problem

MOST_LABELS = 16
# A letter first: databases take a number for an index of an array.
NAME = r"[A-Za-z](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?"
MOST_VALUE_CHARACTERS = 200
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NAME = re.compile(NAME, re.ASCII)


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def is_value(text: str) -> bool:
    """Of bounded length, without control characters."""
    return len(text) <= MOST_VALUE_CHARACTERS and not _CONTROL.search(text)


def merged(labels: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """`labels` with those of `changes`; None removes one. Raises Problem (malformed): too many."""
    found = {**labels, **changes}
    kept = {name: value for name, value in sorted(found.items()) if value is not None}
    if len(kept) > MOST_LABELS:
        raise Problem(
            "malformed",
            f"labels: a context has at most {MOST_LABELS}, this would have {len(kept)}.",
            field="labels",
        )
    return kept


def added(labels: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """`labels` with those of `new`, as far as there is room: a request never fails for a label."""
    found = dict(labels)
    for name, value in new.items():
        if name in found or len(found) < MOST_LABELS:
            found[name] = value
    return dict(sorted(found.items()))

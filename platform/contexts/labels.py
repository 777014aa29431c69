"""Labels: names and texts that teams give to contexts, to find and count them by."""

from collections.abc import Mapping

from base.problems import Problem
from neve.formats.labels import MOST_LABELS


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

"""Conditions that choose contexts: of the list, of the page and of actions on many.

Each takes rows and the text of a filter, and returns fewer rows. They raise Problem (malformed),
whose `field` is the filter.
"""

import re
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from django.db.models import BinaryField, Q, QuerySet, TextField
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Cast, Substr
from django.utils import timezone

from base.globs import MOST_STARS, matching, stars
from base.problems import Problem
from catalog.models import ID_BYTES, Context
from neve.formats.labels import MOST_LABELS, is_name

Rows = QuerySet[Context]

MOST_IDS = 200  # contexts that one request names
_UNDER = re.compile(r"([0-9]{1,8})-([0-9a-f]{32})")


def with_name(rows: Rows, text: str) -> Rows:
    """`text`: a pattern with *, ? and sets."""
    if stars(text) > MOST_STARS:
        raise _malformed("glob", f"need at most {MOST_STARS} times *, got {stars(text)}")
    return rows.filter(matching("name", text))


def with_labels(rows: Rows, text: str) -> Rows:
    """`text`: team=blue,stage=test: all of them; a name alone has any value."""
    asked = text.split(",")
    if len(asked) > MOST_LABELS:
        raise _malformed("labels", f"need at most {MOST_LABELS}, got {len(asked)}")
    for n, each in enumerate(asked):
        label, has_value, value = each.strip().partition("=")
        if not is_name(label):
            raise _malformed("labels", f"need name=value, name=value …, got {each[:60]!r}")
        if has_value:
            found = Cast(KeyTextTransform(label, "labels"), TextField())
            rows = rows.alias(**{f"label_{n}": found}).filter(**{f"label_{n}": value})
        else:
            rows = rows.filter(labels__has_key=label)
    return rows


def under(rows: Rows, text: str) -> Rows:
    """Unexpired contexts that have a beginning, as `contexts.prefixes` names it: `12-` and the id
    of its twelfth block. Ids are chained, so the last one stands for the whole beginning."""
    match = _UNDER.fullmatch(text)
    if match is None or not (ids := int(match[1])):
        raise _malformed("under", "need the number of ids, - and the last id as 32 hex digits")
    last = Substr("chain", (ids - 1) * ID_BYTES + 1, ID_BYTES, output_field=BinaryField())
    wanted = bytes.fromhex(match[2])
    if ids == 1:
        return rows.filter(root=wanted, expired_at=None)
    return rows.alias(last_shared=last).filter(last_shared=wanted, expired_at=None)


def with_ids(rows: Rows, text: str) -> Rows:
    """`text`: ids of contexts, with commas."""
    asked = text.split(",")
    if len(asked) > MOST_IDS:
        raise _malformed("ids", f"need at most {MOST_IDS}, got {len(asked)}")
    try:
        return rows.filter(pk__in=[UUID(each.strip()) for each in asked])
    except ValueError:
        raise _malformed("ids", "need ids of contexts, with commas") from None


def pinned(rows: Rows, is_pinned: bool) -> Rows:
    now = Q(pinned_until__gt=timezone.now())
    return rows.filter(now) if is_pinned else rows.exclude(now)


def unused_since(rows: Rows, at: datetime) -> Rows:
    """Used last before `at`; one that was never used counts from when it was made."""
    return rows.filter(Q(last_used_at__lt=at) | Q(last_used_at=None, created_at__lt=at))


TEXTS: dict[str, Callable[[Rows, str], Rows]] = {
    **{"glob": with_name, "labels": with_labels, "under": under, "ids": with_ids},
}


def _malformed(field: str, words: str) -> Problem:
    return Problem("malformed", f"{field}: {words}", field=field)

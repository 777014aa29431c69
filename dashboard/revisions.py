"""Forms that two people may have open at once: each sends the revision of the row that it showed,
and a change of a row that has changed since is refused (`base.preconditions`).
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import models

from base.preconditions import Expected, expecting


def revision_of(row: models.Model, names: tuple[str, ...]) -> str:
    """Of these fields' values. Fields that move without a person's change are left out."""
    values = [str(getattr(row, name)) for name in names]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


@contextmanager
def as_seen(row: models.Model, seen: str, present: Callable[[], str]) -> Iterator[None]:
    """Changes inside need `present()`, the row's revision now, to be `seen`.

    `present` runs in the change's transaction. A service that changes the row raises Problem
    (precondition-failed).
    """
    with expecting(Expected(type(row), row.pk, lambda: present() == seen)):
        yield

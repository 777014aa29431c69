"""Names by a pattern with *, ? and sets: the same on SQLite and PostgreSQL, in bounded time.

A set has letters, digits, . and _ and ranges: [0-9], [!a-f]. Any other bracket is a character like
others. Upper and lower case differ.
"""

import re
from collections.abc import Callable
from typing import Any

from django.db.models import F, Lookup

MOST_STARS = 8  # each may make a match try again from every character

_TOKEN = re.compile(r"(\*+)|(\?)|\[(!?)((?:[A-Za-z0-9](?:-[A-Za-z0-9])?|[._])+)\]|(.)", re.DOTALL)


class Glob(Lookup):
    """`rows.filter(Glob(F("name"), "repo-*"))`."""

    lookup_name = "glob"
    prepare_rhs = False

    def as_sqlite(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        return self._sql(compiler, connection, "GLOB", for_sqlite(self.rhs))

    def as_postgresql(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        if has_sets(self.rhs):
            return self._sql(compiler, connection, "~", for_regex(self.rhs))
        return self._sql(compiler, connection, "LIKE", for_like(self.rhs))

    def _sql(
        self, compiler: Any, connection: Any, operator: str, pattern: str
    ) -> tuple[str, tuple[Any, ...]]:
        left, params = self.process_lhs(compiler, connection)
        return f"{left} {operator} %s", (*params, pattern)


def matching(name: str, pattern: str) -> Glob:
    """A condition on the field `name`."""
    return Glob(F(name), pattern)


def stars(pattern: str) -> int:
    """How many runs of * a pattern has: more than `MOST_STARS` are to be refused."""
    return len(re.findall(r"\*+", pattern))


def has_sets(pattern: str) -> bool:
    return any(match[4] for match in _TOKEN.finditer(pattern))


def for_sqlite(pattern: str) -> str:
    return _written(
        pattern,
        star="*",
        one="?",
        chosen=lambda negated, members: f"[{'^' if negated else ''}{members}]",
        plain=lambda character: "[[]" if character == "[" else character,
    )


def for_like(pattern: str) -> str:
    return _written(
        pattern,
        star="%",
        one="_",
        chosen=lambda negated, members: "",  # `has_sets` patterns are none
        plain=lambda character: f"\\{character}" if character in "\\%_" else character,
    )


def for_regex(pattern: str) -> str:
    body = _written(
        pattern,
        star=".*",
        one=".",
        chosen=lambda negated, members: f"[{'^' if negated else ''}{members}]",
        plain=re.escape,
    )
    return f"^(?:{body})$"


def _written(
    pattern: str,
    *,
    star: str,
    one: str,
    chosen: Callable[[str, str], str],
    plain: Callable[[str], str],
) -> str:
    out = []
    for match in _TOKEN.finditer(pattern):
        if match[1]:
            out.append(star)
        elif match[2]:
            out.append(one)
        elif match[4]:
            out.append(chosen(match[3], match[4]))
        else:
            out.append(plain(match[5]))
    return "".join(out)

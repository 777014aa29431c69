"""Answers as frozen dataclasses.

Members that this version does not know stay in `raw`, so that a newer platform breaks no older
client. A member that an older platform does not send is None.
"""

import types
import typing
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from neve.errors import Unavailable

R = TypeVar("R", bound="Record")


class Record:
    """The base of all answers.

    Attributes:
        raw: the JSON object as it came.
        etag: its version, for `etag=` of a change; None where the platform names none.
    """

    __slots__ = ("etag", "raw")
    raw: Mapping[str, Any]
    etag: str | None


def record_of(cls: type[R], answer: object, etag: str | None = None) -> R:
    """Raises `Unavailable` if `answer` is no JSON object."""
    if not isinstance(answer, dict):
        raise Unavailable("the answer is not the API's: check the endpoint")
    record = cls(**{attribute: read(answer.get(name)) for attribute, name, read in _fields(cls)})
    object.__setattr__(record, "raw", answer)
    object.__setattr__(record, "etag", etag)
    return record


_KNOWN_FIELDS: dict[type, list[tuple[str, str, Callable[[Any], Any]]]] = {}


def _fields(cls: type[Record]) -> list[tuple[str, str, Callable[[Any], Any]]]:
    if cls not in _KNOWN_FIELDS:
        hints = typing.get_type_hints(cls)
        names: Mapping[str, Any] = getattr(cls, "__dataclass_fields__", {})
        _KNOWN_FIELDS[cls] = [(name, name.rstrip("_"), _reader(hints[name])) for name in names]
    return _KNOWN_FIELDS[cls]


def _reader(hint: Any) -> Callable[[Any], Any]:
    """A function that turns JSON into `hint`; values of another shape pass as they are."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [one for one in arguments if one is not type(None)] or (Any,)
        return _reader(inner)
    if origin is tuple:
        read = _reader(arguments[0])
        return lambda value: tuple(map(read, value)) if isinstance(value, list) else value
    if origin is dict:
        read = _reader(arguments[1])
        return lambda value: (
            {name: read(one) for name, one in value.items()} if isinstance(value, dict) else value
        )
    if isinstance(hint, type) and issubclass(hint, Record):
        return lambda value: record_of(hint, value) if isinstance(value, dict) else value
    if hint is datetime:
        return lambda value: datetime.fromisoformat(value) if isinstance(value, str) else value
    return lambda value: value

"""Clients that all threads of a process share."""

from collections.abc import Callable
from typing import Generic, TypeVar, TypeVarTuple

Arguments = TypeVarTuple("Arguments")
T = TypeVar("T")


class once(Generic[*Arguments, T]):  # a decorator
    """Like functools.cache, but threads that come at the same moment all get the same object.

    There each gets the one that it made. All but one are forgotten, and a Redis client that is
    forgotten closes its connections, also those that are in use. Here a client that comes too late
    is given to nobody. `make` takes hashable positional arguments.
    """

    def __init__(self, make: Callable[[*Arguments], T]) -> None:
        self._make = make
        self._made: dict[object, T] = {}
        self.__doc__ = make.__doc__

    def __call__(self, *args: *Arguments) -> T:
        made = self._made
        return made[args] if args in made else made.setdefault(args, self._make(*args))

    def cache_clear(self) -> None:
        self._made = {}

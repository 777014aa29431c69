"""The boundary to the engine: no hook raises, and Neve logs where the engine logs."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from neve import log_events

Hook = TypeVar("Hook", bound=Callable[..., Any])


def guarded(fallback: Callable[[], Any]) -> Callable[[Hook], Hook]:
    """Turns an exception in a hook into `fallback()`; logs the first of each hook and object."""
    return guarded_for(lambda *_, **__: fallback())


def guarded_for(fallback: Callable[..., Any]) -> Callable[[Hook], Hook]:
    """As `guarded`; `fallback` gets the hook's arguments."""

    def decorate(hook: Hook) -> Hook:
        @wraps(hook)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return hook(self, *args, **kwargs)
            except Exception:
                broken = self.__dict__.setdefault("_broken_hooks", set())
                if hook.__name__ not in broken:
                    broken.add(hook.__name__)
                    log_events.HOOK_BROKEN.log(hook=hook.__name__, exc_info=True)
                return fallback(*args, **kwargs)

        return cast(Hook, call)

    return decorate


def nothing() -> None:
    return None


def log_as(engine: str) -> None:
    """Sends Neve's log where the logger `engine` sends its own, at its level, unless Neve's logger
    is already set up."""
    own, theirs = logging.getLogger("neve"), logging.getLogger(engine)
    if not own.handlers and own.level == logging.NOTSET:
        own.setLevel(theirs.getEffectiveLevel())
        own.propagate = not theirs.handlers
        for handler in theirs.handlers:
            own.addHandler(handler)

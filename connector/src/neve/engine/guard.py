"""The boundary to the engine: no hook ever raises, and Neve's log lines go where vLLM's go."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from neve import log_events

Hook = TypeVar("Hook", bound=Callable[..., Any])


def guarded(fallback: Callable[[], Any]) -> Callable[[Hook], Hook]:
    """Turns an exception in a hook into `fallback()`; logs an object's first of each hook."""

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
                return fallback()

        return cast(Hook, call)

    return decorate


def nothing() -> None:
    return None


def log_as_vllm() -> None:
    """Neve's lines go where vLLM's go, at its level, unless somebody set it up otherwise."""
    own, theirs = logging.getLogger("neve"), logging.getLogger("vllm")
    if not own.handlers and own.level == logging.NOTSET:
        own.setLevel(theirs.getEffectiveLevel())
        own.propagate = not theirs.handlers
        for handler in theirs.handlers:
            own.addHandler(handler)

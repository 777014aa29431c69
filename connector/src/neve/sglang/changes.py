"""Notices that weights were changed in a running engine.

SGLang tells a storage backend nothing of it: it flushes its own cache, and would then load KV of
the old weights from storage. All four ways lead through one class, whose methods are wrapped.
"""

import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater

from neve.errors import Misuse

CHANGES: Final = (
    "update_weights_from_disk",
    "load_weights_from_distributed",
    "update_weights_from_tensor",
    "update_weights_from_ipc",
    "begin_weight_update",
)
_listeners: "weakref.WeakSet[Any]" = weakref.WeakSet()  # with a method `on_weights_changed`
_changed = False


def watch(listener: Any) -> None:
    """Calls `listener.on_weights_changed()` before weights are changed in this process.

    Raises `Misuse` for an SGLang that changes them in other ways.
    """
    missing = [name for name in CHANGES if not hasattr(WeightUpdater, name)]
    if missing:
        raise Misuse(
            f"this SGLang's WeightUpdater has no {missing[0]}, by which Neve would know of changed "
            f"weights: use a release that docs/sglang.md names",
            field="hicache_storage_backend",
        )
    for name in CHANGES:
        change = getattr(WeightUpdater, name)
        if not hasattr(change, "tells_neve"):
            setattr(WeightUpdater, name, _telling(change))
    _listeners.add(listener)


def were_changed() -> bool:
    """Whether this process's weights are others than those it started with."""
    return _changed


def _telling(change: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(change)
    def call(*args: Any, **kwargs: Any) -> Any:
        global _changed
        _changed = True
        for listener in tuple(_listeners):
            listener.on_weights_changed()
        return change(*args, **kwargs)

    call.tells_neve = True  # type: ignore[attr-defined]
    return call

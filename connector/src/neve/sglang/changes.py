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
_may_be_changed = False  # whether the weights may be others than those the process started with
_named: set[str] = set()  # values of `revision` for the present weights
_replaced: set[str] = set()  # and for those before


def watch(listener: Any, revision: str | None, *, since_start: bool) -> None:
    """Calls `listener.on_weights_changed()` before weights are changed in this process.

    `revision` is what the operator called the weights. `since_start`: whether the server starts
    with this listener. One that comes later can't know of changes before it.

    Raises:
        Misuse: the weights need a name or another one, or this SGLang changes them in other ways.
    """
    global _may_be_changed
    missing = [name for name in CHANGES if not hasattr(WeightUpdater, name)]
    if missing:
        raise Misuse(
            f"this SGLang's WeightUpdater has no {missing[0]}, by which Neve would know of changed "
            f"weights: use a release that docs/sglang.md names",
            field="hicache_storage_backend",
        )
    is_watched = all(hasattr(getattr(WeightUpdater, name), "tells_neve") for name in CHANGES)
    may_be_changed = _may_be_changed or not (is_watched or since_start)
    if revision is None and may_be_changed:
        raise Misuse(
            "weights may have been changed in place since the server started: name those that it "
            "has now",
            field="revision",
        )
    if revision in _replaced:
        raise Misuse(
            f"{revision!r} named weights that were changed in place since: give another name",
            field="revision",
        )
    for name in CHANGES:
        change = getattr(WeightUpdater, name)
        if not hasattr(change, "tells_neve"):
            setattr(WeightUpdater, name, _telling(change))
    _may_be_changed = may_be_changed
    if revision is not None:
        _named.add(revision)
    _listeners.add(listener)


def _telling(change: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(change)
    def call(*args: Any, **kwargs: Any) -> Any:
        global _may_be_changed
        _may_be_changed = True
        _replaced.update(_named)
        _named.clear()
        for listener in tuple(_listeners):
            listener.on_weights_changed()
        return change(*args, **kwargs)

    call.tells_neve = True  # type: ignore[attr-defined]
    return call

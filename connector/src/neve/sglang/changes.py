"""Notices that weights were changed in a running engine.

SGLang tells a storage backend nothing of it: it flushes its own cache, and would then load KV of
the old weights from storage. So the methods through which all ways lead are wrapped.
"""

import sys
import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from sglang.srt.managers.cache_controller import HiCacheController
from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController
from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater
from sglang.srt.utils.weight_checker import WeightChecker

from neve.errors import Misuse

CHANGES: Final = (
    (WeightUpdater, "update_weights_from_disk"),
    (WeightUpdater, "load_weights_from_distributed"),
    (WeightUpdater, "update_weights_from_tensor"),
    (WeightUpdater, "update_weights_from_ipc"),
    (WeightUpdater, "begin_weight_update"),
    (WeightChecker, "_reset_tensors"),
)
_MAKERS: Final = [each.__init__.__code__ for each in (HiCacheController, HybridCacheController)]
_listeners: "weakref.WeakSet[Any]" = weakref.WeakSet()  # with a method `on_weights_changed`
_are_changed = False  # since the process began to watch
_named: set[str] = set()  # values of `revision` for the present weights
_replaced: set[str] = set()  # and for those before


def is_starting() -> bool:
    """Whether SGLang is just making its controller, as it does once, before it serves."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code not in _MAKERS:
        frame = frame.f_back
    return frame.f_code in _MAKERS


def watch(listener: Any, revision: str | None, *, starting: bool) -> None:
    """Calls `listener.on_weights_changed()` before weights are changed in this process.

    `revision` is what the operator called the weights. `starting`: whether the server starts with
    this listener. One that comes later can't know of changes before it, here or in the files.

    Raises:
        Misuse: the weights need a name or another one, or this SGLang changes them in other ways.
    """
    for owner, name in CHANGES:
        if not hasattr(owner, name):
            raise Misuse(
                f"this SGLang's {owner.__name__} has no {name}, by which Neve would know of "
                f"changed weights: use a release that docs/sglang.md names",
                field="hicache_storage_backend",
            )
    if revision is None and (_are_changed or not starting):
        raise Misuse(
            "weights may have been changed since the server started, in place or in their files: "
            "name those that it has now",
            field="revision",
        )
    if revision in _replaced:
        raise Misuse(
            f"{revision!r} named weights that were changed in place since: give another name",
            field="revision",
        )
    for owner, name in CHANGES:
        change = getattr(owner, name)
        if not hasattr(change, "tells_neve"):
            setattr(owner, name, _telling(change))
    if revision is not None:
        _named.add(revision)
    _listeners.add(listener)


def _telling(change: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(change)
    def call(*args: Any, **kwargs: Any) -> Any:
        global _are_changed
        _are_changed = True
        _replaced.update(_named)
        _named.clear()
        for listener in tuple(_listeners):
            listener.on_weights_changed()
        return change(*args, **kwargs)

    call.tells_neve = True  # type: ignore[attr-defined]
    return call

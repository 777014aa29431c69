"""LMCache's adapter: `NeveL2Adapter`, an L2 adapter that LMCache loads as a plugin.

    --l2-adapter '{"type": "plugin", "module_path": "neve.lmcache", "class_name": "NeveL2Adapter",
                   "adapter_params": {"endpoint": "https://…", "api_key": "neve_…"}}'

Importing this package imports neither lmcache nor torch; `adapter` does.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "NeveL2Adapter":
        from neve.lmcache.adapter import NeveL2Adapter

        return NeveL2Adapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""SGLang's adapter: `NeveStorage`, a `dynamic` HiCache storage backend.

Importing this package imports neither sglang nor torch; its modules do. Code that needs nothing of
SGLang belongs in `neve.engine`. docs/sglang.md says what is served and what is refused.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # SGLang's "module_path": "neve.sglang", "class_name": "NeveStorage".
    if name == "NeveStorage":
        from neve.sglang.storage import NeveStorage

        return NeveStorage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Every field of the installed vLLM's configuration is known: as one that decides KV, or as
harmless with a reason. Run by the vLLM interpreter; asserts.

A new one counts until somebody decides. Then engines that differ only there share nothing.
"""

import importlib
import pkgutil
from dataclasses import fields, is_dataclass

import vllm.config

from neve.vllm.settings import DECIDES, HARMLESS

modules = [
    importlib.import_module(found.name)
    for found in pkgutil.iter_modules(vllm.config.__path__, "vllm.config.")
]
classes = {
    each.__name__: each
    for module in modules
    for each in vars(module).values()
    if isinstance(each, type) and is_dataclass(each) and each.__module__.startswith("vllm.config")
}
assert len(classes) > 40, classes
known = {name for name in classes if name in HARMLESS}
unknown = []
for kind, each in classes.items():
    for field in fields(each):
        name = f"{kind}.{field.name}"
        known.add(name)
        # Fields that hold another of these classes are covered by that class's own fields.
        holds = any(other in str(field.type) for other in classes)
        if not (holds or kind in HARMLESS or name in HARMLESS or name in DECIDES):
            unknown.append(name)
assert not unknown, f"put them into neve.vllm.settings: {unknown}"
assert not set(HARMLESS) & DECIDES
gone = (set(HARMLESS) | DECIDES) - known
assert not gone, f"no such fields: {gone}"

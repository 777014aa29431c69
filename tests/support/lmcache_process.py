"""LMCache in a process of its own, driven line by line (see tests/lmcache/run_lmcache.py)."""

import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

from support.servers import ROOT
from support.vllm_engine import EngineProcess

LMCACHE_PYTHON = Path(os.environ.get("NEVE_TEST_LMCACHE_PYTHON", ROOT / ".venv-lmcache/bin/python"))
RUNNER = ROOT / "tests/lmcache/run_lmcache.py"
LMCACHE_ENV = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1"}
Fields = dict[str, Any]
# Of one chunk: two tensors, 12 KiB.
LAYOUT = [[[2, 4, 16, 32], "bfloat16"], [[2, 2, 16, 32], "bfloat16"]]
OBJECT_BYTES = 12_288


def keys(
    count: int,
    *,
    first: int = 0,
    model: str = "test/model",
    world: int = 1,
    rank: int = 0,
    group: int = 0,
    salt: str = "",
    hash_bytes: int = 32,
) -> list[Fields]:
    """`ObjectKey`s of consecutive chunks. Source: lmcache's `ObjectKey.ComputeKVRank`."""
    return [
        {
            "chunk_hash": blake2b(b"%d" % number, digest_size=hash_bytes).hexdigest(),
            "model_name": model,
            "kv_rank": world << 24 | rank << 16 | world << 8 | rank,
            "object_group_id": group,
            "cache_salt": salt,
        }
        for number in range(first, first + count)
    ]


def plugin(url: str, api_key: str, **params: Any) -> Fields:
    """The configuration by which LMCache loads Neve's adapter."""
    return {
        "type": "plugin",
        "module_path": "neve.lmcache",
        "class_name": "NeveL2Adapter",
        "adapter_params": {"endpoint": url, "api_key": api_key, "node": "lmcache-1", **params},
    }


class LmcacheProcess(EngineProcess):
    """A fresh process with LMCache. Use as a context manager."""

    def __init__(self, log: Path, **environment: str) -> None:
        super().__init__(LMCACHE_PYTHON, Path(), log, **{**LMCACHE_ENV, **environment})
        self._command[-1] = str(RUNNER)

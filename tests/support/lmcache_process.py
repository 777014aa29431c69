"""LMCache in a process of its own, driven line by line (see tests/lmcache/run_lmcache.py)."""

import json
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from support.servers import ROOT, Server, free_port
from support.vllm_engine import EngineProcess, engine_environment

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
        "adapter_params": {
            **{"endpoint": url, "api_key": api_key, "node": "lmcache-1", "revision": "r1"},
            **params,
        },
    }


class LmcacheProcess(EngineProcess):
    """A fresh process with LMCache. Use as a context manager."""

    def __init__(self, log: Path, **environment: str) -> None:
        super().__init__(LMCACHE_PYTHON, Path(), log, **{**LMCACHE_ENV, **environment})
        self._command[-1] = str(RUNNER)


class LmcacheServer(Server):
    """LMCache's own server (`lmcache server`) for engines, with an L1 of 256 MiB and one L2."""

    name = "lmcache"

    def __init__(self, folder: Path, l2: Fields, *, chunk_tokens: int) -> None:
        super().__init__(folder)
        self.port = free_port(2)
        self._l2 = l2
        self._chunk_tokens = chunk_tokens

    def environment(self) -> dict[str, str]:
        return engine_environment(**LMCACHE_ENV)

    def command(self) -> list[str]:
        return [
            *(str(LMCACHE_PYTHON.parent / "lmcache"), "server", "--disable-metrics"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--http-host", "127.0.0.1", "--http-port", str(self.port + 1)),
            *(
                "--chunk-size",
                str(self._chunk_tokens),
                "--supported-transfer-mode",
                "engine_driven",
            ),
            *("--l1-size-gb", "0.25", "--no-l1-use-lazy", "--eviction-policy", "LRU"),
            *("--l2-adapter", json.dumps(self._l2)),
        ]

    def ready(self) -> bool:
        return self.status()["is_healthy"]

    def status(self) -> Fields:
        with urlopen(f"http://127.0.0.1:{self.port + 1}/status", timeout=10) as answer:
            return json.load(answer)

    def l2(self) -> Fields:
        """What the L2 adapter says of itself."""
        (adapter,) = self.status()["storage_manager"]["l2_adapters"]
        return adapter

"""A real Valkey Cluster on loopback: three primaries with one replica each."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import valkey

from neve.index.library import load_functions
from neve.index.tier import BlockTerms, HotTier
from support.servers import ValkeyServer, free_port, wait_until

NODE_TIMEOUT_MS = 1000  # failover takes about twice as long
PRIMARIES = 3


class ClusterNode(ValkeyServer):
    """One server of the cluster: a primary or a replica."""

    def command(self) -> list[str]:
        return [
            *super().command(),
            *("--cluster-enabled", "yes", "--cluster-port", str(self.port + 1)),
            *("--cluster-config-file", str(self.folder / "nodes.conf")),
            *("--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
            *("--cluster-replica-validity-factor", "0"),
            *("--repl-diskless-sync-delay", "0"),
        ]


class Cluster:
    """Context manager. Entering returns once all nodes serve all slots."""

    def __init__(self, folder: Path) -> None:
        first = free_port(2 * 2 * PRIMARIES)
        self.nodes = [
            ClusterNode(folder / str(i), port=first + 2 * i, maxmemory="512mb")
            for i in range(2 * PRIMARIES)
        ]
        self.seeds = tuple(f"127.0.0.1:{node.port}" for node in self.nodes[:2])
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            addresses = [f"127.0.0.1:{node.port}" for node in self.nodes]
            subprocess.run(
                [
                    *("valkey-cli", "--cluster", "create", *addresses),
                    *("--cluster-replicas", "1", "--cluster-yes"),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=60,
            )
            self.wait_whole()
            wait_until(self._replicas_follow, what="replicas")
            for node in self.primaries():
                with node.client() as client:
                    load_functions(client)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait_whole(self, timeout_s: float = 30) -> None:
        """Wait until every living node reports that all slots are served."""
        wait_until(
            lambda: all(self._info(node)["cluster_state"] == "ok" for node in self._living()),
            timeout_s=timeout_s,
            what="the cluster",
        )

    def primaries(self) -> list[ClusterNode]:
        return [node for node in self._living() if self._role(node) == b"master"]

    def primary_of(self, slot: int) -> ClusterNode:
        with self._living()[0].client() as client:
            for first, last, (_, port, *_rest), *_ in client.execute_command("CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    return next(node for node in self.nodes if node.port == port)
        raise LookupError(slot)

    def tier(self, tenant_id: int, buckets: int, *, hot_bytes: int) -> HotTier:
        """A tenant's hot tier with a policy, over clients of the current primaries."""
        clients = {node.port: node.client() for node in self.nodes}

        def execute(*args: Any) -> Any:
            key = args[3] if args[0] == "FCALL" else args[1]
            slot = valkey.crc.key_slot(key)
            return clients[self.primary_of(slot).port].execute_command(*args)

        tier = HotTier(execute, tenant_id, buckets)
        tier.set_policy(hot_bytes=hot_bytes, cold_bytes=0, terms=BlockTerms(flush_after_s=None))
        return tier

    def migrate_slot(self, slot: int, to: ClusterNode, *, pause_s: float = 0.0) -> int:
        """Move a slot key by key, as `valkey-cli --cluster reshard`. Returns the number of keys.

        `pause_s`: pause between keys, so that other clients meet a half-moved slot.
        """
        source = self.primary_of(slot)
        moved = 0
        with source.client() as old, to.client() as new:
            old_id = old.execute_command("CLUSTER", "MYID")
            new_id = new.execute_command("CLUSTER", "MYID")
            new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", old_id)
            old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)
            while keys := old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
                old.execute_command("MIGRATE", to.host, to.port, keys[0], 0, 5000)
                moved += 1
                time.sleep(pause_s)
            for client in (new, old):
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new_id)
        return moved

    def _living(self) -> list[ClusterNode]:
        return [node for node in self.nodes if node.process is not None]

    def _replicas_follow(self) -> bool:
        for node in self._living():
            with node.client() as client:
                info = client.info("replication")
                if info["role"] == "slave" and info["master_link_status"] != "up":
                    return False
        return len(self.primaries()) == PRIMARIES

    @staticmethod
    def _role(node: ClusterNode) -> bytes:
        with node.client() as client:
            return client.execute_command("ROLE")[0]

    @staticmethod
    def _info(node: ClusterNode) -> dict[str, str]:
        with node.client() as client:
            info = client.execute_command("CLUSTER", "INFO")
        text = info.decode() if isinstance(info, bytes) else info
        if isinstance(text, dict):
            return text
        return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)

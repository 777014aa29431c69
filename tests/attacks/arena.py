"""A platform with two tenants, as it is now or as it was before anything bounded them."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

from attacks.hostile import Hostile, begin
from attacks.neighbour import Neighbour
from neve.formats.keys import BucketKeys
from neve.index import library
from support.servers import ControlPlane, S3Server, Worker

QUOTA_BYTES = 64 << 20
MAXMEMORY = "384mb"
QUEUES = "data-at-risk,speed-at-risk,room-at-risk,view-at-risk,reuse-at-risk"

MAKE_TENANTS = f"""
from retention.services import set_policy
from tenants.audit import SYSTEM
from tenants.services import create_tenant, issue_key
for slug in ("hostile", "neighbour"):
    size = dict(hot_bytes={QUOTA_BYTES}, cold_bytes=0, overcommit=True)
    tenant = create_tenant(slug=slug, name=slug, **size)
    set_policy(tenant=tenant, actor=SYSTEM, flush_mode="never")
    print(issue_key(tenant=tenant, role="node", name=slug)[1])
"""
TELL = "SELECT cut_off_at, cut_off_reason FROM tenants_tenant WHERE slug = 'hostile'"
OLD_OPTIONS = {
    "maxmemory-clients": "0",
    "proto-max-bulk-len": "512mb",
    "client-query-buffer-limit": "1gb",
    "client-output-buffer-limit": "normal 0 0 0",
    "timeout": "0",
}


class WithoutWatch(Worker):
    def command(self) -> list[str]:
        return [*super().command(), "--queues", QUEUES]


class Arena:
    """Context manager. `before`: removes bounds, rights and the watch where possible."""

    def __init__(self, folder: Path, s3: S3Server, *, before: bool = False) -> None:
        self.platform = ControlPlane(folder, s3, maxmemory=MAXMEMORY)
        self.before = before
        self._worker = WithoutWatch(self.platform) if before else Worker(self.platform)

    def __enter__(self) -> "Arena":
        self.platform.__enter__()
        try:
            self._worker.__enter__()
            self.hostile_key, self.neighbour_key = self._shell(MAKE_TENANTS)[-2:]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.stop()
        self.platform.stop()

    def cut_off(self) -> tuple[float | None, str]:
        """When and why the platform cut the hostile tenant off; None: it did not."""
        where = f"file:{self.platform.folder}/neve.sqlite3?mode=ro"
        with closing(sqlite3.connect(where, uri=True, timeout=20)) as database:
            at, why = database.execute(TELL).fetchone()
        return at and datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp(), why

    def fight(self, attack: Any, stop: Event, *, until: Any) -> tuple[Neighbour, Hostile]:
        """Attacks until `until(neighbour)` returns; returns the neighbour's notes."""
        hostile = Hostile(self.platform.url, self.hostile_key)
        if self.before:
            self._take_bounds_away(hostile)
        try:
            with Neighbour(self.platform.url, self.neighbour_key) as neighbour:
                thread = begin(attack, hostile, stop)
                until(neighbour)
                stop.set()
                thread.join(60)
        finally:
            stop.set()
            hostile.close()
        return neighbour, hostile

    def make_good(self, tenant_id: int) -> None:
        """Removes what the attack left, and lets the tenant in again."""
        with self.platform.hot.client(socket_timeout=60) as admin:
            for key in admin.scan_iter(match=f"{{t{tenant_id}.*}}:b:*", count=1000):
                admin.unlink(key)
            admin.unlink(*BucketKeys(tenant_id, 0).arguments)
        if self.cut_off()[0] is not None:
            self.platform.manage("let_in", "hostile")

    def _take_bounds_away(self, hostile: Hostile) -> None:
        with self.platform.hot.client() as admin:
            for option, value in OLD_OPTIONS.items():
                admin.config_set(option, value)
            rules = ["reset", "on", f">{hostile.password}", f"~{{t{hostile.tenant_id}.*", "+@all"]
            admin.execute_command("ACL", "SETUSER", hostile.user, *rules)
            source = self._library(admin).replace(
                "CALL_MOST, PIN_MOST = 1000,", "CALL_MOST, PIN_MOST = 1e9,", 1
            )
            admin.execute_command("FUNCTION", "LOAD", "REPLACE", source)

    @staticmethod
    def _library(admin: Any) -> str:
        told = admin.execute_command("FUNCTION", "LIST", "LIBRARYNAME", "neve", "WITHCODE")
        return next(text for text in library._strings(told) if b"#!lua" in text).decode()

    def _shell(self, code: str) -> list[str]:
        return self.platform.manage("shell", "--no-imports", "-v0", "-c", code).splitlines()

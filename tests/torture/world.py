"""The servers that all trials share, and what one trial owns of them.

All programs use S3 through the proxy; the test itself reads it directly.
"""

import os
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import urllib3

from support.servers import ROOT, ControlPlane, S3Server, ValkeyServer
from torture.clock import Clock
from torture.plan import Persistence
from torture.proxy import FaultProxy

SIGNED_S = 7 * 86400  # as long as S3 allows


class TortureValkey(ValkeyServer):
    """A Valkey with a clock of its own, whose disk can be filled."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__(folder, maxmemory="512mb")
        self.clock = clock
        self.persistence = Persistence.NONE

    def environment(self) -> dict[str, str]:
        return super().environment() | self.clock.environment

    def command(self) -> list[str]:
        log = "yes" if self.persistence is Persistence.LOG else "no"
        # A full disk is an error of write(), as everywhere, and not a signal that kills.
        ignore = ["sh", "-c", 'trap "" XFSZ; exec "$@"', "sh"]
        return [*ignore, *super().command(), "--appendonly", log]

    def begin(self, persistence: Persistence) -> None:
        """Empties the server."""
        self.kill()
        self.clock.offset_s = 0
        for path in (self.folder / "dump.rdb", *self.folder.glob("appendonlydir/*")):
            path.unlink(missing_ok=True)
        self.persistence = persistence
        self.__enter__()

    def snapshot(self) -> None:
        with self.client() as client:
            client.execute_command("SAVE")


class TortureS3(S3Server):
    """SeaweedFS. Whether it is ready is asked with URLs that were signed while clocks were right.

    It refuses requests signed 15 minutes off its own time, and it is restarted while the clock of
    this process may be wrong.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        sign = partial(
            self.client().generate_presigned_url,
            Params={"Bucket": "probe", "Key": "ready"},
            ExpiresIn=SIGNED_S,
        )
        self._put, self._get = sign("put_object"), sign("get_object")
        self._http = urllib3.PoolManager(retries=False, timeout=2)

    def ready(self) -> bool:
        """Writes a byte and reads it back."""
        try:
            self._http.request("PUT", self._put, body=b"1")
            return self._http.request("GET", self._get).data == b"1"
        except urllib3.exceptions.HTTPError:
            return False


class TorturePlatform(ControlPlane):
    """The web process, which uses S3 through the proxy."""

    def __init__(self, folder: Path, s3: S3Server, proxy: FaultProxy, clocks: list[Clock]) -> None:
        super().__init__(folder, s3)
        self.hot = TortureValkey(folder / "hot", clocks[0])
        self.proxy = proxy
        self.clock = clocks[1]

    def environment(self) -> dict[str, str]:
        all_ = super().environment() | self.clock.environment
        all_["NEVE_S3_ENDPOINT"] = self.proxy.url
        all_["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'tests'}"
        return all_


class World:
    """Context manager; takes 12 s to start. Sets this process's environment for Django.

    `valkey_clock`: of Valkey. `clock`: of the web process, workers, nodes and this process.
    """

    def __init__(self, folder: Path) -> None:
        self.valkey_clock = Clock(folder, "valkey")
        self.clock = Clock(folder, "python")
        self.local_folder = folder / "local"  # of the nodes of a trial
        self.s3 = TortureS3(folder / "s3")
        self.far = TortureS3(folder / "far")
        self.proxy, far_proxy = FaultProxy(self.s3.port), FaultProxy(self.far.port)
        self.proxies = (self.proxy, far_proxy)
        clocks = [self.valkey_clock, self.clock]
        self.platform = TorturePlatform(folder / "web", self.s3, self.proxy, clocks)
        self.processes = get_context("forkserver")

    @property
    def valkey(self) -> TortureValkey:
        return self.platform.hot

    def __enter__(self) -> Self:
        try:
            for part in (*self.proxies, self.s3, self.far):
                part.__enter__()
            self.platform.__enter__()
        except BaseException:
            self.__exit__()
            raise
        os.environ.update(self.platform.environment())
        import django

        django.setup()
        self.far_store = self._add_far()
        self.processes.set_forkserver_preload(["torture.preload"])
        return self

    def __exit__(self, *exc: object) -> None:
        self.platform.stop()
        self.s3.stop()
        self.far.stop()
        for proxy in self.proxies:
            proxy.__exit__()

    def _add_far(self) -> Any:
        """The row of the second store, which programs use through a proxy of its own."""
        from catalog.models import Store
        from catalog.stores import sealed

        far, bucket = self.far, self.far.bucket("far")
        return Store.objects.create(
            name="far", endpoint=self.proxies[1].url, bucket=bucket, region=far.region,
            access_key=far.access_key, sealed_secret=sealed(far.secret_key),
        )  # fmt: skip

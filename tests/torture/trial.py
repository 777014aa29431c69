"""One trial: work under faults, then the repairs of operator and schedule, then the check."""

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from django.conf import settings

from catalog.models import Segment, SegmentCopy
from catalog.store_changes import add_rule
from catalog.stores import default_row
from neve.formats.space import SpaceIdentity
from retention.services import set_policy
from storage.hot import hot_tier
from tenants.audit import SYSTEM
from tenants.models import Tenant
from tenants.services import create_tenant, issue_key, remove_tenant
from torture import model, node, tuning, worker
from torture.audit import Findings, Place, Places, audit, index_of, remains_of
from torture.crew import Crew
from torture.faults import FAULT
from torture.model import Model
from torture.plan import Fault, Moves, Plan
from torture.world import World
from workers import tasks

BLOCK_BYTES = 16 << 10
START_S = 30.0
END_S = 3.0  # for processes to finish what they do; then they are killed
ROUNDS = 10  # of recovery, each a minute later; after them all must be well
PASS_TIME_S = tuning.GRACE_S + 10
READ_S = 60.0
SCHEDULE = (
    *(tasks.check_stores, tasks.rebuild_index, tasks.flush, tasks.sweep, tasks.compact),
    *(tasks.expire, tasks.retain, tasks.move),
    *(tasks.remove_space, tasks.remove_tenant, tasks.reconcile, tasks.sample),
)


@dataclass
class Owner:
    """A tenant of the trial. `chains` seeds its chains."""

    id: int
    key: str
    chains: int
    model: Model = field(default_factory=Model)
    findings: Findings = field(default_factory=Findings)
    lost: list[bytes] = field(default_factory=list)
    encoded: int = 0


@dataclass
class Result:
    """What failed in one trial, and counts of what happened.

    `encoded`: blocks that a codec had made smaller in S3. `moved`: segments that were moved or
    copied at least once, of those left at the end.
    """

    wrong: int = 0
    lost: int = 0
    drift_bytes: int = 0
    orphans: int = 0
    complaints: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    stored: int = 0
    durable: int = 0
    served: int = 0
    local: int = 0
    encoded: int = 0
    moved: int = 0
    misses: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        return not (self.wrong or self.lost or self.drift_bytes or self.orphans)


class Trial:
    """For one use. `run` raises only if the test itself is broken."""

    def __init__(self, world: World, plan: Plan) -> None:
        self.world = world
        self.plan = plan
        self.local = node.Local(world.local_folder, plan.local_blocks * BLOCK_BYTES)
        bucket, far = settings.ENV.s3_bucket, world.far_store
        self.places: Places = {
            None: Place("default", world.s3.client(attempts=1), bucket),
            far.pk: Place(far.name, world.far.client(attempts=1), far.bucket),
        }
        self.crew = Crew(world.processes)
        self.tenants: list[Owner] = []
        self.stopped: set[str] = set()
        self.valkey_disk_was_full = False
        self.result = Result()
        self._ready = 0

    def run(self) -> Result:
        self.world.valkey.begin(self.plan.persistence)
        try:
            self._settle()
            with self._timed("work"):
                self._work()
            with self._timed("recover"):
                self._recover()
            with self._timed("read"):
                self._judge()
                self._judge_local()
            with self._timed("remove"):
                self._remove()
        finally:
            self.crew.kill_all()
            shutil.rmtree(self.local.folder, ignore_errors=True)
        return self.result

    def is_running(self, name: str) -> bool:
        """Whether "valkey", "s3" or "far" can answer, as far as faults go."""
        return getattr(self.world, name).process is not None and name not in self.stopped

    def _settle(self) -> None:
        tasks.rebuild_index()
        for n in range(self.plan.tenants):
            tenant = create_tenant(
                slug=f"t{uuid4().hex[:12]}",
                name=f"{self.plan.seed}.{n}",
                hot_bytes=self.plan.hot_blocks * BLOCK_BYTES,
                cold_bytes=self.plan.cold_blocks * BLOCK_BYTES,
                overcommit=True,  # tenants of earlier trials are there still
            )
            self._set_policy(tenant)
            _, key = issue_key(tenant=tenant, role="node", name="node")
            self._add_rules(tenant)
            owner = Owner(tenant.pk, key, chains=self.plan.seed * 10 + n)
            owner.model.may_expire = self.plan.ttl_s is not None
            is_cold_small = self.plan.cold_blocks < model.CHAINS * model.CHAIN_BLOCKS
            owner.model.hot_only = self.plan.flush_after_s is None or is_cold_small
            owner.model.cold_evicts = is_cold_small and self.plan.cold_full == "evict"
            self.tenants.append(owner)

    def _set_policy(self, tenant: Tenant) -> None:
        after_s = self.plan.flush_after_s
        mode = "never" if after_s is None else "after" if after_s else "now"
        set_policy(
            tenant=tenant, actor=SYSTEM,
            flush_mode=mode, flush_after_s=after_s or None, cold_ttl_s=self.plan.ttl_s,
            cold_full=self.plan.cold_full, cold_codec=self.plan.cold_codec,
            lossy_codecs=f"{node.MODEL}={node.LOSSY.codec}",
        )  # fmt: skip

    def _add_rules(self, tenant: Tenant) -> None:
        here, far, how = default_row(), self.world.far_store, self.plan.moves
        ways = {
            Moves.FRO: [(here, far), (far, here)],
            Moves.OUT: [(here, far)],
            Moves.COPIES: [(here, far)],
            Moves.NONE: [],
        }
        for source, target in ways[how]:
            add_rule(
                actor=SYSTEM, name=f"{tenant.slug} to {target.name}", tenant=tenant, source=source,
                target=target, is_copy=how is Moves.COPIES,
            )  # fmt: skip

    def _identity(self, n: int) -> SpaceIdentity:
        """Of node `n`. Nodes of one tenant are in both spaces, if there are two."""
        is_second = n // len(self.tenants) % 2 == 1
        return node.LOSSY if self.plan.has_lossy and is_second else node.IDENTITY

    def _work(self) -> None:
        rng = random.Random(self.plan.seed)
        for n in range(self.plan.nodes):
            owner = self.tenants[n % len(self.tenants)]
            self.crew.start(
                "node", node.run_node,
                self.world.platform.url, owner.key, f"n{n}", rng.getrandbits(32), owner.chains,
                self.local, self._identity(n),
                tell=lambda message, owner=owner: self._hear_node(owner, message),
            )  # fmt: skip
        for _ in range(self.plan.workers):
            self.crew.start(
                "worker", worker.run_worker, rng.getrandbits(32), tell=self._hear_worker
            )
        self._wait_for_nodes()
        start = time.monotonic()
        with ExitStack() as faults:
            self._let_happen(start, list(self.plan.faults), faults)
        self.crew.ask_to_end()
        end = time.monotonic() + END_S
        while self.crew.members and time.monotonic() < end:
            self.crew.hear(0.05)
        self.crew.kill_all()

    def _wait_for_nodes(self) -> None:
        end = time.monotonic() + START_S
        while self._ready < self.plan.nodes:
            if time.monotonic() > end:
                raise TimeoutError("the nodes do not start")
            self.crew.hear(0.05)

    def _let_happen(self, start: float, waiting: list[Fault], left: ExitStack) -> None:
        """Begins and ends faults in time and hears the processes. `left` ends what still runs."""
        running: list[tuple[float, ExitStack]] = []
        while (at := time.monotonic() - start) < self.plan.work_s or waiting:
            while waiting and waiting[0].at_s <= at:
                fault = waiting.pop(0)
                own = left.enter_context(ExitStack())
                did = own.enter_context(FAULT[fault.kind](self, random.Random(fault.seed)))
                self.result.faults[fault.kind] += did
                running.append((fault.at_s + fault.for_s, own))
            for ends_s, own in list(running):
                if ends_s <= at:
                    running.remove((ends_s, own))
                    own.close()
            self.crew.hear(0.02)

    def _hear_node(self, owner: Owner, message: Any) -> None:
        kind, what = message
        if kind == "ready":
            self._ready += 1
        elif kind == "tried":
            owner.model.tried.update(what)
        elif kind == "stored":
            owner.model.stored.update(what)
        elif kind == "refused":
            owner.model.refused.update(what)
        elif kind == "served":
            owner.model.served += what
        elif kind == "local":
            self.result.local += what
        elif kind == "wrong":
            owner.model.wrong += [f"a node was served {id_.hex()}" for id_ in what]
        elif kind == "missed":
            owner.model.misses.update(what)

    def _hear_worker(self, message: Any) -> None:
        kind, what = message
        if kind == "durable":
            for owner in self.tenants:
                owner.model.durable.update(owner.model.tried.intersection(what))
        elif kind == "failed":
            self.result.misses[what] += 1

    def _recover(self) -> None:
        """Runs the schedule's tasks after the faults until nothing is left to repair."""
        for name in ("s3", "far"):
            if self.result.faults[f"disk_full_{name}"]:
                # A directory's LevelDB in SeaweedFS takes no write any more after one that failed.
                getattr(self.world, name).restart()
        self.world.clock.offset_s = self.world.valkey_clock.offset_s = 0
        for self.result.rounds in range(1, ROUNDS + 1):
            self.world.clock.offset_s += PASS_TIME_S
            self.world.valkey_clock.offset_s += PASS_TIME_S
            with self._lists_that_lag():
                for task in SCHEDULE:
                    task()
            if all(self._look(owner) for owner in self.tenants):
                break

    @contextmanager
    def _lists_that_lag(self) -> Iterator[None]:
        """In the first round after stale lists they are stale still: few other requests list."""
        with ExitStack() as trouble:
            if self.result.faults["s3_stale_list"] and self.result.rounds == 1:
                for proxy in self.world.proxies:
                    trouble.enter_context(proxy.trouble("s3_stale_list", self.plan.seed))
            yield

    def _look(self, owner: Owner) -> bool:
        with self.world.valkey.client() as client:
            entries = index_of(client, owner.id)
            owner.findings = audit(
                client, self.places, owner.id, uncounted_bytes=owner.model.uncounted_bytes
            )
        owner.encoded = sum(bool(e.encoded_size) for e in entries.values())
        late = [e for e in entries.values() if e.is_dirty]
        if late and self.plan.flush_after_s is not None:
            owner.findings.orphans.append(f"{len(late)} blocks are still not flushed")
        return not (owner.findings.drift_bytes or owner.findings.orphans)

    @staticmethod
    def _count_moved(owner: Owner) -> int:
        copied = SegmentCopy.unscoped.filter(tenant_id=owner.id, state=SegmentCopy.State.KEPT)
        moved = Segment.unscoped.filter(tenant_id=owner.id, moved_at__isnull=False)
        return moved.count() + copied.count()

    def _judge(self) -> None:
        for owner in self.tenants:
            self._read_all(owner)  # finds what is corrupt; the index forgets it
            hot_tier(owner.id).evict(1 << 40)
            outcomes = self._read_all(owner)
            self._read_all(owner, self.local)
            tasks.reconcile()
            self._look(owner)
            lost, truth = owner.model.lost(outcomes), owner.model
            result = self.result
            result.wrong += len(truth.wrong)
            result.lost += len(lost)
            result.drift_bytes += owner.findings.drift_bytes
            result.orphans += len(owner.findings.orphans)
            result.stored += len(truth.stored)
            result.durable += len(truth.durable)
            result.served += truth.served
            result.encoded += owner.encoded
            result.moved += self._count_moved(owner)
            result.misses.update(truth.misses)
            result.complaints += truth.wrong
            result.complaints += [
                f"lost {id_.hex()} ({'durable' if id_ in truth.durable else 'stored'}): "
                f"{outcomes[id_]}"
                for id_ in lost
            ]
            unexplained = truth.unexplained(outcomes)
            result.orphans += len(unexplained)
            result.complaints += [
                f"damaged {id_.hex()} is missed as {outcomes[id_]}" for id_ in unexplained
            ]
            result.complaints += [f"drift {line}" for line in owner.findings.drifts]
            result.complaints += owner.findings.orphans

    def _judge_local(self) -> None:
        """The nodes' local tier keeps its size, whoever was killed in the middle of a write."""
        sizes = [path.stat().st_size for path in self.local.folder.glob("*/*/??/" + "?" * 32)]
        is_counted = not self.result.faults["foreign_local"]  # which makes files longer
        if is_counted and sum(sizes) > self.local.most_bytes:
            self.result.orphans += 1
            self.result.complaints.append(f"local files take {sum(sizes)} bytes")

    def _read_all(self, owner: Owner, local: node.Local | None = None) -> dict[bytes, str | None]:
        outcomes: dict[bytes, str | None] = {}

        def hear(message: Any) -> None:
            outcomes.update(message[1])

        reader = self.crew.start(
            "reader", node.read_all, self.world.platform.url, owner.key, owner.chains, local,
            sorted({self._identity(n) for n in range(self.plan.nodes)}, key=str), tell=hear,
        )  # fmt: skip
        end = time.monotonic() + READ_S
        while reader in self.crew.members:
            if time.monotonic() > end:
                raise TimeoutError("the reader did not end")
            self.crew.hear(1)
        for id_, outcome in outcomes.items():
            if outcome == "wrong":
                owner.model.wrong.append(f"the reader was served {id_.hex()}")
        assert outcomes.keys() >= owner.model.stored, "the reader died"
        return outcomes

    def _remove(self) -> None:
        """Removes the tenants: none of their data may reach the next trial."""
        self.world.clock.offset_s = 0
        for owner in self.tenants:
            remove_tenant(tenant=Tenant.objects.get(pk=owner.id), actor=SYSTEM)
        tasks.remove_space()
        tasks.remove_tenant()
        with self.world.valkey.client() as client:
            for owner in self.tenants:
                left = remains_of(client, self.places, owner.id)
                self.result.orphans += len(left)
                self.result.complaints += [f"left of a removed tenant: {what}" for what in left]

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.result.seconds[name] = time.monotonic() - start

"""What-if estimates and recommendations of a tenant, as jobs.

The pure part is `neve.planner.whatif`. Here: today's tiers from quota and policy, the worth of a
hit from measured speeds and prices, the measured hit rate beside the simulated one, and jobs that
simulate in a process of their own (`planning.simulating`). A job's `detail` is its result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any, Final

from django.db import transaction
from django.utils import timezone

from base.problems import Problem
from catalog import jobs, usage
from catalog.kinds import RECOMMEND, WHAT_IF
from catalog.models import Job, NodeSession, Space
from catalog.models.spaces import ranks_of
from catalog.targets import Opener, Target
from catalog.windows import Period
from contexts.cost import MOST_NODES
from neve.errors import Misuse
from neve.formats.block import HEADER_BYTES
from neve.planner import whatif
from neve.planner.changes import Change
from neve.planner.simulate.samples import Samples
from neve.planner.simulate.tiers import Promote, Setting, TierSetting
from neve.planner.speeds import measured
from planning import prices, samples
from planning.simulating import TooMuch, simulate
from retention.models import ColdFull, FlushMode, RetentionPolicy
from tenants.audit import Actor, record
from tenants.models import Quota, Tenant
from tenants.scope import tenant_scope

MOST_CHANGES: Final = 12
MOST_UNFINISHED: Final = 5  # what-if jobs of a tenant
MOST_KEPT: Final = 20  # ended what-if jobs of a tenant; older ones are deleted
MOST_ADVICE: Final = 5  # kept recommendations of a tenant
# Block reads that one simulation plays, at most; of more, every second block is left out, and so
# on.
MOST_READS: Final = 300_000
WINDOWS: Final = (timedelta(minutes=15), timedelta(days=14))  # usage by minutes is kept so long
LEAST_COLD_HITS: Final = 100  # for the GETs of a cold hit; below, one is taken
DEFAULT_WINDOW: Final = timedelta(hours=24)
FRESH: Final = timedelta(hours=6)
FRESH_OF_FEW: Final = timedelta(minutes=15)  # a new tenant has enough samples soon
OLD: Final = timedelta(hours=24)
ANY_BLOCK_TOKENS: Final = 256  # without a measured look-up
ANY_BLOCK_BYTES: Final = 1 << 20  # where a setting is only shown or compared
WARM_UP_SHARE: Final = 0.25  # of a window without older samples


def request(
    *, tenant: Tenant, changes: Sequence[Change], window_s: int, space: Space | None, actor: Actor
) -> Job:
    """Requests the what-if job of these changes, over the last `window_s`.

    Raises Problem: malformed (a change without sense, with `field`), limit-reached.
    """
    if not 1 <= len(changes) <= MOST_CHANGES:
        raise _malformed("changes", f"needs 1 to {MOST_CHANGES} changes")
    least, most = (int(each.total_seconds()) for each in WINDOWS)
    if not least <= window_s <= most:
        raise _malformed("window", "needs to be 15m to 14d")
    today = today_of(tenant.pk, block_bytes=ANY_BLOCK_BYTES)
    for place, change in enumerate(changes):
        try:
            change.apply(today)
        except Misuse as error:
            raise _malformed(f"changes[{place}].{error.field}", error.detail) from error
    with tenant_scope(tenant.pk), transaction.atomic():
        Quota.objects.select_for_update().get()  # two requests count one after the other
        mine = Job.objects.filter(kind=WHAT_IF.name)
        unfinished = mine.filter(state__in=(Job.State.QUEUED, Job.State.RUNNING))
        if unfinished.count() >= MOST_UNFINISHED:
            raise Problem(
                "limit-reached",
                f"what_if_jobs: {MOST_UNFINISHED} of the tenant wait or run; cancel one or wait.",
                limit="what_if_jobs",
                most=MOST_UNFINISHED,
            )
        _keep(mine, MOST_KEPT)
        job = jobs.enqueue(
            WHAT_IF.name,
            tenant_id=tenant.pk,
            by=actor.name,
            changes=[change.given() for change in changes],
            window_s=window_s,
            space_id=space.pk if space else 0,
        )
        record(
            actor=actor, tenant_id=tenant.pk, action="what_if.request", obj=job, after=job.arguments
        )
        return job


def work(
    job: Opener, tenant_id: int, changes: list[dict[str, str]], window_s: int, space_id: int
) -> None:
    """Simulates one request. Only on request."""
    with job() as run:
        now = timezone.now()
        window = (now - timedelta(seconds=window_s), now)
        run.detail(_estimate(run, tenant_id, changes, window, space_id))


def tenants_to_advise() -> list[Target]:
    """At most one: the active tenant with samples whose recommendation is the oldest and not
    fresh."""
    known = samples.tenants_with_samples()
    rows = Job.unscoped.filter(kind=RECOMMEND.name, tenant_id__in=known).order_by("created_at")
    # Shifted: the age of one from too few samples counts faster.
    made = {
        id_: at - (FRESH - FRESH_OF_FEW if reason == "too_few_samples" else timedelta())
        for id_, at, reason in rows.values_list(
            "tenant_id", "created_at", "detail__recommendation__reason"
        )
    }
    due = [id_ for id_ in known if id_ not in made or made[id_] < timezone.now() - FRESH]
    oldest = datetime.min.replace(tzinfo=timezone.now().tzinfo)
    return [(id_, {}) for id_ in sorted(due, key=lambda each: made.get(each, oldest))[:1]]


def recommend(job: Opener, tenant_id: int) -> None:
    """Compare the fixed list of changes and choose one, or none."""
    if job.is_waiting():
        return
    with job() as run:
        now = timezone.now()
        window = (now - DEFAULT_WINDOW, now)
        run.detail(_estimate(run, tenant_id, None, window, 0))
    with tenant_scope(tenant_id):
        _keep(Job.objects.filter(kind=RECOMMEND.name), MOST_ADVICE)


def latest(tenant_id: int) -> Job | None:
    """The newest recommendation that is there."""
    with tenant_scope(tenant_id):
        made = Job.objects.filter(kind=RECOMMEND.name, state=Job.State.DONE)
        found: Job | None = made.order_by("-finished_at").first()
    return found


def newest_of(tenant_ids: Sequence[int]) -> dict[int, tuple[str, datetime]]:
    """Words and time of each tenant's newest recommendation; without those that have none."""
    made = Job.unscoped.filter(
        kind=RECOMMEND.name, state=Job.State.DONE, tenant__in=tenant_ids, finished_at__isnull=False
    )
    rows = made.order_by("finished_at")
    found = rows.values_list("tenant_id", "detail__recommendation__words", "finished_at")
    return {id_: (words, at) for id_, words, at in found if words and at}


@dataclass(frozen=True)
class Advice:
    """The newest recommendation. `verdict`: change, nothing, or unknown (no samples, none yet).

    `change`: members of `neve.planner.changes.Change`. `result`: as a what-if job's detail.
    `is_outdated`: quota or policy changed since, or it is old.
    """

    verdict: str
    reason: str
    words: str
    change: dict[str, str] | None = None
    made_at: datetime | None = None
    is_outdated: bool = False
    result: dict[str, Any] | None = None
    job: Job | None = None


def advice_of(tenant_id: int) -> Advice:
    job = latest(tenant_id)
    detail: dict[str, Any] = job.detail if job else {}
    found = detail.get("recommendation")
    if job is None or not found or job.finished_at is None:
        without = _without(tenant_id)["recommendation"]
        return Advice("unknown", without["reason"], without["words"])
    if "today" not in detail:
        return Advice("unknown", found["reason"], found["words"], made_at=job.finished_at, job=job)
    was = detail["today"]["setting"]
    now = whatif.setting_dict(today_of(tenant_id, block_bytes=was["block_bytes"]))
    is_old = job.finished_at < timezone.now() - OLD
    place = found["change"]
    return Advice(
        "nothing" if place is None else "change",
        found["reason"],
        found["words"],
        None if place is None else detail["changes"][place]["change"],
        job.finished_at,
        is_outdated=is_old or was != now,
        result=detail,
        job=job,
    )


def today_of(tenant_id: int, *, block_bytes: int) -> Setting:
    """The tenant's tiers as quota and policy say. Rules for spaces and contexts are left out."""
    with tenant_scope(tenant_id):
        quota, policy = Quota.objects.get(), RetentionPolicy.objects.get()
    lives = [each for each in (policy.cold_ttl_s, policy.max_age_s) if each is not None]
    flushes = policy.flush_mode != FlushMode.NEVER and quota.cold_bytes > 0
    cold_policy = "refuse" if policy.cold_full == ColdFull.REFUSE else "lru"
    return Setting(
        hot=TierSetting(max(1, quota.hot_bytes), policy.eviction, policy.hot_idle_s),
        cold=TierSetting(quota.cold_bytes, cold_policy) if flushes else None,
        block_bytes=block_bytes,
        promote=Promote.SECOND_READ if policy.promote_window_s else Promote.NEVER,
        promote_window_s=policy.promote_window_s or 1,
        ttl_s=min(lives, default=None),
        flush_after_s=policy.flush_after_s or 0,
    )


@dataclass(frozen=True)
class Counted:
    """What nodes of a tenant reported for a window, in whole minutes."""

    start: datetime
    end: datetime
    totals: Mapping[str, int]
    misses: Mapping[str, int]

    @property
    def measured(self) -> whatif.Measured:
        # A simulation knows no nodes: what they read from their own tiers is hot there.
        hot = self.totals["hit_hot_blocks"] + self.totals["hit_local_blocks"]
        hits = {"hot": hot, "cold": self.totals["hit_cold_blocks"]}
        return whatif.Measured(self.totals["requested_blocks"], hits, self.misses)


def counted(tenant_id: int, start: datetime, end: datetime) -> Counted:
    """`start` and `end` are whole minutes."""
    period = Period(int(start.timestamp()), int(end.timestamp()), 60, 60)
    points = usage.series_of(tenant_ids=[tenant_id], period=period)
    names = {name for point in points for name, value in point.items() if isinstance(value, int)}
    names |= {
        "requested_blocks",
        "requested_tokens",
        "hit_hot_blocks",
        "hit_cold_blocks",
        "hit_local_blocks",
    }
    totals = {name: sum(point.get(name) or 0 for point in points) for name in names}
    misses: dict[str, int] = {}
    for point in points:
        misses = usage.add(misses, point["misses"])
    return Counted(start, end, totals, misses)


def economics_of(tenant_id: int, known: Counted, block_bytes: int) -> whatif.Economics:
    """The worth of a hit, as nodes of the tenant measured it in the window."""
    with tenant_scope(tenant_id):
        rows = NodeSession.objects.filter(last_heartbeat_at__gte=known.start).exclude(speeds={})
        each = list(rows.values_list("speeds", "space__identity")[:MOST_NODES])
    totals = known.totals
    asked = totals["requested_blocks"]
    tokens = max(1, round(totals["requested_tokens"] / asked)) if asked else ANY_BLOCK_TOKENS
    if spared := totals.get("spared_tokens", 0):
        prefill: float | None = totals.get("spared_gpu_us", 0) / 1e6 / spared
        basis = "as engines measured it for the loads of this window"
    else:
        prefill = _median("prefill_s_per_token", each)
        basis = "the engines' speed without the part that grows with the prompt"
    loads = {
        tier: block_bytes / tokens * per_byte
        for tier in ("hot", "cold")
        if (per_byte := _median(f"{tier}_bytes_per_s", each, is_speed=True)) is not None
    }
    gets, cold_hits = totals.get("cold_requests", 0), totals["hit_cold_blocks"]
    return whatif.Economics(
        prices.prices_of(prices.in_force(prices.today())),
        tokens,
        prefill,
        loads,
        gets_per_hit=gets / cold_hits if gets and cold_hits >= LEAST_COLD_HITS else 1.0,
        basis=basis,
    )


def _median(
    name: str,
    each: Sequence[tuple[Mapping[str, float], Mapping[str, Any]]],
    *,
    is_speed: bool = False,
) -> float | None:
    """GPU seconds per unit over nodes; None if none measured it. `is_speed`: units per second."""
    found = []
    for speeds, identity in each:
        value = measured(speeds, name)
        if value:
            gpus = ranks_of(identity)
            found.append(gpus / value if is_speed else gpus * value)
    return median(found) if found else None


def _estimate(
    run: jobs.JobRun,
    tenant_id: int,
    changes: list[dict[str, str]] | None,
    window: tuple[datetime, datetime],
    space_id: int,
) -> dict[str, Any]:
    """The result of a job. `changes` None: the fixed list, and a recommendation."""
    start, end = (each.replace(second=0, microsecond=0) for each in window)
    seen = samples.read(tenant_id, start - (end - start), end, space_id=space_id)
    if not seen.requests:
        return _without(tenant_id)
    first_s = seen.requests[0].at_s
    if first_s > start.timestamp() - 60:
        # Nothing older fills the tiers: the first part of what is there does.
        start = datetime.fromtimestamp(
            first_s + WARM_UP_SHARE * (seen.requests[-1].at_s - first_s), start.tzinfo
        ).replace(second=0, microsecond=0) + timedelta(minutes=1)
    known = counted(tenant_id, start, end)
    asked_blocks = samples.read(tenant_id, start, end, space_id=space_id).totals.asked_blocks
    block_bytes = _block_bytes(tenant_id, seen)
    today = today_of(tenant_id, block_bytes=block_bytes)
    economics = economics_of(tenant_id, known, block_bytes)
    task = {
        "setting": whatif.setting_dict(today),
        "rate": seen.rate,
        "count_from_s": start.timestamp(),
        "asked_blocks": asked_blocks or None,
        "changes": changes,
        "economics": asdict(economics)
        | {"prices": {name: str(value) for name, value in asdict(economics.prices).items()}},
        "measured": asdict(known.measured) if not space_id else None,
        "most_reads": MOST_READS,
        "with_curve": changes is None,
    }
    try:
        found = simulate(task, seen.as_requests(), progress=run.progress)
    except Misuse as error:
        if error.field == "traffic":  # no sampled read in the counted part
            return _without(tenant_id)
        raise jobs.GiveUp(str(error)) from error
    except TooMuch as error:
        raise jobs.GiveUp(str(error)) from error
    return {"made_of": "samples", **found}


def _block_bytes(tenant_id: int, seen: Samples) -> int:
    """Mean bytes of a sampled block with its header. Where nodes did not say: as spaces declare."""
    sized = [(len(each.ids), each.block_bytes) for each in seen.requests if each.block_bytes]
    if sized:
        return HEADER_BYTES + round(sum(n * b for n, b in sized) / sum(n for n, _ in sized))
    with tenant_scope(tenant_id):
        space = Space.objects.first()
    if space is None:
        return ANY_BLOCK_BYTES
    per_token = space.identity["bytes_per_token"] * space.ranks
    return HEADER_BYTES + int(per_token * space.chunk_tokens)


def _without(tenant_id: int) -> dict[str, Any]:
    """The result without samples: why, and what to do."""
    with tenant_scope(tenant_id):
        is_on = samples.is_enabled(tenant_id)
    if is_on:
        reason = "no_samples"
        words = (
            "There are no samples of this tenant's traffic yet. Nodes send them with their "
            "heartbeats: connect one and let it serve for an hour."
        )
    else:
        reason = "samples_off"
        words = (
            "Samples of this tenant's traffic are switched off. Switch them on on the page "
            "Tenants, or by PATCH /api/v1/samples; nodes then send keyed ids of some blocks, and "
            "no prompts."
        )
    return {"recommendation": {"change": None, "reason": reason, "words": words}}


def _keep(rows: Any, most: int) -> None:
    """Deletes all but the newest `most` of ended jobs."""
    ended = rows.filter(state__in=(Job.State.DONE, Job.State.FAILED, Job.State.CANCELLED))
    old = list(ended.order_by("-created_at").values_list("pk", flat=True)[most : most + 100])
    rows.filter(pk__in=old).delete()


def _malformed(field: str, words: str) -> Problem:
    return Problem("malformed", f"{field}: {words}.", field=field)

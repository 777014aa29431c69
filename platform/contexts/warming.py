"""Warming: an engine prefills a context's prompt, so that its node stores the blocks.

The request names the context, so the node reports it as after any request. Progress and success are
read from the index: only stored blocks count.
"""

import threading
import time
from dataclasses import dataclass
from uuid import UUID

from django.db import connection
from django.db.models import QuerySet

from base.problems import Problem
from catalog import jobs
from catalog.kinds import WARM
from catalog.models import Context, Job
from contexts import checking, rows
from contexts.making import chain_of, residency_in, whole_tokens
from engines import client, prompts, services
from engines.client import EngineFailed
from engines.models import Engine
from engines.prompts import Tokens
from tenants.audit import Actor
from tenants.scope import tenant_scope

MOST_WAITING = 100  # warm jobs of a tenant that wait or run
PREFILL_S = 600.0  # of one request
POLL_S = 0.5
STORED_S = 20.0  # after the engine's answer, without one more stored token
ENGINES = 2  # that one job tries


@dataclass
class Report:
    """A job's `detail`. `gpu_s`: seconds of the engine × its GPUs; None: their number is unknown.
    `stored_tokens`: of `tokens`, behind which a request can go on."""

    context: str
    tokens: int
    stored_tokens: int = 0
    engine: str | None = None
    engine_s: float = 0.0
    gpus: int | None = None
    gpu_s: float | None = None


def request(
    *,
    context: Context,
    engine: Engine | None = None,
    tokens: Tokens | None = None,
    actor: Actor,
) -> Job:
    """A job that warms the context; the one under way if there is one.

    `tokens`: of a context that the platform knows by its blocks alone; kept from now on.
    Raises Problem: no-engine, tokens-unknown, conflict (`tokens` are of another chain),
    limit-reached.
    """
    known = require_tokens(context, tokens)
    services.require_serving(context.space, only=engine)
    with rows.changing(context) as row:  # its lock orders two requests
        running = waiting(context).first()
        if running is not None:
            return running
        there = Job.objects.filter(kind=WARM.name, state__in=_UNDER_WAY).count()
        if there >= MOST_WAITING:
            raise Problem(
                "limit-reached",
                f"warm: {there} warm jobs of the tenant wait or run, and the limit is "
                f"{MOST_WAITING}.",
                limit="warm",
                most=MOST_WAITING,
            )
        if tokens is not None:
            prompts.keep(row, known)
        job = jobs.enqueue(
            WARM.name,
            tenant_id=row.tenant_id,
            by=actor.name,
            context_id=str(row.pk),
            engine_id=engine.pk if engine is not None else 0,
        )
        after = {"name": row.name, "job": str(job.pk)}
        rows.note(row, "context.warm", actor, before=None, after=after)
    return job


_UNDER_WAY = (Job.State.QUEUED, Job.State.RUNNING)


def waiting(context: Context) -> QuerySet[Job]:
    """Warm jobs of the context that wait or run. Inside the tenant's scope."""
    found: QuerySet[Job] = Job.objects.filter(
        kind=WARM.name, state__in=_UNDER_WAY, arguments__context_id=str(context.pk)
    )
    return found


def require_tokens(context: Context, given: Tokens | None = None) -> Tokens:
    """The tokens whose chain is the context's. Raises Problem: tokens-unknown, conflict."""
    with tenant_scope(context.tenant_id):
        known = given or prompts.of(context)
    if known is not None and b"".join(chain_of(context.space, known)) == bytes(context.chain):
        return known
    if given is not None:
        raise Problem(
            "conflict",
            f"tokens: they lead to other blocks than those of {context.name}. Give the whole "
            "prompt with its salt, as the node's request had it; LoRA adapters and media can not "
            "be warmed.",
            field="tokens",
        )
    why = "has no tokens of" if known is None else "has only earlier tokens of"
    raise Problem("tokens-unknown", f"The platform {why} the context {context.name}.")


def run(job: jobs.JobRun, tenant_id: int, context_id: UUID, engine_id: int) -> None:
    """The job's work. Raises jobs.GiveUp where a repetition would end the same, JobCancelled."""
    with tenant_scope(tenant_id):
        context = Context.objects.select_related("space").filter(pk=context_id).first()
        only = Engine.objects.filter(pk=engine_id).first() if engine_id else None
    if context is None or (engine_id and only is None):
        job.detail({"deleted": "context" if context is None else "engine"})
        return
    try:
        tokens = require_tokens(context)
        engines = services.require_serving(context.space, only=only)[:ENGINES]
    except Problem as problem:
        raise jobs.GiveUp(problem.detail) from problem
    report = Report(str(context.pk), whole_tokens(context.space, tokens))
    watch = _Watch(job, context, report)
    if watch.look() >= report.tokens:
        job.log("Everything is stored already.")
    else:
        _prefill(watch, engines, tokens)
        watch.wait_until_stored()
    checking.check_now(tenant_id, context.pk)
    if report.stored_tokens < report.tokens:
        raise jobs.GiveUp(
            f"{report.stored_tokens} of {report.tokens} tokens are stored: the tenant's hot quota "
            "may be full, the node may not reach Valkey, or its engine had the rest in its own "
            "prefix cache"
        )


class _Watch:
    """Asks the index how much is stored, and reports it in the job's row."""

    def __init__(self, job: jobs.JobRun, context: Context, report: Report) -> None:
        self.job, self.context, self.report = job, context, report

    def look(self) -> int:
        """Tokens stored by now. Raises JobCancelled, Problem (hot-tier-unavailable)."""
        report = self.report
        found = residency_in(self.context.space, self.context.ids(), self.context.tokens)
        report.stored_tokens = found.usable_tokens
        self.job.progress(
            min(0.99, report.stored_tokens / max(1, report.tokens)),
            blocks=found.hot + found.cold,
            bytes_=found.hot_bytes + found.cold_bytes,
        )
        self.job.detail(vars(report).copy())
        return report.stored_tokens

    def wait_until_stored(self) -> None:
        """Nodes store behind the step: wait as long as it goes on."""
        most, until = self.report.stored_tokens, time.monotonic() + STORED_S
        while (stored := self.look()) < self.report.tokens and time.monotonic() < until:
            if stored > most:
                most, until = stored, time.monotonic() + STORED_S
            time.sleep(POLL_S)


def _prefill(watch: _Watch, engines: list[Engine], tokens: Tokens) -> None:
    failures = []
    whole = Tokens(tokens.ids[: watch.report.tokens], tokens.salt)
    for engine in engines:
        watch.job.log(f"{engine.name} computes {len(whole.ids)} tokens.")
        failure = _ask(watch, engine, whole)
        if failure is None:
            return
        failures.append(f"{engine.name}: {failure}")
        watch.job.log(failures[-1])
        if failure.status in (400, 404, 422):  # a repetition would be refused again
            raise jobs.GiveUp("; ".join(failures))
    raise EngineFailed("; ".join(failures))


def _ask(watch: _Watch, engine: Engine, tokens: Tokens) -> EngineFailed | None:
    """One request in a thread, while this one reports. A cancelled job closes the connection."""
    report, stop, begun = watch.report, threading.Event(), time.monotonic()
    outcome: list[EngineFailed] = []

    def send() -> None:
        try:
            client.prefill(
                services.address_of(engine),
                tokens.ids,
                salt=tokens.salt,
                params={"neve": {"context": watch.context.name}},
                timeout_s=PREFILL_S,
                stop=stop,
            )
        except EngineFailed as failure:
            outcome.append(failure)
        except Problem as problem:
            outcome.append(EngineFailed(problem.detail))
        except Exception as error:
            outcome.append(EngineFailed(f"the request failed: {type(error).__name__}"))
        finally:
            connection.close()  # this thread's own, if it made one

    thread = threading.Thread(target=send, name="neve-warm", daemon=True)
    spent_s = report.engine_s
    report.engine, report.gpus = engine.name, services.gpus_of(engine, watch.context.space)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_S)
            report.engine_s = round(spent_s + time.monotonic() - begun, 3)
            if report.gpus is not None:
                report.gpu_s = round(report.engine_s * report.gpus, 3)
            watch.look()
    finally:
        stop.set()
        thread.join(5.0)
    return outcome[0] if outcome else None

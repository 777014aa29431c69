"""`neve jobs`: background work, and waiting for it."""

import time
from datetime import UTC, datetime
from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.exits import Failed
from neve.cli.names import find_job
from neve.cli.output import Cell, Column, name, number
from neve.errors import DeadlineExceeded

ENDED = ("done", "failed", "cancelled")
STYLES = {"done": "green", "failed": "red", "cancelled": "dim", "running": "cyan"}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 2.0

_COLUMNS = (
    Column("ID"),
    name("KIND"),
    Column("STATE"),
    number("DONE", drop=2),
    number("BLOCKS", drop=3),
    number("BYTES", drop=4),
    Column("AGE", drop=1),
    Column("TOOK", drop=5),
    name("ERROR", drop=6),
)
_SHORT = 8  # letters of an id: enough for `jobs show`


@click.group()
def jobs() -> None:
    """Background work: what runs, what failed and why.

    A job is named by its id or the id's first letters.
    """


_job = click.argument("job", metavar="JOB")


@jobs.command("ls")
@click.option("--tenant", metavar="SLUG")
@click.option("--kind", metavar="KIND")
@click.option("--state", metavar="STATE", help="queued, running, done, failed, cancelled, …")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@platform_options
def ls(
    platform: Connection, tenant: str | None, kind: str | None, state: str | None, limit: int
) -> None:
    """List jobs, the newest first."""
    query = {"tenant": tenant, "kind": kind, "state": state}
    found = list(platform.rows("/jobs", query, limit=limit))
    now = datetime.now(UTC)
    platform.show(
        found,
        lambda: platform.out.table(_COLUMNS, [_row(job, now) for job in found], empty="No jobs."),
    )


def _row(job: dict[str, Any], now: datetime) -> list[Cell]:
    return [
        str(job["id"])[:_SHORT],
        job["kind"],
        _state(job),
        text.NOTHING if job.get("progress") is None else f"{job['progress']:.0%}",
        text.count(job.get("blocks")),
        text.size(job.get("bytes")),
        text.age(job.get("created_at"), now),
        text.span(job.get("duration_s")),
        (job.get("error") or "").partition("\n")[0] or text.NOTHING,
    ]


def _state(job: dict[str, Any]) -> Cell:
    return job["state"], STYLES.get(job["state"], "")


@jobs.command()
@_job
@platform_options
def show(platform: Connection, job: str) -> None:
    """Show a job with its figures and its error."""
    found = platform.get(f"/jobs/{find_job(platform, job)['id']}")
    platform.show(found, lambda: _show(platform, found))


def _show(platform: Connection, job: dict[str, Any]) -> None:
    now = datetime.now(UTC)
    progress = job.get("progress")
    facts: list[tuple[str, Cell]] = [
        ("id", str(job["id"])),
        ("kind", job["kind"]),
        ("tenant", job.get("tenant") or text.NOTHING),
        ("state", _state(job)),
        ("progress", text.NOTHING if progress is None else f"{progress:.0%}"),
        ("moved", f"{text.count(job.get('blocks'))} blocks, {text.size(job.get('bytes'))}"),
        ("requested by", job.get("requested_by") or "the platform itself"),
        ("made", text.when(job.get("created_at"), now)),
        ("started", text.when(job.get("started_at"), now)),
        ("finished", text.when(job.get("finished_at"), now)),
        ("attempts", text.count(job.get("attempts"))),
    ]
    if job.get("retry_at"):
        facts.append(("tried again", text.when(job["retry_at"], now)))
    if job.get("error"):
        facts.append(("error", (job["error"], "red")))
    for key, value in (job.get("detail") or {}).items():
        facts.append((str(key), str(value)))
    platform.out.facts(facts)


@jobs.command()
@_job
@click.option("--timeout", metavar="DURATION", help="Give up waiting after so long.")
@platform_options
def wait(platform: Connection, job: str, timeout: str | None) -> None:
    """Wait until a job has ended; exit with 1 if it failed, with 6 at the timeout."""
    limit = text.duration(timeout) if timeout else None
    if timeout and limit is None:
        raise click.UsageError(f"--timeout: {timeout!r} is no duration; write 90s, 30m or 2h")
    ended = follow(
        platform,
        find_job(platform, job),
        timeout_s=None if limit is None else limit.total_seconds(),
    )
    platform.show(ended, lambda: _show(platform, ended))


def follow(
    platform: Connection, job: dict[str, Any], *, timeout_s: float | None = None
) -> dict[str, Any]:
    """Shows a job's progress until it has ended; returns it. Raises `Failed` if it did not succeed,
    `DeadlineExceeded` at the timeout. Ctrl-C ends the waiting, not the job."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    with platform.out.progress(str(job["kind"])) as shown:
        while job["state"] not in ENDED:
            shown.update(job.get("progress"), _progress(job))
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlineExceeded(
                    f"job {job['id']} is {job['state']} after {timeout_s:.0f} s and goes on: "
                    f"`neve jobs wait {str(job['id'])[:_SHORT]}` waits again"
                )
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
            job = platform.get(f"/jobs/{job['id']}")
    if job["state"] != "done":
        why = (job.get("error") or "").strip() or "no reason is given"
        raise Failed(
            f"job {job['id']} ({job['kind']}) {job['state']}: {why}\n"
            f"`neve jobs log {str(job['id'])[:_SHORT]}` says more"
        )
    return job


def _progress(job: dict[str, Any]) -> str:
    moved = f", {text.count(job['blocks'])} blocks" if job.get("blocks") else ""
    part = f" {job['progress']:.0%}" if job.get("progress") else ""
    return f"{job['state']}{part}{moved}"


@jobs.command()
@_job
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@platform_options
def cancel(platform: Connection, job: str, yes: bool) -> None:
    """Ask a job to stop."""
    found = find_job(platform, job)
    platform.out.confirm(f"Cancel {found['kind']} ({found['state']}, {found['id']})?", yes=yes)
    _act(platform, found, "cancel", "asked to stop")


@jobs.command()
@_job
@platform_options
def retry(platform: Connection, job: str) -> None:
    """Run a job that failed again."""
    _act(platform, find_job(platform, job), "retry", "runs again")


def _act(platform: Connection, job: dict[str, Any], action: str, words: str) -> None:
    answer = platform.call("POST", f"/jobs/{job['id']}/{action}")
    platform.show(answer, lambda: platform.out.say(f"{job['kind']} {job['id']}: {words}"))


@jobs.command()
@_job
@platform_options
def log(platform: Connection, job: str) -> None:
    """Print what a job wrote down."""
    found = platform.get(f"/jobs/{find_job(platform, job)['id']}")
    lines = found.get("log") or []
    if platform.out.as_json:
        platform.out.document(lines)
        return
    for line in lines if isinstance(lines, list) else str(lines).splitlines():
        platform.out.say(_line(line))
    if not lines:
        platform.out.note("It wrote nothing down.")


def _line(line: Any) -> str:
    if not isinstance(line, dict):
        return str(line)
    return f"{line.get('at', '')}  {line.get('words', '')}"

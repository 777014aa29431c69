"""`neve replay`: connects, chooses the workload and the ideal cache, runs, sums up."""

import itertools
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from neve.datapath.client import Client
from neve.datapath.usage import read_usage
from neve.errors import NeveError, Unavailable
from neve.formats.block import HEADER_BYTES
from neve.formats.space import SpaceIdentity
from neve.node.session import Session
from neve.planner.simulate import policies
from neve.planner.simulate.single import SingleTier
from neve.replay.generator import Generator, Workload
from neve.replay.report import Progress, make_progress
from neve.replay.runner import Pace, Runner, Settings, WrongBlock
from neve.replay.trace import Request, read_trace

ENGINE = {"name": "replay", "version": "1"}
GENERATED_REQUESTS = 200
MOST_CONNECTIONS = 4
# Pause between two passes of a repeated trace.
_PASS_GAP_MS = 1000.0
_CONNECT_AGAIN_S = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class ReplayOptions:
    """Options of the command line. `trace` overrides `workload` and `seed`."""

    trace: Path | None
    workload: Workload
    seed: int
    requests: int | None
    kv_bytes_per_token: int
    max_chunk_tokens: int
    concurrency: int
    speed: float | None
    rate_per_s: float | None
    loop: bool
    model: str
    models: int
    space: str | None
    node: str
    salt: str
    prefill_tokens_per_s: float | None
    capacity: int | None
    quiet: bool
    local_dir: str | None = None
    local_bytes: int | None = None


def compare_models(
    endpoint: str, api_key: str, options: ReplayOptions, *, stop: threading.Event
) -> list[dict[str, Any]]:
    """Runs a replay of several models twice: with one space for all of them, then with a space for
    each. Returns both summaries, as `replay_workload` does; fewer if an error or `stop` ended one.

    The shared one runs first, since it leaves the fewest blocks behind.
    """
    summaries: list[dict[str, Any]] = []
    for apart in (False, True):
        summary = replay_workload(endpoint, api_key, options, stop=stop, apart=apart)
        if summary is not None:
            summaries.append(summary)
        if summary is None or summary["error"]:
            break
    return summaries


def replay_workload(
    endpoint: str,
    api_key: str,
    options: ReplayOptions,
    *,
    stop: threading.Event,
    apart: bool = False,
) -> dict[str, Any] | None:
    """Runs a replay and returns its summary; None if `stop` was set before Neve answered.

    `apart`: each of several models has a space of its own. The summary's "error" says why the
    replay ended early; "wrong_blocks" counts wrong blocks. Raises `Misuse` for a bad trace,
    `Refused` and `Unavailable` if connecting fails.
    """
    requests, total = open_workload(options)
    progress = make_progress(total=total, quiet=options.quiet)
    try:
        with ExitStack() as clients:
            connected = []
            for name, space, node in _members(options, apart=apart):
                told = replace(options, model=name, space=space, node=node)
                client = _connect(endpoint, api_key, told, progress, stop)
                if client is None:
                    return None
                connected.append(clients.enter_context(client))
            return _run(connected, requests, options, progress, stop)
    finally:
        progress.close()


def _members(options: ReplayOptions, *, apart: bool) -> Iterator[tuple[str, str | None, str]]:
    """Model, space and node of each engine."""
    if options.models == 1:
        yield options.model, options.space, options.node
        return
    for number in range(1, options.models + 1):
        space = f"{options.space}-{number}" if options.space and apart else options.space
        model = f"{options.model}-{number}" if apart else options.model
        yield model, space, f"{options.node}-{number}"


def open_workload(options: ReplayOptions) -> tuple[Iterable[Request], int | None]:
    """Returns (requests, their number; None: endless)."""
    count = options.requests
    if options.trace is not None:
        recorded = read_trace(options.trace, limit=None if options.loop else count)
        if not options.loop:
            return recorded, len(recorded)
        return itertools.islice(repeat_trace(recorded), count), count
    if count is None and not options.loop:
        count = GENERATED_REQUESTS
    return itertools.islice(Generator(options.workload, seed=options.seed), count), count


def repeat_trace(recorded: list[Request]) -> Iterator[Request]:
    """Repeats the trace for ever; a pass starts _PASS_GAP_MS after the previous pass."""
    length_ms = recorded[-1].timestamp_ms + _PASS_GAP_MS
    for turn in itertools.count():
        for request in recorded:
            yield replace(request, timestamp_ms=request.timestamp_ms + turn * length_ms)


def make_identity(model: str, kv_bytes_per_token: int) -> SpaceIdentity:
    """The KV layout of a replay: a space that no engine shares."""
    return SpaceIdentity(
        model=model,
        revision="replay",
        dtype="bfloat16",
        kv_dtype="auto",
        layout="replay",
        layout_version=1,
        engine_block_tokens=16,
        bytes_per_token=kv_bytes_per_token,
    )


def _connect(
    endpoint: str,
    api_key: str,
    options: ReplayOptions,
    progress: Progress,
    stop: threading.Event,
) -> Client | None:
    """Connects; with `loop`, retries until Neve answers. None: `stop` was set meanwhile."""
    identity = make_identity(options.model, options.kv_bytes_per_token)
    waits_s = itertools.chain(_CONNECT_AGAIN_S, itertools.repeat(_CONNECT_AGAIN_S[-1]))
    while not stop.is_set():
        try:
            return Client.connect(
                endpoint,
                api_key,
                identity,
                node=options.node,
                engine=ENGINE,
                space=options.space,
                max_chunk_tokens=options.max_chunk_tokens,
                connections=min(options.concurrency, MOST_CONNECTIONS),
                local_dir=options.local_dir,
                local_bytes=options.local_bytes,
            )
        except Unavailable as error:
            if not options.loop:
                raise
            wait_s = next(waits_s)
            progress.say(f"replay: Neve is away ({error}); trying again in {wait_s:.0f} s")
            stop.wait(wait_s)
    return None


def _run(
    clients: list[Client],
    requests: Iterable[Request],
    options: ReplayOptions,
    progress: Progress,
    stop: threading.Event,
) -> dict[str, Any]:
    session = clients[0].session
    spaces = list(dict.fromkeys(client.session.space_name for client in clients))
    progress.say(
        f"replay: tenant {session.tenant_slug}, "
        f"{'space' if len(spaces) == 1 else 'spaces'} {', '.join(spaces)}, "
        f"blocks of {session.chunk_tokens} tokens"
    )
    block_bytes = HEADER_BYTES + session.chunk_tokens * options.kv_bytes_per_token
    capacity_bytes = options.capacity or _quota_bytes(session, progress)
    capacity_blocks = capacity_bytes // block_bytes if capacity_bytes else None
    ideal = _ideal(capacity_blocks) if capacity_blocks else None
    # In an endless replay an unlimited LRU model would grow for ever.
    unbounded = None if options.loop and options.requests is None else _ideal(None)
    runner = Runner(
        clients,
        Settings(
            concurrency=options.concurrency,
            pace=Pace(rate_per_s=options.rate_per_s, speed=options.speed),
            salt=options.salt.encode(),
            prefill_tokens_per_s=options.prefill_tokens_per_s,
            give_up_s=None if options.loop else Settings.give_up_s,
        ),
        progress,
        ideal=ideal,
        unbounded=unbounded,
        stop=stop,
    )
    error: Exception | None = None
    try:
        runner.run(requests)
    except (WrongBlock, Unavailable) as caught:
        error = caught
    settings = {**asdict(options), "trace": options.trace and str(options.trace)}
    summary = runner.tally.summary(ideal=ideal, unbounded=unbounded)
    return {"settings": settings, "error": str(error) if error else None, **summary}


def _ideal(capacity_blocks: int | None) -> SingleTier:
    return SingleTier(policies.make("lru", capacity_bytes=capacity_blocks))


def _quota_bytes(session: Session, progress: Progress) -> int | None:
    """Sum of the tenant's hot and cold quota: the ideal cache's capacity. None: unknown."""
    try:
        usage = read_usage(session)
    except NeveError as error:
        progress.say(f"replay: the quota is unknown ({error}); give --capacity to compare")
        return None
    return usage.quota_hot_bytes + usage.quota_cold_bytes

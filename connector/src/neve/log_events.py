"""Neve's log events: one table of them, and the one way to log.

`EVENT.log(field=value)` writes one line, `neve.load.failed request=r1 detail='timed out'`, to the
logger `neve.load`, at the event's level. Tests hold each call against this table, and
docs/events.md is made from it (`make reference`). The platform's own table is `base.log_events`.

Must not be here: libraries beside Python's own; prompts, keys and signed addresses as fields.
"""

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from logging import DEBUG, ERROR, INFO, WARNING
from typing import NamedTuple

_SECRETS = (
    (re.compile(r"\b(neve_[a-z0-9]{10})_[A-Za-z0-9]{8,}"), r"\1_[secret]"),
    (re.compile(r"[?&]X-Amz-[^\s\"'<>\\]*", re.IGNORECASE), "?[signature]"),
    (re.compile(r"\b(Signature=)\w+"), r"\1[secret]"),
    (re.compile(r"\b(Bearer|Basic) +[^\s\"'\\]+", re.IGNORECASE), r"\1 [secret]"),
    (re.compile(r"(\w://[^\s/@:\"']*:)[^\s/@\"']+@"), r"\1[secret]@"),
    (re.compile(r"\b((?:session|csrf)\w*=)\w{16,}"), r"\1[secret]"),
)
_NEEDS_QUOTES = re.compile(r"[\s=\"']")


def redact(text: str) -> str:
    """`text` without API keys' secrets, signatures of presigned URLs, credentials of
    Authorization headers and URLs, and session cookies."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


@dataclass(frozen=True)
class LogEvent:
    """`fields`: the names that each line of this event carries. `effect`: said in each line."""

    name: str
    level: int
    fields: tuple[str, ...]
    meaning: str
    remedy: str
    effect: str = ""

    def log(self, *, exc_info: bool | BaseException = False, **fields: object) -> None:
        """Writes one line. `exc_info`: with the traceback of the exception being handled, or of
        the one given.

        Any thread; the values are rendered only if a handler takes the line.
        """
        logger = logging.getLogger(self.name.rpartition(".")[0] or "neve")
        line = LogLine(self, fields)
        if self.level >= WARNING:
            global _last
            _last = (line, time.monotonic())
        logger.log(self.level, "%s", line, exc_info=exc_info, stacklevel=2)


@dataclass(frozen=True)
class LogLine:
    """What a log record of an event carries as its one argument: structured handlers read it."""

    event: LogEvent
    fields: Mapping[str, object]

    def __str__(self) -> str:
        values = {name: str(value) for name, value in self.fields.items()}
        words = [
            f"{name}={repr(value) if _NEEDS_QUOTES.search(value) else value}"
            for name, value in values.items()
        ]
        effect = [f"({self.event.effect})"] if self.event.effect else []
        return redact(" ".join([self.event.name, *words, *effect]))


class LastError(NamedTuple):
    """`text`: the line. `at_s`: when, by the monotonic clock."""

    text: str
    at_s: float


_last: tuple[LogLine, float] | None = None


def last_error() -> LastError | None:
    """This process's last event of the level WARNING or above, for the node's page."""
    return None if _last is None else LastError(str(_last[0])[:300], _last[1])


def events_of(module: Mapping[str, object]) -> dict[str, LogEvent]:
    """The events among a module's constants, by the constants' names."""
    return {name: value for name, value in module.items() if isinstance(value, LogEvent)}


# ---- node: session and heartbeat

HANDSHAKE_FAILED = LogEvent(
    "neve.handshake.failed",
    INFO,
    ("detail",),
    "A new handshake failed; it is repeated with the next heartbeat.",
    "Nothing, unless it stays: does the node reach the cache endpoint?",
)
HANDSHAKE_OTHER_SPACE = LogEvent(
    "neve.handshake.other_space",
    ERROR,
    ("old", "new"),
    "The platform answered a new handshake with another space than before.",
    "Start the engine again: its block ids belong to the old space.",
    effect="serving without Neve",
)
HANDSHAKE_RENEWED = LogEvent(
    "neve.handshake.renewed",
    INFO,
    ("space",),
    "The node opened a new session, after a change of its key, its topology or the platform.",
    "Nothing.",
)
SESSION_REFUSED = LogEvent(
    "neve.session.refused",
    ERROR,
    ("detail",),
    "The platform refused this node's session: its key, its tenant or its space.",
    "Do as `detail` says; usually issue another key, or let the tenant in again.",
    effect="serving without Neve",
)
SESSION_END_FAILED = LogEvent(
    "neve.session.end_failed",
    INFO,
    ("detail",),
    "A stopping node could not tell the platform that its session ends.",
    "Nothing: the session counts as silent after three heartbeats.",
)
HEARTBEAT_KEPT = LogEvent(
    "neve.heartbeat.kept",
    INFO,
    ("detail",),
    "A heartbeat did not get through; its counts go with the next one.",
    "Nothing, unless it stays: does the node reach the cache endpoint?",
)
HEARTBEAT_COUNTS_LOST = LogEvent(
    "neve.heartbeat.counts_lost",
    ERROR,
    ("detail",),
    "The platform refused a heartbeat's counts as malformed; the node dropped them.",
    "Use versions of node and platform that fit each other; report it otherwise.",
)
HEARTBEAT_SAMPLES_LOST = LogEvent(
    "neve.heartbeat.samples_lost",
    WARNING,
    ("detail",),
    "The platform refused a heartbeat with samples as malformed; the node stops sampling.",
    "Use versions of node and platform that fit each other; report it otherwise.",
)
HEARTBEAT_REQUESTS_LOST = LogEvent(
    "neve.heartbeat.requests_lost",
    WARNING,
    ("detail",),
    "The platform refused a heartbeat with records of requests as malformed; the node sends none.",
    "Use versions of node and platform that fit each other; report it otherwise.",
)
HEARTBEAT_RENEWAL_FAILED = LogEvent(
    "neve.heartbeat.renewal_failed",
    INFO,
    ("detail",),
    "A heartbeat or its handshake failed; it is tried again.",
    "Nothing, unless it stays.",
)
HEARTBEAT_FAILED = LogEvent(
    "neve.heartbeat.failed",
    ERROR,
    (),
    "A bug in the heartbeat's thread; the thread goes on.",
    "Report it with the traceback.",
)

# ---- datapath

MATCH_UNREADABLE = LogEvent(
    "neve.match.unreadable",
    ERROR,
    (),
    "Valkey's answer to a look-up could not be decoded; the look-up is a miss.",
    "Look whether the functions in valkey-hot are this version's (`manage.py provision`).",
)
TRANSPORT_CALLBACK_FAILED = LogEvent(
    "neve.transport.callback_failed",
    ERROR,
    (),
    "A bug in a callback of the transport; other callbacks go on.",
    "Report it with the traceback.",
)
TRANSFER_CALLBACK_FAILED = LogEvent(
    "neve.transfer.callback_failed",
    ERROR,
    (),
    "A bug in a callback of a transfer; the transfer itself ended.",
    "Report it with the traceback.",
)
TRANSFER_JOB_FAILED = LogEvent(
    "neve.transfer.job_failed",
    ERROR,
    (),
    "A bug in a job of the transfer threads; its blocks are misses.",
    "Report it with the traceback.",
)
HOT_FORGET_FAILED = LogEvent(
    "neve.hot.forget_failed",
    WARNING,
    ("blocks", "detail"),
    "Blocks that failed verification could not be taken out of the index.",
    "Nothing: the next node that reads them tries again.",
)
HOT_BREAKER_OPEN = LogEvent(
    "neve.hot.breaker_open",
    WARNING,
    ("detail",),
    "Too many calls of valkey-hot failed: the node asks nothing of it for a while.",
    "Look at valkey-hot and at the network between; the breaker closes by itself.",
)
COLD_TROUBLE = LogEvent(
    "neve.cold.trouble",
    WARNING,
    ("reason", "detail"),
    "Reads from S3 failed; said once for each reason.",
    "Look at S3: does the node reach `NEVE_S3_ENDPOINT`? Its blocks are misses meanwhile.",
)

# ---- local tier

LOCAL_TROUBLE = LogEvent(
    "neve.local.trouble",
    WARNING,
    ("folder", "detail"),
    "The local tier's directory cannot be written or looked at; each kind once a minute.",
    "Look at `local_dir`: its disk, space, rights. Blocks come from the other tiers meanwhile.",
)
LOCAL_BREAKER_OPEN = LogEvent(
    "neve.local.breaker_open",
    WARNING,
    ("folder", "detail"),
    "Reads from the local tier failed or took too long: nothing is read from it for a while.",
    "Look at the disk of `local_dir`; the breaker closes by itself.",
)
LOCAL_EMPTIED = LogEvent(
    "neve.local.emptied",
    WARNING,
    ("folder",),
    "The platform does not know the API key: the tenant's blocks in the local tier were deleted.",
    "Give the node a new API key.",
)
LOCAL_FAILED = LogEvent(
    "neve.local.failed",
    ERROR,
    (),
    "The thread that writes the local tier met an error of Neve's own.",
    "Report it with the traceback; the thread goes on.",
)

# ---- engine: connection

CONNECT_OK = LogEvent(
    "neve.connect.ok",
    INFO,
    ("space", "chunk_tokens"),
    "The engine is connected and uses this space.",
    "Nothing.",
)
CONNECT_FAILED = LogEvent(
    "neve.connect.failed",
    WARNING,
    ("endpoint", "kind", "detail"),
    "The engine has no connection yet; it is tried again. Said once for each cause.",
    "Do as `detail` says: address, key, network.",
    effect="serving without Neve",
)
CONNECT_GIVEN_UP = LogEvent(
    "neve.connect.given_up",
    ERROR,
    ("field",),
    "The platform refuses the engine's configuration, so it is not asked again.",
    "Change the option that `field` names, and start the engine again.",
    effect="change it, and start the engine again",
)
CONNECT_BROKEN = LogEvent(
    "neve.connect.broken",
    ERROR,
    ("endpoint",),
    "A bug while connecting; it is tried again.",
    "Report it with the traceback.",
)
REQUEST_IGNORED = LogEvent(
    "neve.request.ignored",
    WARNING,
    ("field", "got", "need"),
    "A field of a request's `kv_transfer_params` is malformed and was ignored.",
    "Have the program that sends the requests corrected.",
)

# ---- engine: loads, saves, contexts

LOAD_FAILED = LogEvent(
    "neve.load.failed",
    WARNING,
    ("request", "detail"),
    "A load could not begin; the engine computes its tokens.",
    "Nothing, unless it stays.",
)
LOAD_BROKEN = LogEvent(
    "neve.load.broken",
    ERROR,
    (),
    "A bug in a load; the engine computes its tokens.",
    "Report it with the traceback.",
)
LOAD_REFUSED = LogEvent(
    "neve.load.refused",
    DEBUG,
    ("blocks", "detail"),
    "The client took no more blocks of a load, as while its breaker is open.",
    "Nothing: the reason is counted as a miss.",
)
LOAD_MISSED = LogEvent(
    "neve.load.missed",
    INFO,
    ("reason",),
    "A block that was found was missed when it was loaded.",
    "Nothing: the reason is counted as a miss.",
)
LOAD_UNPLANNED = LogEvent(
    "neve.load.unplanned",
    ERROR,
    (),
    "A bug while a load was planned; the engine computes its tokens.",
    "Report it with the traceback.",
)
SAVE_REFUSED = LogEvent(
    "neve.save.refused",
    DEBUG,
    ("blocks", "detail"),
    "The client took no blocks to store, as while its breaker is open.",
    "Nothing: they are counted as dropped.",
)
SAVE_UNPLANNED = LogEvent(
    "neve.save.unplanned",
    ERROR,
    (),
    "A bug while a step's saves were planned; nothing of that step is stored.",
    "Report it with the traceback.",
)
REMOVALS_UNREAD = LogEvent(
    "neve.removals.unread",
    ERROR,
    (),
    "A bug while the node read which blocks left; routers hear of them later or not.",
    "Report it with the traceback.",
)
REQUEST_UNFINISHED = LogEvent(
    "neve.request.unfinished",
    ERROR,
    (),
    "A bug at a request's end; the request was answered, its context is not recorded.",
    "Report it with the traceback.",
)
HOOK_BROKEN = LogEvent(
    "neve.hook.broken",
    ERROR,
    ("hook",),
    "A bug in a hook that the engine calls; said once for each hook.",
    "Report it with the traceback.",
)
SHUTDOWN_PUTS_LEFT = LogEvent(
    "neve.shutdown.puts_left",
    WARNING,
    (),
    "The engine stopped before its last blocks were stored.",
    "Nothing: they are computed again when they are needed.",
)
STAGING_SHORT = LogEvent(
    "neve.staging.short",
    ERROR,
    (),
    "The host has no memory for the staging buffers.",
    "Set smaller `load_budget_bytes` and `save_budget_bytes`.",
    effect="set smaller load_budget_bytes, save_budget_bytes",
)
COPIES_BY_LAYER = LogEvent(
    "neve.copies.by_layer",
    INFO,
    ("detail",),
    "Blocks are copied layer by layer, not by one kernel: `detail` says why.",
    "Nothing: it works as without `one_kernel`. Triton may be missing, or the layers differ.",
)
CONTEXT_KEPT = LogEvent(
    "neve.context.kept",
    WARNING,
    ("detail",),
    "The platform is away; contexts wait on the node and are sent later.",
    "Look why the node does not reach the cache endpoint.",
)
CONTEXT_DROPPED = LogEvent(
    "neve.context.dropped",
    WARNING,
    ("waiting",),
    "Too many contexts waited for the platform: the oldest is not recorded.",
    "Look why the node does not reach the cache endpoint.",
)
CONTEXT_LEFT = LogEvent(
    "neve.context.left",
    WARNING,
    ("count",),
    "The engine stopped while contexts waited for the platform: they are not recorded.",
    "Nothing: a request that names a context records it anew.",
)
CONTEXT_UNREPORTED = LogEvent(
    "neve.context.unreported",
    WARNING,
    ("name", "detail"),
    "The platform refused to record a context.",
    "Do as `detail` says; often a limit of the tenant is reached.",
)
CONTEXT_BROKEN = LogEvent(
    "neve.context.broken",
    ERROR,
    (),
    "A bug while a context was sent; it is not recorded.",
    "Report it with the traceback.",
)

# ---- engine: identity of the KV

CANARY_SKIPPED = LogEvent(
    "neve.canary.skipped",
    INFO,
    ("detail",),
    "Stored KV could not be fetched for a comparison with what this engine computes.",
    "Nothing: another chunk is compared later.",
)
CANARY_DIFFERS = LogEvent(
    "neve.canary.differs",
    ERROR,
    ("first_token", "end_token", "difference"),
    "This engine computes other KV than what is stored under the same identity.",
    "Find out in what the engines differ (model files, kernels, options), and remove the space.",
    effect="serving without Neve until the engine starts anew",
)
CANARY_BROKEN = LogEvent(
    "neve.canary.broken",
    ERROR,
    (),
    "A bug while stored KV was compared.",
    "Report it with the traceback.",
)
FAMILY_STATE = LogEvent(
    "neve.family.state",
    INFO,
    ("state",),
    "What this engine may do in its family: attesting, attached, refused; or it is the producer.",
    "Nothing.",
)
FAMILY_DIFFERS = LogEvent(
    "neve.family.differs",
    ERROR,
    ("layer", "first_token", "end_token"),
    "This engine computes other KV than the producer of its family.",
    "Leave the family (option `family`), or make weights, kernels and device equal; then an "
    "operator lets the member try again.",
    effect="sharing nothing with the family",
)
FAMILY_STRANGER = LogEvent(
    "neve.family.stranger",
    WARNING,
    (),
    "Weights changed in place that only some tokens reach (embeddings, experts), so that a proof "
    "by prompts would not show the difference from the family.",
    "Start the engine again: its handshake tells the platform of these weights.",
    effect="neither loading nor storing KV until then",
)
FAMILY_UNREPORTED = LogEvent(
    "neve.family.unreported",
    WARNING,
    ("detail",),
    "The platform refused the report of an attestation.",
    "Read the detail; the engine asks again after its next handshake.",
    effect="sharing nothing with the family",
)
FAMILY_BROKEN = LogEvent(
    "neve.family.broken",
    ERROR,
    (),
    "A bug while an attestation was reported.",
    "Report it with the traceback.",
)
WEIGHTS_UNREADABLE = LogEvent(
    "neve.weights.unreadable",
    WARNING,
    (),
    "The engine's weights could not be read after a reset: its KV is shared with nobody.",
    "Start the engine anew, if others should use its KV.",
)
RESET_DONE = LogEvent(
    "neve.reset.done",
    WARNING,
    ("weights",),
    "The engine reset its cache; `weights` says whether its weights are others now.",
    "Nothing. KV of changed weights is shared with engines that have the same ones.",
)
RESET_ALONE = LogEvent(
    "neve.reset",
    WARNING,
    (),
    "The engine reset its cache, and the tier under it cannot see whether weights changed.",
    "Start the engine anew, if others should use its KV.",
    effect="this engine's chunks are its own until it starts anew",
)
WEIGHTS_REPLACED = LogEvent(
    "neve.weights.replaced",
    WARNING,
    (),
    "Weights were changed in a running SGLang, which names neither the new nor the old ones.",
    "Attach the backend anew with another `revision`, or start the server anew.",
    effect="this server loads and stores nothing until then",
)
LORA_UNSEEN = LogEvent(
    "neve.lora.unseen",
    WARNING,
    ("name", "path"),
    "A LoRA adapter's weights are in no file of this host.",
    "Load the adapter from a folder on this host.",
    effect="its requests are served without Neve",
)
LORA_CHANGED = LogEvent(
    "neve.lora.changed",
    WARNING,
    ("name", "path"),
    "A LoRA adapter's files changed while it was loaded.",
    "Load it under another id, or start the engine anew.",
    effect="its requests are served without Neve",
)
UNSUPPORTED = LogEvent(
    "neve.unsupported",
    WARNING,
    ("detail",),
    "The engine's configuration is one that Neve does not serve.",
    "Do as `detail` says, or leave the connector out.",
    effect="serving without Neve",
)
STATES_KEPT = LogEvent(
    "neve.states.kept",
    INFO,
    ("chunk_tokens", "every_tokens", "retention", "match_unit"),
    "The model has layers with a running state. It is stored at ends of chunks, as vLLM offers it: "
    "at `retention` 0 only before each prompt's end. Prompts share nothing shorter than a chunk.",
    "For more places to go on from, set --prefix-cache-retention-interval, and `state_every_tokens`"
    " against too many. With a `match_unit` below the chunk, vLLM offers states that are at no "
    "chunk's end: leave it out.",
)
UNIDENTIFIED = LogEvent(
    "neve.unidentified",
    ERROR,
    ("detail",),
    "What decides this engine's KV could not be found out.",
    "Do as `detail` says, and start the engine again.",
    effect="serving without Neve",
)
HANDSHAKE_INCOMPLETE = LogEvent(
    "neve.handshake.incomplete",
    WARNING,
    ("ranks", "wanted"),
    "Not all ranks of the engine have told their identity.",
    "Look at the other ranks' log lines; then start the engine again.",
    effect="serving without Neve",
)

# ---- engine: tier under its own memory

TIER_UNANSWERED = LogEvent(
    "neve.tier.unanswered",
    DEBUG,
    ("detail",),
    "A look-up got no answer in time; its chunks are misses.",
    "Nothing.",
)
TIER_REFUSED = LogEvent(
    "neve.tier.refused",
    DEBUG,
    ("chunks", "detail"),
    "The client took no chunks of a job, as while its breaker is open.",
    "Nothing.",
)
TIER_BROKEN = LogEvent(
    "neve.tier.broken",
    ERROR,
    ("chunks",),
    "A bug at a job's begin; its chunks are misses.",
    "Report it with the traceback.",
)

# ---- gateways and routers

GATEWAY_RESTS = LogEvent(
    "neve.gateway.rests",
    WARNING,
    ("seconds", "detail"),
    "Look-ups fail, are slow or refused; none is sent for so long.",
    "Do as `detail` says. With 429: raise the key's requests a minute.",
    effect="routing by this process's memory and by load",
)
GATEWAY_FACTS_OLD = LogEvent(
    "neve.gateway.facts_old",
    INFO,
    ("detail",),
    "Engines and prices could not be read; those of the last reading count.",
    "Nothing, unless it stays: is the platform reached, and has the key the scope read?",
)
GATEWAY_BROKEN = LogEvent(
    "neve.gateway.broken",
    ERROR,
    ("step",),
    "A bug in routing; the least loaded node got the request. Said once for each step.",
    "Report it with the traceback.",
)
POOL_FAILED = LogEvent(
    "neve.pool.failed",
    WARNING,
    ("pool", "node", "detail"),
    "An engine of a prefill pool failed or was too slow; it gets no prompt for a growing pause.",
    "Look at that engine. Nothing, if the pool is away on purpose.",
    effect="decode nodes compute the prompts",
)
ROUTER_WAITS = LogEvent(
    "neve.router.waits",
    WARNING,
    ("what", "detail"),
    "Neve or an engine does not answer the router, which asks again every half minute.",
    "Start it, or look at its address in the router's configuration.",
    effect="serving without it",
)
ROUTER_ANSWER_CUT = LogEvent(
    "neve.router.answer_cut",
    WARNING,
    ("detail",),
    "A decode node's answer broke off; the client's connection was closed, so that it knows.",
    "Look at that engine's log.",
)

# ---- LMCache

LMCACHE_REFUSED = LogEvent(
    "neve.lmcache.refused",
    WARNING,
    ("why", "detail"),
    "The first object of LMCache that Neve can't store or find: `hash`, shorter than 16 bytes, so "
    "equal keys would not prove equal tokens; `memory`, not in the host's memory; `size`, empty, "
    "over 1 GiB or of another length than its layout says; `layout`, none was given; `model`, one "
    "more than a server may have, or a name that no space can have.",
    "`hash`: leave LMCache's `--hash-algorithm` at blake3. `memory`: use LMCache's DRAM for L1. "
    "`size`: leave out serializers whose output has no fixed length, or lower `--chunk-size`.",
    effect="such objects are misses",
)
LMCACHE_DELETE_REFUSED = LogEvent(
    "neve.lmcache.delete_refused",
    WARNING,
    ("objects",),
    "LMCache asked Neve to delete objects, by its own eviction or by a person.",
    "Leave `eviction` out of the adapter's configuration. Quotas and retention are Neve's: remove "
    "the space to remove its objects.",
    effect="nothing is deleted",
)
LMCACHE_UNTAKEN = LogEvent(
    "neve.lmcache.untaken",
    DEBUG,
    ("objects", "detail"),
    "The client took no objects of a task.",
    "Nothing.",
)
LMCACHE_BROKEN = LogEvent(
    "neve.lmcache.broken",
    ERROR,
    ("objects",),
    "A bug at a task's begin; its objects are misses.",
    "Report it with the traceback.",
)

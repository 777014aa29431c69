"""Answers of the platform. Made by `make openapi` from docs/openapi.json: do not edit."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from neve.api.records import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class AlertRule(Record):
    """AlertRule."""

    kind: str
    # null: of all tenants
    tenant: str | None
    about: str
    # of the threshold
    unit: str
    threshold: float
    # seconds that it has to hold
    for_s: int
    is_on: bool
    # default, set for all tenants, or the tenant's own
    # * `default` - default
    # * `all` - all
    # * `tenant` - tenant
    source: str
    # threshold unless set
    default: float
    least: float
    most: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt(Record):
    """Attempt."""

    at: datetime
    # null: no answer, see error
    status: int | None
    error: str
    latency_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    at: datetime
    actor_name: str
    # of the caller's key
    key_id: int | None
    # of the caller; empty: a task or command, or an operator, whose address teams do not see
    address: str
    request_id: str
    action: str
    object_type: str
    object_id: str
    before: Any
    after: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockResidence(Record):
    """BlockResidence."""

    # 32 hex digits
    id: str
    # hot, cold, or null: not stored
    tier: str | None
    # why it is not stored
    reason: str | None
    # whether a copy stands in S3
    is_durable: bool
    # 0: not stored
    size_bytes: int
    # number of its KV group; 0 in a space without
    group: int
    # whether a request that goes on behind the context's end needs it
    is_needed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class BreakEven(Record):
    """When loading beats computing, by live nodes. Bytes are of all ranks of an engine."""

    # that a request loads
    bytes_per_token: float | None
    # for each request: tails of windows, and states
    fixed_bytes: int | None
    # prompt length of the next two
    at_tokens: int
    prefill_tokens_per_s: float | None
    # loading faster than this beats computing
    break_even_bytes_per_s: float | None
    hot: TierSpeed
    cold: TierSpeed
    # nodes' own tiers
    local: TierSpeed
    # found prefixes of the last 60 to 65 minutes, by what nodes did
    decisions_hour: Decisions
    # of the last 24 to 25 hours
    decisions_day: Decisions
    # live ones that measured; figures are their medians
    nodes: int
    basis: str
    # one sentence
    verdict: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell(Record):
    """Cell."""

    # of its chunk, from 0
    number: int
    id: str
    # hot, cold or null: not there
    tier: str | None
    # 0: not in S3
    segment: int
    # why it is not there
    reason: str | None
    # null: not remembered
    gone_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Change(Record):
    """Change."""

    at: datetime
    kind: str
    tenant: str
    words: str
    # who; empty: nodes
    by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison(Record):
    """Comparison."""

    # engines of both would share KV
    is_equal: bool
    differences: tuple[Difference, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Context(Record):
    """Names its tenant by slug."""

    id: str
    tenant: str | None
    space: int
    name: str
    # what retention rules match
    label: str
    # at most 16; a name has letters, digits and ._/- and begins with a letter
    labels: dict[str, str]
    # who recorded it first; empty: unknown
    owner: str
    # length of the chain, times KV groups of the space
    blocks: int
    tokens: int
    # of its stored blocks; null: not counted yet
    size_bytes: int | None
    # expected: nothing is stored yet; stored: a request can go on behind its end; partial: behind
    # a part of it; lost: behind none
    # * `expected` - Expected
    # * `stored` - Stored
    # * `partial` - Partial
    # * `lost` - Lost
    # * `expired` - Expired
    state: str
    is_pinned: bool
    pinned_until: datetime | None
    # the most that a pin asks for: durable, hot or any; null: not pinned
    # * `any` - Any
    # * `hot` - Hot
    # * `durable` - Durable
    pin_tier: Any
    # blocks live so long
    extended_until: datetime | None
    # when it will be expired; null: not scheduled
    expires_at: datetime | None
    expired_at: datetime | None
    # when a request that named it ended last
    last_used_at: datetime | None
    # when state and size were found
    checked_at: datetime | None
    created_at: datetime
    updated_at: datetime
    # of KV that its space stores with loss; null: its blocks are exact
    loss: Loss | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextDetail(Record):
    """Names its tenant by slug."""

    id: str
    tenant: str | None
    space: int
    name: str
    # what retention rules match
    label: str
    # at most 16; a name has letters, digits and ._/- and begins with a letter
    labels: dict[str, str]
    # who recorded it first; empty: unknown
    owner: str
    # length of the chain, times KV groups of the space
    blocks: int
    tokens: int
    # of its stored blocks; null: not counted yet
    size_bytes: int | None
    # expected: nothing is stored yet; stored: a request can go on behind its end; partial: behind
    # a part of it; lost: behind none
    # * `expected` - Expected
    # * `stored` - Stored
    # * `partial` - Partial
    # * `lost` - Lost
    # * `expired` - Expired
    state: str
    is_pinned: bool
    pinned_until: datetime | None
    # the most that a pin asks for: durable, hot or any; null: not pinned
    # * `any` - Any
    # * `hot` - Hot
    # * `durable` - Durable
    pin_tier: Any
    # blocks live so long
    extended_until: datetime | None
    # when it will be expired; null: not scheduled
    expires_at: datetime | None
    expired_at: datetime | None
    # when a request that named it ended last
    last_used_at: datetime | None
    # when state and size were found
    checked_at: datetime | None
    created_at: datetime
    updated_at: datetime
    # of KV that its space stores with loss; null: its blocks are exact
    loss: Loss | None
    # those that have not ended
    pins: tuple[Pin, ...]
    # null while the hot tier does not answer
    residency: Residency | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost(Record):
    """Medians of what the space's live nodes measured; null as long as none did."""

    # to load the usable tokens
    load_s: float | None
    # to compute them instead
    compute_s: float | None
    # load, compute or null: unknown
    verdict: str | None
    # what the seconds stand on; unknown: nothing measured
    basis: str
    # that measured
    nodes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts(Record):
    """null: this split does not count it, or it is unknown."""

    requested_tokens: int | None
    hit_tokens: int | None
    requested_blocks: int | None
    hit_blocks: int | None
    read_bytes: int | None
    # into the hot tier; of the tiers cold and local: into them
    written_bytes: int | None
    stored_blocks: int | None
    # the last sample
    used_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decisions(Record):
    """Decisions."""

    load_all: int
    load_prefix: int
    recompute: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    webhook: str
    # webhook-id, too
    event: str
    type: str
    state: str
    # since it was last asked for
    attempts: int
    next_attempt_at: datetime
    created_at: datetime
    finished_at: datetime | None
    # the last 20 attempts
    log: tuple[Attempt, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Diff(Record):
    """Diff."""

    # false: they share nothing, even if their tokens are equal
    same_space: bool
    # the common beginning, in whole chunks of tokens
    shared_tokens: int
    shared_blocks: int
    # first token of the chunk in which they differ; null: one is the beginning of the other, or
    # they are of different spaces
    parts_at_token: int | None
    # what this context has behind the common beginning
    only_this: Extent
    # what the other context has behind it
    only_other: Extent


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference(Record):
    """`this` and `other`: values of the field; null where a layout does not have it."""

    field: str
    this: Any
    other: Any
    # what makes them equal: a setting of the engine
    fix: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun(Record):
    """Blocks that would go at once. Removed: from both tiers; cooled: from the hot tier only."""

    # blocks
    looked_at: int
    # false: it is at least so much
    is_complete: bool
    removed_blocks: int
    removed_hot_bytes: int
    removed_cold_bytes: int
    cooled_blocks: int
    cooled_bytes: int
    # that would lose blocks
    contexts: int
    # of those, used within a day
    contexts_used_24h: int
    # the last used of them, at most 5
    named: tuple[LosingContext, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    name: str
    # without a slash and /v1 at the end
    base_url: str
    # name under which the engine serves it
    model: str
    # numbers of the spaces that it serves
    spaces: tuple[int, ...]
    # TP × PP; empty: as its space says
    gpus: int | None
    # the key itself is never shown
    has_api_key: bool
    # of a prefill pool: it computes prompts that others decode
    is_prefill: bool
    source: str
    state: str
    # why it is unhealthy
    error: str
    checked_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Event(Record):
    """One thing that happened."""

    # the same in lists, streams and webhooks
    id: str
    # grows; the id of a line of a stream
    sequence: int
    # such as context.stored; more may come
    type: str
    at: datetime
    # slug; null: of the platform
    tenant: str | None
    subject: Subject
    # facts of this type; members may be added
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Expired(Record):
    """Expired."""

    # whether nothing was changed
    dry_run: bool
    # blocks that leave both tiers
    removed: int
    removed_bytes: int
    # blocks that stay: other contexts hold them
    shared: int
    shared_bytes: int
    # of the shared ones: pinned by another context
    pinned: int
    # blocks that were gone before
    lost: int
    # when it will be expired: then the numbers are those of an expiry now
    expires_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Explore(Record):
    """Explore."""

    measure: str
    unit: str
    split: str
    window: Span
    # null: no longer kept
    before: Span | None
    # why nothing is counted by this split; else empty
    why_not: str
    total: Part
    # what changed most first, at most 100
    groups: tuple[Part, ...]
    # further groups
    left_out: int
    # in the window, the newest first
    changes: tuple[Change, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Extended(Record):
    """Extended."""

    # blocks that live so long now
    extended: int
    # blocks that are stored nowhere any more
    lost: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent(Record):
    """Extent."""

    tokens: int
    # of all shards and KV groups
    blocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact(Record):
    """Fact."""

    value: str
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Family(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    name: str
    # number of the producer's space
    space: int
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyMember(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    family: str
    model: str
    revision: str
    device: str
    # name and version
    engine: str
    # digest of weights that were changed in place
    weights: str
    state: str
    # equal in every bit, of the last proof
    blocks: int
    # equal but for rounding, of the last proof
    near: int
    # where KV differed first
    layer: str
    first_token: int | None
    end_token: int | None
    # loaded from blocks that other processes stored
    hit_tokens: int
    created_at: datetime
    # attached or refused
    decided_at: datetime | None
    # last handshake
    seen_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Field(Record):
    """Field."""

    field: str
    this: Any
    other: Any
    differs: bool
    fix: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Group(Record):
    """Group."""

    # tenant's slug, number of the space, node, or tier
    id: str
    name: str
    # slug; null: of a tier
    tenant: str | None
    # of the period; of a space or node: of the whole sessions that were open in it
    totals: Counts
    # empty for spaces and nodes, whose roll-ups are not stored
    points: tuple[GroupPoint, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupPoint(Record):
    """null: this split does not count it, or it is unknown."""

    requested_tokens: int | None
    hit_tokens: int | None
    requested_blocks: int | None
    hit_blocks: int | None
    read_bytes: int | None
    # into the hot tier; of the tiers cold and local: into them
    written_bytes: int | None
    stored_blocks: int | None
    # the last sample
    used_bytes: int | None
    # first second of the step, Unix time
    bucket_ts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Incident(Record):
    """Names its tenant by slug."""

    id: str
    tenant: str | None
    kind: str
    state: str
    title: str
    # of neve.planner.causes
    cause: str
    # main cause in words
    reason: str
    since: datetime
    opened_at: datetime | None
    ended_at: datetime | None
    before: float | None
    value: float | None
    worst: float | None
    lost_tokens: int
    slice: Slice
    levers: tuple[Lever, ...]
    # figures of its kind
    facts: dict[str, Any]
    owner: str
    acknowledged_at: datetime | None
    acknowledged_by: str
    # for the tenant's people; not for operators
    muted_until: datetime | None
    operators_muted_until: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Invitation(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    email: str
    role: str
    invited_by: str
    is_mailed: bool
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    accepted_at: datetime | None
    accepted_by: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class IssuedKey(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    name: str
    role: str
    # what the key may do within its role; a node key has none
    scopes: tuple[str, ...]
    prefix: str
    made_by: int | None
    rotated_from: int | None
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    # the whole key, shown only once
    key: str | None = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(Record):
    """Names its tenant by slug."""

    id: str
    tenant: str | None
    kind: str
    state: str
    # 0 to 1
    progress: float
    blocks: int
    bytes: int
    # facts of the kind of work
    detail: Any
    error: str
    attempts: int
    created_at: datetime
    # of the last attempt
    started_at: datetime | None
    finished_at: datetime | None
    # failed, and not tried again before
    retry_at: datetime | None
    duration_s: float | None
    # not found by a tick
    is_requested: bool
    requested_by: str
    cancel_asked_at: datetime | None
    # of a request, by name
    arguments: Any
    # lines: {"at": time, "words": text}
    log: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptRequest(Record):
    """A request as its node told it."""

    id: str
    tenant: str
    node: str
    session: str
    space: int
    at: datetime
    # sampled, slow, failed or asked
    kept: str
    prompt_tokens: int
    # in the engine's own cache
    local_tokens: int
    asked_tokens: int
    found_tokens: int
    loaded_tokens: int
    # empty: it missed nothing
    reason: str
    outcome: str
    match_ms: float | None
    load_ms: float | None
    load_failed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Key(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    name: str
    role: str
    # what the key may do within its role; a node key has none
    scopes: tuple[str, ...]
    prefix: str
    made_by: int | None
    rotated_from: int | None
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency(Record):
    """Of all loads: percentiles of one merged histogram, in milliseconds."""

    loads: int
    p1_ms: float
    p50_ms: float
    p99_ms: float
    # above the last bound, which p99_ms then is: how much is not counted
    p99_is_beyond: bool
    # share of loads of at most 1 ms, the first bound
    within: float
    # share of loads above 5,000 ms, the last bound
    beyond: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Lever(Record):
    """Lever."""

    setting: str
    # in words
    name: str
    # present value
    now: str
    # value to try
    to: str
    # share of a quota in use
    used: float | None
    # for POST /what-if; empty: it cannot tell
    change: dict[str, str]
    # of the hit rate, simulated; null: not simulated
    gain: float | None
    # half width of gain's 95 % interval
    error: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Line(Record):
    """Line."""

    name: str
    # decimal
    quantity: str
    # of the quantity
    unit: str
    # decimal
    price: str
    # of the price
    per: str
    # decimal, signed: the amounts of a row add up to its net
    amount: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LineageContext(Record):
    """LineageContext."""

    id: str
    name: str
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LineageNode(Record):
    """A beginning that several contexts share; the root is the empty one."""

    # length of the beginning
    tokens: int
    # of all shards and KV groups
    blocks: int
    # contexts that begin so
    context_count: int
    # of those that share no more than this, the 10 longest
    contexts: tuple[LineageContext, ...]
    # longer beginnings, those of the most contexts first
    children: tuple[LineageNode, ...]
    # contexts that are neither in `contexts` nor below `children`: cut by the limits; 0: all are
    # shown
    more: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LookupResult(Record):
    """LookupResult."""

    # of the prompt
    tokens: int
    # after the last whole chunk: nothing can hold them
    tail_tokens: int
    # in Valkey
    hot_tokens: int
    # in S3 only
    cold_tokens: int
    # stored nowhere
    lost_tokens: int
    # the longest beginning behind which a request can go on
    usable_tokens: int
    # the longest one for which nothing is read from S3
    usable_hot_tokens: int
    # at most 10, with the longest common beginning
    contexts: tuple[Sharing, ...]
    cost: Cost


@dataclass(frozen=True, kw_only=True, slots=True)
class LosingContext(Record):
    """LosingContext."""

    uuid: str
    name: str
    last_used_at: datetime | None
    lost_blocks: int
    blocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss(Record):
    """`neve.formats.loss.Loss`; null: not measured."""

    # int8, fp8 or int4
    codec: str
    # of the KV: root of the mean square error over its own
    error: float | None
    # mean Kullback-Leibler divergence of the next token's distribution, in nats
    kl: float | None
    # share of positions whose likeliest token stays
    argmax: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeInvitation(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    email: str
    role: str
    invited_by: str
    is_mailed: bool
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    accepted_at: datetime | None
    accepted_by: str | None
    # shown once; null: it was mailed to the address
    link: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Mail(Record):
    """Mail."""

    # incidents by mail
    wants: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Me(Record):
    """Me."""

    # `key:7` or `user:3`: pins belong to it
    id: str
    kind: str
    # as the audit names you
    name: str
    role: str
    scopes: tuple[str, ...]
    # null: all, for an operator
    tenants: tuple[OwnTenant, ...] | None
    # null: a signed-in person
    key: Key | None = field(repr=False)
    # null: none
    rate_limit: RateLimit | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured(Record):
    """Measured quantities; microseconds are multiplied by the GPUs of the engine."""

    spared_tokens: int
    spared_gpu_us: int
    load_gpu_us: int
    slower_tokens: int
    slower_gpu_us: int
    unpriced_tokens: int
    hot_kib_s: int
    cold_kib_s: int
    puts: int
    gets: int
    egress_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Move(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    segment: int
    # name of the store that holds the copy
    store: str
    state: str
    # name of the store where the segment went, if the copy is its old place
    target: str | None
    size_bytes: int
    # name of the rule; empty for tenants
    reason: str
    # when it got its state
    since: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveDryRun(Record):
    """MoveDryRun."""

    currency: str
    # false: there are more segments
    is_whole: bool
    ways: tuple[Way, ...]
    # segments that are old, idle and warm enough and not in the target; those that do not move
    # are among the next three
    fitting: int
    # of these: the move does not pay back in time
    unpaid: int
    # of these: moved within the last hour
    resting: int
    # of these: the target has a copy already
    copied: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveRule(Record):
    """MoveRule."""

    id: int
    name: str
    # smaller ones come first
    position: int
    is_active: bool
    # null: all tenants
    tenant: str | None
    # store; null: any other
    source: str | None
    # store
    target: str
    # the old place stays as a copy
    is_copy: bool
    # written so long ago
    least_age_s: int | None
    # no node asked for its address for so long
    least_idle_s: int | None
    # minutes in which a node asked for its address, halved every six hours
    least_heat: float | None
    # the cheaper place pays for the move within so many
    payback_days: int | None
    # in words; empty: none
    warnings: tuple[str, ...]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Node(Record):
    """Names its tenant by slug."""

    id: str
    tenant: str | None
    space: int
    node: str
    # {"name": "vllm", "version": "…"}
    engine: Any
    opened_at: datetime
    last_heartbeat_at: datetime
    ended_at: datetime | None
    breaker: str
    # counters since the handshake
    totals: Any
    # counters of all sessions of its engine and space that live at the same time: `totals` of a
    # scheduler in a process of its own have what is asked for, those of its ranks what they load
    # and store
    node_totals: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnQuota(Record):
    """OwnQuota."""

    hot_bytes: int
    cold_bytes: int
    # spaces
    space_limit: int
    # contexts
    context_limit: int
    # blocks of one context
    context_block_limit: int
    # of all pins together; null: no budget
    pin_budget_bytes: int | None
    # nodes that may be connected
    node_limit: int
    # keys that may be usable
    key_limit: int
    used: Used


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnTenant(Record):
    """OwnTenant."""

    slug: str
    name: str
    # whether you may change contexts there
    may_write: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner(Record):
    """Owner."""

    id: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Part(Record):
    """Part."""

    # of tenant, space, node, label, context, reason, tier
    name: str
    # slug; empty: of a reason or tier
    tenant: str
    space: int | None
    # the sum of parts that have no row of their own
    is_rest: bool
    # null: nobody counted
    value: float | None
    # counts are scaled to the length of the window
    before: float | None
    change: float | None
    # of prompt tokens; of a count: of its total
    share: float | None
    # the denominator of the hit rate
    prompt_tokens: int
    hit_tokens: int
    # of misses: the one that grew most if the value got worse
    main_reason: str | None
    # with load_p50 and load_p99
    latency: Latency | None
    # a value a step, counts by second; of the first 5 groups only
    points: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin(Record):
    """A pin and who set it."""

    id: int
    owner: str
    reason: str
    tier: str
    until: datetime
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Pinned(Record):
    """Pinned."""

    # yours
    pin: Pin
    # the latest end of all pins
    pinned_until: datetime
    # blocks that are pinned now
    kept: int
    # blocks that are stored nowhere any more
    lost: int
    # blocks in Valkey now; null for a pin of the tier any
    hot: int | None
    # blocks in S3 now; null for a pin of the tier any
    durable: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy(Record):
    """Names its tenant by slug."""

    tenant: str | None
    flush_mode: str
    flush_after_s: int | None
    hot_idle_s: int | None
    cold_ttl_s: int | None
    max_age_s: int | None
    priority: int
    pin_budget_bytes: int | None
    eviction: str
    # a cold block read twice so close together becomes hot again; 0: never
    promote_window_s: int
    # when the cold quota is used up
    # * `evict` - Make room: the longest unread leave
    # * `refuse` - Refuse new blocks
    cold_full: str
    # how blocks are written to S3, without loss; older nodes read no compressed ones
    # * `none` - As they are
    # * `auto` - Compressed where that makes reads faster
    # * `always` - Compressed
    cold_codec: str
    # models whose nodes may store KV with loss, such as smollm*=int8, *=fp8
    lossy_codecs: str
    # stored blocks follow the last change by now
    is_applied: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview(Record):
    """Preview."""

    # starts the action; yours alone
    token: str = field(repr=False)
    expires_at: datetime
    action: str
    arguments: Any
    # chosen now; the action is done to these and no others
    contexts: int
    # of these, with a pin of somebody else
    pinned_by_others: int
    # of these, would be refused now, by kind of the problem; only for warm
    refused: dict[str, int]
    # distinct blocks of the unexpired ones, without those that a pin of somebody else keeps you
    # from expiring and those that would be refused
    blocks: int
    # of those that are stored
    bytes: int
    # that unexpired contexts outside hold too
    shared_blocks: int
    shared_bytes: int
    # that leave both tiers; 0 unless contexts expire
    freed_blocks: int
    # of these, each counted once
    freed_bytes: int
    # in Valkey, at once
    freed_hot_bytes: int
    # in S3, where compaction removes them; a block may be in both
    freed_cold_bytes: int
    # unexpired contexts outside that hold some of the blocks
    sharers: int
    # whether the bytes are extrapolated from a sample
    is_estimate: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceVersion(Record):
    """PriceVersion."""

    # first day, UTC
    valid_from: str
    currency: str
    # one GPU for one hour
    gpu_hour: str
    # one GiB of the hot tier for one hour
    hot_gib_hour: str
    # one GiB in the object store for one calendar month
    cold_gib_month: str
    # 1,000 PUT, POST, COPY and LIST requests
    put_1000: str
    # 1,000 GET and HEAD requests
    get_1000: str
    # 10^9 bytes read from the object store
    egress_gb: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices(Record):
    """The prices of today, and all versions."""

    # first day, UTC
    valid_from: str
    currency: str
    # one GPU for one hour
    gpu_hour: str
    # one GiB of the hot tier for one hour
    hot_gib_hour: str
    # one GiB in the object store for one calendar month
    cold_gib_month: str
    # 1,000 PUT, POST, COPY and LIST requests
    put_1000: str
    # 1,000 GET and HEAD requests
    get_1000: str
    # 10^9 bytes read from the object store
    egress_gb: str
    # newest first
    versions: tuple[PriceVersion, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota(Record):
    """Quota."""

    hot_bytes: int
    cold_bytes: int
    # spaces
    space_limit: int
    # contexts
    context_limit: int
    # blocks of one context
    context_block_limit: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RateLimit(Record):
    """RateLimit."""

    requests: int
    window_s: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation(Record):
    """Recommendation."""

    tenant: str
    verdict: str
    # a code, such as worth_it, below_error, samples_off
    reason: str
    words: str
    # as POST /what-if takes it; empty: none
    change: dict[str, str]
    # null: none was made yet
    made_at: datetime | None
    age_s: int | None
    # quota or policy changed since, or it is older than 24 h
    is_outdated: bool
    # the comparison of all changes tried, as a what-if job's detail; empty: none
    result: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal(Record):
    """What is deleted."""

    contexts: int
    segments: int
    segment_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Removals(Record):
    """Blocks that left both tiers, and were not stored again meanwhile."""

    # ids of blocks
    removed: tuple[str, ...]
    # `after` of the next request
    cursor: str
    # true: removals behind `after` are not all known any more; forget what you know
    reset: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RemovedStore(Record):
    """What went with a store."""

    # given up: no other store has a copy
    lost_segments: int
    # names of the rules that named it
    rules: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Residency(Record):
    """Each block that a request needs behind the context's end is hot, cold or lost. A chunk of
    tokens is where the worst of these blocks is.
    """

    # blocks in Valkey, whether or not in S3 as well
    hot: int
    # blocks in S3 only
    cold: int
    # blocks that are stored nowhere, of those that a request needs behind the end
    lost: int
    # blocks in S3, whether or not in Valkey as well
    durable: int
    hot_bytes: int
    cold_bytes: int
    durable_bytes: int
    hot_tokens: int
    cold_tokens: int
    lost_tokens: int
    durable_tokens: int
    # the longest beginning behind which a request can go on
    usable_tokens: int
    # the longest one for which nothing is read from S3
    usable_hot_tokens: int
    # lengths at which the states of linear attention are stored; null in a space without
    states: int | None
    blocks: tuple[BlockResidence, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidencyRun(Record):
    """Neighbouring chunks of tokens that are in one place."""

    # counted from 0
    first_token: int
    tokens: int
    # of their stored blocks
    bytes: int
    # hot: all that a request needs; cold: a part is in S3 only; null: a part is lost
    tier: str | None
    # whether copies stand in S3
    is_durable: bool
    # why a part is lost
    reason: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidencyRuns(Record):
    """The totals, and runs from the beginning of the context to its end."""

    # blocks in Valkey, whether or not in S3 as well
    hot: int
    # blocks in S3 only
    cold: int
    # blocks that are stored nowhere, of those that a request needs behind the end
    lost: int
    # blocks in S3, whether or not in Valkey as well
    durable: int
    hot_bytes: int
    cold_bytes: int
    durable_bytes: int
    hot_tokens: int
    cold_tokens: int
    lost_tokens: int
    durable_tokens: int
    # the longest beginning behind which a request can go on
    usable_tokens: int
    # the longest one for which nothing is read from S3
    usable_hot_tokens: int
    # lengths at which the states of linear attention are stored; null in a space without
    states: int | None
    blocks: tuple[BlockResidence, ...] | None
    runs: tuple[ResidencyRun, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    space: int | None
    label: str
    # a name, or a pattern: repo-*
    context: str
    # lower wins between equals
    order: int
    # such as {"cold_ttl_s": 3600, "max_age_s": null}
    overrides: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples(Record):
    """Samples."""

    tenant: str
    enabled: bool
    # share of block ids that nodes sample; 0: off
    rate: float
    files: int
    size_bytes: int
    # of the oldest file
    first: datetime | None
    # of the newest file
    last: datetime | None
    keep_days: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Savings(Record):
    """Savings."""

    formula: str
    # newest month first
    rows: tuple[SavingsRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SavingsRow(Record):
    """SavingsRow."""

    month: str
    # slug
    tenant: str
    # null: all of the tenant's
    space: SpaceOfRow | None
    currency: str
    # decimal: prefill that was saved
    gross: str
    # decimal
    costs: str
    # decimal; below 0: a loss
    net: str
    # terms of the formula that are not 0
    lines: tuple[Line, ...]
    used: Measured
    # loaded, as each node's data path counted
    hit_tokens: int
    requested_tokens: int
    # what is not measured and how figures were shared, by code
    notes: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    space: int
    uuid: str
    object_key: str
    state: str
    blocks: int
    size_bytes: int
    # when last counted
    live_bytes: int
    # pieces of its chains: blocks that do not follow their parent
    runs: int
    # how often its blocks were merged along their chains
    generation: int
    # name of the store that holds it
    store: str
    # when no block was found in it; deleted after a grace time
    unreferenced_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing(Record):
    """Sharing."""

    id: str
    name: str
    # at the beginning of both, whole chunks
    shared_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SignIn(Record):
    """SignIn."""

    id: int
    # user name
    user: str
    address: str
    user_agent: str
    signed_in_at: datetime
    last_seen_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice(Record):
    """The worst slice; without members where none stands out."""

    # node, space or label
    split: str | None
    name: str | None
    # its hit rate before
    before: float | None
    now: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Space(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    name: str
    # 32 bytes as hex
    fingerprint: str
    chunk_tokens: int
    # what the node declared: neve.formats.space.SpaceIdentity
    identity: Any
    # of each chunk one part is stored for each of these KV groups; empty: one block with the KV
    # of all its tokens
    groups: tuple[SpaceGroup, ...]
    # of KV that is stored with loss; null: its blocks are exact
    loss: Loss | None
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceDetail(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    name: str
    # 32 bytes as hex
    fingerprint: str
    chunk_tokens: int
    # what the node declared: neve.formats.space.SpaceIdentity
    identity: Any
    # of each chunk one part is stored for each of these KV groups; empty: one block with the KV
    # of all its tokens
    groups: tuple[SpaceDetailGroup, ...]
    # of KV that is stored with loss; null: its blocks are exact
    loss: Loss | None
    created_at: datetime
    break_even: BreakEven


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceDetailGroup(Record):
    """A KV group of the engine: of each chunk it has one part."""

    kind: str
    # tokens of a window, the reader's own included, or of a local chunk
    span_tokens: int | None
    # tokens of one of the engine's blocks
    block_tokens: int
    # of KV, all layers; 0 for a state
    bytes_per_token: int
    # of one state; else 0
    state_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceGroup(Record):
    """A KV group of the engine: of each chunk it has one part."""

    kind: str
    # tokens of a window, the reader's own included, or of a local chunk
    span_tokens: int | None
    # tokens of one of the engine's blocks
    block_tokens: int
    # of KV, all layers; 0 for a state
    bytes_per_token: int
    # of one state; else 0
    state_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceOfRow(Record):
    """SpaceOfRow."""

    # 0: what belongs to no space
    id: int
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Span(Record):
    """Span."""

    start: datetime
    end: datetime
    # length of its buckets
    step_s: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Store(Record):
    """What it holds is of all tenants."""

    id: int
    name: str
    is_default: bool
    endpoint: str
    bucket: str
    region: str
    access_key: str
    # the key itself is never shown
    has_secret_key: bool
    # prefix of two variables of the environment, …_ACCESS_KEY and …_SECRET_KEY; empty: the row's
    # own
    credentials_env: str
    # of its objects, such as STANDARD_IA; empty: S3's own
    storage_class: str
    # readers take the copy with the smallest, but near stores first
    priority: int
    # one GiB for one calendar month; empty: the platform's price
    gib_month: str | None
    # 1,000 PUT, POST, COPY and LIST requests; empty: the platform's price
    put_1000: str | None
    # 1,000 GET and HEAD requests; empty: the platform's price
    get_1000: str | None
    # 10^9 bytes read; empty: the platform's price
    egress_gb: str | None
    # bound of moves into it, of all workers together
    move_bytes_per_s: int
    # why it does not answer
    error: str
    failing_since: datetime | None
    # whose own place it is
    segments: int
    # of these segments
    stored_bytes: int
    # of segments whose place is elsewhere
    copy_bytes: int
    # of copies that arrive, or that are deleted after the grace time
    leaving_bytes: int
    # of all its bytes, if they stay
    money_a_month: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip(Record):
    """Strip."""

    title: str
    space: int
    space_name: str
    chunks: int
    # each cell stands for so many chunks
    stride: int
    # chunks from the beginning without a gap
    stored: int
    # chunk, when it was asked for
    first_miss: int | None
    cells: tuple[Cell, ...]
    contexts: tuple[Sharing, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject(Record):
    """Subject."""

    type: str
    id: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenant(Record):
    """Tenant."""

    id: int
    slug: str
    name: str
    node_limit: int
    is_active: bool
    # nodes report which blocks a sample of requests asked for: keyed ids and times
    samples_enabled: bool
    # its nodes harmed others: they are kept out
    cut_off_at: datetime | None
    cut_off_reason: str
    created_at: datetime
    quota: Quota


@dataclass(frozen=True, kw_only=True, slots=True)
class TenantMember(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    # user name
    user: str
    role: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TierSpeed(Record):
    """TierSpeed."""

    # median of what nodes measured
    bytes_per_s: float | None
    # what each load costs besides
    round_trip_s: float | None
    # read by live nodes, over the last 5 to 10 minutes
    moved_bytes_per_s: float | None
    # false: computing is faster at every length; null: unknown
    wins: bool | None
    # whole chunks; a prefix at least this long is loaded 5 % faster than computed
    from_tokens: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpinned(Record):
    """Unpinned."""

    # pins that ended
    removed: int
    # the latest end of the pins that stay; null: none stays
    pinned_until: datetime | None
    # blocks that other pins keep
    kept: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage(Record):
    """Usage."""

    # length of a point
    resolution_s: int
    points: tuple[UsagePoint, ...]
    # with `by`: at most 100, most requested tokens first
    groups: tuple[Group, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class UsagePoint(Record):
    """UsagePoint."""

    # first second of the bucket, Unix time
    bucket_ts: int
    # of prompts, in whole blocks
    requested_tokens: int
    # of prompts, after their last whole blocks
    tail_tokens: int
    hit_hot_tokens: int
    hit_cold_tokens: int
    requested_blocks: int
    hit_hot_blocks: int
    hit_cold_blocks: int
    hot_read_bytes: int
    cold_read_bytes: int
    hot_write_bytes: int
    put_blocks: int
    # of put_blocks: states of linear attention
    put_states: int
    # brought back from the cold tier
    promoted_blocks: int
    # of hot_write_bytes
    promoted_bytes: int
    put_refused: int
    dropped: int
    corrupt: int
    # found prefixes that nodes chose to load whole
    decided_all: int
    # found prefixes of which nodes chose to load the first part
    decided_prefix: int
    # found prefixes that nodes chose to compute
    decided_recompute: int
    # of loads that ended sooner than computing
    spared_tokens: int
    # prefill that those loads spared: microseconds × GPUs of the engine
    spared_gpu_us: int
    # wait for those loads: microseconds × GPUs of the engine
    load_gpu_us: int
    # of loads that took longer than computing
    slower_tokens: int
    # time that those loads lost: microseconds × GPUs of the engine
    slower_gpu_us: int
    # loaded before the node had measured its prefill
    unpriced_tokens: int
    # GETs of nodes to S3
    cold_requests: int
    # asked for by those GETs: with gaps between blocks, and tries that failed
    cold_fetched_bytes: int
    # from nodes' local tiers
    hit_local_tokens: int
    hit_local_blocks: int
    local_read_bytes: int
    local_write_bytes: int
    # deleted there to make room
    local_evicted_blocks: int
    # files there that failed verification; the blocks came from another tier
    local_bad_blocks: int
    misses: dict[str, int]
    load_ms: dict[str, int]
    # why `dropped` were not stored
    drops: dict[str, int]
    # the cold tier had no room for them
    cold_refused_blocks: int
    # made room in the cold tier
    cold_evicted_blocks: int
    # refused by the cold tier, then gone from hot
    lost_blocks: int
    hot_used_bytes: int | None
    cold_used_bytes: int | None
    # of segments in S3, until they are merged
    cold_dead_bytes: int | None
    # of segments in S3 that nobody names, until they are deleted
    cold_waiting_bytes: int | None
    dirty_bytes: int | None
    dirty_blocks: int | None
    dirty_oldest_s: int | None
    # hot blocks that the cold tier refused
    unstored_blocks: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Used(Record):
    """What the tenant uses of its limits now."""

    # null: Valkey does not answer
    hot_bytes: int | None
    # null: Valkey does not answer
    cold_bytes: int | None
    # null: Valkey does not answer
    pinned_bytes: int | None
    spaces: int
    contexts: int
    # with young heartbeats
    nodes: int
    # usable ones
    keys: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmPolicy(Record):
    """Names its tenant by slug."""

    id: int
    tenant: str | None
    context: str
    # null: any healthy one
    engine: int | None
    mode: str
    # five fields
    cron: str
    time_zone: str
    is_paused: bool
    # the last failure; why the platform paused it
    error: str
    # failed jobs in a row
    failures: int
    last_job: str | None
    last_run_at: datetime | None
    # empty: paused
    next_run_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Way(Record):
    """What one rule would move from one store to another."""

    rule: str
    source: str
    target: str
    segments: int
    bytes: int
    # of requests and bytes out, once
    cost: str
    # of storage and of nodes' reads; negative: it costs more
    saved_a_month: str
    # at the target's bound of bytes a second
    seconds: float
    # names of its stores that do not answer: the moves wait for them
    away: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook(Record):
    """Names its tenant by slug."""

    id: str
    tenant: str | None
    url: str
    types: tuple[str, ...]
    is_active: bool
    inactive_reason: str
    failures: int
    failing_since: datetime | None
    last_delivery_at: datetime | None
    previous_until: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookWithSecret(Record):
    """Names its tenant by slug."""

    id: str
    tenant: str | None
    url: str
    types: tuple[str, ...]
    is_active: bool
    inactive_reason: str
    failures: int
    failing_since: datetime | None
    last_delivery_at: datetime | None
    previous_until: datetime | None
    created_at: datetime
    updated_at: datetime
    # verifies signatures, shown only once
    secret: str | None = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Why(Record):
    """Why."""

    # request, context, block, text or nothing
    kind: str
    tag: str
    # the answer
    sentence: str
    # what helps
    lever: str
    reason: str
    facts: tuple[Fact, ...]
    # where blocks are now
    strips: tuple[Strip, ...]
    # where the same prefix stands
    other_space: int | None
    fields_of_spaces: tuple[Field, ...]
    # of vLLM, that give the other space's layout
    flags: str
    request: KeptRequest | None
    # contexts that hold the block
    owners: tuple[Owner, ...]

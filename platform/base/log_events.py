"""The platform's log events. Those of nodes are in `neve.log_events`.

Log only through an event: `log_events.PIN_REFUSED.log(context=…, reason=…)`. `base.logs` adds
request, key, job and such to each line. docs/events.md is generated from both modules
(`make reference`).

Must not be here: fields that hold API keys, passwords, prompts or signed addresses.
"""

from logging import ERROR, INFO, WARNING

from neve.log_events import LogEvent

# ---- nodes

SESSION_REFUSED = LogEvent(
    "session_refused",
    WARNING,
    ("node", "kind", "detail"),
    "A node's handshake was refused, so it serves without Neve. Said once an hour, with a line in "
    "the audit trail (`session.refuse`).",
    "Do as `detail` says, at that node or in its tenant's policy.",
)

# ---- answering requests

REQUEST_FAILED = LogEvent(
    "request_failed",
    ERROR,
    ("path",),
    "A bug: the request was answered 500 without its cause.",
    "Report it with the traceback and the request id.",
)
DATABASE_UNAVAILABLE = LogEvent(
    "database_unavailable",
    WARNING,
    ("error",),
    "The database did not answer in time; the request was answered 503.",
    "Does PostgreSQL answer, or which process holds SQLite's write lock?",
)
PAGE_PROCESS_ENDED = LogEvent(
    "page_process_ended",
    WARNING,
    ("status",),
    "A process that renders pages ended; another does, or the web process, until the next one "
    "runs, half a minute later.",
    "Was it killed, for memory say? Its lines stand in the web process's log.",
)
HOT_TIER_UNAVAILABLE = LogEvent(
    "hot_tier_unavailable",
    WARNING,
    ("error",),
    "valkey-hot did not answer; the request was answered 503.",
    "Look at the Valkey of `NEVE_HOT_URL`.",
)
RATE_LIMITS_OFF = LogEvent(
    "rate_limits_off",
    WARNING,
    ("error",),
    "valkey-bus does not answer, so nobody is limited. Said once.",
    "Look at the Valkey of `NEVE_BUS_URL`.",
)
COUNTS_WAIT = LogEvent(
    "counts_wait",
    WARNING,
    ("error",),
    "valkey-bus does not answer; this process keeps its counts for /metrics. Said once.",
    "Look at the Valkey of `NEVE_BUS_URL`.",
)
MAIL_FAILED = LogEvent(
    "mail_failed",
    WARNING,
    ("about", "error"),
    "The mail server did not take a mail; of an invitation, the inviter sees the link instead; of "
    "an incident, it is tried again, up to eight times; of a password, people ask again.",
    "Look at the mail server of `NEVE_MAIL_URL`.",
)
SSO_FAILED = LogEvent(
    "sso_failed",
    WARNING,
    ("error",),
    "The provider of identities (NEVE_OIDC_URL) gave no usable answer; the person was not let in.",
    "Are address, client id, secret and callback address as the provider has them?",
)
SAMPLES_DAMAGED = LogEvent(
    "samples_damaged",
    WARNING,
    ("object", "error"),
    "A file of samples in S3 cannot be read; estimates go without it.",
    "Nothing: it is deleted with its day. Many of them: does another program write there?",
)
KEY_USE_NOT_NOTED = LogEvent(
    "key_use_not_noted",
    WARNING,
    ("key", "error"),
    "When a key was last used could not be noted on valkey-bus.",
    "Look at the Valkey of `NEVE_BUS_URL`.",
)
HINT_FAILED = LogEvent(
    "hint_failed",
    WARNING,
    ("error",),
    "Open pages were not told of news: valkey-bus does not answer.",
    "Look at the Valkey of `NEVE_BUS_URL`.",
)
EVENT_HINTS_LOST = LogEvent(
    "event_hints_lost",
    WARNING,
    ("error",),
    "valkey-bus does not answer, so that event streams look for news once a second.",
    "Look at the Valkey of `NEVE_BUS_URL`.",
)
EVENT_POLL_FAILED = LogEvent(
    "event_poll_failed",
    WARNING,
    ("error",),
    "Event streams wait: the database did not answer.",
    "Does PostgreSQL answer, or which process holds SQLite's write lock?",
)
WEBHOOK_DEACTIVATED = LogEvent(
    "webhook_deactivated",
    WARNING,
    ("webhook", "tenant_id", "reason"),
    "A webhook gets no events any more: its receiver failed for three days, or answered 410.",
    "Tell the tenant: the receiver needs repair, then `is_active` of the webhook.",
)
LIVE_SOCKET_CLOSED = LogEvent(
    "live_socket_closed",
    WARNING,
    ("error",),
    "A page's live socket ended since valkey-bus does not answer; the page reconnects.",
    "Look at the Valkey of `NEVE_BUS_URL`.",
)
PROBE_FAILED = LogEvent(
    "probe_failed",
    WARNING,
    ("probe",),
    "valkey-hot, S3 or the workers did not answer when they were asked for the health page.",
    "Look at the server that `probe` names.",
)
TRACING_OFF = LogEvent(
    "tracing_off",
    WARNING,
    ("error",),
    "OTEL_EXPORTER_OTLP_ENDPOINT is set, and the packages for traces are not installed.",
    "`pip install -r requirements-otel.txt`, or unset the variable.",
)

INCIDENT_OPENED = LogEvent(
    "incident_opened",
    WARNING,
    ("incident", "tenant_id", "kind", "words", "cause"),
    "A rule held for long enough: something needs a person.",
    "Open the page Incidents: it has cause, worst slice and lever.",
)
INCIDENT_UNEXPLAINED = LogEvent(
    "incident_unexplained",
    WARNING,
    ("incident", "tenant_id"),
    "Slice and levers of an incident could not be read; the incident itself stands.",
    "Report it with the traceback.",
)
# ---- administration of the hot tier

HOT_SERVER_AWAY = LogEvent(
    "hot_server_away",
    WARNING,
    ("error",),
    "One node of the Valkey Cluster does not answer; the others do.",
    "Look at that node.",
)
HOT_MEMORY_SHORT = LogEvent(
    "hot_memory_short",
    WARNING,
    ("maxmemory", "quotas", "needed"),
    "Hot quotas promise more bytes than valkey-hot has.",
    "Raise `maxmemory` to `needed`, or lower the quotas.",
    effect="raise maxmemory to what is needed, or lower the quotas",
)
HOT_BUCKETS_FEW = LogEvent(
    "hot_buckets_few",
    WARNING,
    ("buckets", "primaries"),
    "There are fewer buckets than primaries: a tenant's blocks are on some primaries only.",
    "Set `NEVE_HOT_BUCKETS`; see *Valkey Cluster*.",
)
HOT_CLIENTS_UNBOUNDED = LogEvent(
    "hot_clients_unbounded",
    WARNING,
    ("option", "fix"),
    "One client could take what all clients of valkey-hot share.",
    "Run the command in `fix`.",
)
HOT_LOGS_UNBOUNDED = LogEvent(
    "hot_logs_unbounded",
    WARNING,
    ("error",),
    "valkey-hot refused to bound its own logs of commands.",
    "Let the platform's user change these options (`deploy/valkey-hot.conf`).",
)
HOT_ROOM_UNKNOWN = LogEvent(
    "hot_room_unknown",
    WARNING,
    ("error",),
    "A quota was set without a look at valkey-hot's memory, which does not answer.",
    "Look at the Valkey of `NEVE_HOT_URL`.",
)
HOT_CHANGE_FAILED = LogEvent(
    "hot_change_failed",
    WARNING,
    ("action", "tenant_id", "error"),
    "A change of users or policies did not reach valkey-hot; a task repeats it.",
    "Nothing, unless it stays: look at the Valkey of `NEVE_HOT_URL`.",
)
HOT_USAGE_UNKNOWN = LogEvent(
    "hot_usage_unknown",
    WARNING,
    ("tenant_id",),
    "valkey-hot did not tell what a tenant holds; pages show the last sample, quotas none.",
    "Look at the Valkey of `NEVE_HOT_URL`.",
)
HOT_USAGE_UNREADABLE = LogEvent(
    "hot_usage_unreadable",
    WARNING,
    ("tenant_id",),
    "A tenant's counters in valkey-hot hold no numbers.",
    "Nothing: `reconcile` counts them anew. If it comes back, look at the tenant's nodes.",
)
PROVISION_FAILED = LogEvent(
    "provision_failed",
    ERROR,
    ("tenant_id",),
    "A tenant's quota and policies could not be written to valkey-hot.",
    "See the traceback; `manage.py provision` repeats it.",
)
BUCKET_MENDED = LogEvent(
    "bucket_mended",
    WARNING,
    ("tenant_id", "bucket", "keys", "values", "index_lost"),
    "Damaged bookkeeping of a bucket was removed.",
    "Nothing. If it comes back, look at the tenant's nodes.",
)

STORE_FAILED = LogEvent(
    "store_failed",
    WARNING,
    ("store", "error"),
    "A store does not answer, or its keys cannot be read: blocks that are only there are misses.",
    "Look at that S3; `neve stores ls` shows since when. If it is lost for good: `neve stores rm`.",
)
SEGMENT_MOVED = LogEvent(
    "segment_moved",
    INFO,
    ("segment", "source", "target"),
    "A segment's place is another store now; the old one stays readable for the grace time.",
    "Nothing.",
)

# ---- contexts and pins

PIN_REFUSED = LogEvent(
    "pin_refused",
    WARNING,
    ("context", "reason"),
    "A pin that a request asked for was refused, as when the budget of pins is used up.",
    "Raise `pin_budget_bytes`, or unpin other contexts.",
)
PIN_NOT_APPLIED = LogEvent(
    "pin_not_applied",
    WARNING,
    ("context", "error"),
    "valkey-hot does not answer; the pin is noted and applied later.",
    "Look at the Valkey of `NEVE_HOT_URL`.",
)
DELETED_CONTEXT_NOT_SETTLED = LogEvent(
    "deleted_context_not_settled",
    WARNING,
    ("context", "error"),
    "A context was deleted while valkey-hot did not answer; its blocks keep its terms for now.",
    "Nothing: `retain` follows.",
)
PREFIX_TREE_FAILED = LogEvent(
    "prefix_tree_failed",
    WARNING,
    ("space_id", "reason"),
    "The prefix tree of a space was not computed; pages show the last one.",
    "Look at the Valkey of `NEVE_HOT_URL`.",
)

# ---- tasks and jobs

ENQUEUE_FAILED = LogEvent(
    "enqueue_failed",
    WARNING,
    ("job", "error"),
    "A job's message did not reach valkey-bus; `housekeeping` sends it again.",
    "Look at the Valkey of `NEVE_BUS_URL`.",
)
TASK_FAILED = LogEvent(
    "task_failed",
    ERROR,
    ("kind", "tenant_id"),
    "Background work for one tenant failed; it is tried again after a pause.",
    "See the traceback, and the job on the page *Jobs*.",
)
JOB_FAILED = LogEvent(
    "job_failed",
    ERROR,
    ("job", "kind"),
    "A requested job failed; it is tried again unless this was its last attempt.",
    "See the traceback, and the job on the page *Jobs*.",
)
JOB_DONE = LogEvent(
    "job_done",
    INFO,
    ("job", "kind"),
    "A requested job did its work. Ticks have no such line: `neve_task_seconds` counts them.",
    "Nothing.",
)
JOB_OVER = LogEvent(
    "job_over",
    INFO,
    ("job",),
    "A message came for a job that ended before, or runs elsewhere.",
    "Nothing.",
)
RECONCILE_FAILED = LogEvent(
    "reconcile_failed",
    ERROR,
    ("at",),
    "`reconcile` could not look at one tenant, bucket, segment or object.",
    "See the traceback; the next round looks again.",
)
REBUILD_FAILED = LogEvent(
    "rebuild_failed",
    ERROR,
    ("tenant_id",),
    "One tenant's index could not be rebuilt; other tenants' were.",
    "See the traceback; the job `rebuild_index` tries again.",
)
INDEX_REBUILT = LogEvent(
    "index_rebuilt",
    INFO,
    ("segments", "blocks", "lost"),
    "The index of an emptied valkey-hot was rebuilt from segment footers.",
    "Nothing. `lost` segments are named in lines before.",
)
BOOKS_RENAMED = LogEvent(
    "books_renamed",
    WARNING,
    (),
    "The pepper changed, so bookkeeping got other names: the hot tier begins empty.",
    "Nothing, if the new pepper was meant.",
)

# ---- segments

SEGMENT_LOST = LogEvent(
    "segment_lost",
    WARNING,
    ("object", "reason"),
    "A segment's object is missing in S3, or its footer cannot be read: its blocks are misses.",
    "Find out who deletes or changes objects in the bucket.",
)
SEGMENT_DAMAGED = LogEvent(
    "segment_damaged",
    WARNING,
    ("object", "left_bytes"),
    "A segment's object is shorter than it was, twice in a row; what is left is kept.",
    "Find out who changes objects in the bucket.",
)
SEGMENT_ADOPTED = LogEvent(
    "segment_adopted",
    WARNING,
    ("segment", "object"),
    "A segment without a row in the database got one.",
    "Nothing after a crash or a restored backup.",
)
SEGMENT_NAMED_AGAIN = LogEvent(
    "segment_named_again",
    ERROR,
    ("segment", "object"),
    "A segment that was to be deleted is named by the index again; it is kept.",
    "Report it: nothing should name such a segment.",
)
STRAY_DELETED = LogEvent(
    "stray_deleted",
    WARNING,
    ("object", "bytes"),
    "An object that belongs to nothing was deleted.",
    "Nothing after a crash.",
)
BLOCK_CORRUPT = LogEvent(
    "corrupt",
    WARNING,
    ("segment", "id"),
    "A merge found a block whose checksum is wrong; it is a miss from now on.",
    "One is bad luck. Several: check the disks under S3.",
)
BLOCK_UNREADABLE = LogEvent(
    "unreadable",
    WARNING,
    ("tenant_id", "id", "status"),
    "A flush found a hot block missing or damaged; it is a miss from now on.",
    "One is bad luck. Several: check the memory of valkey-hot's host.",
)
DRIFT = LogEvent(
    "drift",
    WARNING,
    ("tenant_id", "name", "counted", "found"),
    "A tenant's counter differed from a recount, and was corrected.",
    "Nothing after a crash. Otherwise report it.",
)

# ---- removal, and protection of tenants from each other

SPACE_REMOVED = LogEvent(
    "space_removed",
    INFO,
    ("tenant_id", "space_id", "blocks"),
    "A space that was given up is gone with its data.",
    "Nothing.",
)
TENANT_REMOVED = LogEvent(
    "tenant_removed",
    INFO,
    ("tenant_id", "blocks"),
    "A tenant that was given up is gone with its data.",
    "Nothing.",
)
TENANT_CUT_OFF = LogEvent(
    "tenant_cut_off",
    ERROR,
    ("tenant", "why"),
    "A tenant's nodes took what belongs to others: they are kept out.",
    "Find out which node and why; then let the tenant in again.",
)
CONNECTIONS_ENDED = LogEvent(
    "connections_ended",
    WARNING,
    ("count", "why"),
    "Connections of tenants with too many of them were ended.",
    "Lower the connections of their nodes, or raise `NEVE_HOT_CONNECTIONS`.",
)
CONNECTIONS_UNLISTED = LogEvent(
    "connections_unlisted",
    ERROR,
    ("why",),
    "valkey-hot's list of connections could not be read; those of suspects were ended.",
    "Look which tenant fills its connections' names or buffers.",
)
JUNK_REMOVED = LogEvent(
    "junk_removed",
    WARNING,
    ("tenant_id", "keys", "bytes"),
    "What a cut-off tenant stored outside of its bookkeeping was removed.",
    "Nothing.",
)
BOOKS_UNREADABLE = LogEvent(
    "books_unreadable",
    ERROR,
    ("tenant_id",),
    "A tenant's bookkeeping is damaged, so its share of the memory is unknown.",
    "Nothing: `reconcile` repairs it within seconds.",
)
BOOKS_REMOVED = LogEvent(
    "books_removed",
    ERROR,
    ("tenant_id",),
    "A cut-off tenant's bookkeeping was too large and was removed; it is rebuilt from S3.",
    "Find out what its nodes did before they are let in again.",
)

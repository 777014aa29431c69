"""What to do about each kind of problem. Made by `make openapi`: do not edit."""

REMEDIES = {
    "malformed": ("Correct the member that `field` names."),
    "unknown-host": (
        "Set NEVE_URL of the platform to the address that people and nodes use, or add the "
        "host to NEVE_HOSTS."
    ),
    "address-refused": (
        "Use an address that the platform may reach. Private and local ranges are refused "
        "unless an operator adds them to NEVE_OUTBOUND_ALLOW."
    ),
    "unauthorized": (
        "Send `Authorization: Bearer neve_…` with a key that is neither revoked nor expired."
    ),
    "forbidden": ("Use a key or an account with the role and the scope that this needs."),
    "tenant-cut-off": (
        "Its nodes took what belongs to others. Find out which and why; then an operator lets"
        " the tenant in again, on the page Tenants or with `manage.py let_in`."
    ),
    "not-found": ("Check the id or the address; another tenant's objects do not exist here."),
    "method-not-allowed": ("Use a method that the Allow header lists."),
    "not-acceptable": ("Accept application/json."),
    "fingerprint-clash": (
        "Make `field` equal on this node, or use another space (or none: it is then made)."
    ),
    "node-limit": ("Stop a node of this tenant or raise its node limit."),
    "hot-overcommit": (
        "Ask for less, lower other tenants' quotas, or raise `maxmemory` of the hot tier. An "
        'operator may promise more than there is with `"overcommit": true`.'
    ),
    "unconfirmed": ("Read what would be removed, and repeat the request with ?confirm=<name>."),
    "pin-budget": (
        "Unpin other contexts, wait for pins to end, or have `pin_budget_bytes` raised."
    ),
    "context-gone": (
        "Nothing is left to keep. A request that names the context stores its blocks and "
        "records it anew."
    ),
    "pinned-by-others": (
        "Wait until the pins that `pins` lists end, or ask their owners or an operator."
    ),
    "no-engine": (
        "Register an engine for the space (POST /api/v1/engines), have its nodes announce "
        "theirs (option engine_url), or mend the one that `detail` names. Give token ids "
        "instead of text where nothing need be computed."
    ),
    "tokens-unknown": (
        "A node recorded the context by its blocks alone. Repeat the request with its "
        "`tokens`, `text` or `messages`."
    ),
    "limit-reached": (
        "Delete what is no longer needed, or have the limit that `limit` names raised."
    ),
    "conflict": ("Look at the object and repeat with other values."),
    "preview-expired": ("Make a new preview, look at it, and send its token within minutes."),
    "idempotency-in-progress": ("Repeat it as it is, after as long as Retry-After says."),
    "idempotency-key-reused": (
        "Use a new Idempotency-Key for each change; only a repetition has the same."
    ),
    "events-gone": (
        "Some events between your position and now may be missed for ever: list what you "
        "follow anew (contexts, jobs, nodes), then go on without Last-Event-ID, or `after` "
        "the number in `newest`."
    ),
    "precondition-failed": (
        "Read the object again, decide anew, and repeat the change with the ETag of that answer."
    ),
    "length-required": ("Send the body with a Content-Length instead of in chunks."),
    "too-large": ("Send less at once."),
    "unsupported-media-type": ("Send application/json."),
    "too-many-streams": (
        "Close a stream of this key: several readers of one program can share one."
    ),
    "throttled": ("Wait as long as Retry-After says."),
    "internal": ("Report it with the X-Request-ID of the response."),
    "database-unavailable": (
        "Repeat it after as long as Retry-After says. If it stays: does PostgreSQL answer, or"
        " which process holds SQLite's write lock?"
    ),
    "hot-tier-unavailable": ("Repeat it later. If it stays, look at the Valkey of NEVE_HOT_URL."),
    "cold-tier-unavailable": ("Repeat it later. If it stays, look at the S3 of NEVE_S3_ENDPOINT."),
}

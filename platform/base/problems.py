"""Errors as RFC 9457 problem documents, for all endpoints that programs call.

Services raise `Problem`; `base.problem_responses` sends it. `KINDS` is the registry: each kind has
a page, /problems/<kind>, with the remedy.
"""

from typing import Any

from django.urls import get_script_prefix

CONTENT_TYPE = "application/problem+json"

# kind → status, title, what to do
KINDS: dict[str, tuple[int, str, str]] = {
    "malformed": (400, "Malformed request", "Correct the member that `field` names."),
    "unknown-host": (
        400,
        "Unknown host",
        "Set NEVE_URL of the platform to the address that people and nodes use, or add the host "
        "to NEVE_HOSTS.",
    ),
    "address-refused": (
        400,
        "The platform may not connect there",
        "Use an address that the platform may reach. Private and local ranges are refused unless "
        "an operator adds them to NEVE_OUTBOUND_ALLOW.",
    ),
    "unauthorized": (
        401,
        "Unknown credentials",
        "Send `Authorization: Bearer neve_…` with a key that is neither revoked nor expired.",
    ),
    "forbidden": (
        403,
        "Not allowed",
        "Use a key or an account with the role and the scope that this needs.",
    ),
    "tenant-cut-off": (
        403,
        "The tenant is cut off",
        "Its nodes took what belongs to others. Find out which and why; then an operator lets the "
        "tenant in again, on the page Tenants or with `manage.py let_in`.",
    ),
    "not-found": (
        404,
        "Not found",
        "Check the id or the address; another tenant's objects do not exist here.",
    ),
    "method-not-allowed": (405, "Method not allowed", "Use a method that the Allow header lists."),
    "not-acceptable": (406, "Not acceptable", "Accept application/json."),
    "fingerprint-clash": (
        409,
        "The space has another layout",
        "Make `field` equal on this node, or use another space (or none: it is then made).",
    ),
    "node-limit": (
        409,
        "Node limit reached",
        "Stop a node of this tenant or raise its node limit.",
    ),
    "hot-overcommit": (
        409,
        "Hot quotas would exceed the memory",
        "Ask for less, lower other tenants' quotas, or raise `maxmemory` of the hot tier. An "
        'operator may promise more than there is with `"overcommit": true`.',
    ),
    "unconfirmed": (
        409,
        "Removing needs a confirmation",
        "Read what would be removed, and repeat the request with ?confirm=<name>.",
    ),
    "pin-budget": (
        409,
        "The budget of pins is used up",
        "Unpin other contexts, wait for pins to end, or have `pin_budget_bytes` raised.",
    ),
    "context-gone": (
        409,
        "The context's blocks are gone",
        "Nothing is left to keep. A request that names the context stores its blocks and records "
        "it anew.",
    ),
    "pinned-by-others": (
        409,
        "Pinned by others",
        "Wait until the pins that `pins` lists end, or ask their owners or an operator.",
    ),
    "no-engine": (
        409,
        "No engine serves the space",
        "Register an engine for the space (POST /api/v1/engines), have its nodes announce theirs "
        "(option engine_url), or mend the one that `detail` names. Give token ids instead of text "
        "where nothing need be computed.",
    ),
    "tokens-unknown": (
        409,
        "The context's tokens are unknown",
        "A node recorded the context by its blocks alone. Repeat the request with its `tokens`, "
        "`text` or `messages`.",
    ),
    "limit-reached": (
        409,
        "A limit of the tenant is reached",
        "Delete what is no longer needed, or have the limit that `limit` names raised.",
    ),
    "conflict": (
        409,
        "Conflict with what is there",
        "Look at the object and repeat with other values.",
    ),
    "preview-expired": (
        409,
        "The preview is over",
        "Make a new preview, look at it, and send its token within minutes.",
    ),
    "idempotency-in-progress": (
        409,
        "The first request is still running",
        "Repeat it as it is, after as long as Retry-After says.",
    ),
    "idempotency-key-reused": (
        422,
        "The idempotency key belongs to another request",
        "Use a new Idempotency-Key for each change; only a repetition has the same.",
    ),
    "events-gone": (
        410,
        "These events are not kept any more",
        "Some events between your position and now may be missed for ever: list what you follow "
        "anew (contexts, jobs, nodes), then go on without Last-Event-ID, or `after` the number in "
        "`newest`.",
    ),
    "precondition-failed": (
        412,
        "The object has changed",
        "Read the object again, decide anew, and repeat the change with the ETag of that answer.",
    ),
    "length-required": (
        411,
        "Length required",
        "Send the body with a Content-Length instead of in chunks.",
    ),
    "too-large": (413, "Request too large", "Send less at once."),
    "unsupported-media-type": (415, "Unsupported media type", "Send application/json."),
    "too-many-streams": (
        429,
        "Too many open streams",
        "Close a stream of this key: several readers of one program can share one.",
    ),
    "throttled": (429, "Too many requests", "Wait as long as Retry-After says."),
    "internal": (500, "Internal error", "Report it with the X-Request-ID of the response."),
    "database-unavailable": (
        503,
        "Database unavailable",
        "Repeat it after as long as Retry-After says. If it stays: does PostgreSQL answer, or "
        "which process holds SQLite's write lock?",
    ),
    "hot-tier-unavailable": (
        503,
        "Hot tier unavailable",
        "Repeat it later. If it stays, look at the Valkey of NEVE_HOT_URL.",
    ),
    "cold-tier-unavailable": (
        503,
        "Cold tier unavailable",
        "Repeat it later. If it stays, look at the S3 of NEVE_S3_ENDPOINT.",
    ),
}


class Problem(Exception):
    """A refusal that the caller can read. `members` are extra: field, expected, got, …"""

    def __init__(self, kind: str, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.members = members

    @property
    def status(self) -> int:
        return KINDS[self.kind][0]

    def document(self) -> dict[str, Any]:
        status, title, _ = KINDS[self.kind]
        return {
            "type": f"{get_script_prefix()}problems/{self.kind}",
            "title": title,
            "status": status,
            "detail": self.detail,
            **self.members,
        }

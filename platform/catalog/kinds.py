"""The kinds of background work, each declared once: for beat, for requests, and for workers.

`workers.tasks` binds a function to each kind. A tick of a kind looks for tenants with work, and
makes a Job row only if there is some; a request (`catalog.jobs.enqueue`) has its row from the
beginning. Queues are named by the harm of a delay.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

QUEUES = (
    *("neighbours-at-risk", "data-at-risk", "speed-at-risk", "room-at-risk", "view-at-risk"),
    "reuse-at-risk",
)
REQUEST_ATTEMPTS = 5  # after these failures a request stays failed; ticks try for ever


class BadRequest(ValueError):
    """A kind, tenant or argument that no job can have. `name`: the wrong field."""

    def __init__(self, name: str, words: str) -> None:
        super().__init__(f"{name}: {words}")
        self.name = name


@dataclass(frozen=True)
class Kind:
    """`every_s` None: no ticks, only requests. `arguments`: name → type, of a request.

    `is_offered`: operators may request it by REST; other kinds are requested by the platform.
    `is_of_team`: teams cause its requests by REST, and may cancel and retry them. `at_once`,
    `at_once_of_tenant`: requests that run at a time; others wait in their queue (0: no limit).
    """

    name: str
    queue: str
    about: str
    every_s: float | None = None
    of_tenant: bool = True
    arguments: Mapping[str, type] = field(default_factory=dict)
    is_offered: bool = True
    is_of_team: bool = False
    at_once: int = 0
    at_once_of_tenant: int = 0

    @property
    def task(self) -> str:
        return f"workers.{self.name}"

    def check(self, tenant_id: int | None, arguments: Mapping[str, Any]) -> None:
        """Raises BadRequest unless a job of this kind can have these."""
        if self.of_tenant and tenant_id is None:
            raise BadRequest("tenant", f"a {self.name} job needs one.")
        if not self.of_tenant and tenant_id is not None:
            raise BadRequest("tenant", f"a {self.name} job is of the whole platform.")
        for name in arguments.keys() - self.arguments.keys():
            known = ", ".join(sorted(self.arguments)) or "none"
            raise BadRequest(f"arguments.{name}", f"unknown; {self.name} has: {known}.")
        for name, type_ in self.arguments.items():
            if type(arguments.get(name)) is not type_:
                raise BadRequest(f"arguments.{name}", f"needs to be {type_.__name__}.")


WATCH = Kind(
    "watch",
    "neighbours-at-risk",
    "Cut off tenants that take more of the hot tier than their share.",
    2.0,
    of_tenant=False,
    is_offered=False,
)
FLUSH = Kind("flush", "data-at-risk", "Write due blocks of the hot tier to S3.", 1.0)
SWEEP = Kind("sweep", "speed-at-risk", "Delete segments in which nothing is alive.", 30.0)
COMPACT = Kind("compact", "speed-at-risk", "Merge small, scattered or half dead segments.", 30.0)
EXPIRE = Kind("expire", "room-at-risk", "Remove expired blocks, and idle ones from hot.", 10.0)
MOVE = Kind(
    "move", "speed-at-risk", "Move segments between stores by rules; delete old places.", 30.0
)
CHECK_STORES = Kind(
    "check_stores",
    "view-at-risk",
    "Ask each store whether it answers.",
    10.0,
    of_tenant=False,
    is_offered=False,
)
RETAIN = Kind("retain", "room-at-risk", "Give stored blocks a changed policy's terms.", 5.0)
EXPIRE_CONTEXTS = Kind(
    "expire_contexts",
    "room-at-risk",
    "Expire contexts whose time has come, and tell of ends that are near.",
    10.0,
    is_offered=False,
)
CHECK_CONTEXTS = Kind(
    "check_contexts",
    "view-at-risk",
    "Ask the index which contexts are stored, stored in part, or lost.",
    10.0,
    is_offered=False,
)
PROMOTE = Kind(
    "promote",
    "speed-at-risk",
    "Copy the cold blocks of a pinned context into the hot tier.",
    arguments={"context_id": str},
    is_offered=False,
)
BULK = Kind(
    "bulk",
    "room-at-risk",
    "Do one action to the many contexts that its preview chose.",
    arguments={"bulk_id": str},
    is_offered=False,
    is_of_team=True,
)
REMOVE_TENANT = Kind(
    "remove_tenant",
    "room-at-risk",
    "Delete a tenant that was given up, with all its data.",
    10.0,
    of_tenant=False,  # the row would go with the tenant
    arguments={"leaving_id": int},
    is_offered=False,
)
REMOVE_SPACE = Kind(
    "remove_space",
    "room-at-risk",
    "Delete a space that was given up, with all its data.",
    10.0,
    arguments={"space_id": int},
    is_offered=False,
)
REBUILD_TENANT = Kind(
    "rebuild_tenant",
    "room-at-risk",
    "Build one tenant's index again from segment footers.",
)
REBUILD_INDEX = Kind(
    "rebuild_index",
    "room-at-risk",
    "Build the index of an emptied Valkey again from segment footers.",
    10.0,
    of_tenant=False,
)
END_ACCESS = Kind(
    "end_access",
    "room-at-risk",
    "End Valkey users and sessions of keys that expired or were revoked meanwhile.",
    10.0,
    of_tenant=False,
    is_offered=False,
)
SAMPLE = Kind(
    "sample", "view-at-risk", "Record what a tenant holds for the charts.", 5.0, is_offered=False
)
SLICE = Kind(
    "slice",
    "view-at-risk",
    "Add what nodes, contexts and labels counted to their sums by time.",
    15.0,
    is_offered=False,
)
ACCOUNT = Kind(
    "account",
    "view-at-risk",
    "Add what each space used and saved to its sums of the day.",
    60.0,
    is_offered=False,
)
RECONCILE = Kind(
    "reconcile",
    "view-at-risk",
    "Find and repair what crashes and hands left in Valkey, S3 and the database.",
    300.0,
    of_tenant=False,
)
STORE_SAMPLES = Kind(
    "store_samples",
    "view-at-risk",
    "Write samples of traffic into files, and delete old ones.",
    60.0,
    is_offered=False,
)
DELIVER = Kind(
    "deliver",
    "reuse-at-risk",
    "Number new events and deliver them to webhooks.",
    1.0,
    of_tenant=False,
    is_offered=False,
)
PRUNE = Kind(
    "prune",
    "view-at-risk",
    "Delete ended sessions, expired contexts and audit events that are older than their limits.",
    60.0,
    of_tenant=False,
)
HOUSEKEEPING = Kind(
    "housekeeping",
    "view-at-risk",
    "Send requested jobs again whose message or worker was lost, and delete old rows.",
    10.0,
    of_tenant=False,
    is_offered=False,
)

WARM = Kind(
    "warm",
    "reuse-at-risk",
    "Have an engine compute a context, so that its blocks are stored.",
    arguments={"context_id": str, "engine_id": int},  # engine 0: any
    is_offered=False,
    is_of_team=True,
    # An engine that hangs holds a thread for minutes. Two of the queue's eight are left to webhooks
    # and checks of engines; a tenant has at most half of the others.
    at_once=6,
    at_once_of_tenant=3,
)
WARM_BY_POLICY = Kind(
    "warm_by_policy",
    "view-at-risk",
    "Request warm jobs as policies say: by the clock, or since blocks were lost.",
    10.0,
    is_offered=False,
)
CHECK_ENGINES = Kind(
    "check_engines",
    "reuse-at-risk",
    "Ask engines whether they serve their model; forget announced ones whose sessions ended.",
    10.0,
    is_offered=False,
)
WHAT_IF = Kind(
    "what_if",
    "reuse-at-risk",
    "Simulate a tenant's sampled traffic on changed quotas and policies.",
    # space 0: all
    arguments={"changes": list, "window_s": int, "space_id": int},
    is_offered=False,
    is_of_team=True,
    at_once=2,  # each fills a core, in a process of its own
    at_once_of_tenant=1,
)
# Not in view-at-risk, whose work may take minutes when there is trouble: people would hear late.
WATCH_INCIDENTS = Kind(
    "watch_incidents",
    "neighbours-at-risk",
    "Open and end incidents of all tenants by their rules.",
    3.0,
    of_tenant=False,
    is_offered=False,
)
MAIL_INCIDENTS = Kind(
    "mail_incidents",
    "reuse-at-risk",
    "Tell people of incidents by mail.",
    5.0,
    of_tenant=False,
    is_offered=False,
)
RECOMMEND = Kind(
    "recommend",
    "reuse-at-risk",
    "Compare changes of a tenant's quotas and policies, and recommend one or none.",
    300.0,
)

KINDS = {
    kind.name: kind
    for kind in (
        *(WATCH, REBUILD_TENANT),
        *(FLUSH, SWEEP, COMPACT, MOVE, CHECK_STORES, EXPIRE, RETAIN, REMOVE_TENANT, REMOVE_SPACE),
        *(EXPIRE_CONTEXTS, CHECK_CONTEXTS, PROMOTE),
        *(BULK,),
        *(REBUILD_INDEX, END_ACCESS, SAMPLE, SLICE, ACCOUNT, STORE_SAMPLES, RECONCILE),
        *(DELIVER, PRUNE, HOUSEKEEPING),
        *(WARM, WARM_BY_POLICY, CHECK_ENGINES),
        *(WHAT_IF, RECOMMEND),
        *(WATCH_INCIDENTS, MAIL_INCIDENTS),
    )
}


def kind_of(name: str) -> Kind:
    """Raises BadRequest, which lists the kinds."""
    if name not in KINDS:
        raise BadRequest("kind", f"there is no {name!r}; kinds are {', '.join(sorted(KINDS))}.")
    return KINDS[name]

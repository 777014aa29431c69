"""Work on contexts' rows: their scheduled ends, their state, copies for pins of the hot tier.

The rules of `tiering.work` hold here, too.
"""

from catalog.targets import Opener, Target
from contexts import checking, ends
from tiering import promotion
from tiering.promotion import PromotionReport


def tenants_with_ends() -> list[Target]:
    return [(id_, {}) for id_ in ends.tenants_with_work()]


def expire_contexts(job: Opener, tenant_id: int) -> None:
    """Expire contexts whose time has come, and tell of ends that are near. No Job row: the audit
    trail shows it."""
    ends.announce_near(tenant_id)
    ends.expire_due(tenant_id)


def check_contexts(job: Opener, tenant_id: int) -> None:
    """Ask the index about some contexts whose last check is long ago. No Job row."""
    checking.check(tenant_id)


def promote(job: Opener, tenant_id: int, context_id: str) -> None:
    """Only on request, by a pin of the tier `hot`."""
    with job() as run:

        def show(report: PromotionReport) -> None:
            run.progress(0.5, blocks=report.promoted, bytes_=report.bytes)
            run.detail(vars(report))

        run.detail(vars(promotion.promote(tenant_id, context_id, show)))

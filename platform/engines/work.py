"""What the kinds of work on engines do for one tenant. See `tiering.work` for the rules."""

from catalog.targets import Opener, Target
from engines import services
from engines.models import Engine


def tenants_with_engines() -> list[Target]:
    found = Engine.unscoped.filter(tenant__is_active=True).values_list("tenant_id", flat=True)
    return [(id_, {}) for id_ in sorted(set(found))]


def check_engines(job: Opener, tenant_id: int) -> None:
    """Check engines whose turn it is; forget announced ones whose sessions ended. No Job row."""
    services.forget_silent(tenant_id)
    services.check_due(tenant_id)

"""Changes of a tenant's retention policy."""

from django.db import transaction
from django.forms.models import model_to_dict

from controlplane import hot
from retention.models import RetentionPolicy
from tenants.audit import Actor, record
from tenants.models import Tenant
from tenants.scope import tenant_scope

FIELDS = ("flush_mode", "flush_after_s", "hot_idle_s", "cold_ttl_s", "pin_budget_bytes")


@transaction.atomic
def set_policy(*, tenant: Tenant, actor: Actor, **fields: int | str | None) -> RetentionPolicy:
    """`fields` are names of FIELDS; what is not named stays. Raises ValidationError."""
    with tenant_scope(tenant.pk):
        policy: RetentionPolicy = RetentionPolicy.objects.select_for_update().get()
        before = model_to_dict(policy, FIELDS)
        for name in FIELDS:
            if name in fields:
                setattr(policy, name, fields[name])
        policy.full_clean(validate_unique=False, validate_constraints=True)
        policy.save()
    record(
        actor=actor,
        tenant_id=tenant.pk,
        action="retention.set",
        obj=policy,
        before=before,
        after=model_to_dict(policy, FIELDS),
    )
    hot.provision_on_commit(tenant.pk)
    return policy

"""Tenant-owned rows are out of reach without their tenant's scope, whatever way is tried."""

import asyncio
import re
from pathlib import Path

import pytest
from django.apps import apps

from catalog.models import Job, Space
from support.rows import make_space, make_tenant
from tenants.scope import OutsideTenantScope, TenantScoped, tenant_scope

ROOT = Path(__file__).resolve().parents[2]

# Every file outside of tests that names the bypass, and why it may.
MAY_USE_UNSCOPED = {
    "catalog/kept_requests.py": "deletes old requests of all tenants",
    "catalog/jobs.py": "jobs of the platform have no tenant",
    "catalog/occupancy.py": "sums over the tenants that it is asked for",
    "catalog/changes.py": "looks at the tenants that it is asked for",
    "catalog/stores.py": "names the objects of all tenants in a store",
    "catalog/slices.py": "sums over the tenants that it is asked for",
    "catalog/slicing.py": "prunes all tenants' rows",
    "catalog/usage.py": "sums over tenants; prunes",
    "catalog/usage_split.py": "sums over the tenants that it is asked for",
    "dashboard/pages/tiers/stores.py": "sums over the tenants that it is asked for",
    "catalog/store_changes.py": "counts what a store holds of all tenants",
    "dashboard/pages/system/checks.py": "operators look after all tenants",
    "events/deliveries.py": "delivers for all tenants",
    "events/webhooks.py": "follows events of all tenants",
    "events/marks.py": "looks at the tenant that it is given",
    "events/order.py": "numbers and deletes events of all tenants",
    "events/reading.py": "restricts to the tenants that the reader sees",
    "events/feed.py": "reads for all streams; each takes what its reader sees",
    "events/services.py": "events of the platform have no tenant",
    "incidents/evaluate.py": "looks through all tenants",
    "incidents/figures.py": "reads figures of all tenants",
    "incidents/mail.py": "tells of incidents of all tenants",
    "incidents/rules.py": "rules of all tenants have none of their own",
    "incidents/services.py": "locks the row that it is given; the platform's have no tenant",
    "planning/moves.py": "sums over all tenants, or those that it is asked for",
    "planning/whatif.py": "looks through all tenants for the oldest recommendation",
    "contexts/work.py": "looks through all tenants",
    "engines/work.py": "looks through all tenants",
    "contexts/admin.py": "operators choose among all spaces",
    "contexts/ends.py": "finds the tenants with ends that are due or near",
    "planning/savings.py": "sums over the tenants that it is asked for",
    "tenants/audit.py": "events of the platform have no tenant",
    "tenants/key_use.py": "keys of all tenants were used",
    "tenants/issuing.py": "operators rotate keys of all tenants",
    "tenants/invitations.py": "a token is looked up before its tenant is known",
    "tenants/keys.py": "a key is looked up before its tenant is known",
    "tenants/services.py": "operator keys have no tenant",
    "tenants/principal.py": "restricts to the tenants that the caller sees",
    "tenants/scope.py": "defines it",
    "tenants/single_sign_on.py": "an address is matched before its tenant is known",
    "tenants/signing_in.py": "attempts to sign in belong to no tenant",
    "tiering/pruning.py": "looks through all tenants",
    "tiering/reconcile/leftovers.py": "looks through all tenants",
    "tiering/reconcile/objects.py": "looks through all tenants",
    "tiering/reconcile/rounds.py": "rounds of the platform have no tenant",
    "tiering/reconcile/segments.py": "looks through all tenants",
    "tiering/upkeep.py": "looks through all tenants",
    "tiering/work.py": "looks through all tenants",
    "tiering/watch/run.py": "weighs all tenants of one server",
}
OWNED = [model for model in apps.get_models() if issubclass(model, TenantScoped)]


def test_only_listed_files_name_the_bypass():
    using = {
        str(path.relative_to(ROOT)).removeprefix("platform/")
        for folder in ("platform", "cacheapi", "dashboard", "workers")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"\bunscoped\b", path.read_text()) and "migrations" not in path.parts
    }
    assert using == set(MAY_USE_UNSCOPED)


def test_what_belongs_to_a_tenant_is_guarded():
    names = {model.__name__ for model in OWNED}
    assert names >= {
        *("Space", "NodeSession", "Context", "Pin", "Segment", "UsageRollup", "Job"),
        *("ApiKey", "Quota", "AuditEvent", "RetentionPolicy"),
    }


@pytest.mark.parametrize("model", OWNED, ids=lambda model: model.__name__)
@pytest.mark.parametrize(
    "use",
    [
        lambda rows: rows.all(),
        lambda rows: rows.count(),
        lambda rows: rows.exists(),
        lambda rows: rows.filter(pk=1),
        lambda rows: rows.get(pk=1),
        lambda rows: rows.create(),
        lambda rows: rows.bulk_create([]),
        lambda rows: rows.bulk_update([], ["tenant"]),
        lambda rows: rows.get_or_create(pk=1),
        lambda rows: rows.update_or_create(pk=1),
        lambda rows: rows.update(pk=1),
        lambda rows: rows.in_bulk(),
        lambda rows: rows.raw("SELECT 1"),
        lambda rows: asyncio.run(rows.acount()),
        lambda rows: asyncio.run(rows.aexists()),
        lambda rows: asyncio.run(rows.aget_or_create(pk=1)),
        lambda rows: asyncio.run(rows.abulk_create([])),
    ],
)
def test_outside_of_a_scope_nothing_works(model, use):
    with pytest.raises(OutsideTenantScope):
        use(model.objects)


@pytest.mark.integration
@pytest.mark.django_db
class TestInside:
    @pytest.fixture(autouse=True)
    def tenants(self):
        self.a, self.b = make_tenant(), make_tenant()
        self.space_a, self.space_b = make_space(self.a), make_space(self.b)

    def test_only_the_own_rows_exist(self):
        with tenant_scope(self.a.pk):
            assert list(Space.objects.all()) == [self.space_a]
            assert not Space.objects.filter(pk=self.space_b.pk).exists()

    def test_new_rows_belong_to_the_scope(self):
        with tenant_scope(self.a.pk):
            assert Job.objects.create(kind="x").tenant_id == self.a.pk
            assert Job.objects.get_or_create(kind="y")[0].tenant_id == self.a.pk
            assert Job.objects.update_or_create(kind="z")[0].tenant_id == self.a.pk

    def test_another_tenants_row_cannot_be_written(self):
        with tenant_scope(self.a.pk):
            with pytest.raises(OutsideTenantScope):
                self.space_b.save()
            with pytest.raises(OutsideTenantScope):
                Job.objects.create(kind="x", tenant=self.b)
            with pytest.raises(OutsideTenantScope):
                Job.objects.bulk_create([Job(kind="x", tenant=self.b)])
            with pytest.raises(OutsideTenantScope):
                Space.objects.update(tenant=self.b)

    def test_reverse_relations_are_guarded_too(self):
        with pytest.raises(OutsideTenantScope):
            self.a.space_set.count()
        with tenant_scope(self.b.pk):
            assert self.a.space_set.count() == 0

    def test_scopes_nest_and_end(self):
        with tenant_scope(self.a.pk):
            with tenant_scope(self.b.pk):
                assert Space.objects.get() == self.space_b
            assert Space.objects.get() == self.space_a
        with pytest.raises(OutsideTenantScope):
            Space.objects.count()


async def test_a_scope_stays_in_its_own_coroutine():
    inside = asyncio.Event()

    async def holder():
        with tenant_scope(1):
            inside.set()
            await asyncio.sleep(0)

    async def other():
        await inside.wait()
        with pytest.raises(OutsideTenantScope):
            await Space.objects.acount()

    await asyncio.gather(holder(), other())

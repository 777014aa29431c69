"""A request of every kind goes by name through a real broker to a real worker."""

import json

import pytest

from catalog.kinds import KINDS

pytestmark = pytest.mark.integration

# In manage.py's shell: it shares database and broker with the worker's process.
ASK = """
import json, time
from catalog import jobs
from catalog.kinds import KINDS
from catalog.models import BulkAction, Job, Space
from django.utils import timezone
from tenants.models import Tenant
from tenants.scope import tenant_scope

tenant = Tenant.objects.get(slug="demo")
gone = Tenant.objects.create(slug="gone", name="gone", is_active=False, is_leaving=True)
with tenant_scope(tenant.pk):
    space = Space.objects.create(
        tenant=tenant, name="s", fingerprint="0" * 64, identity={}, chunk_tokens=16
    )
    bulk = BulkAction.objects.create(
        action="delete", contexts=0, owner="key:0", expires_at=timezone.now()
    )
known = {"space_id": space.pk, "leaving_id": gone.pk, "context_id": "0" * 32}
known |= {"bulk_id": str(bulk.pk), "engine_id": 0}
known |= {"changes": [{"hot": "x2"}], "window_s": 3600}
asked = [
    jobs.enqueue(
        kind.name,
        tenant_id=tenant.pk if kind.of_tenant else None,
        **{name: known[name] for name in kind.arguments},
    )
    for kind in KINDS.values()
]
mine = Job.unscoped.filter(pk__in=[job.pk for job in asked])
deadline = time.monotonic() + 60
while mine.exclude(state__in=("done", "failed")).exists() and time.monotonic() < deadline:
    time.sleep(0.1)
print(json.dumps({job.kind: [job.state, job.error, len(job.log)] for job in mine}))
print(Tenant.objects.filter(pk=gone.pk).exists() or Space.unscoped.filter(pk=space.pk).exists())
"""


def test_a_request_of_every_kind_is_answered(control_plane):
    control_plane.manage("rebuild_index")  # an earlier test may have started its Valkey again
    with control_plane.workers():
        answers, is_left = control_plane.manage("shell", "-v0", "-c", ASK).splitlines()[-2:]
    states = json.loads(answers)
    failed = {kind: error for kind, (state, error, _) in states.items() if state != "done"}
    assert (failed, states.keys()) == ({}, KINDS.keys())
    assert all(lines == 2 for _, _, lines in states.values())
    assert is_left == "False"

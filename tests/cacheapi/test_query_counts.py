"""SQL statements per list and tree: stored in query_counts.json, the same for one row and for many.

After a change that is meant, write them anew: NEVE_TEST_WRITE_COUNTS=1 pytest <this file>
"""

import json
import os
from pathlib import Path

import pytest

from retention import provisioning
from support.rows import make_context, make_everything
from support.statements import least_statements

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

STORED = Path(__file__).with_name("query_counts.json")
LISTS = (
    *("audit", "contexts", "jobs", "keys", "nodes", "policies", "rules", "segments", "spaces"),
    *("tenants", "usage", "families", "family-members", "engines"),
    *("events", "webhooks", "members", "warm-policies", "invitations", "incidents", "sign-ins"),
    *("stores", "move-rules", "moves"),
)


@pytest.fixture
def count(operator):
    def statements(path, body=None):
        method = "get" if body is None else "post"
        answer, count = least_statements(lambda: operator.send(method, path, body))
        assert answer.status_code == 200, answer.content
        return count

    return statements


def test_lists_cost_the_stored_number_of_statements_whatever_their_length(count, tenant, clean_hot):
    provisioning.provision_tenant(tenant)
    rows = make_everything(tenant)
    paths = {name: f"/api/v1/{name}" for name in LISTS}
    paths["lineage"] = f"/api/v1/spaces/{rows['space'].pk}/lineage"
    chain = [os.urandom(16)]  # a preview reads each root with a statement of its own
    make_context(rows["space"], "run-0", chain)
    preview = {"action": "expire", "filter": {"tenant": tenant.slug, "search": "run"}}

    def counts():
        found = {name: count(path) for name, path in paths.items()}
        return found | {"bulk-preview": count("/api/v1/contexts/bulk/preview", preview)}

    few = counts()
    make_everything(tenant, 5)
    for n in range(5):
        make_context(rows["space"], f"run-{n + 1}", chain)
    many = counts()
    assert many == few
    if os.environ.get("NEVE_TEST_WRITE_COUNTS"):
        STORED.write_text(json.dumps(many, indent=2) + "\n")
    assert many == json.loads(STORED.read_text())

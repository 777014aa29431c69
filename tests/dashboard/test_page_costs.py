"""SQL statements of each page: at most those of page_costs.json, the same for few rows and many.

After a change that is meant, write them anew: NEVE_TEST_WRITE_COUNTS=1 pytest <this file>
"""

import json
import os
from pathlib import Path

import pytest
from django.urls import NoReverseMatch, reverse

from dashboard.page import menu
from retention import provisioning
from support.rows import make_context, make_everything
from support.statements import least_statements
from tenants.models import Tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

STORED = Path(__file__).with_name("page_costs.json")
MOST = 60  # statements of a page that is not stored yet


def addresses(tenant: Tenant, rows: dict) -> dict[str, str]:
    """Every page of the navigation, and one of each kind of object."""
    found = {item["name"]: reverse(f"dashboard:{item['name']}") for g in menu() for item in g}
    for name, argument in (
        ("tenant", tenant.slug),
        *((name, rows[name].pk) for name in ("space", "node", "context", "job")),
    ):
        try:
            found[name] = reverse(f"dashboard:{name}", args=[argument])
        except NoReverseMatch:
            continue
    return found | {"palette": reverse("dashboard:palette") + "?q=space"}


def test_pages_cost_the_stored_number_of_statements_whatever_their_length(
    people, acme, globex, clean_hot
):
    provisioning.provision_tenant(acme)
    rows = make_everything(acme)
    make_everything(globex)
    pages = addresses(acme, rows)

    def counts() -> dict[str, int]:
        found = {}
        for name, path in pages.items():
            answer, found[name] = least_statements(lambda path=path: people["operator"].get(path))
            assert answer.status_code == 200, (name, answer.content[:500])
        return found

    few = counts()
    make_everything(acme, 6)
    for n in range(6):
        make_context(rows["space"], f"run-{n}")
    many = counts()
    more = {name: (few[name], n) for name, n in many.items() if n > few[name]}
    assert more == {}, "statements for few rows and for many"
    if os.environ.get("NEVE_TEST_WRITE_COUNTS"):
        STORED.write_text(json.dumps(many, indent=2, sort_keys=True) + "\n")
    stored = json.loads(STORED.read_text())
    more = {n: (stored.get(n), c) for n, c in many.items() if c > stored.get(n, MOST)}
    assert more == {}, "statements stored and now"

"""Pages Savings and System: money in words, formula and inputs, prices changed by operators."""

import pytest
from django.urls import reverse

from planning import prices, savings
from planning.models import SpaceDay
from support.rows import make_space
from tenants.models import AuditEvent
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]
HOUR = 3_600_000_000


def add(tenant, **counts):
    space = make_space(tenant, f"{tenant.slug}-space")
    with tenant_scope(tenant.pk):
        SpaceDay.objects.create(
            day=prices.today(), space_number=space.pk, space_name=space.name, **counts
        )


def shown(browser, name="savings", **query):
    answer = browser.get(reverse(f"dashboard:{name}"), query)
    assert answer.status_code == 200
    return answer.content.decode()


def test_an_empty_month_says_what_to_do_next(people):
    assert "connect an engine" in shown(people["team"])


def test_a_saving_a_loss_and_their_inputs_are_said_in_words(people, acme, globex):
    add(acme, spared_tokens=5, spared_gpu_us=4 * HOUR, load_gpu_us=HOUR)
    add(globex, slower_tokens=5, slower_gpu_us=2 * HOUR)
    page = shown(people["operator"])
    assert "7.05 USD saved" in page
    assert "a loss of 4.70 USD" in page
    assert "4 GPU-hours × 2.35 USD per GPU-hour" in page
    assert "list prices" in page
    assert savings.FORMULA.split(";")[0] in page.replace("&#x27;", "'")


def test_a_team_sees_its_own_and_its_spaces(people, acme, globex):
    add(acme, spared_tokens=5, spared_gpu_us=HOUR)
    add(globex, spared_tokens=5, spared_gpu_us=HOUR)
    page = shown(people["team"])
    assert "acme-space" in page
    assert "globex" not in page
    url = reverse("dashboard:savings")
    assert people["team"].get(url, {"tenant": "globex"}).status_code == 404
    assert people["team"].get(url, {"month": "2026-13"}).status_code == 404


def test_without_an_engine_hits_are_no_savings(people, acme):
    """As after `make up`: a replay loads, and nothing measures prefill."""
    add(acme, hit_hot_tokens=12_345, requested_tokens=20_000, hot_kib_s=10**9)
    page = shown(people["team"])
    assert "No engine measured its prefill: the 12,345 loaded tokens count as no saving" in page
    assert "a loss of" in page


def test_another_month_and_the_link_to_its_file(people, acme):
    page = shown(people["operator"], tenant="acme", month="2026-01")
    assert "Nothing was stored, loaded or counted in 2026-01" in page
    assert "/api/v1/savings/export?month=2026-01&amp;by=space&amp;tenant=acme" in page


def form(browser, **changes):
    page = shown(browser, "system")
    stamp = page.split('name="stamp" value="')[1].split('"')[0]
    names = {name: "1" for name in prices.NAMES if name != "currency"}
    return {
        "stamp": stamp, "currency": "USD", "valid_from": prices.today().isoformat(), **names,
        **changes,
    }  # fmt: skip


def test_an_operator_changes_prices_and_the_audit_says_so(people):
    url = reverse("dashboard:system")
    operator = people["operator"]
    stale = form(operator)
    answer = operator.post(url, form(operator, gpu_hour="1.75"))
    assert answer.status_code == 302
    assert "1.75" in shown(operator, "system")
    assert AuditEvent.unscoped.filter(action="prices.change").count() == 1
    assert operator.post(url, stale).status_code == 400
    assert "Somebody changed the prices meanwhile" in operator.post(url, stale).content.decode()
    assert len(prices.versions()) == 2


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("gpu_hour", "two"), ("gpu_hour", "-1"), ("gpu_hour", "NaN"), ("gpu_hour", "0.1234567890"),
     ("valid_from", "2000-02-30"), ("valid_from", "1999-01-01"), ("currency", "euro")],
)  # fmt: skip
def test_a_wrong_form_keeps_the_prices_and_the_typed_values(people, name, wrong):
    operator = people["operator"]
    answer = operator.post(reverse("dashboard:system"), form(operator, **{name: wrong}))
    assert answer.status_code == 400
    assert "The prices stay as they are" in answer.content.decode()
    assert f'value="{wrong}"' in answer.content.decode()
    assert len(prices.versions()) == 1


def test_teams_read_prices_and_have_no_form(people):
    page = shown(people["team"], "system")
    assert "Ask an operator to set the prices" in page
    assert "<form class=" not in page.split('id="prices"')[1]
    assert people["team"].post(reverse("dashboard:system"), {}).status_code == 404

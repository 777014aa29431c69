"""bootstrap: from migrated to usable, repeatable, credentials shown once."""

import re
import stat
from io import StringIO

import pytest
from django.conf import settings
from django.contrib.auth import authenticate
from django.core.management import CommandError, call_command

from neve.index.library import LIBRARY
from storage import hot
from storage import s3 as bucket
from tenants import services
from tenants.audit import SYSTEM
from tenants.keys import find_key
from tenants.models import Quota, Tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def bootstrap(clean_hot, s3, monkeypatch):
    monkeypatch.delenv("NEVE_OPERATOR_PASSWORD", raising=False)
    paths = [settings.VAR / name for name in ("demo.key", "team.key")]
    for path in paths:
        path.unlink(missing_ok=True)

    def run(*options):
        out = StringIO()
        call_command("bootstrap", *options, stdout=out)
        return out.getvalue()

    yield run
    for path in paths:
        path.unlink(missing_ok=True)


def test_the_first_run_makes_everything_and_shows_credentials(bootstrap):
    out = bootstrap()
    password = re.search(r"operator, password (\S+)", out)[1]
    assert authenticate(username="operator", password=password).is_superuser
    for name, role in (("team.key", "team"), ("demo.key", "node")):
        path = settings.VAR / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        plaintext = path.read_text().strip()
        assert plaintext in out
        key = find_key(plaintext)
        assert (key.role, key.tenant.slug) == (role, "demo")
    quota = Quota.unscoped.get(tenant=key.tenant)
    room = hot.capacity_bytes() >> 20 << 20  # the demo would have 256 MiB, and the server less
    assert (quota.hot_bytes, quota.cold_bytes) == (room, 3 << 30)
    bucket.client().head_bucket(Bucket=settings.ENV.s3_bucket)
    assert hot.admin().execute_command("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY)


def test_the_second_run_changes_nothing_and_shows_nothing(bootstrap):
    bootstrap()
    before = (settings.VAR / "demo.key").read_text()
    out = bootstrap()
    assert (settings.VAR / "demo.key").read_text() == before
    assert "neve_" not in out
    assert "shown once" not in out
    assert Tenant.objects.count() == 1


def test_an_empty_hot_tier_takes_its_memory_only_when_asked_and_only_once(bootstrap):
    assert "MiB of memory" not in bootstrap()
    hot.admin().flushall()
    assert re.search(r"took \d+ MiB of memory", bootstrap("--touch-memory"))
    assert "MiB of memory" not in bootstrap("--touch-memory")  # it holds quotas now


def test_a_lost_or_revoked_demo_key_is_replaced(bootstrap):
    bootstrap()
    path = settings.VAR / "demo.key"
    first = path.read_text().strip()
    services.revoke_key(key=find_key(first), actor=SYSTEM)
    bootstrap()
    second = path.read_text().strip()
    assert second != first
    assert find_key(second)


def test_a_given_operator_password_is_used_and_not_printed(bootstrap, monkeypatch):
    for given in ("correct horse", "battery staple"):
        monkeypatch.setenv("NEVE_OPERATOR_PASSWORD", given)
        assert given not in bootstrap()
        assert authenticate(username="operator", password=given)


def test_an_s3_that_is_down_is_named(monkeypatch, settings, db):
    from dataclasses import replace

    settings.ENV = replace(settings.ENV, s3_endpoint="http://127.0.0.1:1")
    with pytest.raises(CommandError, match="NEVE_S3_ENDPOINT does not answer"):
        call_command("bootstrap")


def test_a_hot_tier_that_is_down_is_named(settings, db):
    from dataclasses import replace

    settings.ENV = replace(settings.ENV, hot_url="valkey://127.0.0.1:1/0")
    with pytest.raises(CommandError, match="NEVE_HOT_URL\\) does not answer"):
        call_command("provision")


def test_no_model_is_without_its_migration():
    call_command("makemigrations", check=True, dry_run=True)

"""API keys: found by prefix, checked by keyed hash, refused in one way."""

from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from support.rows import make_key, make_tenant
from tenants import key_use, keys, services
from tenants.audit import SYSTEM
from tenants.keys import find_key
from tenants.models import ApiKey, AuditEvent

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


def test_a_key_is_recognisable_and_its_secret_is_not_stored():
    plaintext = make_key(make_tenant(), "node")
    word, prefix, secret = plaintext.split("_")
    assert word == "neve"
    assert 8 <= len(prefix) <= 12
    row = ApiKey.unscoped.get(prefix=prefix)
    assert row.secret_hmac == keys.hash_secret(secret)
    assert all(secret not in str(value) for value in vars(row).values())
    assert not AuditEvent.unscoped.filter(after__icontains=secret).exists()


def test_the_hash_depends_on_the_pepper(settings):
    from dataclasses import replace

    before = keys.hash_secret("x")
    settings.ENV = replace(settings.ENV, key_pepper="p" * 32)
    assert keys.hash_secret("x") != before


def test_what_is_wrong_is_not_found():
    plaintext = make_key(make_tenant(), "node")
    _, prefix, secret = plaintext.split("_")
    assert find_key(plaintext).prefix == prefix
    for wrong in (
        f"neve_{prefix}_{secret[:-1]}",
        f"neve_{prefix}_",
        f"neve_unknown000_{secret}",
        f"other_{prefix}_{secret}",
        "neve_",
        "",
        "neve_" + "x" * 1000,
    ):
        assert find_key(wrong) is None


def test_revoked_expired_and_inactive_tenants_keys_are_refused():
    tenant = make_tenant()
    key, revoked = services.issue_key(tenant=tenant, role="node", name="a")
    services.revoke_key(key=key, actor=SYSTEM)
    assert find_key(revoked) is None
    past = timezone.now() - timedelta(seconds=1)
    _, expired = services.issue_key(tenant=tenant, role="node", name="b", expires_at=past)
    assert find_key(expired) is None
    good = make_key(tenant, "node")
    services.change_tenant(tenant=tenant, name="x", node_limit=1, is_active=False, actor=SYSTEM)
    assert find_key(good) is None


def test_the_last_use_is_noted_without_a_write_and_written_down_later(
    valkey_bus, django_assert_num_queries
):
    plaintext = make_key(make_tenant(), "node")
    before = timezone.now()
    for _ in range(2):
        with django_assert_num_queries(1):
            key = find_key(plaintext)
    assert key.last_used_at is None
    assert key_use.write_down() == 1
    key.refresh_from_db()
    assert before <= key.last_used_at <= timezone.now()
    assert key_use.write_down() == 0


@pytest.mark.parametrize(("role", "has_tenant"), [("operator", True), ("node", False)])
def test_only_operator_keys_have_no_tenant(role, has_tenant):
    with pytest.raises(ValidationError):
        services.issue_key(tenant=make_tenant() if has_tenant else None, role=role, name="x")


def test_issuing_and_revoking_are_audited_once():
    tenant = make_tenant()
    key, _ = services.issue_key(tenant=tenant, role="team", name="ci")
    services.revoke_key(key=key, actor=SYSTEM)
    services.revoke_key(key=key, actor=SYSTEM)
    actions = AuditEvent.unscoped.filter(object_type="apikey").values_list("action", flat=True)
    assert sorted(actions) == ["key.issue", "key.revoke"]

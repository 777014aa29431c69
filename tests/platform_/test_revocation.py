"""Whoever loses access loses all of it at once: Valkey user, connections, sessions."""

from dataclasses import replace
from datetime import timedelta

import pytest
import valkey
from django.utils import timezone

from base.problems import Problem
from catalog import hot_access, sessions, spaces
from catalog.models import NodeSession
from neve.formats.space import SpaceIdentity
from storage import hot
from support.rows import IDENTITY, make_tenant
from tenants import services
from tenants.audit import SYSTEM
from tenants.models import ApiKey, AuditEvent
from tenants.scope import tenant_scope
from workers import tasks

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

CUT_OFF = (valkey.exceptions.ConnectionError, valkey.exceptions.AuthenticationError)


class Node:
    """A key of its own, an open session, and one connection that stays as it is."""

    def __init__(self, tenant, server):
        self.tenant = tenant
        self.key, _ = services.issue_key(tenant=tenant, role="node", name="node")
        hot_access.provision_user(self.key)
        self.session = self.open()
        self.login = hot_access.user_of(self.key).login
        self.server = server
        self.connection = server.client(**self.login).connection_pool.get_connection("PING")
        assert self.is_served()

    def open(self):
        return sessions.open_session(
            tenant=self.tenant,
            key=self.key,
            node=f"node-{self.key.pk}",
            engine={},
            identity=SpaceIdentity.from_dict(IDENTITY),
            space_name=None,
            max_chunk_tokens=256,
            actor=SYSTEM,
        )

    def is_served(self):
        """On the connection that it has had since the beginning."""
        self.connection.send_command("PING")
        return self.connection.read_response() in (b"PONG", "PONG")

    def assert_cut_off(self):
        with pytest.raises(CUT_OFF):
            self.is_served()
        with pytest.raises(CUT_OFF), self.server.client(**self.login) as again:
            again.ping()
        self.session.refresh_from_db()
        assert self.session.ended_at is not None


def revoke(node):
    services.revoke_key(key=node.key, actor=SYSTEM)


def cut(node):
    sessions.cut_session(session=node.session, actor=SYSTEM)


def leave(node):
    with tenant_scope(node.tenant.pk):
        sessions.end_session(session_id=node.session.pk)


def deactivate(node):
    services.change_tenant(
        tenant=node.tenant, name="x", node_limit=9, is_active=False, actor=SYSTEM
    )


def remove(node):
    services.remove_tenant(tenant=node.tenant, actor=SYSTEM)


def remove_its_space(node):
    spaces.remove_space(space=node.session.space, actor=SYSTEM)


@pytest.mark.parametrize("end", [revoke, cut, leave, deactivate, remove, remove_its_space])
def test_its_user_connections_and_sessions_end_and_nobody_elses(clean_hot, end):
    tenant = make_tenant()
    node, sibling = Node(tenant, clean_hot), Node(tenant, clean_hot)
    stranger = Node(make_tenant(), clean_hot)
    assert sibling.login["password"] != node.login["password"]
    end(node)
    node.assert_cut_off()
    if end in (deactivate, remove, remove_its_space):  # which the sibling serves too
        sibling.assert_cut_off()
    else:
        assert sibling.is_served()
    assert stranger.is_served()


def test_a_session_that_was_cut_leaves_no_password_behind(clean_hot):
    node = Node(make_tenant(), clean_hot)
    cut(node)
    cut(node)  # changes nothing
    node.key.refresh_from_db()
    hot_access.provision_user(node.key)  # the next handshake
    node.assert_cut_off()
    with clean_hot.client(**hot_access.user_of(node.key).login) as client:
        assert client.ping()
    assert AuditEvent.unscoped.filter(action="session.end").count() == 1


def test_an_expired_key_ends_and_so_does_what_a_valkey_that_was_down_kept(clean_hot, settings):
    tenant = make_tenant()
    expired, revoked, fine = (Node(tenant, clean_hot) for _ in range(3))
    past = timezone.now() - timedelta(seconds=1)
    ApiKey.unscoped.filter(pk=expired.key.pk).update(expires_at=past)
    env = settings.ENV
    settings.ENV = replace(env, hot_url="valkey://127.0.0.1:1/0")
    revoke(revoked)
    settings.ENV = env
    assert revoked.is_served()
    hot.admin().execute_command("ACL", "SETUSER", f"t{tenant.pk}")  # of an earlier release
    tasks.end_access()
    expired.assert_cut_off()
    revoked.assert_cut_off()
    assert fine.is_served()
    users = [name.decode() for name in hot.admin().execute_command("ACL", "USERS")]
    assert set(users) == {"default", hot_access.user_of(fine.key).name}
    assert NodeSession.unscoped.filter(ended_at=None).count() == 1


def test_a_key_that_was_revoked_during_the_handshake_opens_nothing(clean_hot):
    node = Node(make_tenant(), clean_hot)
    revoke(node)
    with pytest.raises(Problem) as refusal:
        node.open()
    assert refusal.value.kind == "unauthorized"

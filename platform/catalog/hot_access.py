"""Users of node keys in the hot Valkey: of usable keys with an open session.

Everything here may be repeated. A Valkey that restarted has lost its users: handshakes and
`align_users` make them again. `align_users` also removes users that could not be removed before.
"""

from collections.abc import Iterable

from django.db.models import QuerySet

from storage import hot
from storage.hot_users import HotUser, remove_users, set_user, set_user_on, users_by_server
from tenants.keys import usable_node_keys
from tenants.models import ApiKey


def user_of(key: ApiKey) -> HotUser:
    """`key`: of a node."""
    assert key.tenant_id is not None
    return HotUser(key.tenant_id, key.pk, key.hot_generation)


def provision_user(key: ApiKey) -> None:
    """The user of a usable node key. Connections that it has stay. Raises valkey's errors."""
    set_user(user_of(key))


def align_users() -> int:
    """Removes users of revoked, expired and unknown keys; adds those that a server lacks.

    Returns how many it removed. A server that was down, or is new in the cluster, is put right.
    """
    # Users before keys: a new key's user counts as known, a revoked key's user does not come back.
    there = users_by_server()
    usable = {user_of(key).name for key in usable_node_keys()}
    used = {user.name: user for user in map(user_of, keys_in_use())}
    removed: set[str] = set()
    for client, names in there:
        if stale := names - usable:
            client.execute_command("ACL", "DELUSER", *stale)
            removed |= stale
        for name in used.keys() - names:
            set_user_on(client, used[name])
    return len(removed)


def keys_in_use() -> QuerySet[ApiKey]:
    """Node keys with an open session: others get their user with the next handshake."""
    open_sessions = usable_node_keys().filter(sessions__isnull=False, sessions__ended_at=None)
    return open_sessions.distinct()


def remove_user_on_commit(key: ApiKey) -> None:
    """After the transaction. If Valkey is down, `align_users` does it later."""
    user = user_of(key)
    hot.on_commit("remove_users", key.tenant_id, lambda: remove_users([user.name]))


def remove_unused_users_on_commit(key_ids: Iterable[int | None]) -> None:
    """After a transaction that ended sessions: users of those keys that have no open session."""
    keys = usable_node_keys().filter(pk__in=[pk for pk in key_ids if pk is not None])
    for key in keys.exclude(pk__in=keys_in_use().values("pk")):
        remove_user_on_commit(key)

"""Whether readers of long streams may still read what they could at the beginning."""

from collections.abc import Iterable
from dataclasses import dataclass

from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.utils import timezone

from tenants.keys import usable_keys
from tenants.principal import Principal, principal_of_person


@dataclass(frozen=True)
class Reader:
    """Who follows a stream: a key, or a person in the browser session `session`.

    `key_id`: of the key itself; `id` stays when it is rotated. None: a person.
    """

    id: str  # of the Principal
    role: str
    tenant_ids: frozenset[int] | None
    session: str = ""
    key_id: int | None = None


def reader_of(caller: Principal, session: str | None) -> Reader:
    is_person = caller.key_id is None
    return Reader(
        id=caller.id,
        role=caller.role,
        tenant_ids=caller.tenant_ids,
        session=session or "" if is_person else "",
        key_id=caller.key_id,
    )


def lost_access(readers: Iterable[Reader]) -> set[Reader]:
    """Those whose key, session, account or memberships ended or changed. One query for all keys,
    three for each person."""
    keys = {each.key_id: each for each in readers if each.key_id is not None}
    usable = set(usable_keys().filter(pk__in=keys).values_list("pk", flat=True))
    lost = {each for key, each in keys.items() if key not in usable}
    return lost | {each for each in readers if each.key_id is None and not _still(each)}


def _still(reader: Reader) -> bool:
    now = timezone.now()
    if not Session.objects.filter(session_key=reader.session, expire_date__gt=now).exists():
        return False
    person = User.objects.filter(pk=reader.id[5:], is_active=True).first()
    if person is None:
        return False
    seen = principal_of_person(person)
    return (seen.role, seen.tenant_ids) == (reader.role, reader.tenant_ids)

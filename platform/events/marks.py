"""States that were told: an event is sent when one changes. Inside the transaction of the event."""

from events.models import Mark


def values(tenant_id: int, prefix: str) -> dict[str, int]:
    """The marks whose names begin with `prefix`, without it."""
    rows = Mark.unscoped.filter(tenant_id=tenant_id, name__startswith=prefix)
    return {name.removeprefix(prefix): value for name, value in rows.values_list("name", "value")}


def change(tenant_id: int, name: str, value: int) -> bool:
    """False: it had this value. Of callers at the same time, one gets True."""
    rows = Mark.unscoped.filter(tenant_id=tenant_id, name=name)
    if value == 0:
        return bool(rows.delete()[0])
    _, is_new = Mark.unscoped.get_or_create(
        tenant_id=tenant_id, name=name, defaults={"value": value}
    )
    return is_new or bool(rows.exclude(value=value).update(value=value))

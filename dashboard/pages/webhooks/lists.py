"""The lists of the page Webhooks."""

from enum import StrEnum
from typing import Any

from dashboard.lists import Choice, Column, List
from events.models import Delivery, Webhook


class HookState(StrEnum):
    """Whether it works; `style`: the class of its words."""

    WORKS = "works"
    FAILS = "fails"
    INACTIVE = "inactive"

    @property
    def words(self) -> str:
        return {"works": "● works", "fails": "○ fails", "inactive": "✕ inactive"}[self]

    @property
    def style(self) -> str:
        return {"works": "live", "fails": "ended", "inactive": "revoked"}[self]


def _state(hook: Webhook) -> HookState:
    if not hook.is_active:
        return HookState.INACTIVE
    return HookState.WORKS if hook.failing_since is None else HookState.FAILS


def _in_state(rows: Any, state: str) -> Any:
    if state == "inactive":
        return rows.filter(is_active=False)
    return rows.filter(is_active=True, failing_since__isnull=state == "works")


def _last(delivery: Delivery) -> str:
    """The last answer: its status and how long it took."""
    if not delivery.log:
        return ""
    last = delivery.log[-1]
    return f"{last['status'] or last['error']}, {last['latency_ms']} ms"


class WebhookList(List):
    name = "webhooks"
    columns = (
        Column("url", "Address"),
        Column(
            "tenant",
            "Tenant",
            path="tenant.slug",
            link=lambda hook, scope: scope.link("webhooks", tenant=hook.tenant.slug),
        ),
        Column("types", "Types", value=lambda hook: ", ".join(hook.types) or "all", order=""),
        Column(
            "state",
            "State",
            value=_state,
            kind="html",
            template="pages/webhooks/state.html",
            order="",
        ),
        Column("delivered_at", "Last success", kind="ago"),
        Column("created_at", "Made", kind="moment", shown=False),
        Column(
            "actions",
            "Actions",
            kind="html",
            template="pages/webhooks/test.html",
            value=lambda hook: None,
            order="",
            in_csv=False,
            is_head_silent=True,
        ),
    )
    filters = (
        Choice(
            "state",
            "State",
            tuple((state.value, state.value) for state in HookState),
            apply=_in_state,
        ),
    )
    search = ("url", "tenant.slug")
    search_label = "Address or tenant"
    nothing = "pages/webhooks/nothing.html"


class DeliveryList(List):
    name = "deliveries"
    title = "Deliveries"
    prefix = "delivery-"
    columns = (
        Column("event", "Event", path="event.kind"),
        Column("url", "Address", path="webhook.url"),
        Column("state", "State"),
        Column("attempts", "Attempts", kind="count"),
        Column("last", "Last answer", value=_last, order=""),
        Column("created_at", "Made", kind="ago"),
    )
    filters = (Choice("state", "State", tuple(Delivery.State.choices)),)
    search = ("event.kind", "webhook.url")
    search_label = "Event or address"
    default_sort = "-created_at"
    rows = 20
    nothing = "pages/webhooks/no_deliveries.html"

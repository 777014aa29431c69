"""The list of the page Families."""

from dashboard.lists import Choice, Column, List
from neve.node.membership import MemberState


class MemberList(List):
    """Of MemberRow."""

    name = "families"
    columns = (
        Column("model", "Model", path="member.model"),
        Column("family", "Family", path="member.family.name"),
        Column(
            "tenant",
            "Tenant",
            path="member.tenant.slug",
            link=lambda row, scope: scope.link("families", tenant=row.member.tenant.slug),
        ),
        Column(
            "space",
            "Space",
            path="member.family.space.name",
            link=lambda row, scope: scope.link("spaces", space=row.member.family.space_id),
        ),
        Column("state", "State", "html", path="state.value", template="pages/families/state.html"),
        Column("why", "Found"),
        Column("engine", "Engine", path="member.engine"),
        Column("device", "Device", path="member.device"),
        Column("hit_tokens", "Loaded of others", "count", path="member.hit_tokens", unit="tok"),
        Column("decided_at", "Decided", "ago", path="member.decided_at"),
        Column("seen_at", "Seen", "ago", path="member.seen_at"),
        Column(
            "proof",
            "Proof",
            kind="html",
            template="pages/families/again.html",
            value=lambda row: None,
            order="",
            in_csv=False,
            is_head_silent=True,
        ),
    )
    filters = (Choice("state", "State", tuple((each.value, each.value) for each in MemberState)),)
    search = ("member.model", "member.family.name", "member.tenant.slug", "member.engine")
    search_label = "Model, family or engine"
    default_sort = "rank"
    nothing = "pages/families/nothing.html"

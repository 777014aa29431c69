"""Models of families, the refused ones first."""

from dataclasses import dataclass

from catalog.models import Family, FamilyMember
from dashboard.usage import Tenants
from neve.node.membership import MemberState
from tenants.principal import rows_of

_WORDS = {
    MemberState.PRODUCER: "● producer",
    MemberState.ATTACHED: "● attached",
    MemberState.ATTESTING: "○ attesting",
    MemberState.REFUSED: "▲ refused",
}
_ORDER = [MemberState.REFUSED, MemberState.ATTESTING, MemberState.PRODUCER, MemberState.ATTACHED]
_CLASSES = {MemberState.REFUSED: "silent", MemberState.ATTESTING: "ended"}


@dataclass(frozen=True)
class MemberRow:
    """A model of a family as the table shows it."""

    member: FamilyMember

    @property
    def state(self) -> MemberState:
        return MemberState(self.member.state)

    @property
    def rank(self) -> int:
        return _ORDER.index(self.state)

    @property
    def state_words(self) -> str:
        return _WORDS[self.state]

    @property
    def state_class(self) -> str:
        return _CLASSES.get(self.state, "live")

    @property
    def is_decided(self) -> bool:
        """Whether an operator can have the proof repeated."""
        return self.state in (MemberState.ATTACHED, MemberState.REFUSED)

    @property
    def why(self) -> str:
        """What its proof found, in words."""
        member = self.member
        if self.state is MemberState.PRODUCER:
            return "others are compared with it"
        if self.state is MemberState.ATTACHED:
            return f"{member.blocks} blocks were equal to the bit"
        if self.state is MemberState.ATTESTING:
            return "shares nothing yet: send it prompts that the producer answered"
        if not member.layer:
            return "the canary found other KV after the proof: remove the space if it stored any"
        where = f"{member.layer}, prompt tokens {member.first_token} to {member.end_token}"
        if member.near:
            return f"rounds otherwise at {where}: try again without other traffic"
        return f"other KV at {where}: look at the weights below this layer, and at kernels"


def member_rows(tenants: Tenants) -> list[MemberRow]:
    """Refused ones first, then by family. One query."""
    found = rows_of(FamilyMember, tenants).select_related("family__space", "tenant")
    rows = [MemberRow(member) for member in found]
    return sorted(rows, key=lambda row: (row.rank, row.member.family.name, row.member.model))


def families_without_models(tenants: Tenants) -> list[Family]:
    return list(rows_of(Family, tenants).filter(members=None).select_related("tenant", "space"))

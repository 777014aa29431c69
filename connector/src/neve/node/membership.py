"""Families: how an engine may use the KV of a producer with other weights.

The platform answers a handshake that names a family with a `Membership`. `neve.engine.attest` makes
the proof.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

from neve.errors import Refused
from neve.formats.space import SpaceIdentity

# Fields in which a member may differ from the producer: they say which weights compute the KV, and
# the proof says whether the KV is the same.
MAY_DIFFER: Final = frozenset(("model", "revision"))


class MemberState(StrEnum):
    """`PRODUCER`: its own identity is the family's. `ATTESTING`: shares nothing yet. `ATTACHED`:
    shares all. `REFUSED`: its KV differed, so it shares nothing."""

    PRODUCER = "producer"
    ATTESTING = "attesting"
    ATTACHED = "attached"
    REFUSED = "refused"


@dataclass(frozen=True)
class Membership:
    """The platform's word on this engine. `producer`: the identity that the space belongs to."""

    family: str
    state: MemberState
    producer: SpaceIdentity

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any], identity: SpaceIdentity) -> Self:
        """Raises `Refused` if the producer lays its KV out otherwise than `identity`."""
        producer = SpaceIdentity.from_dict(answer["producer"])
        for field in differing_layout(producer, identity):
            raise Refused(
                f"the family {answer['name']} has {getattr(producer, field)!r}, this node "
                f"{getattr(identity, field)!r}",
                field=field,
            )
        return cls(str(answer["name"]), MemberState(answer["state"]), producer)


def differing_layout(producer: SpaceIdentity, member: SpaceIdentity) -> list[str]:
    """Fields that forbid two engines to be of one family."""
    return [name for name in producer.differing_fields(member) if name not in MAY_DIFFER]


@dataclass(frozen=True)
class Attested:
    """What an engine found: the body of `POST sessions/<id>/attestation`.

    `weights`: hex digest of weights that were changed in place; empty: those of the start.
    `blocks`: compared so far and equal in every bit; `near`: equal but for rounding.
    `layer`, `first_token`, `end_token`: a difference that was found, in its block the first one.
    """

    state: MemberState
    weights: str = ""
    blocks: int = 0
    near: int = 0
    layer: str = ""
    first_token: int | None = None
    end_token: int | None = None

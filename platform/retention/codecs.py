"""Which spaces may store KV with loss: an operator's list, with which a node's option agrees."""

from collections.abc import Mapping
from typing import Any

from catalog.clashes import clash
from neve.formats.space import EXACT, SpaceIdentity
from retention.lossy import allowed
from retention.models import RetentionPolicy
from tenants.scope import tenant_scope


def is_allowed(text: str, identity: Mapping[str, Any]) -> bool:
    """`text`: the policy's list. `identity`: as a space keeps it."""
    codec = identity.get("codec", EXACT)
    return bool(codec == EXACT or allowed(text, str(identity.get("model", ""))) == codec)


def require_allowed(tenant_id: int, identity: SpaceIdentity) -> None:
    """Raises Problem (fingerprint-clash, `codec`) if the policy does not give this lossy codec to
    the model. An exact space needs no leave."""
    if identity.is_exact:
        return
    with tenant_scope(tenant_id):
        given = allowed(RetentionPolicy.objects.get().lossy_codecs, identity.model)
    if given != identity.codec:
        raise clash(
            "codec",
            expected=given,
            got=identity.codec,
            owner="tenant's policy",
            fix=f"An operator allows it by `lossy_codecs` of the tenant's policy, such as "
            f"{identity.model}={identity.codec}; else set the connector option `codec` to "
            f"{given}.",
        )

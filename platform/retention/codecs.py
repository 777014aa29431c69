"""Which spaces may store KV with loss: an operator's list, with which a node's option agrees."""

from catalog.clashes import clash
from neve.formats.space import SpaceIdentity
from retention.lossy import allowed
from retention.models import RetentionPolicy
from tenants.scope import tenant_scope


def require_allowed(tenant_id: int, identity: SpaceIdentity) -> None:
    """Raises Problem (fingerprint-clash, `codec`) if the policy does not give this lossy codec to
    the model. An exact space needs no leave."""
    if identity.is_exact:
        return
    with tenant_scope(tenant_id):
        given = allowed(RetentionPolicy.objects.get().lossy_codecs, identity.model)
    if given != identity.codec:
        raise clash("codec", expected=given, got=identity.codec, owner="tenant's policy")

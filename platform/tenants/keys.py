"""API keys: `neve_<prefix>_<secret>`; of the secret only a keyed hash is kept.

The word `neve_` lets scanners recognise a leaked key. 40 letters and digits are 238 bits.
"""

import hashlib
import hmac
import secrets
import string

from django.conf import settings
from django.db.models import Q, QuerySet
from django.utils import timezone

from tenants import key_use
from tenants.models import ApiKey

ALPHABET = string.ascii_letters + string.digits
PREFIX_CHARS = 10
SECRET_CHARS = 40
# Of a new key that names none. A node's key opens the cache endpoint only, which knows no scopes.
DEFAULT_SCOPES: dict[str, tuple[str, ...]] = {
    ApiKey.Role.NODE: (),
    ApiKey.Role.TEAM: (ApiKey.Scope.READ, ApiKey.Scope.WRITE),
    ApiKey.Role.OPERATOR: (ApiKey.Scope.READ, ApiKey.Scope.WRITE, ApiKey.Scope.KEYS),
}


def make_plaintext() -> tuple[str, str, str]:
    """A new key as (plaintext, prefix, secret)."""
    prefix = "".join(
        secrets.choice(string.ascii_lowercase + string.digits) for _ in range(PREFIX_CHARS)
    )
    secret = "".join(secrets.choice(ALPHABET) for _ in range(SECRET_CHARS))
    return f"neve_{prefix}_{secret}", prefix, secret


def hash_secret(secret: str) -> str:
    """HMAC-SHA256 under NEVE_KEY_PEPPER, as hex: a copy of the database verifies no guess."""
    return hmac.new(settings.ENV.key_pepper.encode(), secret.encode(), hashlib.sha256).hexdigest()


def find_key(plaintext: str) -> ApiKey | None:
    """The usable key, with its tenant; None for every failure, so that none can be told apart."""
    parts = plaintext.split("_", 2)
    well_formed = len(parts) == 3 and parts[0] == "neve"
    prefix, secret = (parts[1], parts[2]) if well_formed else ("", "")
    key = ApiKey.unscoped.select_related("tenant").filter(prefix=prefix).first()
    # Compared even if the prefix is unknown, so that the time reveals nothing.
    same = hmac.compare_digest(hash_secret(secret), key.secret_hmac if key else "0" * 64)
    if key is None or not same:
        return None
    if key.has_ended(timezone.now()):
        return None
    if key.tenant is not None and not key.tenant.is_active:
        return None
    key_use.note(key)
    return key


def usable_keys() -> QuerySet[ApiKey]:
    """Keys that `find_key` would find now."""
    unexpired = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    of_nobody_or_active = Q(tenant=None) | Q(tenant__is_active=True)
    keys: QuerySet[ApiKey] = ApiKey.unscoped.filter(unexpired, of_nobody_or_active, revoked_at=None)
    return keys


def usable_node_keys() -> QuerySet[ApiKey]:
    """Keys of all tenants that nodes may use now, in the hot tier too."""
    return usable_keys().filter(role=ApiKey.Role.NODE, tenant__cut_off_at=None)

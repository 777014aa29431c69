"""Secrets and prompts in the database are sealed: a copy of the database alone does not open them.

The key derives from NEVE_SECRET_KEY, one for each purpose. With another NEVE_SECRET_KEY nothing
sealed before opens again.
"""

from base64 import urlsafe_b64encode
from hashlib import blake2b

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings


class Unsealable(Exception):
    """Sealed under another NEVE_SECRET_KEY, or damaged."""


def seal(data: bytes, *, purpose: str) -> bytes:
    """A third longer than `data`. `purpose`: up to 16 characters, the same for `unseal`."""
    return _fernet(purpose).encrypt(data)


def unseal(sealed: bytes, *, purpose: str) -> bytes:
    """Raises Unsealable."""
    try:
        return _fernet(purpose).decrypt(sealed)
    except InvalidToken as error:
        raise Unsealable(f"sealed under another NEVE_SECRET_KEY ({purpose})") from error


def _fernet(purpose: str) -> Fernet:
    secret = settings.SECRET_KEY.encode()
    key = blake2b(b"neve.seal", key=secret[:64], digest_size=32, person=purpose.encode()).digest()
    return Fernet(urlsafe_b64encode(key))

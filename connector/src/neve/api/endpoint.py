"""Where the API is, and who asks."""

import importlib.metadata
import re
from urllib.parse import urlsplit

from neve.errors import Misuse

API = "/api/v1"


def checked_endpoint(url: str) -> str:
    """Without a slash at its end. Raises `Misuse` unless it is http(s)://host…"""
    try:
        parsed = urlsplit(url)
        is_address = parsed.scheme in ("http", "https") and parsed.hostname and parsed.port != 0
    except ValueError:
        is_address = False
    if not is_address or parsed.query or parsed.fragment or parsed.username is not None:
        raise Misuse("need an address such as http://127.0.0.1:8000", field="endpoint")
    return url.rstrip("/")


def checked_key(api_key: str) -> str:
    """Without surrounding white space. Raises `Misuse`, whose text does not show the key."""
    key = api_key.strip()
    if not re.fullmatch(r"[!-~]+", key):
        raise Misuse("is empty, or has characters that no key has", field="api_key")
    return key


def user_agent() -> str:
    return f"neve/{importlib.metadata.version('neve')}"

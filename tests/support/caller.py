"""A client of the APIs with a key."""

from typing import Any

from django.test import Client


class Caller(Client):
    """Sends JSON with an API key (None: without)."""

    def __init__(self, key: str | None) -> None:
        super().__init__(headers={"Authorization": f"Bearer {key}"} if key else {})

    def send(self, method: str, path: str, body: Any = None, **kwargs: Any):
        if body is None:  # no body at all, where `post` would send an empty form
            return self.generic(method.upper(), path, **kwargs)
        kwargs |= {"data": body, "content_type": "application/json"}
        return getattr(self, method.lower())(path, **kwargs)

"""Signatures of webhooks. Source: https://github.com/standard-webhooks/standard-webhooks

A secret is derived from NEVE_KEY_PEPPER, the webhook's id and its generation, so that the database
holds none. Another pepper changes all secrets, as it ends all keys.
"""

import base64
import hashlib
import hmac
from datetime import datetime

from django.conf import settings

from events.models import Webhook

PREFIX = "whsec_"


def secret_of(webhook: Webhook, generation: int | None = None) -> str:
    """The secret as receivers configure it: 32 bytes in base64 behind PREFIX."""
    return PREFIX + base64.b64encode(_key(webhook, generation or webhook.generation)).decode()


def headers(webhook: Webhook, *, message_id: str, body: bytes, at: datetime) -> dict[str, str]:
    """What a receiver verifies. During the overlap of a rotation both secrets sign."""
    stamp = str(int(at.timestamp()))
    signed = b".".join((message_id.encode(), stamp.encode(), body))
    generations = [webhook.generation]
    if webhook.previous_until is not None and at < webhook.previous_until:
        generations.append(webhook.generation - 1)
    signatures = [
        hmac.new(_key(webhook, generation), signed, hashlib.sha256).digest()
        for generation in generations
    ]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(f"v1,{base64.b64encode(s).decode()}" for s in signatures),
        "content-type": "application/json",
        "user-agent": "neve-webhooks/1",
    }


def _key(webhook: Webhook, generation: int) -> bytes:
    text = f"webhook secret {webhook.pk} {generation}"
    return hmac.new(settings.ENV.key_pepper.encode(), text.encode(), hashlib.sha256).digest()

"""Commands that people copy into a shell. Nodes write names and models as they like, so only plain
words get into them.
"""

import json
import re
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.urls import get_script_prefix

from catalog.clashes import Difference, flags_to_be
from catalog.models import Space

_PLAIN = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9/._-]{0,199}", re.ASCII)
# A canonical layout has these as well, for any number of GPUs.
_DEFAULTS = (("tp_size", 1), ("pp_size", 1))
CONFIG = {
    "kv_connector": "NeveConnector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}


def endpoint_of(request: HttpRequest) -> str:
    """What people and nodes call: NEVE_URL, or the address of this request."""
    own: str = settings.ENV.url.geturl()
    return (own or request.build_absolute_uri(get_script_prefix())).rstrip("/")


def model_of(space: Space | None) -> str:
    """The model of a space if its name needs no quoting in a shell, else MODEL."""
    model = str(space.identity.get("model", "")) if space is not None else ""
    return model if _PLAIN.fullmatch(model) else "MODEL"


def another_node(endpoint: str, space: Space) -> str:
    """Starts an engine that shares the KV of the space: what the platform knows of its nodes. The
    name of the space lets the platform refuse an engine that differs."""
    identity = {k: v for k, v in space.identity.items() if (k, v) not in _DEFAULTS}
    flags = flags_to_be([Difference(name, None, value, "") for name, value in identity.items()])
    options: dict[str, Any] = {"max_chunk_tokens": space.chunk_tokens}
    if _PLAIN.fullmatch(space.name):
        options = {"space": space.name, **options}
    config = json.dumps({**CONFIG, "kv_connector_extra_config": options}, indent=2)
    return "\n".join(
        (
            f"export NEVE_ENDPOINT={endpoint}",
            "export NEVE_API_KEY=neve_...",
            f"vllm serve {' '.join(filter(None, (model_of(space), flags)))} \\",
            f"  --kv-transfer-config '{config}'",
        )
    )

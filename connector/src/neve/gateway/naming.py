"""Which context a request belongs to, by its headers and body. Pure.

The first of these that is there:

| `source` | from |
|---|---|
| request | `kv_transfer_params.neve.context`: the client named it itself |
| header | `x-neve-context` |
| session | a session header of an agent, or a session in the body (below) |
| user | `user` of the body, as a keyed hash: it may be a person's address |

Without any, the longest prefix that the request shares with earlier ones names it
(`neve.gateway.holders`).

Session headers: `x-litellm-session-id`; each `x-<vendor>-session-id` (`x-claude-code-session-id`);
`x-session-id`, `x-session-affinity` (opencode); `session-id`, `session_id`, `thread-id`,
`conversation_id` (Codex, told by its user agent). In bodies: `litellm_session_id`, `session_id`,
the same in `metadata`, Anthropic's `metadata.user_id` with `_session_` in it, and
`prompt_cache_key`. Source: litellm/proxy/litellm_pre_call_utils.py of LiteLLM 1.108.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

MOST_CHARS: Final = 200  # of a context's name, as nodes take it (`neve.engine.params`)
CONTEXT_HEADER: Final = "x-neve-context"
_VENDOR_SESSION = re.compile(r"x-.+-session-id")
_CODEX_AGENT = re.compile(r"codex", re.IGNORECASE)
_CODEX: Final = ("session-id", "session_id", "thread-id", "conversation_id")
_OPAQUE = re.compile(r"[A-Za-z0-9._:-]{8,128}")  # an id, not a sentence or an address
_IN_BODY: Final = ("litellm_session_id", "session_id")


@dataclass(frozen=True)
class ContextName:
    """`source`: request, header, session, user or prefix."""

    name: str
    source: str

    def within(self, scope: str) -> "ContextName":
        """The context of this name in a scope, which ends the name. Of a name that is too long for
        it, a hash of the whole stands for its last characters."""
        name, most = self.name, MOST_CHARS - len(scope) - 1
        if len(name) > most:
            digest = blake2b(name.encode(errors="surrogatepass"), digest_size=8).hexdigest()
            name = f"{name[: most - len(digest) - 1]}~{digest}"
        return ContextName(f"{name}.{scope}", self.source)


def name_in(
    headers: Mapping[str, str], body: Mapping[str, Any], key: bytes = b""
) -> ContextName | None:
    """The context that headers or body name; None if they do not.

    Args:
        headers: names in any case.
        body: of the OpenAI or Anthropic API.
        key: keys the hash of a user's name; up to 64 bytes.
    """
    asked = _of(_of(body, "kv_transfer_params"), "neve").get("context")
    if (name := _name(asked)) is not None:
        return ContextName(name, "request")
    lower = {each.lower(): value for each, value in headers.items()}
    if (name := _name(lower.get(CONTEXT_HEADER))) is not None:
        return ContextName(name, "header")
    session = _session_of_headers(lower) or _session_of_body(body)
    if session is not None:
        return ContextName(f"session-{session}", "session")
    user = body.get("user")
    if isinstance(user, str) and user.strip():
        digest = blake2b(user.strip().encode(errors="replace"), key=key, digest_size=8)
        return ContextName(f"user-{digest.hexdigest()}", "user")
    return None


def _session_of_headers(lower: Mapping[str, str]) -> str | None:
    names = ["x-litellm-session-id"]
    names += [name for name in lower if _VENDOR_SESSION.fullmatch(name)]
    if _CODEX_AGENT.search(lower.get("user-agent", "")):
        names += _CODEX
    names += ["x-session-id", "x-session-affinity"]
    return next((lower[name] for name in names if _is_opaque(lower.get(name))), None)


def _session_of_body(body: Mapping[str, Any]) -> str | None:
    metadata = _of(body, "metadata")
    for values in (body, metadata):
        for field in _IN_BODY:
            if _is_opaque(value := values.get(field)):
                return str(value)
    user = metadata.get("user_id")
    if isinstance(user, str):
        _, marker, session = user.rpartition("_session_")
        if marker and _is_opaque(session):
            return session
    cache_key = body.get("prompt_cache_key")
    return str(cache_key) if _is_opaque(cache_key) else None


def _is_opaque(value: object) -> bool:
    return isinstance(value, str) and _OPAQUE.fullmatch(value) is not None


def _name(value: object) -> str | None:
    if isinstance(value, str) and 0 < len(value.strip()) <= MOST_CHARS and value.isprintable():
        return value.strip()
    return None


def _of(body: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = body.get(field)
    return value if isinstance(value, Mapping) else {}

"""Token ids of a prompt that a prefill pool may compute, by the decode node's own tokeniser."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx

from neve.gateway.prompts import read_prompt

_CONNECT_S: Final = 3.0
_TOKENIZE_S: Final = 20.0
# With these the engine computes the whole prompt in any case, or another one.
_NEVER: Final = ("prompt_logprobs", "prompt_embeds", "truncate_prompt_tokens", "chat_template")


async def tokens_of(
    http: httpx.AsyncClient,
    url: str,
    model: str,
    body: Mapping[str, Any],
    authorization: str | None,
    *,
    reads_aside: bool = False,
) -> Sequence[int] | None:
    """Of a body of /v1/completions or /v1/chat/completions. None: a pool must not compute it
    (media, several prompts, prompts that the engine changes), or the engine does not say.

    Args:
        url: of an engine that serves `model`, without /v1.
        authorization: header of that name; None: without.
        reads_aside: a long body, read in a thread.
    """
    if any(body.get(name) is not None for name in _NEVER) or body.get("echo"):
        return None
    prompt = await asyncio.to_thread(read_prompt, body) if reads_aside else read_prompt(body)
    query = None if prompt is None else prompt.query
    if prompt is None or query is None:
        return None
    if prompt.tokens is not None:
        return prompt.tokens
    if "text" in query:
        query["prompt"] = query.pop("text")
    query.pop("salt", None)
    if query.get("continue_final_message"):
        query.setdefault("add_generation_prompt", False)
    return await _tokenize(http, url, {"model": model, **query}, authorization)


async def _tokenize(
    http: httpx.AsyncClient, url: str, body: Mapping[str, Any], authorization: str | None
) -> list[int] | None:
    """Token ids, as /tokenize of vLLM has them; None if it does not answer so."""
    headers = {} if authorization is None else {"Authorization": authorization}
    try:
        answer = await http.post(
            f"{url}/tokenize",
            json=body,
            headers=headers,
            timeout=httpx.Timeout(_TOKENIZE_S, connect=_CONNECT_S),
        )
        found = answer.json().get("tokens") if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError, AttributeError):
        return None
    if not isinstance(found, list) or not all(type(token) is int and token >= 0 for token in found):
        return None
    return found

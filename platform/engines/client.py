"""Calls of an engine's HTTP API: /v1/models, /tokenize, /v1/completions.

No database here. Raises Problem (address-refused, malformed) or EngineFailed.
Source: vLLM's OpenAI-compatible server (vllm/entrypoints/openai/api_server.py).
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from base import outbound

CHECK_S = 5.0
TOKENIZE_S = 20.0
MOST_TOKENS = 1 << 20  # of one prompt
FIELD = "base_url"


class EngineFailed(Exception):
    """The engine did not answer as it should. `status`: of its HTTP answer, None without one."""

    def __init__(self, words: str, status: int | None = None) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True)
class EngineAddress:
    """What a call needs. `api_key`: "" for none."""

    base_url: str
    model: str
    api_key: str

    def __repr__(self) -> str:  # the key stays out of logs
        return f"EngineAddress({self.base_url!r}, {self.model!r})"


def served_root(address: EngineAddress) -> str | None:
    """The `root` (folder or hub name) of the model, None if the server does not say.

    Raises EngineFailed if it does not serve the model.
    """
    answer = _json(_send(address, "GET", "/v1/models", None, timeout_s=CHECK_S))
    rows = answer.get("data") if isinstance(answer, dict) else None
    found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    for row in found:
        if row.get("id") == address.model:
            root = row.get("root")
            return root if isinstance(root, str) else None
    names = ", ".join(str(row.get("id"))[:60] for row in found[:5]) or "no models"
    raise EngineFailed(f"it does not serve {address.model!r}, but {names}")


def tokenize(address: EngineAddress, request: Mapping[str, Any]) -> list[int]:
    """Token ids of a prompt or of messages, as /tokenize takes them."""
    body = {**request, "model": address.model}
    raw = _send(address, "POST", "/tokenize", body, timeout_s=TOKENIZE_S, most_bytes=16 << 20)
    answer = _json(raw)
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    if not isinstance(tokens, list) or not all(
        type(token) is int and 0 <= token < 2**32 for token in tokens
    ):
        raise EngineFailed("/tokenize answered no list of token ids")
    if len(tokens) > MOST_TOKENS:
        raise EngineFailed(f"the prompt has more than {MOST_TOKENS} tokens")
    return tokens


def prefill(
    address: EngineAddress,
    tokens: Sequence[int],
    *,
    salt: str,
    params: Mapping[str, Any],
    timeout_s: float,
    stop: threading.Event,
) -> None:
    """Compute the prompt's KV. `params`: kv_transfer_params. Blocks until the engine answered.

    Setting `stop` closes the connection, which ends the request in the engine.
    """
    body = {
        **{"model": address.model, "prompt": list(tokens), "max_tokens": 1, "temperature": 0},
        **{"stream": False, "kv_transfer_params": dict(params)},
        **({"cache_salt": salt} if salt else {}),
    }
    _send(address, "POST", "/v1/completions", body, timeout_s=timeout_s, stop=stop)


def _send(
    address: EngineAddress,
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    *,
    timeout_s: float,
    most_bytes: int = 1 << 20,
    stop: threading.Event | None = None,
) -> bytes:
    headers = {"Accept": "application/json"}
    if address.api_key:
        headers["Authorization"] = f"Bearer {address.api_key}"
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        answer = outbound.send(
            method,
            address.base_url + path,
            field=FIELD,
            body=None if body is None else json.dumps(body).encode(),
            headers=headers,
            timeout_s=timeout_s,
            most_bytes=most_bytes,
            stop=stop,
        )
    except outbound.Unreachable as error:
        raise EngineFailed(str(error)) from error
    if answer.status != 200:
        raise EngineFailed(f"{path}: {_refusal(answer)}", answer.status)
    return answer.body


def _refusal(answer: outbound.Answer) -> str:
    """vLLM's own words if it has any: {"error": {"message": …}}, before {"message": …}."""
    if answer.status in (401, 403):
        return f"HTTP {answer.status}: it needs another API key"
    words: Any = None
    try:
        body = answer.json()
    except outbound.Unreachable:
        body = None
    if isinstance(body, dict):
        inner = body.get("error")
        words = inner.get("message") if isinstance(inner, dict) else body.get("message")
    if not isinstance(words, str):
        return f"HTTP {answer.status}"
    return f"HTTP {answer.status}: {' '.join(words.split())[:200]}"


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise EngineFailed("its answer is no JSON") from error

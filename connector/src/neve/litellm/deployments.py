"""Deployments of LiteLLM's router as nodes of one tenant. Pure.

A deployment is a node with Neve if its `model_info` has

    neve: {space: 3}                       # number of the space; tenant: acme keeps others out

or, without that, if its `api_base` is that of an engine which the tenant's key sees. Only
providers that speak vLLM's API take its parameters.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from neve.gateway.nodes import Node
from neve.gateway.store import Engine

_PROVIDERS: Final = (
    "hosted_vllm",
    "openai",
    "text-completion-openai",
    "custom_openai",
    "litellm_proxy",
)


def node_of(
    deployment: Mapping[str, Any], *, tenant: str, engines: Sequence[Engine]
) -> Node | None:
    """None: the deployment is another tenant's. A node without Neve has no `space`."""
    params = deployment.get("litellm_params") or {}
    info = deployment.get("model_info") or {}
    url = _server_of(params.get("api_base"))
    name = _shown(url) or str(info.get("id", ""))
    asked = info.get("neve")
    owner = asked.get("tenant") if isinstance(asked, Mapping) else None
    if owner is not None and owner != tenant:
        return None
    if asked is False or not url or not _speaks_vllm(params):
        return Node(name, url)
    space = asked.get("space") if isinstance(asked, Mapping) else None
    if type(space) is not int:
        space = next((each.space for each in engines if _server_of(each.url) == url), None)
    return Node(name, url, space)


def is_nobodys(deployment: Mapping[str, Any]) -> bool:
    """Whether it is kept for no tenant."""
    asked = (deployment.get("model_info") or {}).get("neve")
    return not isinstance(asked, Mapping) or asked.get("tenant") is None


def takes_salts(deployment: Mapping[str, Any]) -> bool:
    """Whether it may be vLLM although Neve has not named it as an engine: others refuse
    `cache_salt`."""
    return _provider_of(deployment.get("litellm_params") or {}) == "hosted_vllm"


def served_model(params: Mapping[str, Any]) -> str:
    """The model's name at its server. `params`: `litellm_params`."""
    model = str(params.get("model", ""))
    provider, _, name = model.partition("/")
    return name if provider in _PROVIDERS else model


def _speaks_vllm(params: Mapping[str, Any]) -> bool:
    return _provider_of(params) in _PROVIDERS


def _provider_of(params: Mapping[str, Any]) -> str:
    return params.get("custom_llm_provider") or str(params.get("model", "")).partition("/")[0]


def _shown(url: str) -> str:
    """Without scheme and credentials: names are told to clients."""
    return url.partition("://")[2].rpartition("@")[2] or url


def _server_of(base: object) -> str:
    """A server's address without /v1; deployments of one server are one node."""
    return str(base or "").strip().rstrip("/").removesuffix("/v1").rstrip("/").lower()

"""The hooks that LiteLLM's proxy calls, in the order of a request.

| hook | does |
|---|---|
| `async_pre_call_hook` | whose request it is |
| `async_filter_deployments` | names the context, asks Neve, chooses the node |
| `async_pre_call_deployment_hook` | what only a node with Neve gets: context and salt |
| `async_post_call_failure_deployment_hook` | a node did not answer; LiteLLM tries another |
| `async_post_call_response_headers_hook` | `x-neve-…` |
| `async_logging_hook` | metadata of the spend log, once the answer is whole |

The choice narrows what LiteLLM's own filters (cooldowns, tags, orders, limits) leave, so these
hold; its `routing_strategy` then picks from that one node. An error in here is logged, and LiteLLM
goes on as if the plug-in were not there. Only what keeps apart may refuse a request: the check
that keeps a tenant from another tenant's node, and the salts of teams and keys.

Bodies are held while a request runs. They are never logged.
"""

import ssl
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import httpx
from litellm.integrations.custom_logger import CustomLogger

from neve import log_events
from neve.errors import Refused
from neve.gateway import Gateway, Node, Nodes, Route, Store
from neve.gateway.nodes import IN_FLIGHT_S
from neve.litellm.deployments import is_nobodys, node_of, served_model, takes_salts
from neve.litellm.pools import Prepared, TenantPools
from neve.litellm.reports import Report, report_of
from neve.litellm.settings import Settings, TenantSettings

_GENERATIONS: Final = frozenset(
    (
        *("completion", "acompletion", "text_completion", "atext_completion"),
        *("responses", "aresponses", "anthropic_messages"),
        *("generate_content", "agenerate_content"),  # Gemini's, which become completions
        *("generate_content_stream", "agenerate_content_stream"),
    )
)
# Forms that generate text, too, and lose the request's mark on their way, and so its salt.
_UNSALTED: Final = frozenset(
    (
        *("create_interaction", "acreate_interaction", "_aresponses_websocket", "_arealtime"),
        *("allm_passthrough_route", "arun_thread", "acreate_batch"),
    )
)
# Of the API of completions: a pool computes the same tokens.
_PREFILLED: Final = frozenset(("completion", "acompletion", "text_completion", "atext_completion"))
_POOL_LOOKUPS: Final = 64  # at a time; tokens are given, so none needs an engine
_MARK: Final = "neve_request"  # in LiteLLM's metadata of a request: names its `_Asked`
_MOST_REQUESTS: Final = 10_000
_Deployment = dict[str, Any]

# True while LiteLLM is asked which deployments its own filters leave.
_asking: ContextVar[bool] = ContextVar("neve_asking", default=False)


@dataclass
class _Tenant:
    settings: TenantSettings
    gateway: Gateway
    store: Store
    pools: TenantPools | None


@dataclass
class _Asked:
    """A request. `model`: the group that `route` was made for."""

    id: str
    tenant: _Tenant
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    salt: str | None
    scope: str
    begun: float = field(default_factory=time.monotonic)
    route: Route | None = None
    model: str | None = None
    prepared: Prepared | None = None
    is_ended: bool = False
    is_answered: bool = False


class NevePlugin(CustomLogger):  # type: ignore[misc]  # litellm is untyped here
    """One for a process of the proxy; belongs to its event loop."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._nodes = Nodes()
        self._tenants: dict[str, _Tenant] = {}
        self._tls: ssl.SSLContext | None = None
        self._requests: OrderedDict[str, _Asked] = OrderedDict()
        self._said: set[str] = set()

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> str | None:
        """A text refuses the request, with HTTP 400."""
        settings = None
        try:
            for each in _metadatas_of(data):
                each.pop(_MARK, None)  # nobody else's
            if call_type not in _GENERATIONS and call_type not in _UNSALTED:
                return None
            team, key = user_api_key_dict.team_id, user_api_key_dict.token
            settings = self._settings.tenant_of(team=team, key=key)
            if settings is None:
                return None
            if call_type in _UNSALTED:
                is_salted = settings.salt_by != "none"
                return "this API has no cache_salt: use /v1/chat/completions" if is_salted else None
            asked = _Asked(
                uuid.uuid4().hex,
                self._tenant(settings),
                _headers_of(data),
                data,
                settings.salt_of(team=team, key=key, given=data.get("cache_salt")),
                settings.scope_of(team=team, key=key),
            )
            _metadata_of(data)[_MARK] = asked.id
            self._remember(asked)
            await asked.tenant.store.facts()
        except Exception:
            self._broken("pre_call")
            if settings is not None and settings.salt_by != "none":
                raise
        return None

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[_Deployment],
        messages: Any,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,
    ) -> list[_Deployment]:
        kwargs = request_kwargs or {}
        if _asking.get() or not isinstance(healthy_deployments, list):
            return healthy_deployments
        asked = self._asked(kwargs)
        if asked is None:
            return [each for each in healthy_deployments if is_nobodys(each)]
        # Not inside `try`: a tenant must not reach another tenant's node, whatever fails below.
        own = {
            id(each): node
            for each in healthy_deployments
            if (node := self._node_of(each, asked.tenant)) is not None
        }
        allowed = [each for each in healthy_deployments if id(each) in own]
        try:
            return await self._narrowed(model, allowed, messages, kwargs, asked)
        except Exception:
            self._broken("filter")
            return allowed

    async def _narrowed(
        self,
        model: str,
        allowed: list[_Deployment],
        messages: Any,
        kwargs: dict[str, Any],
        asked: _Asked,
    ) -> list[_Deployment]:
        nodes = [self._node_of(each, asked.tenant) for each in allowed]
        if not any(node is not None and node.space is not None for node in nodes):
            return allowed
        left = allowed
        if self._settings.routes and len(allowed) > 1:
            left = list(await _left_by_litellm(model, kwargs, messages)) or allowed
        by_name = {node.name: node for each in left if (node := self._node_of(each, asked.tenant))}
        if not by_name:
            return allowed
        gateway = asked.tenant.gateway
        if asked.route is not None and asked.model == model:
            asked.route = gateway.reroute(asked.route, list(by_name.values()))
        else:
            asked.route = await gateway.route(
                asked.headers,
                {**asked.body, "model": model, "cache_salt": asked.salt},
                list(by_name.values()),
                request_id=asked.id,
                needs_found=False,
                scope=asked.scope,
            )
            asked.model = model
        if not self._settings.routes:
            return allowed
        is_mixed = any(node.space is None for node in by_name.values())
        if is_mixed and asked.route.reason != "holder":
            return allowed  # others than Neve's nodes: LiteLLM's own strategy knows their weights
        chosen = asked.route.node.name
        ids = {_id_of(e) for e in left if _name_of(self._node_of(e, asked.tenant)) == chosen}
        return [each for each in allowed if _id_of(each) in ids] or allowed

    async def async_pre_call_deployment_hook(
        self, kwargs: dict[str, Any], call_type: Any
    ) -> dict[str, Any] | None:
        asked = self._asked(kwargs)
        deployment = {"litellm_params": kwargs, "model_info": kwargs.get("model_info")}
        if asked is None:
            self._require_known(kwargs, deployment)
            return None
        node = self._node_of(deployment, asked.tenant)
        if node is None:
            return None
        # Not inside `try`: no request goes on without its salt, whatever fails below.
        own = dict(kwargs)
        is_salted = asked.tenant.settings.salt_by != "none"
        if node.space is not None or (is_salted and takes_salts(deployment)):
            own["extra_body"] = _without_own(kwargs.get("extra_body"))
            if asked.salt is not None:
                own["cache_salt"] = asked.salt
        try:
            if asked.route is not None:
                asked.route = asked.tenant.gateway.move(asked.route, node)
                if node.space is not None:
                    return await self._prepared(own, node, asked, asked.route, call_type)
            return own
        except Exception:
            self._broken("deployment")
            return own

    async def _prepared(
        self, kwargs: dict[str, Any], node: Node, asked: _Asked, route: Route, call_type: Any
    ) -> dict[str, Any]:
        kwargs["kv_transfer_params"] = route.engine_params(kwargs)
        kind = getattr(call_type, "value", call_type)
        if asked.tenant.pools is None or kind not in _PREFILLED:
            return kwargs
        if asked.prepared is None:
            key = kwargs.get("api_key")
            asked.prepared = await asked.tenant.pools.prepared(
                node,
                served_model(kwargs),
                kwargs,
                salt=asked.salt,
                held_share=route.held_share,
                key=key if isinstance(key, str) else None,
            )
        if asked.prepared is not None:
            handed = asked.prepared.handed
            kwargs["kv_transfer_params"] = handed.added_to(kwargs["kv_transfer_params"])
        return kwargs

    def _require_known(self, kwargs: Mapping[str, Any], deployment: _Deployment) -> None:
        """Raises `Refused` for a request that was forgotten: its salt is, too."""
        is_marked = any(_MARK in each for each in _metadatas_of(kwargs))
        if is_marked and self._settings.is_salted and takes_salts(deployment):
            raise Refused("the request took too long to be sent: send it again")

    async def async_post_call_failure_deployment_hook(
        self,
        request_data: Mapping[str, Any],
        exception: Exception,
        call_type: Any,
        fallback_depth: int | None = None,
    ) -> None:
        try:
            asked = self._asked(request_data)
            if asked is not None and asked.prepared is not None:
                await asked.prepared.end()
                asked.prepared = None  # another deployment may need a pool again
            if asked is not None and asked.route is not None:
                status = getattr(exception, "status_code", None)
                failed = isinstance(status, int) and status >= 500
                asked.tenant.gateway.end(asked.route, failed=failed)
        except Exception:
            self._broken("failure")

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: Any,
        traceback_str: str | None = None,
    ) -> None:
        asked = self._asked(request_data)
        if asked is not None:
            self._nodes.end(asked.id)
            await self._ended(asked)

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: Any,
        response: Any,
        request_headers: dict[str, str] | None = None,
        litellm_call_info: dict[str, Any] | None = None,
    ) -> dict[str, str] | None:
        try:
            asked = self._asked(data)
            if asked is None:
                return None
            report = self._report(asked, response)
            asked.is_answered = True
            self._forget_if_done(asked)
            if report is None or not self._settings.tells_clients:
                return None
            return report.headers()
        except Exception:
            self._broken("headers")
            return None

    async def async_logging_hook(
        self, kwargs: dict[str, Any], result: Any, call_type: str
    ) -> tuple[dict[str, Any], Any]:
        try:
            params = kwargs.get("litellm_params") or {}
            asked = self._asked(params)
            if asked is not None:
                report = self._report(asked, result, is_cached=bool(kwargs.get("cache_hit")))
                if asked.route is not None:  # also at a server without Neve
                    asked.tenant.gateway.end(asked.route)
                if report is not None:
                    _tell_spend_log(kwargs, params, report.metadata())
                await self._ended(asked, _first_token_at(kwargs))
        except Exception:
            self._broken("logging")
        return kwargs, result

    def _report(self, asked: _Asked, response: Any, *, is_cached: bool = False) -> Report | None:
        """None: the request went to no node with Neve, or LiteLLM's own cache answered."""
        hidden = getattr(response, "_hidden_params", None)
        is_cached = is_cached or (isinstance(hidden, Mapping) and bool(hidden.get("cache_hit")))
        route = asked.route
        if route is None or route.node.space is None or is_cached:
            return None
        gpus = asked.tenant.store.gpus_of(route.node.space)
        handed = None if asked.prepared is None else asked.prepared.handed
        return report_of(asked.tenant.gateway, route, response, gpus, handed)

    def _tenant(self, settings: TenantSettings) -> _Tenant:
        tenant = self._tenants.get(settings.name)
        if tenant is None:
            if self._tls is None:
                self._tls = ssl.create_default_context()
            store = Store(
                self._settings.endpoint,
                settings.api_key,
                deadline_s=self._settings.lookup_deadline_s,
                verify=self._tls,
            )
            gateway = Gateway(
                store,
                nodes=self._nodes,
                margin=self._settings.margin,
                piece_bytes=self._settings.piece_bytes,
            )
            tenant = _Tenant(settings, gateway, store, self._pools(settings))
            self._tenants[settings.name] = tenant
        return tenant

    def _pools(self, settings: TenantSettings) -> TenantPools | None:
        if not settings.pools:
            return None
        assert self._tls is not None
        store = Store(
            self._settings.endpoint,
            settings.api_key,
            deadline_s=self._settings.lookup_deadline_s,
            most_lookups=_POOL_LOOKUPS,
            verify=self._tls,
        )
        # No proxies or keys of the environment; no redirect is followed, so no key goes elsewhere.
        http = httpx.AsyncClient(verify=self._tls, trust_env=False)
        return TenantPools(settings.pools, store=store, http=http)

    def _node_of(self, deployment: Mapping[str, Any], tenant: _Tenant) -> Node | None:
        return node_of(deployment, tenant=tenant.settings.name, engines=tenant.store.engines)

    def _asked(self, kwargs: Mapping[str, Any]) -> _Asked | None:
        marks = [each[_MARK] for each in _metadatas_of(kwargs) if _MARK in each]
        return self._requests.get(marks[0]) if marks and isinstance(marks[0], str) else None

    def _remember(self, asked: _Asked) -> None:
        """Forgets requests of which nobody told the end."""
        self._requests[asked.id] = asked
        oldest = next(iter(self._requests.values()))
        while len(self._requests) > _MOST_REQUESTS or asked.begun - oldest.begun > IN_FLIGHT_S:
            self._nodes.end(oldest.id)
            del self._requests[oldest.id]
            oldest = next(iter(self._requests.values()))

    async def _ended(self, asked: _Asked, first_token_at: float | None = None) -> None:
        if asked.prepared is not None:
            await asked.prepared.end(first_token_at)
        asked.is_ended = True
        asked.headers = asked.body = {}
        self._forget_if_done(asked)

    def _forget_if_done(self, asked: _Asked) -> None:
        if asked.is_ended and asked.is_answered:
            self._requests.pop(asked.id, None)

    def _broken(self, step: str) -> None:
        """Said once for each step."""
        if step not in self._said:
            self._said.add(step)
            log_events.GATEWAY_BROKEN.log(step=f"litellm.{step}", exc_info=True)


async def _left_by_litellm(
    model: str, kwargs: Mapping[str, Any], messages: Any
) -> Sequence[_Deployment]:
    """Deployments that all of LiteLLM's filters leave. Empty: none, or it cannot be said."""
    from litellm.proxy.proxy_server import llm_router

    if llm_router is None:
        return []
    token = _asking.set(True)
    try:
        left = await llm_router.async_get_healthy_deployments(
            model=model,
            request_kwargs=dict(kwargs),  # it takes members out
            messages=messages,
            input=kwargs.get("input"),
        )
    except Exception:  # LiteLLM will say so itself
        return []
    finally:
        _asking.reset(token)
    return left if isinstance(left, list) else [left]


def _tell_spend_log(
    kwargs: Mapping[str, Any], params: Mapping[str, Any], told: Mapping[str, Any]
) -> None:
    """Adds to `spend_logs_metadata`, of the row of the database and of other loggers."""
    logged = kwargs.get("standard_logging_object")
    containers = [_metadata_of(params)]
    if isinstance(logged, Mapping) and isinstance(logged.get("metadata"), dict):
        containers.append(logged["metadata"])
    for each in containers:
        before = each.get("spend_logs_metadata")
        each["spend_logs_metadata"] = {**(before if isinstance(before, dict) else {}), **told}


def _metadata_of(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """LiteLLM's own metadata of a request, which is no member of the client's body."""
    return next(iter(_metadatas_of(kwargs)), {})


def _metadatas_of(kwargs: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = (kwargs.get(name) for name in ("litellm_metadata", "metadata"))
    return [each for each in found if isinstance(each, dict)]


def _without_own(body: object) -> Any:
    """`extra_body` without members that the plug-in sets: it would have the last word."""
    if not isinstance(body, Mapping):
        return body
    return {k: v for k, v in body.items() if k not in ("cache_salt", "kv_transfer_params")}


def _first_token_at(kwargs: Mapping[str, Any]) -> float | None:
    """Of a stream, by the monotonic clock; None of other answers."""
    came = kwargs.get("completion_start_time")
    if not kwargs.get("stream") or not isinstance(came, datetime):
        return None
    return time.monotonic() - (datetime.now(came.tzinfo) - came).total_seconds()


def _headers_of(data: Mapping[str, Any]) -> dict[str, str]:
    request = data.get("proxy_server_request")
    headers = request.get("headers") if isinstance(request, Mapping) else None
    if not isinstance(headers, Mapping):
        return {}
    return {name: value for name, value in headers.items() if isinstance(value, str)}


def _id_of(deployment: Mapping[str, Any]) -> str:
    return str((deployment.get("model_info") or {}).get("id", ""))


def _name_of(node: Node | None) -> str | None:
    return None if node is None else node.name

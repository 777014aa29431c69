"""What a request reused and saved, for its client and for LiteLLM's spend logs. Pure.

`reused_tokens` is what the node loaded from Neve, told in `kv_transfer_params` of its answer. The
streams of (chat) completions have no place for that. `cached_tokens` of their usage is what the
node did not compute: from Neve and from its own cache (vLLM tells it with
`--enable-prompt-tokens-details`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from neve.gateway.gateway import Gateway, Route
from neve.gateway.prefill import Handed


@dataclass(frozen=True)
class Report:
    """None: not known. `saved`: money in `currency`, a lower bound where only `cached_tokens` is
    known (a hit in the node's own cache saves the load as well). `handed`: what a prefill pool
    did; None: no pool serves such requests."""

    route: Route
    reused_tokens: int | None = None
    cached_tokens: int | None = None
    saved: Decimal | None = None
    currency: str | None = None
    handed: Handed | None = None

    def headers(self) -> dict[str, str]:
        """Names in lower case, values in ASCII."""
        route = self.route
        told: dict[str, object] = {"node": route.node.name, "route": route.reason}
        if route.context is not None:
            told["context"] = quote(route.context.name, safe=" /:@+,;=()!*'")
        if route.found is not None:
            told |= {"prompt-tokens": route.found.tokens, "found-tokens": route.found.usable}
        if self.reused_tokens is not None:
            told["reused-tokens"] = self.reused_tokens
        if self.cached_tokens is not None:
            told["cached-tokens"] = self.cached_tokens
        if self.saved is not None:
            told["saved"] = f"{_plain(self.saved)} {self.currency}"
        if self.handed is not None:
            told["prefill"] = self.handed.summary()
        return {f"x-neve-{name}": str(value) for name, value in told.items()}

    def metadata(self) -> dict[str, Any]:
        """For `spend_logs_metadata`: JSON values; absent what is not known."""
        route = self.route
        told: dict[str, Any] = {"neve_node": route.node.name, "neve_route": route.reason}
        if route.context is not None:
            told |= {"neve_context": route.context.name, "neve_named_by": route.context.source}
        if route.found is not None:
            told["neve_found_tokens"] = route.found.usable
        told |= {
            f"neve_{name}": value
            for name, value in (
                ("reused_tokens", self.reused_tokens),
                ("cached_tokens", self.cached_tokens),
                ("saved", None if self.saved is None else _plain(self.saved)),
                ("currency", self.currency),
                ("prefill", None if self.handed is None else str(self.handed.outcome)),
                ("prefill_pool", None if self.handed is None else self.handed.pool or None),
            )
            if value is not None
        }
        return told


def report_of(
    gateway: Gateway, route: Route, response: object, gpus: int, handed: Handed | None = None
) -> Report:
    """`response`: LiteLLM's, or None if there is none yet."""
    reused, cached = _reused(response), _cached(response)
    counted = reused if reused is not None else cached
    saved = None if counted is None else gateway.saved(route.found, counted, gpus)
    amount, currency = saved or (None, None)
    return Report(route, reused, cached, amount, currency, handed)


def _reused(response: object) -> int | None:
    params = _member(response, "kv_transfer_params")
    told = params.get("neve") if isinstance(params, Mapping) else None
    tokens = told.get("reused_tokens") if isinstance(told, Mapping) else None
    return tokens if type(tokens) is int and tokens >= 0 else None


def _cached(response: object) -> int | None:
    usage = _member(response, "usage")
    for details in ("prompt_tokens_details", "input_tokens_details"):
        tokens = _member(_member(usage, details), "cached_tokens")
        if type(tokens) is int and tokens >= 0:
            return tokens
    tokens = _member(usage, "cache_read_input_tokens")
    return tokens if type(tokens) is int and tokens >= 0 else None


def _member(value: object, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _plain(amount: Decimal) -> str:
    """Never with an exponent; nine decimals: a cent of a cent of a cent still counts."""
    return f"{amount:.9f}"

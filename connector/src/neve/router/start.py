"""What the router asks Neve and the engines at its start, and again every half minute.

A wrong option is an error at the start (`Misuse`, which names field and fix); what does not answer
is not: the router serves without it and asks again.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import httpx

from neve import log_events
from neve.api import ApiProblem, AsyncNeve
from neve.errors import DeadlineExceeded, Misuse, NeveError, Unavailable
from neve.gateway.pools import PoolOptions
from neve.planner.parts import PrefixBytes
from neve.router.options import RouterOptions, tidy_url
from neve.router.upstream import ServedModel, served_models

REFRESH_S: Final = 30.0
_MOST_SPACES: Final = 20  # that an error lists
_TROUBLE = (Unavailable, DeadlineExceeded)


@dataclass(frozen=True)
class Facts:
    """What Neve says of the space. `kv`, `prefill_tokens_per_s`: None until nodes measured them.
    `engines`: addresses of its prefill engines."""

    space: int
    name: str
    kv: PrefixBytes | None
    prefill_tokens_per_s: float | None
    engines: tuple[str, ...]


@dataclass(frozen=True)
class DecodeFacts:
    """What decode nodes say. `most_tokens`: None if no node said."""

    model: str
    most_tokens: int | None
    needs_key: bool


async def facts_of(
    neve: AsyncNeve, space: int | str | None, *, with_engines: bool = False
) -> Facts:
    """Raises `Misuse` for an unknown space or key, `Unavailable`, `DeadlineExceeded`."""
    engines: list[str] = []
    try:
        number, name = await _space(neve, space)
        detail = await neve.spaces.get(number)
        if with_engines:
            found = neve.engines.list(space=number, is_prefill=True)
            engines = [tidy_url(each.base_url, "engines") async for each in found]
    except ApiProblem as problem:
        if problem.status in (401, 403):
            raise Misuse(
                f"Neve refuses the key: {problem}; give one of role team with the scope read",
                field="NEVE_API_KEY",
            ) from problem
        if problem.status == 404:
            raise Misuse(f"there is no space {space!r}", field="space") from problem
        raise Unavailable(str(problem)) from problem
    even = detail.break_even
    kv = None
    if even.bytes_per_token is not None:
        kv = PrefixBytes(even.bytes_per_token, even.fixed_bytes or 0)
    return Facts(number, name, kv, even.prefill_tokens_per_s, tuple(engines))


async def _space(neve: AsyncNeve, wanted: int | str | None) -> tuple[int, str]:
    if isinstance(wanted, int):
        return wanted, str(wanted)
    query: dict[str, Any] = {} if wanted is None else {"name": wanted}
    found = [space async for space in neve.spaces.list(**query)]
    if len(found) == 1:
        return found[0].id, found[0].name
    if not found and wanted is not None:
        found = [space async for space in neve.spaces.list()]
        words = f"there is no space {wanted!r}"
    elif not found:
        raise Unavailable("there is no space yet: it comes with the first node")
    else:
        words = "there are several: give the number of one"
    names = ", ".join(f"{each.id} ({each.name})" for each in found[:_MOST_SPACES]) or "none"
    raise Misuse(f"{words}; there are {names}", field="space")


async def decode_facts(http: httpx.AsyncClient, options: RouterOptions) -> DecodeFacts | None:
    """None: no node answers yet. Raises `Misuse` if one answers and does not serve the model."""
    key = f"Bearer {options.engine_key}" if options.engine_key else None
    answers = await asyncio.gather(*(served_models(http, n.url, key) for n in options.decode))
    model, most, needs_key, is_known = options.model, None, False, False
    for node, found in zip(options.decode, answers, strict=True):
        if found in (401, 403):
            if key is not None:
                raise Misuse(f"{node.name} refuses it", field="engine_key_env")
            if not model:
                raise Misuse(
                    f"{node.name} wants a key: name the model, or give engine_key_env",
                    field="model",
                )
            needs_key = is_known = True
            continue
        if not isinstance(found, list):
            log_events.ROUTER_WAITS.log(
                what=node.name, detail=f"/v1/models: {found or 'no answer'}"
            )
            continue
        is_known = True
        model = model or next((each.name for each in found), "")
        most = most or _most_tokens(found, model)
        if model not in [each.name for each in found]:
            names = ", ".join(each.name for each in found) or "none"
            raise Misuse(f"{node.name} does not serve {model!r}, but {names}", field="model")
        if key is not None and not needs_key:
            needs_key = await served_models(http, node.url, None) in (401, 403)
    return DecodeFacts(model, most, needs_key) if is_known and model else None


async def check_pools(http: httpx.AsyncClient, pools: list[PoolOptions]) -> None:
    """Raises `Misuse` if an engine answers and does not serve its pool's model, or refuses its
    key."""
    for pool in pools:
        key = f"Bearer {pool.api_key}" if pool.api_key else None
        answers = await asyncio.gather(*(served_models(http, url, key) for url in pool.urls))
        for url, found in zip(pool.urls, answers, strict=True):
            where = f"pool {pool.name}"
            if found in (401, 403):
                raise Misuse(f"{url} refuses it, or wants one", field=f"{where}: key_env")
            if not isinstance(found, list):
                _note_silence(url, found)
            elif pool.model not in [each.name for each in found]:
                names = ", ".join(each.name for each in found) or "none"
                raise Misuse(
                    f"{url} does not serve {pool.model!r}, but {names}", field=f"{where}: model"
                )


async def facts_or_none(
    neve: AsyncNeve, space: int | str | None, *, with_engines: bool = False
) -> Facts | None:
    """None, and a log line, while Neve does not answer. Raises `Misuse`."""
    try:
        return await facts_of(neve, space, with_engines=with_engines)
    except _TROUBLE as trouble:
        log_events.ROUTER_WAITS.log(what="Neve", detail=str(trouble))
    except Misuse:
        raise
    except NeveError as error:
        log_events.ROUTER_WAITS.log(what="Neve", detail=str(error))
    return None


def _note_silence(what: str, status: int | None) -> None:
    log_events.ROUTER_WAITS.log(what=what, detail=f"/v1/models: {status or 'no answer'}")


def _most_tokens(found: list[ServedModel], model: str) -> int | None:
    for each in found:
        if each.name == model and isinstance(each.most_tokens, int) and each.most_tokens > 0:
            return each.most_tokens
    return None

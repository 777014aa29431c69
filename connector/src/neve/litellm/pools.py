"""Prefill pools of one tenant: long prompts that Neve does not hold are computed there first.

For requests whose deployment was chosen, and has Neve. The deployment's own `/tokenize` says the
tokens, so a pool computes what the deployment would. Nothing here fails a request: without a pool
the deployment computes the prompt.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import httpx

from neve.errors import NeveError
from neve.gateway import Found, Node, Prompt, Store
from neve.gateway.pools import PoolOptions
from neve.gateway.prefill import Handed, Prefills
from neve.gateway.tokens import tokens_of
from neve.planner.parts import PrefixBytes

_SPEEDS_S: Final = 30.0  # what nodes measured is read this often, while prompts come
_FIRST_SPEEDS_S: Final = 2.0  # until they have measured anything


@dataclass(frozen=True)
class PoolSettings:
    """`space`: number of the space that the pool's engines share with the deployments."""

    space: int
    options: PoolOptions


@dataclass
class Prepared:
    """A prompt on its way to its deployment. `end`: the deployment has answered, or failed."""

    handed: Handed
    _stack: AsyncExitStack

    async def end(self, first_token_at: float | None = None) -> None:
        """`first_token_at`: by the monotonic clock; None: there was none. May be called twice."""
        if first_token_at is not None:
            self.handed.first_token(first_token_at)
        await self._stack.aclose()


class TenantPools:
    """Belongs to one event loop. `store`: takes look-ups by tokens only."""

    def __init__(
        self, settings: Sequence[PoolSettings], *, store: Store, http: httpx.AsyncClient
    ) -> None:
        keys = dict.fromkeys((each.space, each.options.model) for each in settings)
        self._groups = {
            (space, model): _Group(
                space,
                [
                    each.options
                    for each in settings
                    if (each.space, each.options.model) == (space, model)
                ],
                store,
                http,
            )
            for space, model in keys
        }

    async def prepared(
        self,
        node: Node,
        model: str,
        body: Mapping[str, Any],
        *,
        salt: str | None,
        held_share: float,
        key: str | None,
    ) -> Prepared | None:
        """Has a pool compute the prompt if that is sooner. None: no pool serves such requests.

        Args:
            model: the deployment's name of it.
            body: as it goes to the deployment.
            held_share: of the prompt that the node probably has, 0 to 1.
            key: of the deployment.
        """
        group = self._groups.get((node.space or 0, model))
        if group is None:
            return None
        return await group.prepared(node, model, body, salt or "", held_share, key)


class _Group:
    """Pools of one space and model."""

    def __init__(
        self,
        space: int,
        options: Sequence[PoolOptions],
        store: Store,
        http: httpx.AsyncClient,
    ) -> None:
        self._space, self._store, self._http = space, store, http
        self._prefills = Prefills(options, http=http, look_up=self._look_up)
        self._least = min(each.least_tokens for each in options)
        self._nodes: set[str] = set()
        self._speeds_due = 0.0
        self._reading: asyncio.Task[None] | None = None

    async def prepared(
        self,
        node: Node,
        model: str,
        body: Mapping[str, Any],
        salt: str,
        held_share: float,
        key: str | None,
    ) -> Prepared | None:
        self._nodes.add(node.name)
        self._prefills.decode_nodes = len(self._nodes)
        self._read_speeds_if_due()
        authorization = f"Bearer {key}" if key else None
        tokens = await tokens_of(self._http, node.url, model, body, authorization)
        if tokens is None or len(tokens) <= self._least:
            return None
        found = await self._look_up(tokens, salt)
        found = found and found.with_held(len(tokens), held_share)
        stack = AsyncExitStack()
        preparing = self._prefills.prepared(tokens, found, salt=salt, node=node.name)
        return Prepared(await stack.enter_async_context(preparing), stack)

    async def _look_up(self, tokens: Sequence[int], salt: str) -> Found | None:
        lookup = await self._store.look_up(self._space, Prompt(tokens=tokens, salt=salt or None))
        return None if lookup is None else lookup.found

    def _read_speeds_if_due(self) -> None:
        if monotonic() >= self._speeds_due and self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._read_speeds())

    async def _read_speeds(self) -> None:
        try:
            even = await self._store.speeds_of(self._space)
            kv = None
            if even.bytes_per_token is not None:
                kv = PrefixBytes(even.bytes_per_token, even.fixed_bytes or 0)
            self._prefills.measured(kv=kv, prefill_tokens_per_s=even.prefill_tokens_per_s)
        except NeveError:  # as of the last reading; look-ups say so
            pass
        finally:
            is_known = self._prefills.kv is not None
            self._speeds_due = monotonic() + (_SPEEDS_S if is_known else _FIRST_SPEEDS_S)
            self._reading = None

"""Routes one tenant's requests: names the context, asks Neve, chooses the node.

Nothing here fails or delays a request beyond the look-up's deadline: what goes wrong is logged and
the least loaded node is chosen.
"""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from neve import log_events
from neve.errors import Misuse
from neve.gateway.choice import Choice, Margin, choose
from neve.gateway.holders import Holders
from neve.gateway.naming import ContextName, name_in
from neve.gateway.nodes import Node, Nodes
from neve.gateway.prompts import PIECE_BYTES, Prompt, read_prompt
from neve.gateway.store import Found, Lookup, Store


@dataclass(frozen=True)
class Route:
    """Where a request goes, and why.

    `id`: of the request in `Nodes`. `prefixes`: keyed hashes of the prompt's pieces; `held`: how
    many of them each node holds, as far as this process knows. `reason`: see `Choice`; "other"
    after `Gateway.move`.
    """

    id: str
    node: Node
    reason: str
    context: ContextName | None
    prefixes: Sequence[bytes]
    held: Mapping[str, int]
    lookup: Lookup | None = None

    @property
    def found(self) -> Found | None:
        """What Neve holds; None if it is not known (yet: a late answer comes in)."""
        return _found(self.lookup)

    @property
    def held_share(self) -> float:
        """Part of the prompt that the node probably has in its own cache, 0 to 1."""
        return self.held.get(self.node.name, 0) / len(self.prefixes) if self.prefixes else 0.0

    @property
    def uncached_tokens(self) -> int | None:
        """Tokens that the node has to compute; None without an answer of `lookup`."""
        found = self.found
        if found is None:
            return None
        return found.tokens - max(found.usable, int(found.tokens * self.held_share))

    def engine_params(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`kv_transfer_params` of the request to a node with Neve: those of `body`, and the
        context. The answer then tells what was reused."""
        given = body.get("kv_transfer_params")
        params = dict(given) if isinstance(given, Mapping) else {}
        asked = params.get("neve")
        asked = dict(asked) if isinstance(asked, Mapping) else {}
        if self.context is not None:
            asked["context"] = self.context.name
        return {**params, "neve": asked}


class Gateway:
    """One tenant's; belongs to one event loop.

    `store`: None: routed by this process's memory alone. `nodes`: shared by all tenants, so that
    loads count together.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        nodes: Nodes | None = None,
        holders: Holders | None = None,
        margin: Margin | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self.store = store
        self.nodes = nodes if nodes is not None else Nodes()
        self.holders = holders if holders is not None else Holders()
        self._margin = margin if margin is not None else Margin()
        self._piece_bytes = piece_bytes
        self._key = store.key if store is not None else uuid.uuid4().bytes
        self._said: set[str] = set()

    async def route(
        self,
        headers: Mapping[str, str],
        body: Mapping[str, Any],
        nodes: Sequence[Node],
        *,
        request_id: str | None = None,
        needs_found: bool = True,
        reads_aside: bool = False,
        scope: str = "",
    ) -> Route:
        """Chooses one of `nodes`, at least one; unhealthy ones only if all are.

        The request counts as begun on that node until `end`, `move`, or another `route` with its
        `request_id`. Raises `Misuse` without nodes, else nothing.

        `needs_found`: wait for Neve's answer, up to its deadline, to know `Route.found`. False:
        only where the answer could change the choice; `found` is there once it comes.
        `reads_aside`: a long prompt, read and hashed in a thread.
        `scope`: of clients within the tenant that must not touch each other's contexts: ends the
        names of theirs.
        """
        if not nodes:
            raise Misuse("no node to choose from", field="nodes")
        id_ = request_id or uuid.uuid4().hex
        usable = self._usable(nodes)
        by_name = {each.name: each for each in usable}
        context: ContextName | None = None
        prefixes: Sequence[bytes] = ()
        held: Mapping[str, int] = {}
        lookup: Lookup | None = None
        try:
            context = name_in(headers, body, self._key)
            if context is not None and scope:
                context = context.within(scope)
            read = asyncio.to_thread(self._read, body) if reads_aside else None
            prompt, prefixes = self._read(body) if read is None else await read
            if prompt is not None:
                shared = self.holders.name_of(prefixes)
                if context is None and shared is not None:
                    context = ContextName(shared, "prefix")
                held = self.holders.held_by(prefixes)
                lookup = await self._look_up(by_name, prompt, held, prefixes, needs_found)
                held = self.holders.held_by(prefixes)  # others came meanwhile
            choice = self._choose(by_name, held, prefixes, _found(lookup))
        except Exception:
            self._broken("route")
            choice = self._choose(by_name, {}, (), None)
        route = Route(id_, by_name[choice.node], choice.reason, context, prefixes, held, lookup)
        self._begin(route)
        return route

    def reroute(self, route: Route, nodes: Sequence[Node]) -> Route:
        """Another choice for the same request, as before a retry; the first one's end is not to be
        told, unless it failed. Raises `Misuse` without nodes."""
        if not nodes:
            raise Misuse("no node to choose from", field="nodes")
        by_name = {each.name: each for each in self._usable(nodes)}
        held = self.holders.held_by(route.prefixes)
        choice = self._choose(by_name, held, route.prefixes, route.found)
        route = replace(route, node=by_name[choice.node], reason=choice.reason, held=held)
        self._begin(route)
        return route

    def move(self, route: Route, node: Node) -> Route:
        """Somebody else sent the request to `node`."""
        if node.name == route.node.name:
            return route
        had = route.held.get(route.node.name, 0)
        self.holders.take_back(route.prefixes[had:], route.node.name)
        route = replace(route, node=node, reason="other")
        self._begin(route)
        return route

    def end(self, route: Route, *, failed: bool = False) -> None:
        """The request ended; to be called once its answer was read whole, or its client left.

        `failed`: the node did not answer, or with 5xx. It then counts as holding nothing, and is
        passed by for a while. A refused request (4xx) is no failure.
        """
        self.nodes.end(route.id)
        if failed:
            self.nodes.fail(route.node.name)
            self.holders.forget(route.node.name)
        else:
            self.nodes.succeed(route.node.name)

    def _read(self, body: Mapping[str, Any]) -> tuple[Prompt | None, Sequence[bytes]]:
        prompt = read_prompt(body)
        if prompt is None:
            return None, ()
        return prompt, self.prefixes_of(prompt, str(body.get("model", "")))

    def prefixes_of(self, prompt: Prompt, model: str) -> list[bytes]:
        """Hashes of this tenant and model: others' cannot be compared."""
        keyed = replace(prompt, salt=f"{model}\0{prompt.salt or ''}")
        return keyed.prefixes(self._key, self._piece_bytes)

    def saved(
        self, found: Found | None, reused_tokens: int, gpus: int = 1
    ) -> tuple[Decimal, str] | None:
        """What loading `reused_tokens` saved: seconds of `gpus` not spent on prefill, less those
        of the load, at the platform's price of a GPU; and the currency. Below 0: a loss. None
        where a node has not measured it yet, or the look-up had no answer.

        Loads of fewer tokens than were found count in proportion.
        """
        price = self.store.gpu_second if self.store is not None else None
        if found is None or price is None or found.compute_s is None or found.load_s is None:
            return None
        if not found.usable or not reused_tokens:
            return Decimal(0), price[1]
        share = min(1.0, reused_tokens / found.usable)
        seconds = Decimal((found.compute_s - found.load_s) * share)
        return seconds * gpus * price[0], price[1]

    def _usable(self, nodes: Sequence[Node]) -> Sequence[Node]:
        return [each for each in nodes if self.nodes.is_healthy(each.name)] or nodes

    def _begin(self, route: Route) -> None:
        self.nodes.begin(route.node.name, route.id)
        self.holders.note(route.prefixes, route.node.name)

    async def _look_up(
        self,
        nodes: Mapping[str, Node],
        prompt: Prompt,
        held: Mapping[str, int],
        prefixes: Sequence[bytes],
        waits: bool,
    ) -> Lookup | None:
        space = next((each.space for each in nodes.values() if each.space is not None), None)
        if self.store is None or space is None:
            return None
        lookup = await self.store.look_up(space, prompt, waits=waits)
        if lookup is not None and not waits and len(nodes) > 1:
            everything = Found(1, 1, 1)
            without, with_all = (
                self._choose(nodes, held, prefixes, each).node for each in (None, everything)
            )
            if without != with_all:
                await self.store.answered(lookup)
        return lookup

    def _choose(
        self,
        nodes: Mapping[str, Node],
        held: Mapping[str, int],
        prefixes: Sequence[bytes],
        found: Found | None,
    ) -> Choice:
        most = max((held.get(name, 0) for name in nodes), default=0)
        is_stored = found is not None and found.usable >= min(
            found.tokens - found.tail, found.tokens * most / max(1, len(prefixes))
        )
        return choose(
            {name: self.nodes.load(name) for name in nodes},
            held,
            len(prefixes),
            is_stored=is_stored,
            margin=self._margin,
        )

    def _broken(self, step: str) -> None:
        """Said once for each step."""
        if step not in self._said:
            self._said.add(step)
            log_events.GATEWAY_BROKEN.log(step=step, exc_info=True)


def _found(lookup: Lookup | None) -> Found | None:
    return lookup.found if lookup is not None else None

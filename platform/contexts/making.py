"""Contexts before any request: a prompt becomes token ids, these the chain that nodes compute.

An engine of the space tokenises text and messages. Block ids come from `neve.formats.ids`, as on
nodes; a wrong one leads to misses, never to wrong KV.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction

from base import outbound
from base.problems import Problem
from catalog import limits
from catalog.models import Context, Space
from contexts import rows
from contexts.chains import ids_per_chunk
from contexts.residency import Residency, residency_of
from engines import client, prompts, services
from engines.models import Engine
from engines.prompts import Tokens
from neve.formats.ids import BlockHasher
from tenants.audit import Actor
from tenants.scope import tenant_scope

# Layouts whose ids the platform can not compute.
_DRAM_TIER = "rows of vLLM "


@dataclass(frozen=True)
class Wanted:
    """A prompt as callers give it: exactly one of `tokens`, `text` and `messages`.

    `options`: further members of vLLM's /tokenize, for text (`add_special_tokens`) and messages
    (`tools`, `chat_template_kwargs`, `add_generation_prompt`, `continue_final_message`).
    """

    tokens: Sequence[int] | None = None
    text: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    salt: str = ""

    def __repr__(self) -> str:  # prompts stay out of logs
        return "Wanted()"


def tokens_of(space: Space, wanted: Wanted, *, only: Engine | None = None) -> Tokens:
    """The prompt's token ids. Asks engines of the space, one after the other, for all but `tokens`.

    Not inside a transaction: engines may be slow.
    Raises Problem: no-engine (none is healthy, or none could tokenise), malformed (the engine
    refuses the prompt, or it has too many tokens), throttled (`outbound.WEB`).
    """
    if wanted.tokens is not None:
        ids = wanted.tokens
    else:
        with outbound.WEB.turn(space.tenant_id):
            ids = _tokenised(space, wanted, only)
    if len(ids) > prompts.MOST_TOKENS:
        raise Problem(
            "malformed",
            f"tokens: at most {prompts.MOST_TOKENS}, got {len(ids)}.",
            field="tokens",
        )
    return Tokens(tuple(ids), wanted.salt)


def chain_of(space: Space, tokens: Tokens) -> list[bytes]:
    """Ids of the whole chunks, as nodes report them: one a chunk, or one for each shard of it.

    Raises Problem (conflict) for a space whose ids only its nodes can compute.
    """
    if str(space.identity.get("layout", "")).startswith(_DRAM_TIER):
        raise Problem(
            "conflict",
            "space: its nodes keep KV under vLLM's DRAM tier, by hashes of vLLM's own; contexts "
            "and look-ups need a space of NeveConnector.",
            field="space",
        )
    hasher = BlockHasher(bytes.fromhex(space.fingerprint), space.chunk_tokens)
    ids = hasher.chain(tokens.ids, parent=hasher.root(salt=tokens.salt.encode()))
    if not space.is_canonical:  # else only with the number of shards
        return ids
    shards = _shards_of(space)
    return [part for id_ in ids for part in hasher.of_heads(id_, shards)]


def whole_tokens(space: Space, tokens: Tokens) -> int:
    """Tokens in whole chunks: the rest can not be stored."""
    return len(tokens.ids) // space.chunk_tokens * space.chunk_tokens


def require_chunk(space: Space, tokens: Tokens) -> None:
    """Raises Problem (malformed) for a prompt shorter than a chunk."""
    if len(tokens.ids) < space.chunk_tokens:
        raise Problem(
            "malformed",
            f"tokens: the prompt has {len(tokens.ids)} tokens, and a block of {space.name} holds "
            f"{space.chunk_tokens}: nothing of it can be stored.",
            field="tokens",
            chunk_tokens=space.chunk_tokens,
        )


def make(
    *,
    space: Space,
    name: str,
    tokens: Tokens,
    label: str = "",
    labels: Mapping[str, str] | None = None,
    actor: Actor,
) -> Context:
    """A new context with the prompt's chain; its state is as found in the index.

    Keeps the token ids, sealed, so that the context can be warmed.
    Raises Problem: malformed (shorter than a chunk), conflict (the name is taken), limit-reached,
    hot-tier-unavailable.
    """
    require_chunk(space, tokens)
    ids = chain_of(space, tokens)
    blocks = len(ids) * max(1, len(space.groups))
    whole = whole_tokens(space, tokens)
    found = residency_in(space, ids, whole)
    with tenant_scope(space.tenant_id), transaction.atomic():
        limits.require_context_blocks(space.pk, name, blocks)
        limits.require_room_for_context()
        context, is_new = Context.objects.get_or_create(
            space=space,
            name=name,
            defaults={
                **{"chain": b"".join(ids), "blocks": blocks, "tokens": whole},
                **{"label": label, "labels": dict(labels or {}), "state": state_of(found, whole)},
                **{"owner": actor.owner, "owner_name": actor.name[:200]},
            },
        )
        if not is_new:
            raise Problem(
                "conflict",
                f"name: the space {space.name} has a context {name!r} already.",
                field="name",
                id=str(context.pk),
            )
        prompts.keep(context, tokens)
        rows.note(context, "context.create", actor, before=None, after=rows.facts(context))
    return context


def residency_in(space: Space, ids: Sequence[bytes], tokens: int) -> Residency:
    """Where the blocks of a chain are, whether or not a context has it.

    Raises Problem (hot-tier-unavailable).
    """
    return residency_of(
        Context(tenant_id=space.tenant_id, space=space, chain=b"".join(ids), tokens=tokens)
    )


def state_of(found: Residency, tokens: int) -> str:
    """Of a context that no node has reported."""
    if found.usable_tokens >= tokens:
        return Context.State.STORED
    return Context.State.PARTIAL if found.usable_tokens else Context.State.EXPECTED


def _shards_of(space: Space) -> int:
    """Raises Problem (conflict) as long as no node has told how many."""
    shards = services.shards_of(space)
    if shards is None:
        with tenant_scope(space.tenant_id):
            known = Context.objects.filter(space=space).values_list("blocks", "tokens").first()
        if known is not None:
            shards = ids_per_chunk(known[0], tokens=known[1], chunk_tokens=space.chunk_tokens)
    if shards is None:
        raise Problem(
            "conflict",
            "space: its layout has a block for each KV head, and no node has told how many. Start "
            "a node with engine_url, or let one request name a context.",
            field="space",
        )
    return shards


def _tokenised(space: Space, wanted: Wanted, only: Engine | None) -> list[int]:
    if wanted.text is not None:
        request: dict[str, Any] = {"prompt": wanted.text, **wanted.options}
        field_ = "text"
    else:
        request = {"messages": list(wanted.messages or ()), **wanted.options}
        field_ = "messages"
    failures = []
    for engine in services.require_serving(space, only=only)[:3]:
        try:
            return client.tokenize(services.address_of(engine), request)
        except client.EngineFailed as failure:
            if failure.status in (400, 413, 422):  # another engine would refuse the same
                raise Problem(
                    "malformed", f"{field_}: the engine refuses it: {failure}", field=field_
                ) from failure
            failures.append(f"{engine.name}: {failure}")
        except Problem as problem:  # its address is not allowed any more
            failures.append(f"{engine.name}: {problem.detail}")
    raise services.no_engine(space, failures)

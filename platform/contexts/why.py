"""Why?: one sentence about a request, context, block or prompt, and the blocks that prove it.

Where blocks are is asked now, whatever was so when a request ran; the record of the request says
what was then. Costs a few statements, and one function call of Valkey for each chain of at most
CELLS blocks (a context: for each 1,000 blocks). Changes nothing.
"""

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db.models import F

from base.problems import Problem
from catalog import kept_requests
from catalog.clashes import Compared, compared, flags_to_be
from catalog.models import ID_BYTES, Context, KeptRequest, Space
from catalog.nodes import live_sessions
from contexts import making
from contexts.lookup import Sharing, sharing
from contexts.parts import Parts
from contexts.residency import Answer as Place
from contexts.residency import residency_of, usable_chunks
from engines.prompts import Tokens
from neve.errors import MissReason
from neve.index.tier import Location, Tier
from neve.node.requests import CELLS, Cells, Outcome
from neve.planner.causes import Cause, cause_of
from storage import hot
from tenants.models import Tenant
from tenants.principal import rows_of
from tenants.scope import tenant_scope

MOST_TEXT: Final = 200  # of an id or a name
MOST_SEARCHED: Final = 2_000  # contexts, the last used, whose chains are searched for a block
MOST_SEARCHED_BYTES: Final = 32 << 20  # of their chains, which may be long
MOST_TENANTS: Final = 200  # whose indexes are asked for a block
_BLOCK: Final = re.compile(r"(?:b3:|0x)?([0-9a-f]{32})", re.IGNORECASE)
_SHORT: Final = {
    **{"tp_size": "tp", "pp_size": "pp", "kv_dtype": "KV", "dtype": "dtype"},
    **{"engine_block_tokens": "block size", "chunk_tokens": "chunk", "layout": "layout"},
}


@dataclass(frozen=True)
class Cell:
    """One block of a strip. `number`: of its chunk. `tier`: hot, cold or None: not there, for
    `reason`, since `gone_at` if the index remembers. `mark`: how it is drawn."""

    number: int
    id: str
    tier: str | None = None
    segment: int = 0
    reason: str | None = None
    gone_at: datetime | None = None

    @property
    def mark(self) -> str:
        return self.tier or ("never" if self.reason == MissReason.NEVER_STORED else "gone")

    @property
    def words(self) -> str:
        where = f"block {self.number + 1}: {self.tier or 'not there'}"
        if self.segment:
            where += f", segment {self.segment}"
        if self.reason:
            where += f", {_label(self.reason)}"
        return where + (f", since {self.gone_at:%d %b %H:%M:%S} UTC" if self.gone_at else "")


@dataclass(frozen=True)
class Strip:
    """Blocks of one chain in one space, as they are now. `stride`: each cell stands for so many
    chunks, of which the first was looked up. `chunks`: of the chain."""

    title: str
    space: Space
    cells: tuple[Cell, ...]
    stride: int
    chunks: int
    contexts: tuple[Sharing, ...] = ()
    first_miss: int | None = None  # chunk

    @property
    def stored(self) -> int:
        """Chunks from the beginning without a gap; exact if `stride` is 1."""
        whole = next((n for n, cell in enumerate(self.cells) if cell.tier is None), None)
        return self.chunks if whole is None else min(self.chunks, whole * self.stride)

    @property
    def hot(self) -> int:
        return sum(cell.tier == Tier.HOT for cell in self.cells)

    @property
    def cold(self) -> int:
        return sum(cell.tier == Tier.COLD for cell in self.cells)


@dataclass(frozen=True)
class Fact:
    value: str
    words: str


@dataclass(frozen=True)
class Answer:
    """`kind`: request, context, block, text or nothing. `tag`: two or three words, `is_bad` if
    something can be mended. `fields`: of the space here and `other`, the differing ones first.
    `flags`: of vLLM, that give the other layout. `lever`: what helps."""

    kind: str
    tag: str
    sentence: str
    is_bad: bool = False
    facts: tuple[Fact, ...] = ()
    strips: tuple[Strip, ...] = ()
    reason: str = ""
    lever: str = ""
    cause: Cause | None = None
    space: Space | None = None
    other: Space | None = None
    fields: tuple[Compared, ...] = ()
    flags: str = ""
    request: KeptRequest | None = None
    others: tuple[KeptRequest, ...] = ()  # further requests of the same id
    context: Context | None = None
    owners: tuple[Context, ...] = ()
    nodes: int = 0  # live ones in `space`
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def differing(self) -> list[Compared]:
        return [each for each in self.fields if each.differs]


def ask(tenants: tuple[Tenant, ...], text: str, *, space: Space | None = None) -> Answer:
    """`text`: a request's id, a context's id or name, or a block's id. `space`: only of this one.

    Raises Problem: malformed (too long), hot-tier-unavailable.
    """
    asked = text.strip()
    if len(asked) > MOST_TEXT:
        raise Problem("malformed", f"q: at most {MOST_TEXT} characters; POST a text.", field="q")
    for find in (_as_request, _as_context, _as_block):
        found = find(tenants, asked, space)
        if found is not None:
            return found
    return Answer(
        "nothing",
        "not found",
        f"Nothing here is called “{asked}”: no context, no block, and no request of the last day "
        "that was kept. Nodes keep one request in 100, and all that failed or were slow; send it "
        'again with {"neve": {"explain": true}} in its kv_transfer_params, or paste its text.',
    )


# ---- a request


def _as_request(tenants: tuple[Tenant, ...], asked: str, space: Space | None) -> Answer | None:
    rows = rows_of(KeptRequest, tenants).select_related("space__tenant", "session", "tenant")
    if space is not None:
        rows = rows.filter(space=space)
    found = list(kept_requests.find(rows, asked)[:10])
    return of_request(found[0], tuple(found[1:])) if found else None


def of_request(row: KeptRequest, others: tuple[KeptRequest, ...] = ()) -> Answer:
    """Raises Problem (hot-tier-unavailable)."""
    chunks = row.asked_tokens // row.space.chunk_tokens
    first = row.local_tokens // row.space.chunk_tokens
    own = Cells(row.stride, bytes(row.chain))
    strips = []
    if own.ids:
        title = "Its blocks now"
        strips.append(_strip(title, row.space, own, first + chunks, row.miss_chunk))
    found_chunks = (row.local_tokens + row.found_tokens) // row.space.chunk_tokens
    twin: Strip | None = None
    for kin, cells in _kin_of(row):
        strip = _strip("Same prefix stands in", kin, cells, _chunks(row, kin), None)
        reach = strip.stored * kin.chunk_tokens
        if reach > found_chunks * row.space.chunk_tokens:
            best = 0 if twin is None else twin.stored * twin.space.chunk_tokens
            twin = strip if reach > best else twin
    if twin is not None:
        strips.append(twin)
    cause = cause_of(row.reason) if row.reason else None
    facts = tuple(_facts(row))
    answer = _of_request(row, cause, twin, strips)
    nodes = 0
    fields: Sequence[Compared] = ()
    if twin is not None:
        fields = compared(row.space, twin.space)
        with tenant_scope(row.tenant_id):
            nodes = live_sessions().filter(space=row.space).count()
    return Answer(
        "request",
        facts=facts,
        strips=tuple(strips),
        reason=row.reason,
        cause=cause,
        space=row.space,
        other=None if twin is None else twin.space,
        fields=tuple(sorted(fields, key=lambda each: not each.differs)),
        flags=flags_to_be([each for each in fields if each.differs]),
        request=row,
        others=others,
        nodes=nodes,
        **answer,
    )


def _of_request(
    row: KeptRequest, cause: Cause | None, twin: Strip | None, strips: Sequence[Strip]
) -> dict[str, Any]:
    """Tag, sentence and lever."""
    share = _percent(row.computed_tokens, row.prompt_tokens)
    if row.load_failed:
        sentence = (
            f"Neve had {row.found_tokens:,} tokens, but the load failed after "
            f"{row.load_ms or 0:,.0f} ms with {row.loaded_tokens:,} loaded: {share} was computed."
        )
        lever = "See the node: `neve ping` there, its breaker, and the last error of its log."
        return {"tag": "load failed", "sentence": sentence, "lever": lever, "is_bad": True}
    if row.reason in (MissReason.TIMEOUT, MissReason.BREAKER):
        what = "did not answer in time" if row.reason == MissReason.TIMEOUT else "was left alone"
        sentence = f"The hot tier {what}, so {share} of the prompt was computed."
        lever = "" if cause is None else _sentence(cause.remedy)
        return {"tag": cause and cause.label, "sentence": sentence, "lever": lever, "is_bad": True}
    if not row.asked_tokens:
        had = f"the engine had {row.local_tokens:,} of {row.prompt_tokens:,} tokens itself"
        why = had if row.local_tokens else "its prompt is shorter than a block"
        return {"tag": "not asked", "sentence": f"Neve was not asked: {why}.", "lever": ""}
    if row.outcome == Outcome.RECOMPUTE:
        sentence = (
            f"{row.found_tokens:,} tokens were found, and the node chose to compute them: by its "
            "measurements loading would have taken longer."
        )
        lever = "Compare its break-even with its bandwidth on the space's page."
        return {"tag": "computed by choice", "sentence": sentence, "lever": lever}
    if row.outcome == Outcome.COMPARED:
        sentence = "It was computed to compare it with the stored blocks; the next ones load them."
        return {"tag": "compared", "sentence": sentence, "lever": ""}
    if row.miss_chunk is None:
        had = (
            f" {row.local_tokens:,} more were in the engine's own cache."
            if row.local_tokens
            else ""
        )
        sentence = f"It hit: {row.loaded_tokens:,} tokens were loaded, all that it asked for.{had}"
        if not row.loaded_tokens:
            sentence = f"It hit: all {row.found_tokens:,} tokens were found, but not loaded.{had}"
        return {"tag": "hit", "sentence": sentence, "lever": ""}
    if twin is not None:
        differing = [each for each in compared(row.space, twin.space) if each.differs]
        ours, theirs = _words(differing, "this"), _words(differing, "other")
        sentence = (
            f"{share} was computed again, although {_about(twin)} of its {twin.chunks} blocks "
            f"stand in the cache: under another fingerprint. This node writes {ours}; the blocks "
            f"were stored as {theirs}."
        )
        lever = "Blocks of one fingerprint never serve another: the numbers in them differ."
        return {"tag": "missed: fingerprint", "sentence": sentence, "lever": lever, "is_bad": True}
    return _plain_miss(row, cause, share, strips)


def _plain_miss(
    row: KeptRequest, cause: Cause | None, share: str, strips: Sequence[Strip]
) -> dict[str, Any]:
    block = (row.miss_chunk or 0) + 1
    begin = f"{share} was computed: block {block} of its prompt"
    label = _label(row.reason)
    since = ""
    if strips and row.miss_chunk is not None:
        strip = strips[0]
        at = row.miss_chunk // strip.stride
        cell = strip.cells[at] if at < len(strip.cells) else None
        if cell is not None and cell.tier is not None:
            since = f" It is stored by now ({cell.tier}): the next such request hits."
        elif cell is not None and cell.gone_at is not None:
            since = f" It left at {cell.gone_at:%H:%M:%S} UTC."
    if row.reason == MissReason.NEVER_STORED:
        sentence = f"{begin} had never been stored.{since}"
        return {"tag": f"missed: {label}", "sentence": sentence, "lever": _remedy(cause)}
    what = cause.what if cause is not None else row.reason
    sentence = f"{begin} was gone: {what}.{since}"
    is_bad = cause is None or not cause.is_ordinary
    tag = f"missed: {label}"
    return {"tag": tag, "sentence": sentence, "lever": _remedy(cause), "is_bad": is_bad}


def _facts(row: KeptRequest) -> Iterable[Fact]:
    yield Fact(f"{row.prompt_tokens:,}", "tokens in the prompt")
    if row.local_tokens:
        yield Fact(f"{row.local_tokens:,}", "in the engine's own cache")
    yield Fact(f"{row.asked_tokens:,}", "asked of Neve, in whole blocks")
    yield Fact(f"{row.found_tokens:,}", "found")
    yield Fact(f"{row.loaded_tokens:,}", "loaded")
    yield Fact(f"{row.computed_tokens:,}", "computed")
    if row.match_ms is not None:
        yield Fact(f"{row.match_ms:,.1f} ms", "to look up")
    if row.load_ms is not None:
        yield Fact(f"{row.load_ms:,.1f} ms", "to load, waits included")
    if row.outcome not in (Outcome.NOTHING, Outcome.COMPARED):
        words = {"load_all": "all", "load_prefix": "in part", "recompute": "computed"}
        yield Fact(words[row.outcome], "decision on what was found")


def _kin_of(row: KeptRequest) -> list[tuple[Space, Cells]]:
    """As the node told them; of the tenant's own spaces only."""
    told: dict[int, Cells] = {}
    for each in row.kin if isinstance(row.kin, list) else ():
        try:
            ids = b64decode(each["ids"], validate=True)
            told[each["space"]] = Cells(max(1, int(each["stride"])), ids)
        except (KeyError, TypeError, ValueError, Base64Error):
            continue
    with tenant_scope(row.tenant_id):
        spaces = Space.objects.select_related("tenant").filter(pk__in=list(told))
        return [(space, told[space.pk]) for space in spaces]


def _chunks(row: KeptRequest, space: Space) -> int:
    return row.prompt_tokens // space.chunk_tokens


# ---- a context


def _as_context(tenants: tuple[Tenant, ...], asked: str, space: Space | None) -> Answer | None:
    rows = rows_of(Context, tenants).select_related("space__tenant", "tenant")
    if space is not None:
        rows = rows.filter(space=space)
    try:
        row = rows.filter(pk=UUID(asked)).first() if len(asked) == 36 else None
    except ValueError:
        row = None
    if row is None:
        named = rows.filter(name=asked)
        row = named.order_by(F("last_used_at").desc(nulls_last=True), "-updated_at", "pk").first()
    return None if row is None else of_context(row)


def of_context(context: Context) -> Answer:
    """Raises Problem (hot-tier-unavailable)."""
    found = residency_of(context)
    ids = [bytes.fromhex(place.id) for place in found.blocks]
    cells = Cells.of(ids)
    strip = _strip("Its blocks now", context.space, cells, len(ids), None)
    lost = [place for place in found.blocks if place.reason and place.is_needed]
    reasons = sorted({place.reason or "" for place in lost}, key=lambda name: name)
    cause = cause_of(reasons[0]) if reasons else None
    usable = f"a request can go on behind {found.usable_tokens:,} of {context.tokens:,} tokens"
    facts = (
        Fact(f"{context.tokens:,}", "tokens"),
        Fact(f"{found.hot:,}", "blocks hot"),
        Fact(f"{found.cold:,}", "blocks cold only"),
        Fact(f"{found.lost:,}", "blocks lost"),
        Fact(f"{found.usable_tokens:,}", "tokens usable"),
    )
    if context.expired_at is not None:
        tag, sentence, is_bad = "expired", f"It was expired; {usable}.", False
    elif not lost:
        tag, is_bad = "stored", False
        sentence = f"All {len(ids):,} blocks stand: {found.hot:,} hot, {found.cold:,} cold only."
    else:
        since = max((cell.gone_at for cell in strip.cells if cell.gone_at), default=None)
        when = f" since {since:%d %b %H:%M:%S} UTC" if since else ""
        names = ", ".join(map(_label, reasons))
        tag, is_bad = ("lost" if not found.usable_tokens else "partly lost"), True
        sentence = f"{len(lost):,} of {len(ids):,} blocks are lost{when}, {names}: {usable}."
    return Answer(
        "context",
        tag,
        sentence,
        is_bad=is_bad,
        facts=facts,
        strips=(strip,),
        reason=reasons[0] if reasons else "",
        cause=cause,
        lever=_remedy(cause) if lost else "",
        space=context.space,
        context=context,
    )


# ---- a block


def _as_block(tenants: tuple[Tenant, ...], asked: str, space: Space | None) -> Answer | None:
    named = _BLOCK.fullmatch(asked)
    if named is None:
        return None
    id_ = bytes.fromhex(named[1])
    absent: Answer | None = None
    with hot.required():
        for tenant in tenants[:MOST_TENANTS]:
            found = hot.hot_tier(tenant.pk).match([id_])[0]
            if found is MissReason.NEVER_STORED:
                continue
            answer = _of_block(tenant, id_, found)
            if isinstance(found, Location):
                return answer
            absent = absent or answer
    if absent is not None:
        return absent
    return Answer(
        "block",
        "never stored",
        "No block of this id is stored, and the index remembers none: it was never stored, or its "
        "tombstone was forgotten (each bucket keeps the last 20,000).",
        reason=MissReason.NEVER_STORED.value,
    )


def _of_block(tenant: Tenant, id_: bytes, found: Place) -> Answer:
    owners, space = _owners(tenant, id_), None
    names = f"; contexts: {', '.join(each.name for each in owners)}" if owners else ""
    gone = hot.gone_at(tenant.pk, [id_]).get(id_) if isinstance(found, MissReason) else None
    details: dict[str, Any] = {"tenant": tenant.slug, "id": id_.hex()}
    if isinstance(found, Location):
        entry = hot.entry_of(tenant.pk, id_)
        with tenant_scope(tenant.pk):
            space = Space.objects.filter(pk=0 if entry is None else entry.space_id).first()
        where = "in the hot tier" if found.tier is Tier.HOT else "in the cold tier only"
        durable = f", segment {found.segment}" if found.is_cold else ", not yet in S3"
        facts = [Fact(found.tier.value, "tier"), Fact(f"{found.size_bytes:,} B", "with header")]
        if found.is_cold:
            facts.append(Fact(str(found.segment), "segment"))
        sentence = f"The block stands {where}{durable}{names}."
        return Answer(
            "block", str(found.tier), sentence, facts=tuple(facts), space=space, owners=owners,
            details=details,
        )  # fmt: skip
    cause = cause_of(found.value)
    when = f" at {gone:%d %b %H:%M:%S} UTC" if gone else ""
    what = cause.what if cause is not None else found.value
    space = owners[0].space if owners else None
    return Answer(
        "block",
        f"gone: {_label(found.value)}",
        f"The block left{when}: {what}{names}.",
        is_bad=cause is not None and not cause.is_ordinary,
        reason=found.value,
        cause=cause,
        lever=_remedy(cause),
        space=space,
        owners=owners,
        details=details,
    )


def _owners(tenant: Tenant, id_: bytes) -> tuple[Context, ...]:
    """Contexts whose chain has the block, of the MOST_SEARCHED that were used last; of fewer, if
    their chains have more than MOST_SEARCHED_BYTES."""
    with tenant_scope(tenant.pk):
        last = Context.objects.filter(expired_at=None).order_by(
            F("last_used_at").desc(nulls_last=True), "pk"
        )
        rows = last.values_list("pk", "chain")[:MOST_SEARCHED].iterator(chunk_size=50)
        found, read_bytes = [], 0
        for pk, chain in rows:
            if _has(bytes(chain), id_):
                found.append(pk)
            read_bytes += len(chain)
            if len(found) == 10 or read_bytes > MOST_SEARCHED_BYTES:
                break
        return tuple(Context.objects.filter(pk__in=found).select_related("space__tenant"))


def _has(chain: bytes, id_: bytes) -> bool:
    at = chain.find(id_)
    while at >= 0 and at % ID_BYTES:
        at = chain.find(id_, at + 1)
    return at >= 0


# ---- a prompt


def of_prompt(space: Space, tokens: Tokens) -> Answer:
    """Where a prompt's blocks are, in its space and in others of the same model.

    Raises Problem: conflict (see `making.chain_of`), hot-tier-unavailable.
    """
    total = len(tokens.ids)
    whole = making.whole_tokens(space, tokens)
    if not whole:
        sentence = (
            f"Nothing of it can be stored: it has {total:,} tokens, and a block of {space.name} "
            f"holds {space.chunk_tokens:,}."
        )
        return Answer("text", "too short", sentence, space=space)
    strip, usable = _prompt_strip("This prompt in", space, tokens)
    with tenant_scope(space.tenant_id):
        kin = kept_requests.kin_of(space)
    twin: Strip | None = None
    for other in kin:
        try:
            found, reach = _prompt_strip("Same prefix stands in", other, tokens)
        except Problem:  # only its nodes can compute its ids
            continue
        if reach > usable and (twin is None or found.stored > twin.stored):
            twin = found
    facts = (
        Fact(f"{total:,}", "tokens"),
        Fact(f"{usable:,}", "tokens usable"),
        Fact(f"{strip.hot}", "cells hot"),
        Fact(f"{strip.cold}", "cells cold only"),
    )
    cell = next((each for each in strip.cells if each.tier is None), None)
    reason = "" if cell is None or cell.reason is None else cell.reason
    cause = cause_of(reason) if reason else None
    fields: Sequence[Compared] = ()
    is_bad = False
    if usable >= whole:
        tag, sentence = "stored", f"A request would reuse all {whole:,} tokens of whole blocks."
    elif twin is not None:
        fields = compared(space, twin.space)
        differing = [each for each in fields if each.differs]
        tag, is_bad = "other fingerprint", True
        sentence = (
            f"A request would reuse {usable:,} of {whole:,} tokens here, although {_about(twin)} "
            f"of {twin.chunks} blocks stand in {twin.space.name}: this space has "
            f"{_words(differing, 'this')}, that one {_words(differing, 'other')}."
        )
    else:
        tag = f"missed: {_label(reason)}" if not usable else "stored in part"
        what = "" if cause is None else f": {cause.what}"
        at = "" if cell is None else f" from block {cell.number + 1} on it is not there{what}."
        sentence = f"A request would reuse {usable:,} of {whole:,} tokens;{at}"
    return Answer(
        "text",
        tag,
        sentence,
        is_bad=is_bad,
        facts=facts,
        strips=(strip,) if twin is None else (strip, twin),
        reason=reason,
        cause=cause,
        lever=_remedy(cause),
        space=space,
        other=None if twin is None else twin.space,
        fields=tuple(sorted(fields, key=lambda each: not each.differs)),
        flags=flags_to_be([each for each in fields if each.differs]),
    )


def _prompt_strip(title: str, space: Space, tokens: Tokens) -> tuple[Strip, int]:
    """The strip, and the tokens behind which a request could go on."""
    ids = making.chain_of(space, tokens)
    whole = making.whole_tokens(space, tokens)
    parts = Parts(space)
    every = parts.of(ids)
    with hot.required():
        answers = hot.hot_tier(space.tenant_id).match(every)
    chunks = whole // space.chunk_tokens
    width = len(every) // chunks if chunks else 1
    usable = usable_chunks(parts, answers, width) * space.chunk_tokens if chunks else 0
    firsts = ids[:: max(1, len(ids) // chunks)] if chunks else []
    strip = _strip(title, space, Cells.of(firsts), chunks, None)
    return strip, usable


# ---- strips


def _strip(title: str, space: Space, cells: Cells, chunks: int, miss: int | None) -> Strip:
    ids = cells.each()
    contexts: tuple[Sharing, ...] = ()
    with hot.required():
        answers = hot.hot_tier(space.tenant_id).match(ids)
        lost = [id_ for id_, at in zip(ids, answers, strict=True) if isinstance(at, MissReason)]
        gone = hot.gone_at(space.tenant_id, lost)
    if ids:
        contexts = sharing(space, ids[0])
    drawn = tuple(
        Cell(n * cells.stride, id_.hex(), at.tier.value, at.segment)
        if isinstance(at, Location)
        else Cell(n * cells.stride, id_.hex(), reason=at.value, gone_at=gone.get(id_))
        for n, (id_, at) in enumerate(zip(ids, answers, strict=True))
    )
    return Strip(title, space, drawn, cells.stride, max(chunks, len(ids)), contexts, miss)


def _about(strip: Strip) -> str:
    return f"{'about ' if strip.stride > 1 else ''}{strip.stored}"


# ---- words


def _words(differing: Sequence[Compared], side: str) -> str:
    """Values of the differing fields that people set; of others, their names."""
    said = []
    for each in differing:
        if each.field in _SHORT:
            value = str(getattr(each, side)).partition(":")[0].removeprefix("torch.")
            said.append(f"{_SHORT[each.field]} {value[:40]}")
    if not said:
        said = [each.field.replace("_", " ").replace(".", " ") for each in differing[:3]]
        return f"another {', '.join(said)}" if said else "the same"
    return ", ".join(said[:4])


def _label(reason: str) -> str:
    cause = cause_of(reason)
    return cause.label if cause is not None else reason.replace("_", " ")


def _remedy(cause: Cause | None) -> str:
    return "" if cause is None else _sentence(cause.remedy)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "nothing"


assert CELLS <= 1000  # one call a strip

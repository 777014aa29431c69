"""The options of a node: `kv_connector_extra_config`, with environment fallbacks."""

import math
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2b
from typing import Any, Final, Self

from neve.datapath.client import COLD_CONNECTIONS, CONNECTIONS
from neve.datapath.local import check_options
from neve.engine.canary import DEFAULT_EVERY
from neve.engine.groups import KvGroup, alignment_tokens
from neve.engine.losses import reported
from neve.engine.sharding import CANONICAL, RANK
from neve.errors import Misuse
from neve.formats.parts import PartKind
from neve.formats.space import EXACT, MAX_CHUNK_TOKENS
from neve.node.session import check_key, check_url

# Staging for two steps: blocks of one are sent while the next are copied. The least is small beside
# any host's memory; the most is what a rank may pin without being asked to.
_STEPS_STAGED: Final = 2
LEAST_SAVE_BUDGET_BYTES: Final = 1 << 30
MOST_SAVE_BUDGET_BYTES: Final = 8 << 30

_CHOICES = {
    "load": ("auto", "always", "both"),
    "layout": (RANK, CANONICAL),
    "cross_layer_blocks": (False, True),
    "one_kernel": (False, True),
    "codec": ("none", "int8", "fp8", "int4"),
}
# An option's declared type → the number type that its value is read as.
_NUMBERS: Final[dict[Any, type[int] | type[float]]] = {int: int, float: float, int | None: int}
_MAY_BE_ZERO: Final = frozenset(("canary",))


def _is_one_of(value: object, choices: Sequence[object]) -> bool:
    """Of the same type too: 1 equals True."""
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _engine_url(value: object) -> str:
    """Raises `Misuse`; the platform refuses the rest."""
    if not isinstance(value, str) or "@" in value or "#" in value or len(value) > 500:
        raise Misuse(
            f"need an address such as http://gpu-07.example:8000, got {value!r:.80}",
            field="engine_url",
        )
    try:
        return check_url(value)
    except Misuse as error:
        raise Misuse(error.detail, field="engine_url") from error


@dataclass(frozen=True, kw_only=True)
class Options:
    """Endpoint and key are all that a node needs; the rest has defaults.

    `space` names the space (default: the one of this identity). `family` names the family whose KV
    this engine shares once it is attested. `revision` names the weights if
    their files don't. `load`: `auto` (only what is faster to load than to compute), `both` (as
    `auto`, and long prefixes are computed and loaded at once: `neve.engine.rears`) or `always`.
    `layout`: `rank` (blocks of one TP size) or `canonical` (a block for each KV head, for any TP
    size). `match_deadline_s` bounds a look-up, `load_deadline_s` one request's load,
    `handover_wait_s` its wait for blocks that a prefill node named. `load_budget_bytes` and
    `save_budget_bytes` bound the staging memory of a rank (None: see `save_budget`).
    `connections`: to each Valkey, for block bytes. `cold_connections`: ranges of S3 segments read
    at a time. `cross_layer_blocks`: ask the engine to lay the layers of a block side by side.
    `one_kernel`: on a GPU copy the blocks of all layers by one Triton kernel, once it was tried.
    `codec`: store KV with loss, as the platform must allow for this model too; then nothing is
    compared. `codec_report`: a file of `neve codec-check`, whose figures the platform shows.
    `canary`: compare one in this many found prefixes with computed KV; 0: none.
    `state_every_tokens`: of the states of linear attention that the engine offers, store those at
    multiples of this, besides the last of each prompt (None: all that it offers).
    `engine_url`: address of this engine's own HTTP server, which the platform may ask to tokenise
    and prefill for this tenant (None: it is not told).
    `local_dir`, `local_bytes`: the node's local tier: blocks that are used a second time are kept
    in this directory (NVMe, RAM disk), up to this size. Engines of a host may share it.
    `near_stores`: names of S3 stores that are near, the nearest first, for cold loads (empty: by
    the priority of each store).
    """

    endpoint: str
    api_key: str = field(repr=False)
    node: str = field(default_factory=socket.gethostname)
    space: str | None = None
    family: str | None = None
    revision: str | None = None
    load: str = "auto"
    layout: str = RANK
    max_chunk_tokens: int = MAX_CHUNK_TOKENS
    match_deadline_s: float = 0.2
    load_deadline_s: float = 2.0
    handover_wait_s: float = 2.0
    load_budget_bytes: int = 1 << 30
    save_budget_bytes: int | None = None
    connections: int = CONNECTIONS
    cold_connections: int = COLD_CONNECTIONS
    cross_layer_blocks: bool = False
    one_kernel: bool = False
    codec: str = EXACT
    codec_report: str | None = None
    canary: int = DEFAULT_EVERY
    state_every_tokens: int | None = None
    engine_url: str | None = None
    local_dir: str | None = None
    local_bytes: int | None = None
    near_stores: tuple[str, ...] = ()

    @classmethod
    def from_config(
        cls,
        extra: Mapping[str, Any],
        environ: Mapping[str, str] | None = None,
        *,
        engine_id: str | None = None,
        place: str = "kv_connector_extra_config",
        known: Sequence[str] | None = None,
    ) -> Self:
        """Reads the extra config.

        `engine_id`: the engine's own id, for a default node name that no other engine of this host
        has. `place`: where people write the options, for errors. `known`: names of the options that
        mean something to this engine (None: all).

        Raises:
            Misuse: names the option that is missing or wrong.
        """
        environ = os.environ if environ is None else environ
        values = dict(extra)
        names = [option.name for option in fields(cls)] if known is None else list(known)
        for unknown in sorted(set(values) - set(names)):  # first: it may be a misspelt name
            raise Misuse(
                f"unknown option in {place}; known are {', '.join(names)}",
                field=unknown,
            )
        for name in ("endpoint", "api_key"):
            variable = f"NEVE_{name.upper()}"
            values.setdefault(name, environ.get(variable))
            if not isinstance(values[name], str) or not values[name]:
                raise Misuse(f"set it in {place} or as {variable}", field=name)
        values["endpoint"] = check_url(values["endpoint"])
        values["api_key"] = check_key(values["api_key"])
        if values.get("engine_url") is not None:
            values["engine_url"] = _engine_url(values["engine_url"])
        if (near := values.pop("near_stores", None)) is not None:
            values["near_stores"] = _names(near, "near_stores")
        for name in ("node", "space", "family", "revision", "local_dir", "codec_report"):
            if values.get(name) is None:
                values.pop(name, None)
            elif not isinstance(values[name], str) or not values[name]:
                raise Misuse(f"need a name, got {values[name]!r}", field=name)
        if "space" in values and "family" in values:
            raise Misuse("a family has its own space: name one of the two", field="family")
        for name, choices in _CHOICES.items():
            if name in values and not _is_one_of(values[name], choices):
                raise Misuse(f"need one of {choices}, got {values[name]!r}", field=name)
        for option in fields(cls):
            value = values.get(option.name)
            number = _NUMBERS.get(option.type)
            if number is not None and value is not None:
                is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
                least = 0 if option.name in _MAY_BE_ZERO else math.nextafter(0, 1)
                if not is_number or not least <= value < math.inf or number(value) != value:
                    kind = "whole number" if number is int else "number"
                    wanted = f"a {kind}, 0 or more" if least == 0 else f"a positive {kind}"
                    raise Misuse(f"need {wanted}, got {value!r}", field=option.name)
                values[option.name] = number(value)
        check_options(values.get("local_dir"), values.get("local_bytes"))
        if engine_id and "node" not in values:
            mark = blake2b(engine_id.encode(), digest_size=4).hexdigest()
            values["node"] = f"{socket.gethostname()}/{mark}"
        if values.get("codec", EXACT) != EXACT:
            if "family" in values:
                raise Misuse("a family shares exact KV: leave one of the two out", field="codec")
            reported(values.get("codec_report"), values["codec"])
            values["canary"] = 0  # KV computed behind loaded blocks differs by more than rounding
        return cls(**values)

    def of_replica(self, index: int) -> Self:
        """For one of a node's data-parallel engines: each has sessions of its own."""
        return replace(self, node=f"{self.node}/dp{index}") if index else self

    def for_groups(self, groups: Sequence[KvGroup]) -> Self:
        """For an engine with these KV cache groups. States exist at the end of any engine block, so
        a chunk is the shortest that has whole ones."""
        if not any(group.kind is PartKind.STATE for group in groups):
            return self
        shortest = min(alignment_tokens(groups), self.max_chunk_tokens)
        return replace(self, max_chunk_tokens=shortest)

    def save_budget(self, step_bytes: int) -> int:
        """Bytes that one rank may stage for saves, if a step computes up to `step_bytes` of KV."""
        if self.save_budget_bytes is not None:
            return self.save_budget_bytes
        wanted = max(LEAST_SAVE_BUDGET_BYTES, _STEPS_STAGED * step_bytes)
        return min(wanted, MOST_SAVE_BUDGET_BYTES)


def _names(value: object, field: str) -> tuple[str, ...]:
    """A list of names, or text with commas between. Raises Misuse."""
    found = value.split(",") if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not all(isinstance(each, str) for each in found):
        raise Misuse(f"need a list of names, got {value!r}", field=field)
    return tuple(name for each in found if (name := each.strip()))

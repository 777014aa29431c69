"""What `callback_settings: neve:` of the proxy's configuration says. Pure.

    callback_settings:
      neve:
        endpoint: https://neve.example
        tenants:
          - name: acme
            api_key: os.environ/NEVE_ACME_KEY      # role team, scope read
            teams: ["1f6d…"]                       # LiteLLM's team ids
            keys: ["9c1b…"]                        # or hashes of virtual keys
          - name: others
            api_key: os.environ/NEVE_OTHERS_KEY
            is_default: true                       # everybody else

Teams are named by id and keys by hash: aliases may be chosen by whoever makes a key.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from time import monotonic
from typing import Any, Final

from neve.errors import Misuse
from neve.gateway.choice import Margin
from neve.gateway.pools import Handover, PoolOptions, make_pools
from neve.gateway.prompts import PIECE_BYTES
from neve.gateway.store import DEADLINE_S
from neve.litellm.pools import PoolSettings

_MOST_DEADLINE_S: Final = 10.0
_SALTS: Final = ("none", "team", "key")
_MBIT: Final = 1e6 / 8  # bytes/s
_OF_POOL: Final = (
    *("name", "space", "model", "urls", "api_key", "handover", "link", "link_mbit"),
    *("prefill_tokens_per_s", "step_tokens", "least_tokens", "prefill_s", "wait_s", "most_waiting"),
)


@dataclass(frozen=True)
class TenantSettings:
    """`api_key`: Neve's. `teams`, `keys`: of LiteLLM, whose requests are this tenant's.

    `salt_by`: none, team or key: teams (or keys) of this tenant share no KV and no context, as each
    gets a `cache_salt` of its own, and an ending of its contexts' names. `pools`: compute long
    prompts for the tenant's nodes.
    """

    name: str
    api_key: str = field(repr=False)
    teams: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    is_default: bool = False
    salt_by: str = "none"
    pools: tuple[PoolSettings, ...] = ()

    def scope_of(self, *, team: str | None, key: str | None) -> str:
        """Ends the names of contexts of a team or key; "" where all share them."""
        return "" if self.salt_by == "none" else self._keyed(b"neve.scope", team, key, None, 4)

    def salt_of(self, *, team: str | None, key: str | None, given: object) -> str | None:
        """The `cache_salt` of a request: that of its team or key, and the client's own within."""
        own = given if isinstance(given, str) else None
        return own if self.salt_by == "none" else self._keyed(b"neve.salt", team, key, own, 16)

    def _keyed(
        self, use: bytes, team: str | None, key: str | None, own: str | None, size_bytes: int
    ) -> str:
        """Who has no team counts by key."""
        kind, by = ("team", team) if self.salt_by == "team" and team else ("key", key)
        told = f"{kind}\0{by or ''}\0{own or ''}".encode(errors="surrogatepass")
        secret = blake2b(self.api_key.encode(), person=use, digest_size=32).digest()
        return blake2b(told, key=secret, digest_size=size_bytes).hexdigest()


@dataclass(frozen=True)
class Settings:
    """`routes`: False: only contexts and reports; LiteLLM's own strategy chooses. `tells_clients`:
    by response headers; spend logs have it in any case."""

    endpoint: str
    tenants: tuple[TenantSettings, ...]
    margin: Margin = field(default_factory=Margin)
    lookup_deadline_s: float = DEADLINE_S
    piece_bytes: int = PIECE_BYTES
    routes: bool = True
    tells_clients: bool = True

    @property
    def is_salted(self) -> bool:
        """Some tenant's teams or keys share no KV."""
        return any(tenant.salt_by != "none" for tenant in self.tenants)

    def tenant_of(self, *, team: str | None, key: str | None) -> TenantSettings | None:
        """Whose request it is: by key, by team, then the default. None: nobody's, so that it
        passes without Neve."""
        by_team = by_default = None
        for tenant in self.tenants:
            if key is not None and key in tenant.keys:
                return tenant
            if team is not None and team in tenant.teams:
                by_team = tenant
            if tenant.is_default:
                by_default = tenant
        return by_team or by_default


def read_settings(given: object) -> Settings:
    """Raises `Misuse` with the field that is wrong, and the fix."""
    where = "callback_settings.neve"
    if not isinstance(given, Mapping):
        raise Misuse(
            "is missing: write `callback_settings:` with `neve:` below it, with endpoint and "
            "tenants (docs/litellm.md)",
            field=where,
        )
    _known(given, where, ("endpoint", "tenants", "margin", "lookup_deadline_s", "piece_bytes",
                          "routes", "tells_clients"))  # fmt: skip
    tenants = given.get("tenants")
    if not isinstance(tenants, list) or not tenants:
        raise Misuse("needs a list of at least one tenant", field=f"{where}.tenants")
    read = tuple(_tenant(each, f"{where}.tenants[{n}]") for n, each in enumerate(tenants))
    _distinct(read, where)
    return Settings(
        endpoint=_text(given, "endpoint", where, os.environ.get("NEVE_ENDPOINT")),
        tenants=read,
        margin=_margin(given.get("margin"), f"{where}.margin"),
        lookup_deadline_s=_number(given, "lookup_deadline_s", where, DEADLINE_S, _MOST_DEADLINE_S),
        piece_bytes=int(_number(given, "piece_bytes", where, PIECE_BYTES, 1 << 20, 16)),
        routes=_flag(given, "routes", where, True),
        tells_clients=_flag(given, "tells_clients", where, True),
    )


def _tenant(given: object, where: str) -> TenantSettings:
    if not isinstance(given, Mapping):
        raise Misuse("needs name, api_key, and teams, keys or is_default", field=where)
    _known(given, where, ("name", "api_key", "teams", "keys", "is_default", "salt_by", "pools"))
    salt_by = given.get("salt_by", "none")
    if salt_by not in _SALTS:
        raise Misuse(f"{salt_by!r} is none of {', '.join(_SALTS)}", field=f"{where}.salt_by")
    read = TenantSettings(
        name=_text(given, "name", where),
        api_key=_text(given, "api_key", where),
        teams=_texts(given, "teams", where),
        keys=_texts(given, "keys", where),
        is_default=_flag(given, "is_default", where, False),
        salt_by=salt_by,
        pools=_pools(given.get("pools"), f"{where}.pools"),
    )
    if not (read.teams or read.keys or read.is_default):
        raise Misuse("nobody's requests are this tenant's: give teams, keys or is_default: true",
                     field=where)  # fmt: skip
    return read


def _pools(given: object, where: str) -> tuple[PoolSettings, ...]:
    if not isinstance(given, list) and given is not None:
        raise Misuse("needs a list of pools", field=where)
    read = tuple(_pool(each, f"{where}[{n}]") for n, each in enumerate(given or []))
    try:
        make_pools([each.options for each in read], monotonic)
    except Misuse as error:
        raise Misuse(error.detail, field=f"{where}: {error.field}") from error
    return read


def _pool(given: object, where: str) -> PoolSettings:
    """Fields as in `neve router`'s file, with `space` and `api_key`."""
    if not isinstance(given, Mapping):
        raise Misuse("needs name, space, model and urls", field=where)
    _known(given, where, _OF_POOL)
    more: dict[str, Any] = {}
    for name in ("prefill_s", "wait_s", "prefill_tokens_per_s"):
        if name in given:
            more[name] = _number(given, name, where, 0, 1e12, 1e-3)
    for name in ("step_tokens", "least_tokens", "most_waiting"):
        if name in given:
            more[name] = int(_number(given, name, where, 0, 1 << 31, 1))
    if "link" in given:
        more["link"] = _text(given, "link", where)
    if "api_key" in given:
        more["api_key"] = _text(given, "api_key", where)
    if "link_mbit" in given:
        more["link_bytes_per_s"] = _number(given, "link_mbit", where, 0, 1e9, 1e-3) * _MBIT
    handover = given.get("handover", "hot")
    if handover not in list(Handover):
        raise Misuse(f"{handover!r} is none of {', '.join(Handover)}", field=f"{where}.handover")
    urls = given.get("urls")
    if not isinstance(urls, list) or not urls:
        raise Misuse("needs a list of the engines' addresses", field=f"{where}.urls")
    return PoolSettings(
        int(_number(given, "space", where, 0, 1 << 62, 1)),
        PoolOptions(
            _text(given, "name", where),
            tuple(_server(each, f"{where}.urls") for each in urls),
            _text(given, "model", where),
            handover=Handover(handover),
            **more,
        ),
    )


def _server(url: object, field: str) -> str:
    """Without a slash or /v1 at the end."""
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise Misuse(f"{url!r} is no address such as http://gpu-01:8000", field=field)
    return url.strip().rstrip("/").removesuffix("/v1").rstrip("/")


def _distinct(tenants: tuple[TenantSettings, ...], where: str) -> None:
    """A team, a key and the default belong to one tenant each."""
    seen: dict[str, str] = {}
    for n, tenant in enumerate(tenants):
        claims = [f"team {each}" for each in tenant.teams] + [f"key {each}" for each in tenant.keys]
        claims += ["is_default"] if tenant.is_default else []
        for claim in [f"name {tenant.name}", *claims]:
            if claim in seen:
                raise Misuse(f"{claim} is that of {seen[claim]}, too: name it once",
                             field=f"{where}.tenants[{n}]")  # fmt: skip
            seen[claim] = tenant.name


def _margin(given: object, where: str) -> Margin:
    if given is None:
        return Margin()
    if not isinstance(given, Mapping):
        raise Misuse("needs members such as requests: 8", field=where)
    _known(given, where, ("requests", "ratio", "stored_requests", "least_share"))
    usual = Margin()
    try:
        return Margin(
            requests=int(_number(given, "requests", where, usual.requests, 1 << 20)),
            ratio=_number(given, "ratio", where, usual.ratio, 1e6),
            stored_requests=int(
                _number(given, "stored_requests", where, usual.stored_requests, 1 << 20)
            ),
            least_share=_number(given, "least_share", where, usual.least_share, 1.0),
        )
    except Misuse as error:
        raise Misuse(error.detail, field=error.field if "." in str(error.field)
                     else f"{where}.{error.field}") from error  # fmt: skip


def _known(given: Mapping[str, Any], where: str, names: tuple[str, ...]) -> None:
    for name in given:
        if name not in names:
            raise Misuse(f"is unknown; known are {', '.join(names)}", field=f"{where}.{name}")


def _text(given: Mapping[str, Any], name: str, where: str, usual: str | None = None) -> str:
    value = given.get(name, usual)
    if isinstance(value, str) and value.startswith("os.environ/"):
        variable = value.removeprefix("os.environ/")
        value = os.environ.get(variable)
        if not value:
            raise Misuse(f"the environment has no {variable}", field=f"{where}.{name}")
    if not isinstance(value, str) or not value.strip():
        raise Misuse("needs a text", field=f"{where}.{name}")
    return value.strip()


def _texts(given: Mapping[str, Any], name: str, where: str) -> frozenset[str]:
    values = given.get(name) or []
    if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
        raise Misuse("needs a list of texts", field=f"{where}.{name}")
    return frozenset(values)


def _number(
    given: Mapping[str, Any], name: str, where: str, usual: float, most: float, least: float = 0
) -> float:
    value = given.get(name, usual)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise Misuse(f"needs a number from {least:g} to {most:g}", field=f"{where}.{name}")
    return value


def _flag(given: Mapping[str, Any], name: str, where: str, usual: bool) -> bool:
    value = given.get(name, usual)
    if not isinstance(value, bool):
        raise Misuse("needs true or false", field=f"{where}.{name}")
    return value

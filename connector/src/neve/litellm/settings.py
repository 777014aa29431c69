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
from typing import Any, Final

from neve.errors import Misuse
from neve.gateway.choice import Margin
from neve.gateway.prompts import PIECE_BYTES
from neve.gateway.store import DEADLINE_S

_MOST_DEADLINE_S: Final = 10.0
_SALTS: Final = ("none", "team", "key")


@dataclass(frozen=True)
class TenantSettings:
    """`api_key`: Neve's. `teams`, `keys`: of LiteLLM, whose requests are this tenant's.

    `salt_by`: none, team or key: teams (or keys) of this tenant share no KV, as each gets a
    `cache_salt` of its own.
    """

    name: str
    api_key: str = field(repr=False)
    teams: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    is_default: bool = False
    salt_by: str = "none"

    def salt_of(self, *, team: str | None, key: str | None, given: object) -> str | None:
        """The `cache_salt` of a request: that of its team or key, and the client's own within."""
        own = given if isinstance(given, str) else None
        if self.salt_by == "none":
            return own
        by = team if self.salt_by == "team" else key
        told = f"{self.salt_by}\0{by or ''}\0{own or ''}".encode(errors="surrogatepass")
        secret = blake2b(self.api_key.encode(), person=b"neve.salt", digest_size=32).digest()
        return blake2b(told, key=secret, digest_size=16).hexdigest()


@dataclass(frozen=True)
class Settings:
    """`routes`: False: only contexts and reports; LiteLLM's own strategy chooses."""

    endpoint: str
    tenants: tuple[TenantSettings, ...]
    margin: Margin = field(default_factory=Margin)
    lookup_deadline_s: float = DEADLINE_S
    piece_bytes: int = PIECE_BYTES
    routes: bool = True

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
                          "routes"))  # fmt: skip
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
    )


def _tenant(given: object, where: str) -> TenantSettings:
    if not isinstance(given, Mapping):
        raise Misuse("needs name, api_key, and teams, keys or is_default", field=where)
    _known(given, where, ("name", "api_key", "teams", "keys", "is_default", "salt_by"))
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
    )
    if not (read.teams or read.keys or read.is_default):
        raise Misuse("nobody's requests are this tenant's: give teams, keys or is_default: true",
                     field=where)  # fmt: skip
    return read


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

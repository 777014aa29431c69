"""The router's configuration: a TOML file, checked field by field before anything starts.

A wrong, missing or unknown field raises `Misuse`, which names the field and the fix.
"""

import ipaddress
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from neve.errors import Misuse
from neve.gateway import Node
from neve.gateway.pools import Handover, PoolOptions

PORT: Final = 8100
_MOST_FILE_BYTES: Final = 1 << 20
_MBIT: Final = 1e6 / 8
_TOP: Final = {
    "host": str,
    "port": int,
    "endpoint": str,
    "space": (int, str),
    "model": str,
    "engine_key_env": str,
    "lookup_deadline_s": (int, float),
    "most_body_bytes": int,
    "most_held_bytes": int,
    "most_requests": int,
    "body_s": (int, float),
    "metrics_host": str,
    "metrics_port": int,
    "tells_outcome": bool,
    "decode": list,
    "pool": list,
}
_SAME: Final = (  # fields of the file that are options by the same name
    *("host", "port", "space", "model", "lookup_deadline_s", "most_body_bytes", "most_held_bytes"),
    *("most_requests", "body_s", "metrics_host", "metrics_port", "tells_outcome"),
)
_ABOVE_0: Final = (
    *("lookup_deadline_s", "most_body_bytes", "most_held_bytes", "most_requests", "body_s"),
)
_DECODE: Final = {"url": str, "name": str}
_POOL: Final = {
    "name": str,
    "urls": list,
    "registered": bool,
    "model": str,
    "key_env": str,
    "handover": str,
    "link": str,
    "link_mbit": (int, float),
    "prefill_tokens_per_s": (int, float),
    "step_tokens": int,
    "least_tokens": int,
    "prefill_s": (int, float),
    "wait_s": (int, float),
    "most_waiting": int,
}
_PASSED: Final = (
    *("prefill_tokens_per_s", "step_tokens", "least_tokens", "prefill_s", "wait_s"),
    "most_waiting",
)


@dataclass(frozen=True)
class PoolSection:
    """A pool as the file has it; `model` "": the router's own. `registered`: its engines are those
    that the platform has as prefill engines of the space, besides `urls`."""

    name: str
    urls: tuple[str, ...] = ()
    is_registered: bool = False
    model: str = ""
    api_key: str = field(default="", repr=False)
    more: Mapping[str, Any] = field(default_factory=dict)

    def options(self, model: str, urls: Sequence[str]) -> PoolOptions:
        return PoolOptions(
            self.name, tuple(urls), self.model or model, api_key=self.api_key, **self.more
        )


@dataclass(frozen=True)
class RouterOptions:
    """What `neve router` runs with.

    `endpoint` "": the profile's. `space`: number or name of the decode nodes' space; None: there
    is one alone. `model`: its served name; "": the one that the decode nodes serve. `engine_key`:
    for the decode nodes where a client sends no key of its own.

    `most_held_bytes`, `most_requests`: bodies and requests at a time. `body_s`: longest time that
    a client may take to send its body. `metrics_port`: where /metrics and a detailed /health are;
    None: nowhere. `tells_outcome`: whether answers have `x-neve-prefill`, which tells a client how
    much of its prompt others have stored.
    """

    decode: tuple[Node, ...]
    pools: tuple[PoolSection, ...] = ()
    host: str = "127.0.0.1"
    port: int = PORT
    endpoint: str = ""
    space: int | str | None = None
    model: str = ""
    engine_key: str = field(default="", repr=False)
    lookup_deadline_s: float = 0.5
    most_body_bytes: int = 64 << 20
    most_held_bytes: int = 512 << 20
    most_requests: int = 1024
    body_s: float = 30.0
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    tells_outcome: bool = False

    def __post_init__(self) -> None:
        if not self.decode:
            raise Misuse("name at least one decode node: [[decode]] with a url", field="decode")
        _require_once("decode.name", [node.name for node in self.decode])
        _require_once("decode.url", [node.url for node in self.decode])
        _require_once("pool.name", [pool.name for pool in self.pools])
        urls = {node.url for node in self.decode}
        for pool in self.pools:
            both = urls.intersection(pool.urls)
            if both:
                raise Misuse(
                    f"{min(both)} is a decode node as well: a pool has engines of its own",
                    field=f"pool {pool.name}: urls",
                )
        for name in ("port", "metrics_port"):
            port = getattr(self, name)
            if port is not None and not 0 <= port <= 65535:
                raise Misuse(f"{port} is no port", field=name)
        if self.metrics_port and self.metrics_port == self.port:
            raise Misuse("must be another port than the clients'", field="metrics_port")
        for name in _ABOVE_0:
            if not getattr(self, name) > 0:
                raise Misuse("must be above 0", field=name)
        if self.most_held_bytes < self.most_body_bytes:
            raise Misuse("must not be below most_body_bytes", field="most_held_bytes")


def read_options(path: Path, env: Mapping[str, str] = os.environ) -> RouterOptions:
    """Raises `Misuse` for a file that cannot be read or a wrong field."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_FILE_BYTES + 1)
        if len(text) > _MOST_FILE_BYTES:
            raise Misuse(f"{path} has more than {_MOST_FILE_BYTES} bytes", field="--config")
        found = tomllib.loads(text.decode())
    except OSError as error:
        raise Misuse(f"cannot read {path}: {error.strerror}", field="--config") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Misuse(f"{path} is no TOML: {error}", field="--config") from error
    return parse_options(found, env)


def parse_options(found: Mapping[str, Any], env: Mapping[str, str]) -> RouterOptions:
    """`found`: as a TOML file has it. `env`: for keys, which only the environment holds."""
    _check(found, _TOP, "")
    if "space" in found and found["space"] in ("", 0):
        raise Misuse("give the number or the name of a space", field="space")
    decode = []
    for number, each in enumerate(found.get("decode", ()), 1):
        where = f"decode {number}: "
        _check(each, _DECODE, where)
        if "url" not in each:
            raise Misuse("is missing: the engine's address", field=f"{where}url")
        url = tidy_url(each["url"], f"{where}url")
        name = each.get("name", urlsplit(url).netloc)
        decode.append(Node(name, url))
    sections = [_section(each, n, env) for n, each in enumerate(found.get("pool", ()), 1)]
    key_env = found.get("engine_key_env")
    more = {name: found[name] for name in _SAME if name in found}
    return RouterOptions(
        decode=tuple(decode),
        pools=tuple(sections),
        endpoint=found.get("endpoint", ""),
        engine_key=_key(key_env, "engine_key_env", env),
        **more,
    )


def _section(each: Any, number: int, env: Mapping[str, str]) -> PoolSection:
    where = f"pool {number}: "
    _check(each, _POOL, where)
    name = each.get("name")
    if not name:
        raise Misuse("is missing: a name for logs and metrics", field=f"{where}name")
    where = f"pool {name}: "
    urls = []
    for url in each.get("urls", ()):
        if not isinstance(url, str):
            raise Misuse("need a list of addresses in quotes", field=f"{where}urls")
        urls.append(tidy_url(url, f"{where}urls"))
    _require_once(f"{where}urls", urls)
    if not urls and not each.get("registered"):
        raise Misuse(
            "is missing: addresses of the pool's engines, or registered = true",
            field=f"{where}urls",
        )
    if each.get("registered") and each.get("key_env"):
        raise Misuse(
            "whoever registers an engine would get this key: name the engines by urls",
            field=f"{where}key_env",
        )
    more: dict[str, Any] = {key: each[key] for key in _PASSED if key in each}
    if "link" in each:
        more["link"] = each["link"]
    if "handover" in each:
        try:
            more["handover"] = Handover(each["handover"])
        except ValueError:
            known = ", ".join(Handover)
            raise Misuse(
                f"{each['handover']!r} is none of {known}", field=f"{where}handover"
            ) from None
    if "link_mbit" in each:
        if not each["link_mbit"] > 0:
            raise Misuse("must be above 0", field=f"{where}link_mbit")
        more["link_bytes_per_s"] = each["link_mbit"] * _MBIT
    section = PoolSection(
        name,
        tuple(urls),
        bool(each.get("registered")),
        each.get("model", ""),
        _key(each.get("key_env"), f"{where}key_env", env),
        more,
    )
    section.options("model", urls or ["http://unknown"])  # its other fields are checked there
    return section


def tidy_url(url: str, field: str) -> str:
    """Without a slash or /v1 at the end. Raises `Misuse` for what is no http address."""
    tidy = url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        parts = urlsplit(tidy)
        port = parts.port
    except ValueError:
        raise Misuse(f"{url!r} is no address", field=field) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise Misuse(f"{url!r} is no address such as http://gpu-01:8000", field=field)
    if parts.username or parts.password:
        raise Misuse(f"leave the password out: give {field.partition(' ')[0]} a key", field=field)
    if parts.query or parts.fragment:
        raise Misuse(f"{url!r} has a query: leave it out", field=field)
    return tidy


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check(found: Any, known: Mapping[str, Any], where: str) -> None:
    if not isinstance(found, Mapping):
        raise Misuse("need a table with fields", field=where.rstrip(": ") or "configuration")
    for name, value in found.items():
        if name not in known:
            fields = ", ".join(sorted(known))
            raise Misuse(f"there is no such field; there are {fields}", field=f"{where}{name}")
        kinds = known[name]
        is_flag = isinstance(value, bool)
        if not isinstance(value, kinds) or (is_flag and kinds is not bool):
            wanted = " or ".join(
                _WORDS[kind] for kind in (kinds if isinstance(kinds, tuple) else (kinds,))
            )
            raise Misuse(f"need {wanted}, not {value!r}", field=f"{where}{name}")


_WORDS: Final = {
    str: "text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
}


def _key(name: str | None, field: str, env: Mapping[str, str]) -> str:
    if name is None:
        return ""
    value = env.get(name, "").strip()
    if not value:
        raise Misuse(f"the environment variable {name} is not set", field=field)
    return value


def _require_once(field: str, values: Sequence[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise Misuse(f"{value} is there twice", field=field)

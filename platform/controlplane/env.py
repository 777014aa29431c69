"""Settings from the environment, read once; all names begin with NEVE_.

Values come from the process environment, then from `var/env` (KEY=VALUE lines,
written by `make up`).
Secrets have no default: a missing one stops the boot and says how to make it.
"""

import os
import re
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured
from dotenv import dotenv_values

from neve.formats.keys import MOST_BUCKETS
from storage.addresses import each_url
from tenants.grants import Grant, grants

ROOT = Path(__file__).resolve().parents[2]
VAR = ROOT / (os.environ.get("NEVE_VAR") or "var")  # one folder, whatever the working directory
# First parts of the platform's own paths, which a prefix may not equal.
OWN_PATHS = {
    *("api", "cache", "healthz", "metrics", "problems", "admin", "static", "ws", "login", "logout"),
    *("dashboard", "explorer", "why", "tenants", "contexts", "spaces", "policies", "savings"),
    *("keys", "families", "webhooks", "nodes", "tiers", "jobs", "incidents", "audit", "system"),
    *("account", "invitations"),
}
BUS_SCHEMES = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss"}


@dataclass(frozen=True)
class Env:
    """One field per NEVE_ variable; see `read` for defaults."""

    secret_key: str
    key_pepper: str
    database: dict[str, Any]
    hot_url: str
    hot_seeds: list[str]
    hot_tls: bool
    hot_buckets: int
    hot_connections: int  # of one tenant
    hot_uncommitted_mib: int  # of one tenant, at least
    bus_url: str  # redis:// or rediss://, as redis-py, Celery and Channels want it
    rate_caller: str | None
    rate_address: str | None
    rate_node: str | None
    s3_endpoint: str
    s3_bucket: str
    s3_access_key: str
    s3_secret_key: str
    store_keys: dict[str, str]  # NEVE_STORE_…: credentials that rows of stores refer to
    s3_region: str
    url: SplitResult  # what people and nodes call; all empty: the address of each request
    hosts: list[str]
    debug: bool
    log_format: str  # "console" or "json"
    mail_url: dict[str, Any]  # Django's EMAIL_ settings; empty: the platform sends no mail
    mail_from: str
    backup_stamp: str  # a file that the operator's backup touches; empty: none
    page_processes: int  # 0: the web process renders pages
    password_login: bool
    second_factor: str  # "optional", "operators" or "everyone"
    oidc_url: str  # of the provider of identities; empty: none
    oidc_client_id: str
    oidc_client_secret: str
    oidc_name: str
    oidc_groups_claim: str
    oidc_roles: tuple[Grant, ...]
    oidc_second_factor: str  # "neve" asks for its own; "provider" trusts that one was checked
    outbound_allow: list[str]  # networks, and the word "public"
    heartbeat_s: int
    space_limit: int
    context_limit: int
    context_block_limit: int
    context_blocks_limit: int
    key_limit: int
    keep_sessions_days: int
    keep_contexts_days: int
    keep_audit_days: int
    keep_events_days: int
    keep_savings_days: int
    keep_samples_days: int
    event_limit: int  # of one tenant
    streams: int  # of events, in one web process

    def secrets(self) -> list[str]:
        """Values that no log line may show, as they are written in settings and in URLs."""
        urls = (self.hot_url, self.bus_url)
        found = {self.secret_key, self.key_pepper, self.s3_secret_key, self.oidc_client_secret}
        found |= {v for n, v in self.store_keys.items() if n.endswith("_SECRET_KEY")}
        found |= {urlsplit(url).password or "" for url in urls}
        found |= {
            self.database.get("PASSWORD") or "",
            self.mail_url.get("EMAIL_HOST_PASSWORD") or "",
        }
        return [value for value in found if len(value) >= 8]  # a shorter one would blot out words


def read() -> Env:
    """Raises ImproperlyConfigured naming the variable and the fix."""
    saved = dotenv_values(VAR / "env", interpolate=False)
    given = {name: value or "" for name, value in saved.items()} | os.environ
    env = environ.Env()
    # A password may begin with "$": escaped here, it is not taken for another variable's name.
    env.escape_proxy = True
    env.ENVIRON = {name: value.replace("$", r"\$") for name, value in given.items()}
    hot_url = env.str("NEVE_HOT_URL", "valkey://127.0.0.1:6390/0")
    try:
        return Env(
            secret_key=_secret(env, "NEVE_SECRET_KEY"),
            key_pepper=_secret(env, "NEVE_KEY_PEPPER"),
            database=_database(env),
            hot_url=hot_url,
            hot_seeds=env.list("NEVE_HOT_SEEDS", default=[])
            or [_host_port(each) for each in each_url(hot_url)],
            hot_tls=urlsplit(hot_url).scheme in ("valkeys", "rediss"),
            hot_buckets=_at_least(env, "NEVE_HOT_BUCKETS", 1, least=1, most=MOST_BUCKETS),
            hot_connections=_at_least(env, "NEVE_HOT_CONNECTIONS", 1000, least=8),
            hot_uncommitted_mib=_at_least(env, "NEVE_HOT_UNCOMMITTED_MIB", 32, least=1),
            bus_url=_bus_url(env.str("NEVE_BUS_URL", "valkey://127.0.0.1:6391/0")),
            rate_caller=_rate(env, "NEVE_RATE_CALLER", "1200/min"),
            rate_address=_rate(env, "NEVE_RATE_ADDRESS", "600/min"),
            rate_node=_rate(env, "NEVE_RATE_NODE", "12000/min"),
            s3_endpoint=env.str("NEVE_S3_ENDPOINT", "http://127.0.0.1:8333"),
            s3_bucket=env.str("NEVE_S3_BUCKET", "neve"),
            s3_access_key=_secret(env, "NEVE_S3_ACCESS_KEY", least=1),
            s3_secret_key=_secret(env, "NEVE_S3_SECRET_KEY", least=1),
            s3_region=env.str("NEVE_S3_REGION", "us-east-1"),
            store_keys={n: v for n, v in given.items() if n.startswith("NEVE_STORE_")},
            url=_public_url(env.str("NEVE_URL", "")),
            hosts=env.list("NEVE_HOSTS", default=["127.0.0.1", "localhost", "[::1]"]),
            debug=env.bool("NEVE_DEBUG", False),
            log_format=_one_of(env, "NEVE_LOG_FORMAT", "console", "json"),
            mail_url=_mail(env),
            backup_stamp=env.str("NEVE_BACKUP_STAMP", ""),
            mail_from=env.str("NEVE_MAIL_FROM", ""),
            page_processes=_at_least(env, "NEVE_PAGE_PROCESSES", 2, least=0),
            password_login=_password_login(env),
            second_factor=_one_of(env, "NEVE_SECOND_FACTOR", "optional", "operators", "everyone"),
            oidc_url=_oidc_url(env),
            oidc_client_id=env.str("NEVE_OIDC_CLIENT_ID", ""),
            oidc_client_secret=env.str("NEVE_OIDC_CLIENT_SECRET", ""),
            oidc_name=env.str("NEVE_OIDC_NAME", "single sign-on"),
            oidc_groups_claim=env.str("NEVE_OIDC_GROUPS_CLAIM", "groups"),
            oidc_roles=_grants(env),
            oidc_second_factor=_one_of(env, "NEVE_OIDC_SECOND_FACTOR", "neve", "provider"),
            outbound_allow=_networks(env, "NEVE_OUTBOUND_ALLOW", "public"),
            heartbeat_s=_at_least(env, "NEVE_HEARTBEAT_S", 2, least=1),
            space_limit=_at_least(env, "NEVE_SPACE_LIMIT", 100, least=1),
            context_limit=_at_least(env, "NEVE_CONTEXT_LIMIT", 10_000, least=1),
            context_block_limit=_at_least(env, "NEVE_CONTEXT_BLOCK_LIMIT", 32_768, least=1),
            context_blocks_limit=_at_least(env, "NEVE_CONTEXT_BLOCKS_LIMIT", 1 << 22, least=1),
            key_limit=_at_least(env, "NEVE_KEY_LIMIT", 100, least=1),
            keep_sessions_days=_at_least(env, "NEVE_KEEP_SESSIONS_DAYS", 30, least=0),
            keep_contexts_days=_at_least(env, "NEVE_KEEP_CONTEXTS_DAYS", 30, least=0),
            keep_audit_days=_at_least(env, "NEVE_KEEP_AUDIT_DAYS", 365, least=0),
            # Webhooks are retried for more than three days.
            keep_events_days=_at_least(env, "NEVE_KEEP_EVENTS_DAYS", 7, least=4),
            # A year and a month: twelve whole months beside the current one.
            keep_savings_days=_at_least(env, "NEVE_KEEP_SAVINGS_DAYS", 800, least=400),
            keep_samples_days=_at_least(env, "NEVE_KEEP_SAMPLES_DAYS", 14, least=1),
            event_limit=_at_least(env, "NEVE_EVENT_LIMIT", 50_000, least=1000),
            streams=_at_least(env, "NEVE_STREAMS", 500, least=1),
        )
    except ValueError as error:
        raise ImproperlyConfigured(f"A NEVE_ variable has a wrong value: {error}") from error


def _secret(env: environ.Env, name: str, *, least: int = 32) -> str:
    value: str = env.str(name, "")
    if len(value) < least:
        what = "is not set" if not value else f"has {len(value)} characters, needs {least}"
        raise ImproperlyConfigured(
            f"{name} {what}. `make up` writes it to {VAR / 'env'}; by hand:\n"
            f"  echo {name}=$(openssl rand -hex 32) >> {VAR / 'env'}"
        )
    return value


def _at_least(
    env: environ.Env, name: str, default: int, *, least: int, most: int | None = None
) -> int:
    value: int = env.int(name, default)
    if value < least:
        raise ImproperlyConfigured(f"{name}={value}: needs to be {least} or more")
    if most is not None and value > most:
        raise ImproperlyConfigured(f"{name}={value}: needs to be {most} or less")
    return value


def _one_of(env: environ.Env, name: str, *choices: str) -> str:
    """The first choice is the default."""
    value: str = env.str(name, choices[0])
    if value not in choices:
        raise ImproperlyConfigured(f"{name}={value}: write {' or '.join(choices)}")
    return value


def _password_login(env: environ.Env) -> bool:
    is_on = _one_of(env, "NEVE_PASSWORD_LOGIN", "on", "off") == "on"
    if not is_on and not env.str("NEVE_OIDC_URL", ""):
        raise ImproperlyConfigured(
            "NEVE_PASSWORD_LOGIN=off without NEVE_OIDC_URL: nobody could sign in. Set the address "
            "of a provider of identities, or write on"
        )
    return is_on


def _oidc_url(env: environ.Env) -> str:
    raw: str = env.str("NEVE_OIDC_URL", "").rstrip("/")
    if not raw:
        return ""
    url = urlsplit(raw)
    is_here = url.hostname in ("127.0.0.1", "localhost", "::1")
    if not url.hostname or not (url.scheme == "https" or (url.scheme == "http" and is_here)):
        raise ImproperlyConfigured(
            f"NEVE_OIDC_URL={raw}: write the https address of the provider of identities, below "
            "which /.well-known/openid-configuration is (http only for one on this host)"
        )
    for name in ("NEVE_OIDC_CLIENT_ID", "NEVE_OIDC_CLIENT_SECRET"):
        if not env.str(name, ""):
            raise ImproperlyConfigured(f"{name} is not set: NEVE_OIDC_URL needs it")
    return raw


def _grants(env: environ.Env) -> tuple[Grant, ...]:
    try:
        return grants(env.str("NEVE_OIDC_ROLES", ""))
    except ValueError as error:
        raise ImproperlyConfigured(f"NEVE_OIDC_ROLES: {error}") from error


MAIL_SCHEMES = ("smtp", "smtps", "smtp+tls", "smtp+ssl", "consolemail")


def _mail(env: environ.Env) -> dict[str, Any]:
    raw = env.str("NEVE_MAIL_URL", "")
    if not raw:
        return {}
    scheme = urlsplit(raw).scheme
    if scheme not in MAIL_SCHEMES:
        raise ImproperlyConfigured(
            f"NEVE_MAIL_URL is {scheme!r}…; use smtp+tls://user:password@host:587, or smtp+ssl:// "
            "or smtp://"
        )
    if "@" not in env.str("NEVE_MAIL_FROM", ""):
        raise ImproperlyConfigured(
            "NEVE_MAIL_FROM is not set: with NEVE_MAIL_URL, write the sender's address, such as "
            "neve@example.com"
        )
    return dict(environ.Env.email_url_config(raw))


def _networks(env: environ.Env, name: str, default: str) -> list[str]:
    """Networks in CIDR form, and the word "public"."""
    found = []
    for each in filter(None, (part.strip() for part in env.str(name, default).split(","))):
        try:
            found.append(each if each == "public" else str(ip_network(each)))
        except ValueError as error:
            raise ImproperlyConfigured(
                f"{name}: {each!r} is no network; write such as public,10.0.0.0/8,fd12::/16"
            ) from error
    return found


def _rate(env: environ.Env, name: str, default: str) -> str | None:
    value: str = env.str(name, default)
    if not re.fullmatch(r"([1-9]\d*/(sec|min|hour|day))?", value):
        raise ImproperlyConfigured(f"{name}={value}: write 1200/min (sec, hour, day), or nothing")
    return value or None


def _database(env: environ.Env) -> dict[str, Any]:
    raw = env.str("NEVE_DATABASE_URL", "")
    database: dict[str, Any] = (
        environ.Env.db_url_config(raw)
        if raw
        else {"ENGINE": "django.db.backends.sqlite3", "NAME": str(VAR / "neve.sqlite3")}
    )
    engine = database["ENGINE"].rsplit(".", 1)[-1]
    if engine == "sqlite3":
        name = database["NAME"]
        if name != ":memory:":
            path = Path(name)
            database["NAME"] = str(path if path.is_absolute() else ROOT / path)
        # IMMEDIATE: a transaction takes the write lock first, and waits instead of failing.
        database["OPTIONS"] = {
            "transaction_mode": "IMMEDIATE",
            "timeout": env.int("NEVE_DATABASE_WAIT_S", 20),
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        }
    elif engine == "postgresql":
        database["CONN_HEALTH_CHECKS"] = True
    else:
        raise ImproperlyConfigured(
            f"NEVE_DATABASE_URL uses {engine}; use sqlite:///path or postgres://user:pw@host/name"
        )
    return database


def _public_url(raw: str) -> SplitResult:
    """`path` is "" or begins with a slash and ends without."""
    if not raw:
        return urlsplit("")
    url = urlsplit(raw.rstrip("/"))
    if (
        url.scheme not in ("http", "https")
        or not url.hostname
        or url.query or url.fragment or url.username
        or not re.fullmatch(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*", url.path)
        or (url.port is not None and url.port < 1)  # `port` raises ValueError for no number
    ):  # fmt: skip
        raise ImproperlyConfigured(
            f"NEVE_URL={raw}: write the address that people and nodes use, such as "
            "https://kv.example.com or https://example.com:8443/neve"
        )
    first = url.path.split("/")[1] if url.path else ""
    if first in OWN_PATHS:
        raise ImproperlyConfigured(
            f"NEVE_URL={raw}: the prefix may not begin with /{first}, a path of the platform's own"
        )
    return url


def _bus_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in BUS_SCHEMES or not parts.hostname:
        raise ImproperlyConfigured(
            f"NEVE_BUS_URL is {parts.scheme!r}…; use valkey://:password@host:port/0, or valkeys:// "
            "for TLS (redis:// and rediss:// mean the same)"
        )
    return f"{BUS_SCHEMES[parts.scheme]}{url[len(parts.scheme) :]}"


def _host_port(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("valkey", "valkeys", "redis", "rediss") or not parts.hostname:
        raise ImproperlyConfigured(
            f"NEVE_HOT_URL is {unquote(parts.scheme)!r}…; use valkey://:password@host:port/0"
        )
    return f"{parts.hostname}:{parts.port or 6379}"

"""`neve login`, `logout` and `whoami`: profiles, and who the caller is."""

import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import click

from neve.cli import config, text
from neve.cli.config import Config, Profile, check_name, config_path
from neve.cli.connection import Connection, open_api, platform_options, require_extra
from neve.cli.exits import NoKey
from neve.cli.output import Cell, Output
from neve.errors import Misuse
from neve.node.session import check_key, check_url

DEFAULT_ENDPOINT = "http://127.0.0.1:8000"
_MOST_KEY = 4096
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command()
@click.argument("endpoint", required=False)
@click.option("--profile", metavar="NAME", default="default", show_default=True)
@click.option("--default", "is_default", is_flag=True, help="Use it without --profile from now on.")
def login(endpoint: str | None, profile: str, is_default: bool) -> None:
    """Store a platform's address and an API key as a profile.

    Asks for the key without showing it, or reads it from standard input. There is no option for the
    key: others on this machine could see it.
    """
    require_extra()
    check_name(profile)
    out = Output()
    is_terminal = sys.stdin.isatty()
    if endpoint is None and is_terminal:
        endpoint = click.prompt("Address of the platform", default=DEFAULT_ENDPOINT, err=True)
    url = check_url(endpoint or DEFAULT_ENDPOINT)
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise Misuse("leave user and password out", field="endpoint")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        out.note(f"Warning: the key goes to {url} without encryption; use https where you can.")
    key = check_key(_ask_key() if is_terminal else sys.stdin.read(_MOST_KEY))
    api = open_api(url, key, retries=0)
    try:
        me = dict(api.me().raw)
    finally:
        api.close()
    known = config.load()
    first = not known.profiles
    stored = replace(
        known,
        profiles={**known.profiles, profile: Profile(url, key)},
        default=profile if first or is_default or profile == "default" else known.default,
    )
    path = config.save(stored)
    out.say(f"Logged in to {url} as {_caller(me)}; profile {profile} in {path}")
    if stored.default != profile:
        out.note(f"Use it with --profile {profile}, or NEVE_PROFILE={profile}.")
    if me.get("role") == "node":
        out.note("A key of role node serves `neve ping` and `doctor`; contexts need role team.")


def _ask_key() -> str:
    return str(click.prompt("API key (not shown)", hide_input=True, err=True))


def _caller(me: dict[str, Any]) -> str:
    tenants = ", ".join(tenants_of(me))
    return f"{me['name']} (role {me['role']}{f', tenant {tenants}' if tenants else ''})"


def tenants_of(me: dict[str, Any]) -> list[str]:
    """Slugs of the caller's tenants; of an operator, who sees all, none."""
    return [str(each["slug"]) for each in me.get("tenants") or ()]


def ends_at(me: dict[str, Any]) -> str | None:
    """When the caller's key ends; None: never."""
    return (me.get("key") or {}).get("expires_at")


@click.command()
@click.option("--profile", metavar="NAME", help="[default: the one in use]")
def logout(profile: str | None) -> None:
    """Forget a profile and its key. The key itself stays valid: `neve keys revoke` ends it."""
    known = config.load()
    name = profile or known.default
    if name is None:
        raise NoKey(f"there is no profile in {config_path()}")
    known.named(name)
    left = {each: value for each, value in known.profiles.items() if each != name}
    default = known.default if known.default in left else next(iter(sorted(left)), None)
    config.save(Config(left, default))
    click.echo(f"Profile {name} is forgotten." + (f" {default} is in use now." if default else ""))


@click.command()
@platform_options
def whoami(platform: Connection) -> None:
    """Show the key in use: its name, role, scopes, tenants and end."""
    me = platform.get("/me")
    known = platform.credentials

    def show() -> None:
        rate = me.get("rate_limit")
        facts: list[tuple[str, Cell]] = [
            ("endpoint", known.endpoint),
            ("profile", known.profile or "none: NEVE_API_KEY"),
            ("name", me["name"]),
            ("role", me["role"]),
            ("scopes", ", ".join(me.get("scopes") or ()) or text.NOTHING),
            ("tenants", ", ".join(tenants_of(me)) or "all"),
            ("ends", text.when(ends_at(me), datetime.now(UTC)) if ends_at(me) else "never"),
            ("may ask", f"{rate['requests']:,} times in {rate['window_s']} s" if rate else "ever"),
        ]
        platform.out.facts(facts)

    platform.show(me, show)

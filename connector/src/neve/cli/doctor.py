"""`neve doctor`: checks everything between here and a cached token, and says how to mend it.

Three parts, each by the key that it needs: the platform (any key), what a node sees (a key of role
node), spaces and hit rate (a key of role team or operator).
"""

import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from neve.cli import ping, text
from neve.cli.connection import Connection, platform_options
from neve.cli.login import ends_at, tenants_of
from neve.cli.names import find_space
from neve.cli.usage import RANGES, tokens_of
from neve.datapath.client import Client
from neve.datapath.usage import read_usage
from neve.errors import Misuse, NeveError
from neve.formats.space import SpaceIdentity
from neve.node.session import Session, check_key
from neve.planner.causes import ORDINARY, misses_of, ranked, summed

SKEW_S = 5.0
END_SOON = timedelta(days=7)
FULL = 0.95
SLOW_S = 0.005  # of an answer of Valkey in one data centre
_SAMPLES = 9
_FEW_TOKENS = 10_000  # below, a hit rate says little
_WORTH = 0.1  # of missed blocks: a reason below is left out of the verdict


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"
    SKIPPED = "skip"


_STYLES = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red", State.SKIPPED: "dim"}


@dataclass(frozen=True)
class Finding:
    """`fix`: what to do; empty if nothing is to be done."""

    check: str
    state: State
    fact: str
    fix: str = ""


def ok(check: str, fact: str) -> Finding:
    return Finding(check, State.OK, fact)


def _of_ping(check: ping.Check) -> Finding:
    state = State.OK if check.ok else State.FAIL
    return Finding(check.name, state, check.detail, check.fix or "")


@click.command()
@click.option("--model", metavar="MODEL", help="Look at this model's spaces and hit rate.")
@click.option("--space", metavar="SPACE", help="Compare this space with others of its model.")
@click.option("--node", metavar="NODE", help="Compare this node's space with others of its model.")
@click.option(
    "--engine-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Compare this identity: JSON as in `identity` of `neve spaces ls --json`.",
)
@click.option(
    "--node-key-file",
    envvar="NEVE_NODE_KEY_FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with a key of role node.  [env NEVE_NODE_KEY_FILE]",
)
@click.option("--range", "range_", type=click.Choice(RANGES), default="24h", show_default=True)
@click.option("--tenant", metavar="SLUG", help="Of operators: one tenant's hit rate.")
@platform_options
def doctor(
    platform: Connection,
    model: str | None,
    space: str | None,
    node: str | None,
    engine_config: Path | None,
    node_key_file: Path | None,
    range_: str,
    tenant: str | None,
) -> None:
    """Check everything between here and a cached token.

    Stores one small block in a space named after the model "neve-ping" if it has a key of role
    node. Exits with 1 if a check says FAIL.
    """
    found: list[Finding] = []
    subject = Subject(model, space, node, engine_config, tenant)
    for finding in _checks(platform, subject, node_key_file, range_):
        found.append(finding)
        if not platform.out.as_json:
            _say(platform, finding)
    bad = sum(finding.state is State.FAIL for finding in found)
    doubtful = sum(finding.state is State.WARN for finding in found)
    if platform.out.as_json:
        platform.out.document(
            {"checks": [asdict(each) for each in found], "failed": bad, "warned": doubtful}
        )
    else:
        platform.out.say(f"\n{len(found)} checks: {bad} FAIL, {doubtful} warn.")
    if bad:
        sys.exit(1)


def _say(platform: Connection, finding: Finding) -> None:
    from rich.text import Text

    console = platform.out.console
    head = Text.assemble(
        (f"{finding.state:<4}  ", _STYLES[finding.state]), (f"{finding.check:<11} ", "bold")
    )
    lines = [Text(text.printable(finding.fact, keep_lines=True))]
    if finding.fix:
        verb = "lever" if finding.check == "missed" else "fix"
        lines.append(Text(f"{verb}: {text.printable(finding.fix, keep_lines=True)}"))
    if not console.is_terminal:
        for number, line in enumerate(lines):
            click.echo((head.plain if number == 0 else " " * len(head.plain)) + line.plain)
        return
    from rich.table import Table

    grid = Table.grid()
    grid.add_column(no_wrap=True, width=len(head.plain))
    grid.add_column(overflow="fold")
    for number, line in enumerate(lines):
        grid.add_row(head if number == 0 else Text(), line)
    console.print(grid)


@dataclass(frozen=True)
class Subject:
    """Which model is asked about, and by what."""

    model: str | None
    space: str | None
    node: str | None
    engine_config: Path | None
    tenant: str | None


def _checks(
    platform: Connection, subject: Subject, node_key_file: Path | None, range_: str
) -> Iterator[Finding]:
    credentials = platform.credentials
    source = f"profile {credentials.profile}" if credentials.profile else "NEVE_API_KEY"
    yield ok("profile", f"{credentials.endpoint}, key from {source}")
    endpoint = ping.check_endpoint(credentials.endpoint)
    yield _of_ping(endpoint)
    if not endpoint.ok:
        return
    yield check_tls(credentials.endpoint)
    yield check_clock(credentials.endpoint)
    role = None
    for finding, me in check_key_in_use(platform):
        role = me.get("role") or role
        yield finding
    node_key = credentials.api_key if role == "node" else _key_of(node_key_file)
    if node_key is None:
        yield Finding(
            "node",
            State.SKIPPED,
            "Valkey and S3 are not tried: they need a key of role node",
            "give --node-key-file FILE (`make up` keeps one in var/demo.key)",
        )
    else:
        yield from check_node(credentials.endpoint, node_key)
    if role in ("team", "operator"):
        try:
            yield from check_spaces(platform, subject)
            yield from check_model_hits(platform, subject, range_)
            yield from check_hits(platform, subject, range_)
        except NeveError as error:
            yield Finding(
                "model", State.FAIL, str(error), getattr(error, "remedy", "") or "see the message"
            )
    elif role == "node":
        yield Finding(
            "model",
            State.SKIPPED,
            "spaces and hit rate are not looked at: they need a key of role team",
            "log in with one: `neve login --profile team`",
        )


def _key_of(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return check_key(file.read_text())
    except OSError as error:
        raise Misuse(f"cannot read {file}: {error.strerror}", field="--node-key-file") from error


def check_tls(endpoint: str) -> Finding:
    """Whether the way is encrypted, and how long the certificate lasts."""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if parts.scheme != "https":
        if host in ("127.0.0.1", "localhost", "::1"):
            return ok("tls", "none, and none is needed: the platform is on this machine")
        return Finding(
            "tls",
            State.WARN,
            "the key travels without encryption",
            "put a proxy with TLS in front of the platform (docs/operators.md), use https://",
        )
    context = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or None)
    try:
        with socket.create_connection((host, parts.port or 443), ping.TIMEOUT_S) as raw:
            with context.wrap_socket(raw, server_hostname=host) as tls:
                certificate, protocol = tls.getpeercert() or {}, tls.version()
    except OSError as error:
        return Finding(
            "tls",
            State.FAIL,
            str(error),
            "mend the certificate of the proxy, or name its authority with SSL_CERT_FILE",
        )
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    fact = f"{protocol}; the certificate ends {text.when(ends, datetime.now(UTC))}"
    if ends - datetime.now(UTC) < END_SOON:
        return Finding("tls", State.WARN, fact, "renew the certificate")
    return ok("tls", fact)


def check_clock(endpoint: str) -> Finding:
    """This machine's clock beside the platform's, by the Date of an answer (whole seconds)."""
    before = time.time()
    try:
        answer = ping.get(f"{endpoint}/cache/v1/")
        told = parsedate_to_datetime(answer.headers["Date"]).timestamp() + 0.5
    except (KeyError, TypeError, ValueError):
        return Finding("clock", State.WARN, "the answer has no date", "see what proxy removes it")
    off_s = (before + time.time()) / 2 - told
    if abs(off_s) <= SKEW_S:
        return ok("clock", "as the platform's, within a few seconds")
    return Finding(
        "clock",
        State.WARN,
        f"{abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} the platform's",
        "set both by NTP: moments such as --until, and logs, are read by the platform's clock",
    )


def check_key_in_use(platform: Connection) -> Iterator[tuple[Finding, dict[str, Any]]]:
    """What the key may do, how long, and which versions are on both sides."""
    try:
        me = platform.get("/me")
    except NeveError as error:
        remedy = getattr(error, "remedy", "") or "see the message"
        yield Finding("key", State.FAIL, str(getattr(error, "detail", error)), remedy), {}
        return
    tenants = ", ".join(tenants_of(me)) or "all tenants"
    scopes = ", ".join(map(str, me.get("scopes") or ())) or "none named"
    fact = f"{me.get('name')}: role {me.get('role')}, {tenants}; scopes: {scopes}"
    ends = text.moment(ends_at(me))
    now = datetime.now(UTC)
    if ends is not None and ends - now < END_SOON:
        ending = f"{fact}; ends {text.when(ends, now)}"
        yield Finding("key", State.WARN, ending, "rotate it: `neve keys rotate`"), me
    else:
        yield ok("key", f"{fact}; {'ends ' + text.when(ends, now) if ends else 'does not end'}"), me
    here, there = version("neve"), me.get("version") or me.get("platform_version")
    if there and there != here:
        yield (
            Finding(
                "version",
                State.WARN,
                f"neve {here} here, {there} on the platform",
                "use the same version; update the platform before the nodes",
            ),
            me,
        )
    else:
        yield ok("version", f"neve {here}" + (" on both sides" if there else " here")), me


def check_node(endpoint: str, key: str) -> Iterator[Finding]:
    """Handshake, Valkey and S3 as a node sees them."""
    try:
        client = Client.connect(
            endpoint,
            key,
            ping.IDENTITY,
            node=f"doctor-{socket.gethostname()}",
            engine={"name": "doctor", "version": "1"},
        )
    except NeveError as error:
        yield Finding("node", State.FAIL, str(error), ping.fix_of_refusal(error))
        return
    try:
        session = client.session
        yield ok("node", f"handshake as tenant {session.tenant_slug}")
        valkey = ping.check_valkey(session)
        yield _of_ping(valkey)
        if valkey.ok:
            yield from check_valkey_settings(session)
            yield _of_ping(ping.check_block(client))
        yield _of_ping(ping.check_s3(session))
    finally:
        client.close()


def check_valkey_settings(session: Session) -> Iterator[Finding]:
    """What a node can see of Valkey: encryption, round trip, room in the quotas."""
    took = []
    for _ in range(_SAMPLES):
        began = time.monotonic()
        usage = read_usage(session)
        took.append(time.monotonic() - began)
    median_s = sorted(took)[len(took) // 2]
    seeds = ", ".join(session.valkey.seeds)
    is_near = all(seed.startswith(("127.", "localhost", "[::1]")) for seed in session.valkey.seeds)
    fact = f"connect and ask takes {median_s * 1000:.1f} ms (median of {_SAMPLES}); " + (
        "TLS" if session.valkey.tls else "no TLS"
    )
    if not session.valkey.tls and not is_near:
        yield Finding(
            "valkey net",
            State.WARN,
            f"{fact} to {seeds}: block bytes travel without encryption",
            "use a network that only nodes and the platform reach, or TLS (docs/operators.md)",
        )
    elif median_s > SLOW_S * (4 if session.valkey.tls else 2):
        yield Finding(
            "valkey net",
            State.WARN,
            fact,
            "bring node and Valkey nearer to each other: each look-up waits a round trip",
        )
    else:
        yield ok("valkey net", fact)
    for tier, used, quota in (
        ("hot", usage.hot_bytes, usage.quota_hot_bytes),
        ("cold", usage.cold_bytes, usage.quota_cold_bytes),
    ):
        part = text.ratio(used, quota)
        words = f"{text.size(used)} of {text.size(quota)} ({text.share(part)})"
        if part is None:
            fix = f"raise the {tier} quota: it is 0"
            yield Finding(f"{tier} quota", State.WARN, words, fix)
        elif tier == "cold" and part > FULL:
            yield Finding(
                "cold quota",
                State.WARN,
                words,
                "old blocks leave for new ones: raise the cold quota, or expire what is not needed",
            )
        else:
            yield ok(f"{tier} quota", words)


def check_spaces(platform: Connection, subject: Subject) -> Iterator[Finding]:
    """Whether the identity asked about shares with the spaces of its model, and if not, why."""
    spaces = list(platform.rows("/spaces", {"tenant": subject.tenant}))
    identity, named = _identity(platform, subject, spaces)
    model = identity.model if identity else subject.model
    if model is None:
        return
    alike = [each for each in spaces if (each.get("identity") or {}).get("model") == model]
    if not alike:
        known = ", ".join(sorted({str((e.get("identity") or {}).get("model")) for e in spaces}))
        yield Finding(
            "space",
            State.WARN,
            f"no space holds model {model!r}; there are: {known or 'none'}",
            "connect an engine of this model (docs/nodes.md), or name it as its space does",
        )
        return
    if identity is None:
        identity, named = _parsed(alike[0]), f"space {alike[0]['name']}"
    others = [each for each in alike if f"space {each['name']}" != named]
    if not others:
        yield ok("fingerprint", f"{named} is the only one of {model}: all its engines share")
    for each in others:
        yield _compared(identity, named, each)


def _identity(
    platform: Connection, subject: Subject, spaces: list[dict[str, Any]]
) -> tuple[SpaceIdentity | None, str]:
    if subject.engine_config is not None:
        try:
            raw = json.loads(subject.engine_config.read_text())
        except (OSError, ValueError) as error:
            raise Misuse(f"cannot read it: {error}", field="--engine-config") from error
        return SpaceIdentity.from_dict(raw), subject.engine_config.name
    if subject.node is not None:
        sessions = list(platform.rows("/nodes", {"node": subject.node}, limit=1))
        if not sessions:
            raise Misuse(f"no node was named {subject.node!r}: `neve nodes --all`", field="--node")
        found = next((each for each in spaces if each["id"] == sessions[0]["space"]), None)
        if found is None:
            raise Misuse(f"the space of {subject.node!r} is gone", field="--node")
    elif subject.space is not None:
        found = find_space(platform, subject.space, tenant=subject.tenant)
    else:
        return None, ""
    return _parsed(found), f"space {found['name']}"


def _parsed(space: dict[str, Any]) -> SpaceIdentity:
    return SpaceIdentity.from_dict(space["identity"])


def _compared(identity: SpaceIdentity, named: str, space: dict[str, Any]) -> Finding:
    other = _parsed(space)
    differing = identity.differing_fields(other)
    if not differing:
        return ok("fingerprint", f"{named} and space {space['name']} are the same: they share")
    lines = "".join(
        f"\n  {field}: {_shown(getattr(identity, field))} here, "
        f"{_shown(getattr(other, field))} there"
        for field in differing
    )
    return Finding(
        "fingerprint",
        State.WARN,
        f"{named} and space {space['name']} do not share; they differ in:{lines}",
        "set the engine so that these fields are equal (docs/nodes.md, Configure), if they are "
        "meant to share",
    )


def _shown(value: object) -> str:
    words = repr(value)
    return words if len(words) <= 100 else f"{words[:99]}…"


def check_hits(platform: Connection, subject: Subject, range_: str) -> Iterator[Finding]:
    """The hit rate, and each reason of misses with its lever."""
    points, whose = _points(platform, subject, range_)
    total = summed(points)
    asked, hit = tokens_of(total)
    rate = text.ratio(hit, asked)
    fact = (
        f"{text.share(rate)} of {text.count(asked)} prompt tokens in the last {range_}{whose} "
        f"(hot {text.share(text.ratio(total.get('hit_hot_tokens'), asked))}, "
        f"cold {text.share(text.ratio(total.get('hit_cold_tokens'), asked))}, "
        f"local {text.share(text.ratio(total.get('hit_local_tokens'), asked))})"
    )
    if not asked:
        yield Finding(
            "hit rate",
            State.WARN,
            f"no prompt was looked up in the last {range_}{whose}",
            "see whether a node is connected (`neve nodes`) and its requests reach it",
        )
        return
    missed = ranked(misses_of(points))
    mendable = sum(each.share for each in missed if each.reason not in ORDINARY)
    is_bad = mendable > _WORTH and asked >= _FEW_TOKENS
    if is_bad:
        yield Finding(
            "hit rate",
            State.WARN,
            f"{fact}; {mendable:.0%} of the misses can be mended",
            "pull the levers below, the first one first",
        )
    else:
        yield ok("hit rate", fact)
    for each in missed:
        state = (
            State.WARN if each.reason not in ORDINARY and each.share > _WORTH and is_bad
            else State.OK
        )  # fmt: skip
        yield Finding(
            "missed",
            state,
            f"{each.share:.0%} {each.reason}: {each.what} ({text.count(each.blocks)} blocks)",
            each.lever,
        )


def _points(
    platform: Connection, subject: Subject, range_: str
) -> tuple[list[dict[str, Any]], str]:
    """Points of usage, and whose they are in words."""
    answer = platform.get("/usage", range=range_, tenant=subject.tenant)
    return answer["points"], f" of {subject.tenant}" if subject.tenant else ""


def check_model_hits(platform: Connection, subject: Subject, range_: str) -> Iterator[Finding]:
    """The hit rate of the model's spaces; reasons of misses are counted for the tenant alone."""
    if subject.model is None:
        return
    query = {"model": subject.model, "tenant": subject.tenant}
    numbers = {str(space["id"]) for space in platform.rows("/spaces", query)}
    answer = platform.get("/usage", range=range_, tenant=subject.tenant, by="space")
    totals = [each["totals"] for each in answer["groups"] if each["id"] in numbers]
    asked = sum(each["requested_tokens"] or 0 for each in totals)
    hit = sum(each["hit_tokens"] or 0 for each in totals)
    fact = f"{text.share(text.ratio(hit, asked))} of {text.count(asked)} tokens of {subject.model}"
    yield ok("model hits", f"{fact} in nodes that ran in the last {range_}")

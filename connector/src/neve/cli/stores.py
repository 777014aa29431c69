"""`neve stores`: S3 buckets that hold segments, rules of moves between them, moves under way."""

import os
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.exits import Failed, NeedsTerminal
from neve.cli.names import find_move_rule, find_store
from neve.cli.output import Cell, Column, name, number

_NULL = "null"
_PRICES = {"gib_month", "put_1000", "get_1000", "egress_gb"}
_CONDITIONS = {"least_age_s", "least_idle_s", "least_heat", "payback_days"}
_STATES = {"arriving": "cyan", "kept": "green", "leaving": "yellow", "deleting": "dim"}


@click.group()
def stores() -> None:
    """S3 buckets that hold segments, and how segments move between them. For operators.

    A store is named by its name; that of the platform's environment is `default`.
    """


@stores.command("ls")
@platform_options
def ls(platform: Connection) -> None:
    """List stores with their bytes and what these cost a month."""
    found = list(platform.rows("/stores"))

    def row(store: dict[str, Any]) -> list[Cell]:
        since = store.get("failing_since")
        return [
            store["name"],
            (f"away {text.age(since, datetime.now(UTC))}", "red") if since else ("well", "green"),
            text.count(store["priority"]),
            text.count(store["segments"]),
            text.size(store["stored_bytes"]),
            text.size(store["copy_bytes"]),
            text.size(store["leaving_bytes"]),
            store["money_a_month"],
            store["storage_class"] or text.NOTHING,
            f"{store['endpoint']}/{store['bucket']}",
        ]

    columns = (
        name("NAME"),
        Column("STATE"),
        number("PRIORITY", drop=5),
        number("SEGMENTS", drop=3),
        number("BYTES"),
        number("COPIES", drop=4),
        number("LEAVING", drop=6),
        number("A MONTH"),
        Column("CLASS", drop=7),
        name("BUCKET", drop=2),
    )

    def show() -> None:
        platform.out.table(columns, map(row, found), empty="No stores.")
        for store in found:
            if store.get("error"):
                platform.out.note(f"{store['name']}: {store['error']}")

    platform.show(found, show)


def _fields(command: Any) -> Any:
    """Options of `add` and `set`; the secret key comes from the environment or a question."""
    options = (
        click.option("--region", metavar="NAME"),
        click.option("--access-key", metavar="KEY", help="The secret key: NEVE_SECRET or asked."),
        click.option(
            "--credentials-env",
            metavar="PREFIX",
            help="In place of keys: NEVE_STORE_… of the environment of web and workers.",
        ),
        click.option("--class", "storage_class", metavar="CLASS", help="Such as STANDARD_IA."),
        click.option("--priority", type=click.IntRange(0, 32_767), help="Smallest is read first."),
        click.option("--gib-month", metavar="PRICE|null", help="One GiB for one month."),
        click.option(
            "--put-1000", metavar="PRICE|null", help="1,000 PUT, POST, COPY or LIST requests."
        ),
        click.option("--get-1000", metavar="PRICE|null", help="1,000 GET or HEAD requests."),
        click.option("--egress-gb", metavar="PRICE|null", help="10^9 bytes read."),
        click.option(
            "--move-mb-per-s", type=click.IntRange(1), help="Bound of moves into it, 10^6 bytes/s."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _body(given: dict[str, Any]) -> dict[str, Any]:
    body = {key: value for key, value in given.items() if value is not None}
    if (speed := body.pop("move_mb_per_s", None)) is not None:
        body["move_bytes_per_s"] = speed * 1_000_000
    if "access_key" in body:
        body["secret_key"] = _secret()
    for price in _PRICES & body.keys():
        body[price] = _or_null(body[price])
    return body


def _secret() -> str:
    """Raises `NeedsTerminal` if nobody can be asked."""
    if found := os.environ.get("NEVE_SECRET"):
        return found
    if not sys.stdin.isatty():
        raise NeedsTerminal("nobody can type the secret key here: set NEVE_SECRET")
    return str(click.prompt("Secret key", hide_input=True, err=True))


def _or_null(value: Any) -> Any:
    """`null` takes a price or a condition away, as in `neve policy set`."""
    return None if value == _NULL else value


class _OrNull(click.ParamType[Any]):
    """A value of another type, or `null`."""

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self._kind = kind
        self.name = f"{kind.name}|null"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == _NULL else self._kind.convert(value, param, ctx)


@stores.command("add")
@click.argument("store", metavar="NAME")
@click.option("--s3", metavar="URL", required=True, help="Such as https://s3.example.")
@click.option("--bucket", metavar="NAME", required=True, help="Exists already.")
@_fields
@platform_options
def add(platform: Connection, store: str, s3: str, **given: Any) -> None:
    """Add a store: an object is written, read and deleted there first."""
    body = {"name": store, "endpoint": s3} | _body(given)
    answer = platform.call("POST", "/stores", body, keep_null=True)
    platform.show(answer, lambda: platform.out.say(f"Store {answer['name']} is there."))


@stores.command("set")
@click.argument("store", metavar="NAME")
@_fields
@platform_options
def change(platform: Connection, store: str, **given: Any) -> None:
    """Change keys, class, priority, prices (`null`: the platform's) or the bound of moves."""
    body = _body(given)
    if not body:
        raise click.UsageError("give at least one option")
    path = f"/stores/{find_store(platform, store)['id']}"
    answer = platform.call("PATCH", path, body, keep_null=True)
    platform.show(answer, lambda: platform.out.say(f"Store {answer['name']} is changed."))


@stores.command("rm")
@click.argument("store", metavar="NAME")
@click.option("--yes", is_flag=True, help="Do not ask.")
@platform_options
def remove(platform: Connection, store: str, yes: bool) -> None:
    """Remove a store, and the rules that name it. What it alone holds becomes misses; objects there
    are not deleted."""
    row = find_store(platform, store)
    if not yes:
        ways = platform.rows("/move-rules")
        named = [each["name"] for each in ways if row["name"] in (each["source"], each["target"])]
        platform.out.confirm(
            f"{row['name']} holds {text.count(row['segments'])} segments "
            f"({text.size(row['stored_bytes'])}): blocks without a copy elsewhere become misses. "
            f"{_rules_go(named)} Remove it?",
            yes=yes,
        )
    answer = platform.call("DELETE", f"/stores/{row['id']}", query={"confirm": row["name"]})

    def show() -> None:
        lost, gone = answer["lost_segments"], answer["rules"]
        platform.out.say(
            f"Store {row['name']} is removed: {text.count(lost)} segments given up, "
            f"rules removed: {', '.join(gone) or 'none'}."
        )

    platform.show(answer, show)


def _rules_go(named: list[str]) -> str:
    return f"Rules that name it go, too: {', '.join(named)}." if named else "No rule names it."


@stores.command("moves")
@click.option("--tenant", metavar="SLUG")
@click.option("--state", type=click.Choice(list(_STATES)))
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@platform_options
def moves(platform: Connection, tenant: str | None, state: str | None, limit: int) -> None:
    """List copies that arrive, are kept, or leave after a move."""
    found = list(platform.rows("/moves", {"tenant": tenant, "state": state}, limit=limit))
    now = datetime.now(UTC)

    def row(copy: dict[str, Any]) -> list[Cell]:
        return [
            str(copy["segment"]),
            copy["tenant"],
            (copy["state"], _STATES.get(copy["state"], "")),
            copy["store"],
            copy["target"] or text.NOTHING,
            text.size(copy["size_bytes"]),
            text.age(copy["since"], now),
            copy["reason"] or text.NOTHING,
        ]

    columns = (
        number("SEGMENT"),
        name("TENANT"),
        Column("STATE"),
        name("STORE"),
        name("WENT TO"),
        number("BYTES"),
        Column("AGO"),
        name("RULE", drop=2),
    )
    platform.show(found, lambda: platform.out.table(columns, map(row, found), empty="No moves."))


@stores.command("rules")
@platform_options
def rules(platform: Connection) -> None:
    """List rules: the first one that fits a segment decides."""
    found = list(platform.rows("/move-rules"))

    def row(rule: dict[str, Any]) -> list[Cell]:
        return [
            rule["name"],
            text.count(rule["position"]),
            ("active", "green") if rule["is_active"] else ("off", "dim"),
            "copy" if rule["is_copy"] else "move",
            f"{rule['source'] or 'any'} → {rule['target']}",
            _conditions(rule),
            rule["tenant"] or "all",
        ]

    columns = (
        name("NAME"),
        number("POSITION"),
        Column("STATE"),
        Column("DOES"),
        name("WAY"),
        name("IF"),
        name("TENANT", drop=2),
    )
    platform.show(found, lambda: platform.out.table(columns, map(row, found), empty="No rules."))


def _conditions(rule: dict[str, Any]) -> str:
    found = []
    if rule["least_age_s"] is not None:
        found.append(f"older than {text.span(rule['least_age_s'])}")
    if rule["least_idle_s"] is not None:
        found.append(f"idle for {text.span(rule['least_idle_s'])}")
    if rule["least_heat"] is not None:
        found.append(f"heat {rule['least_heat']:g}")
    if rule["payback_days"] is not None:
        found.append(f"pays back in {rule['payback_days']} days")
    return ", ".join(found) or "always"


def _limits(command: Any) -> Any:
    """Options of `rule-add` and `rule-set`."""
    options = (
        click.option("--older-than", "least_age_s", metavar="DURATION|null"),
        click.option("--idle-for", "least_idle_s", metavar="DURATION|null"),
        click.option(
            "--heat",
            "least_heat",
            type=_OrNull(click.FLOAT),
            metavar="NUMBER|null",
            help="Minutes with a read, halved every 6 h.",
        ),
        click.option(
            "--payback-days", type=_OrNull(click.IntRange(1, 32_767)), metavar="DAYS|null"
        ),
        click.option("--position", type=click.IntRange(0, 32_767)),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _rule_body(given: dict[str, Any]) -> dict[str, Any]:
    body = {key: value for key, value in given.items() if value is not None}
    for key in _CONDITIONS & body.keys():
        body[key] = _or_null(body[key])
    for key in ("least_age_s", "least_idle_s"):
        if body.get(key) is not None:
            span = text.duration(body[key])
            if span is None:
                raise click.UsageError(
                    f"{body[key]!r} is no duration such as 7d or 12h; null: no such condition"
                )
            body[key] = int(span.total_seconds())
    return body


@stores.command("rule-add")
@click.argument("rule", metavar="NAME")
@click.option("--to", "target", metavar="STORE", required=True)
@click.option("--from", "source", metavar="STORE", help="[default: any other]")
@click.option("--tenant", metavar="SLUG", help="[default: all]")
@click.option("--copy", "is_copy", is_flag=True, help="Keep the old place.")
@_limits
@click.option("--off", is_flag=True, help="Add it inactive; try it with `stores dry-run`.")
@platform_options
def rule_add(platform: Connection, rule: str, off: bool, **given: Any) -> None:
    """Add a rule of moves."""
    body = {"name": rule, "is_active": not off} | _rule_body(given)
    answer = platform.call("POST", "/move-rules", body, keep_null=True)
    platform.show(answer, lambda: _say_rule(platform, answer, "is there"))


def _say_rule(platform: Connection, rule: dict[str, Any], what: str) -> None:
    platform.out.say(f"Rule {rule['name']} {what}.")
    for warning in rule["warnings"]:
        platform.out.note(warning)


@stores.command("rule-set")
@click.argument("rule", metavar="NAME")
@click.option("--on/--off", "is_active", default=None, help="Whether it moves segments.")
@_limits
@platform_options
def rule_set(platform: Connection, rule: str, **given: Any) -> None:
    """Switch a rule on or off, or change its conditions; `null` takes a condition away."""
    body = _rule_body(given)
    if not body:
        raise click.UsageError("give at least one option")
    row = find_move_rule(platform, rule)
    answer = platform.call("PATCH", f"/move-rules/{row['id']}", body, keep_null=True)
    platform.show(answer, lambda: _say_rule(platform, answer, "is changed"))


def _money(amount: str) -> str:
    """Sums of a few segments are far below a cent."""
    value = Decimal(amount)
    return (
        f"{value:.4f}"
        if abs(value) >= Decimal("0.0001") or not value
        else f"{value:.12f}".rstrip("0")
    )


def _why_nothing(run: dict[str, Any]) -> str:
    fitting = run["fitting"]
    if not fitting:
        return "Nothing would move now: no segment outside the target is old, idle and warm enough."
    reasons = (
        (run["unpaid"], "do not pay back in time"),
        (run["resting"], "moved within the last hour"),
        (run["copied"], "have a copy there already"),
    )
    why = ", ".join(f"{text.count(number)} {what}" for number, what in reasons if number)
    return (
        f"Nothing would move now: {text.count(fitting)} segments are old, idle and warm enough; "
        f"{why}."
    )


@stores.command("rule-rm")
@click.argument("rule", metavar="NAME")
@platform_options
def rule_remove(platform: Connection, rule: str) -> None:
    """Remove a rule. Segments stay where they are."""
    row = find_move_rule(platform, rule)
    answer = platform.call("DELETE", f"/move-rules/{row['id']}")
    platform.show(answer, lambda: platform.out.say(f"Rule {row['name']} is removed."))


@stores.command("dry-run")
@click.argument("rule", metavar="NAME")
@platform_options
def dry_run(platform: Connection, rule: str) -> None:
    """Say what a rule would move now, and the money. Moves nothing."""
    row = find_move_rule(platform, rule)
    answer = platform.call("POST", f"/move-rules/{row['id']}/dry-run")
    if answer is None:
        raise Failed("the platform gave no answer")

    def line(way: dict[str, Any]) -> list[Cell]:
        return [
            f"{way['source']} → {way['target']}",
            text.count(way["segments"]),
            text.size(way["bytes"]),
            _money(way["cost"]),
            _money(way["saved_a_month"]),
            text.span(way["seconds"]),
        ]

    columns = (
        name("WAY"),
        number("SEGMENTS"),
        number("BYTES"),
        number(f"{answer['currency']} ONCE"),
        number(f"{answer['currency']} SAVED A MONTH"),
        number("TAKES"),
    )

    def show() -> None:
        platform.out.table(columns, map(line, answer["ways"]), empty=_why_nothing(answer))
        for store in sorted({each for way in answer["ways"] for each in way["away"]}):
            platform.out.note(f"{store} is away: these moves wait until it answers.")

    platform.show(answer, show)

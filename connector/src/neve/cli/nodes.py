"""`neve nodes` and `neve engines`: what is connected, and what may be asked to compute."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.context_list import space_names
from neve.cli.names import find_engine
from neve.cli.output import Cell, Column, name, number
from neve.cli.usage import tokens_of
from neve.node.session import SCHEDULER_PART

_BREAKER = {"closed": "green", "open": "red", "half_open": "yellow"}
_STATES = {"healthy": "green", "unhealthy": "red"}

NODE_COLUMNS = (
    name("NODE"),
    name("SPACE", drop=2),
    name("ENGINE", drop=4),
    Column("STATE"),
    Column("BREAKER", drop=1),
    number("HITS"),
    number("READ", drop=3),
    Column("UP", drop=5),
)


@click.command()
@click.option("--tenant", metavar="SLUG")
@click.option("--all", "everything", is_flag=True, help="Also those that ended.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@platform_options
def nodes(platform: Connection, tenant: str | None, everything: bool, limit: int) -> None:
    """List engines that are connected now."""
    query = {"tenant": tenant, "live": None if everything else True}
    found = list(platform.rows("/nodes", query, limit=limit))

    def show() -> None:
        spaces = space_names(platform, tenant=tenant) if found else {}
        now = datetime.now(UTC)
        platform.out.table(
            NODE_COLUMNS,
            [node_row(node, spaces, now) for node in one_a_node(found)],
            empty="No node is connected: docs/nodes.md says how to connect one.",
        )

    platform.show(found, show)


def one_a_node(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without scheduler parts whose node is listed in the same state: its row has their counts."""

    def place(node: dict[str, Any]) -> tuple[Any, ...]:
        name = str(node["node"]).removesuffix(SCHEDULER_PART)
        ended = node.get("ended_at") is not None
        return node.get("tenant"), node.get("space"), name, node.get("breaker"), ended

    def is_part(node: dict[str, Any]) -> bool:
        return str(node["node"]).endswith(SCHEDULER_PART)

    nodes = {place(node) for node in found if not is_part(node)}
    return [node for node in found if not (is_part(node) and place(node) in nodes)]


def node_row(node: dict[str, Any], spaces: dict[Any, str], now: datetime) -> list[Cell]:
    totals = node.get("node_totals") or node.get("totals") or {}
    asked, hit = tokens_of(totals)
    engine = node.get("engine") or {}
    named = f"{engine.get('name', '')} {engine.get('version', '')}".strip()
    breaker = str(node.get("breaker") or text.NOTHING)
    ended = node.get("ended_at")
    return [
        node["node"],
        spaces.get(node.get("space"), str(node.get("space"))),
        named if isinstance(engine, dict) else str(engine),
        ("ended", "dim") if ended else ("live", "green"),
        (breaker, _BREAKER.get(breaker, "")),
        text.share(text.ratio(hit, asked)),
        text.size(sum(totals.get(f"{at}_read_bytes") or 0 for at in ("hot", "cold", "local"))),
        text.age(node.get("opened_at"), now),
    ]


@click.command()
@click.option("--tenant", metavar="SLUG")
@click.option("--check", metavar="ENGINE", help="Ask this one now: name or number.")
@platform_options
def engines(platform: Connection, tenant: str | None, check: str | None) -> None:
    """List registered engines: they put text into tokens and warm contexts."""
    if check is not None:
        platform.call("POST", f"/engines/{find_engine(platform, check)['id']}/check")
    found = list(platform.rows("/engines", {"tenant": tenant}))
    now = datetime.now(UTC)

    def row(engine: dict[str, Any]) -> list[Cell]:
        state = str(engine.get("state") or text.NOTHING)
        return [
            str(engine["id"]),
            engine["name"],
            str(engine.get("model") or text.NOTHING),
            (state, _STATES.get(state, "")),
            text.age(engine.get("checked_at"), now),
            engine.get("error") or text.NOTHING,
            engine.get("base_url") or text.NOTHING,
            "prefill" if engine.get("is_prefill") else "any",
            str(engine.get("source") or text.NOTHING),
        ]

    columns = (
        number("ID"),
        name("NAME"),
        name("MODEL"),
        Column("STATE"),
        Column("CHECKED", drop=1),
        name("ERROR", drop=2),
        name("ADDRESS", drop=3),
        Column("USE", drop=4),
        Column("SOURCE", drop=5),
    )
    platform.show(
        found,
        lambda: platform.out.table(
            columns, map(row, found), empty="No engine is registered (POST /api/v1/engines)."
        ),
    )

"""`neve contexts`: named prompts whose KV is stored, and what may be done with them."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import click

from neve.cli import text
from neve.cli.bulk import bulk
from neve.cli.connection import Connection, platform_options
from neve.cli.context_changes import create, expire, extend, label, pin, rename, rm, unpin, warm
from neve.cli.context_list import (
    COLUMNS,
    SORTS,
    filters,
    query_of,
    rows_of,
    space_names,
    state_of,
)
from neve.cli.context_names import all_of, one, where
from neve.cli.names import complete_context, find_context, find_space
from neve.cli.output import Cell, Column, name, number
from neve.cli.prompts import prompt_of, prompt_options
from neve.formats.loss import Loss


@click.group()
def contexts() -> None:
    """Named prompts whose KV is stored: find, make, keep, warm, compare, end.

    A context is named by its name or its id.
    """


@contexts.command("ls")
@filters
@click.option(
    "--sort",
    type=click.Choice([*SORTS, *(f"-{each}" for each in SORTS)]),
    default="-created_at",
    show_default=True,
)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--all", "everything", is_flag=True, help="All, however many.")
@platform_options
def ls(platform: Connection, sort: str, limit: int, everything: bool, **options: Any) -> None:
    """List contexts, the newest first."""
    query = query_of(platform, options) | {"ordering": sort}
    most = None if everything else limit
    found = list(platform.rows("/contexts", query, limit=most and most + 1))
    has_more = most is not None and len(found) > most
    found = found[:most]
    if platform.out.as_json:
        platform.out.document(found)
        return
    spaces = space_names(platform, tenant=options["tenant"]) if found else {}
    platform.out.table(
        COLUMNS,
        rows_of(found, spaces=spaces, now=datetime.now(UTC)),
        empty="No contexts fit."
        if len(query) > 1
        else "No contexts yet: `neve contexts create`, "
        "or a request with kv_transfer_params that names one.",
    )
    if has_more:
        total = platform.page("/contexts", {**query, "total": True, "page_size": 1})["total"]
        platform.out.note(f"{len(found)} of {text.count(total)}: --limit or --all shows more.")


@contexts.command()
@one
@where
@click.option("--runs", is_flag=True, help="Where the tokens are, run by run.")
@click.option("--blocks", is_flag=True, help="With --json: block by block.")
@platform_options
def show(
    platform: Connection,
    context: str,
    space: str | None,
    tenant: str | None,
    runs: bool,
    blocks: bool,
) -> None:
    """Show a context: its pins, its labels, and where its tokens are."""
    row = find_context(platform, context, space=space, tenant=tenant)
    detail = platform.get(f"/contexts/{row['id']}", **({"blocks": True} if blocks else {}))
    if runs:
        detail["residency"] = platform.get(f"/contexts/{row['id']}/residency")
    platform.show(detail, lambda: _show(platform, detail, with_runs=runs))


def _show(platform: Connection, detail: dict[str, Any], *, with_runs: bool) -> None:
    now, out = datetime.now(UTC), platform.out
    labels = " ".join(f"{key}={value}" for key, value in (detail.get("labels") or {}).items())
    facts: list[tuple[str, Cell]] = [
        ("name", detail["name"]),
        ("id", str(detail["id"])),
        ("tenant", detail.get("tenant") or text.NOTHING),
        ("space", space_names(platform).get(detail["space"], str(detail["space"]))),
        ("state", state_of(detail)),
        ("label", detail.get("label") or text.NOTHING),
        ("labels", labels or text.NOTHING),
        ("owner", detail.get("owner") or text.NOTHING),
        (
            "size",
            f"{text.count(detail['tokens'])} tokens in {text.count(detail['blocks'])} blocks, "
            f"{text.size(detail.get('size_bytes'))}",
        ),
        ("made", text.when(detail.get("created_at"), now)),
        ("last used", text.when(detail.get("last_used_at"), now)),
        ("pinned until", text.when(detail.get("pinned_until"), now)),
        ("extended until", text.when(detail.get("extended_until"), now)),
    ]
    if (loss := Loss.from_dict(detail.get("loss"))) is not None:
        facts.insert(4, ("KV", loss.words))
    if detail.get("expired_at"):
        facts.append(("expired", text.when(detail["expired_at"], now)))
    facts += [
        (f"pin {pin['id']}", f"until {text.when(pin['until'], now)}, {pin['owner']}"
         + (f": {pin['reason']}" if pin.get("reason") else ""))
        for pin in detail.get("pins") or ()
    ]  # fmt: skip
    residency = detail.get("residency")
    facts += _residency_facts(residency, detail["tokens"])
    out.facts(facts)
    if with_runs and residency and residency.get("runs"):
        out.say("")
        out.table(_RUNS, [_run(run) for run in residency["runs"]])


def _residency_facts(residency: dict[str, Any] | None, tokens: int) -> list[tuple[str, Cell]]:
    if residency is None:
        return [("stored", "unknown: the hot tier does not answer")]

    def of(which: str) -> str:
        part = residency.get(f"{which}_tokens")
        words = f"{text.count(part)} tokens ({text.share(text.ratio(part, tokens))})"
        held = residency.get(f"{which}_bytes")
        return words + (f", {text.size(held)}" if held is not None else "")

    lost = residency.get("lost_tokens") or 0
    return [
        ("hot", of("hot")),
        ("cold only", of("cold")),
        ("durable in S3", of("durable")),
        ("lost", (of("lost"), "red") if lost else of("lost")),
        (
            "usable",
            f"{text.count(residency.get('usable_tokens'))} tokens from the start, "
            f"{text.count(residency.get('usable_hot_tokens'))} without S3",
        ),
    ]


_RUNS = (
    number("FROM TOKEN"),
    number("TOKENS"),
    number("SIZE"),
    Column("TIER"),
    Column("DURABLE"),
    Column("REASON"),
)


def _run(run: dict[str, Any]) -> list[Cell]:
    return [
        text.count(run.get("first_token")),
        text.count(run.get("tokens")),
        text.size(run.get("bytes")),
        run.get("tier") or ("lost", "red"),
        "yes" if run.get("is_durable") else "no",
        run.get("reason") or text.NOTHING,
    ]


@contexts.command()
@click.option("--space", metavar="SPACE", required=True, help="Name or number of the space.")
@click.option("--tenant", metavar="SLUG", help="Of the space, for operators.")
@prompt_options
@platform_options
def lookup(platform: Connection, space: str, tenant: str | None, **prompt: Any) -> None:
    """Say how much of a prompt is stored, and what loading it would cost."""
    where = find_space(platform, space, tenant=tenant)
    answer = platform.call("POST", "/lookup", {"space": where["id"], **prompt_of(**prompt)})
    platform.show(answer, lambda: _say_lookup(platform, answer))


def _say_lookup(platform: Connection, answer: dict[str, Any]) -> None:
    tokens = answer.get("tokens")

    def of(part: float | None) -> str:
        return f"{text.count(part)} tokens ({text.share(text.ratio(part, tokens))})"

    cost = answer.get("cost") or {}
    seconds = {which: cost.get(f"{which}_s") for which in ("load", "compute")}
    said = ", ".join(
        f"{which} {value:.3f} s" for which, value in seconds.items() if value is not None
    )
    verdict = cost.get("verdict") or "unknown which is faster"
    platform.out.facts(
        [
            ("prompt", f"{text.count(tokens)} tokens, {text.count(answer.get('tail_tokens'))} of "
             "them after the last whole chunk"),
            ("hot", of(answer.get("hot_tokens"))),
            ("cold", of(answer.get("cold_tokens"))),
            ("lost", of(answer.get("lost_tokens"))),
            ("usable", f"{of(answer.get('usable_tokens'))}, "
             f"{text.count(answer.get('usable_hot_tokens'))} tokens without S3"),
            ("cost", f"{said}; {verdict} ({cost.get('basis')})" if said
             else "unknown: no live node measured its speeds yet"),
        ]
    )  # fmt: skip
    if answer.get("contexts"):
        platform.out.say("")
        platform.out.table(
            (name("CONTEXT"), number("SHARED TOKENS"), Column("ID", drop=1)),
            [
                [row["name"], text.count(row.get("shared_tokens")), str(row["id"])]
                for row in answer["contexts"]
            ],
        )


@contexts.command()
@click.argument("context", metavar="CONTEXT", shell_complete=complete_context)
@click.argument("other", metavar="OTHER", shell_complete=complete_context)
@where
@platform_options
def diff(
    platform: Connection, context: str, other: str, space: str | None, tenant: str | None
) -> None:
    """Say how long the common beginning of two contexts is, and where they part."""
    first, second = all_of(platform, (context, other), space, tenant)
    answer = platform.get(f"/contexts/{first['id']}/diff", **{"with": second["id"]})
    platform.show(answer, lambda: _say_diff(platform, first, second, answer))


def _say_diff(
    platform: Connection, first: dict[str, Any], second: dict[str, Any], answer: dict[str, Any]
) -> None:
    parts_at = answer.get("parts_at_token")

    def only(which: str) -> str:
        found = answer.get(which) or {}
        blocks = text.count(found.get("blocks"))
        return f"{text.count(found.get('tokens'))} tokens in {blocks} blocks"

    facts: list[tuple[str, Cell]] = [
        ("shared", f"{text.count(answer.get('shared_tokens'))} tokens in "
         f"{text.count(answer.get('shared_blocks'))} blocks"),
        ("they part", "nowhere: one is the other's beginning, or both are equal"
         if parts_at is None else f"in the block that begins at token {text.count(parts_at)}"),
        (f"only {first['name']}", only("only_this")),
        (f"only {second['name']}", only("only_other")),
    ]  # fmt: skip
    if answer.get("same_space") is False:
        facts.append(("spaces", "differ, so no block is shared: see `neve spaces compare`"))
    platform.out.facts(facts)


@contexts.command()
@click.argument("space")
@click.option("--tenant", metavar="SLUG", help="Of the space, for operators.")
@click.option("--limit", type=click.IntRange(min=1), help="Most branches.")
@click.option("--depth", type=click.IntRange(min=1), help="Deepest level.")
@click.option("--min-tokens", type=click.IntRange(min=0), help="Shortest shared beginning.")
@platform_options
def tree(
    platform: Connection,
    space: str,
    tenant: str | None,
    limit: int | None,
    depth: int | None,
    min_tokens: int | None,
) -> None:
    """Show which contexts of SPACE share beginnings, as a tree."""
    where = find_space(platform, space, tenant=tenant)
    answer = platform.get(
        f"/spaces/{where['id']}/lineage", limit=limit, depth=depth, min_tokens=min_tokens
    )
    platform.show(answer, lambda: _say_tree(platform, where["name"], answer))


def _say_tree(platform: Connection, space: str, answer: dict[str, Any]) -> None:
    from rich.text import Text
    from rich.tree import Tree

    width = platform.out.console.width

    def add(branch: Tree, node: dict[str, Any]) -> None:
        for each in node.get("contexts") or ():
            label = Text(f"{text.printable(each['name'])}  {text.count(each['tokens'])} tokens")
            branch.add(label)
        for child in node.get("children") or ():
            shared = f"shared beginning of {text.count(child.get('tokens'))} tokens"
            add(branch.add(Text(shared, "cyan")), child)
        if node.get("more"):
            branch.add(Text(_more(node["more"]), "dim"))

    root = Tree(Text(text.printable(space), "bold"))
    add(root, answer)
    platform.out.console.print(root, width=width, no_wrap=True, overflow="ellipsis")


def _more(more: Any) -> str:
    """`more`: whether something was left out, or how much."""
    number = f"{text.count(more)} " if isinstance(more, int) and more is not True else ""
    return f"… {number}more: --limit, --depth or --min-tokens"


@contexts.command()
@filters
@click.option(
    "--format", "form", type=click.Choice(["csv", "jsonl"]), default="jsonl", show_default=True
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, writable=True),
    help="File instead of standard output.",
)
@platform_options
def export(platform: Connection, form: str, output: str | None, **options: Any) -> None:
    """Write all contexts that fit, as JSON Lines or CSV."""
    lines = platform.lines("/contexts/export", **query_of(platform, options), format=form)
    write_lines(platform, lines, output)


def write_lines(platform: Connection, lines: Iterable[str], output: str | None) -> None:
    """Writes an export. Lines go to a terminal without what it would obey."""
    if output is None:
        is_terminal = platform.out.console.is_terminal
        for line in lines:
            click.echo(text.printable(line) if is_terminal else line)
        return
    number = 0
    with open(output, "w", encoding="utf-8", newline="") as file:
        for line in lines:
            file.write(line + "\n")
            number += 1
    platform.out.note(f"{text.count(number)} lines in {output}.")


for command in (create, rename, label, pin, unpin, extend, expire, rm, warm, bulk):
    contexts.add_command(command)

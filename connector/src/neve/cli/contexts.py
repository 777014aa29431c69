"""`neve contexts`: named prompts whose KV is stored, and what may be done with them."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.context_list import (
    COLUMNS,
    SORTS,
    filters,
    pinned,
    query_of,
    rows_of,
    space_names,
    state_of,
)
from neve.cli.jobs import follow
from neve.cli.names import complete_context, find_context, find_engine, find_space
from neve.cli.output import Cell, Column, name, number
from neve.cli.prompts import prompt_of, prompt_options

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def contexts() -> None:
    """Named prompts whose KV is stored: find, make, keep, warm, compare, end.

    A context is named by its name or its id.
    """


def _where(command: F) -> F:
    """--space and --tenant, for names that several spaces have."""
    for option in (
        click.option("--tenant", metavar="SLUG", help="Where to look, for operators."),
        click.option("--space", metavar="SPACE", help="Where to look if several have the name."),
    ):
        command = option(command)
    return command


_one = click.argument("context", metavar="CONTEXT", shell_complete=complete_context)
_several = click.argument(
    "names", metavar="CONTEXT...", nargs=-1, required=True, shell_complete=complete_context
)
_yes = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def _found(
    platform: Connection, names: Iterable[str], space: str | None, tenant: str | None
) -> list[dict[str, Any]]:
    """All of them, before anything is changed."""
    return [find_context(platform, each, space=space, tenant=tenant) for each in names]


def _each(
    platform: Connection,
    found: list[dict[str, Any]],
    act: Callable[[dict[str, Any]], tuple[Any, str]],
) -> None:
    """Acts on one context after the other. With --json: one document for one context, else a list
    of {id, name, answer}."""
    answers = []
    for row in found:
        answer, words = act(row)
        answers.append({"id": row["id"], "name": row["name"], "answer": answer})
        if not platform.out.as_json:
            platform.out.say(f"{row['name']}: {words}")
    if platform.out.as_json:
        platform.out.document(answers)


# --- reading


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
        platform.out.note(f"The first {len(found)}: --limit or --all shows more.")


@contexts.command()
@_one
@_where
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
        return f"{text.count(part)} ({text.share(text.ratio(part, tokens))})"

    cost = answer.get("cost") or {}
    seconds = {which: cost.get(f"{which}_s") for which in ("load", "compute")}
    said = ", ".join(
        f"{which} {value:.3f} s" for which, value in seconds.items() if value is not None
    )
    platform.out.facts(
        [
            ("prompt", f"{text.count(tokens)} tokens"),
            ("hot", of(answer.get("hot_tokens"))),
            ("cold", of(answer.get("cold_tokens"))),
            ("lost", of(answer.get("lost_tokens"))),
            ("usable", f"{of(answer.get('usable_tokens'))}, "
             f"{text.count(answer.get('usable_hot_tokens'))} without S3"),
            ("cost", f"{said or text.NOTHING}; {cost.get('verdict') or 'no verdict'}"
             + (f" ({cost['basis']})" if cost.get("basis") else "")),
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
@_where
@platform_options
def diff(
    platform: Connection, context: str, other: str, space: str | None, tenant: str | None
) -> None:
    """Say how long the common beginning of two contexts is, and where they part."""
    first, second = _found(platform, (context, other), space, tenant)
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


# --- making and naming


@contexts.command()
@click.argument("context", metavar="NAME")
@click.option("--space", metavar="SPACE", required=True, help="Name or number of the space.")
@click.option("--tenant", metavar="SLUG", help="Of the space, for operators.")
@prompt_options
@click.option("--label", metavar="LABEL", help="What retention rules match.")
@click.option("--labels", metavar="KEY=VALUE", multiple=True, help="May be given several times.")
@click.option("--warm", is_flag=True, help="Have an engine compute it now, and wait.")
@platform_options
def create(
    platform: Connection,
    context: str,
    space: str,
    tenant: str | None,
    label: str | None,
    labels: tuple[str, ...],
    warm: bool,
    **prompt: Any,
) -> None:
    """Make a context of a prompt, before any request has computed it.

    Text and messages are put into tokens by a registered engine of the space.
    """
    body = {
        "space": find_space(platform, space, tenant=tenant)["id"],
        "name": context,
        **prompt_of(**prompt),
        "label": label,
        "labels": dict(_pairs(labels)) or None,
    }
    made = platform.call("POST", "/contexts", body)
    if not platform.out.as_json:
        platform.out.say(
            f"{made['name']}: made, {text.count(made.get('tokens'))} tokens, id {made['id']}"
        )
    if warm:
        job = platform.call("POST", f"/contexts/{made['id']}/warm", {})
        made["warm_job"] = follow(platform, job)
    if platform.out.as_json:
        platform.out.document(made)


def _pairs(labels: Iterable[str]) -> Iterable[tuple[str, str]]:
    for each in labels:
        key, equals, value = each.partition("=")
        if not key or not equals:
            raise click.UsageError(f"write a label as KEY=VALUE, got {each!r}")
        yield key, value


@contexts.command()
@_one
@click.argument("new", metavar="NEW_NAME")
@_where
@platform_options
def rename(
    platform: Connection, context: str, new: str, space: str | None, tenant: str | None
) -> None:
    """Give a context another name."""
    row = find_context(platform, context, space=space, tenant=tenant)
    changed = platform.call("PATCH", f"/contexts/{row['id']}", {"name": new})
    platform.show(changed, lambda: platform.out.say(f"{row['name']}: now {changed['name']}"))


@contexts.command()
@_one
@click.argument("labels", metavar="KEY=VALUE|KEY-...", nargs=-1)
@click.option("--rule-label", metavar="LABEL", help="The label that retention rules match.")
@_where
@platform_options
def label(
    platform: Connection,
    context: str,
    labels: tuple[str, ...],
    rule_label: str | None,
    space: str | None,
    tenant: str | None,
) -> None:
    """Set labels (KEY=VALUE) or remove them (KEY-)."""
    if not labels and rule_label is None:
        raise click.UsageError("give KEY=VALUE, KEY- or --rule-label")
    row = find_context(platform, context, space=space, tenant=tenant)
    row = platform.get(f"/contexts/{row['id']}")
    body: dict[str, Any] = {"label": rule_label}
    if labels:
        kept = dict(row.get("labels") or {})
        for each in labels:
            if each.endswith("-") and "=" not in each:
                kept.pop(each[:-1], None)
            else:
                kept |= dict(_pairs([each]))
        body["labels"] = kept
    changed = platform.call("PATCH", f"/contexts/{row['id']}", body)
    shown = " ".join(f"{key}={value}" for key, value in (changed.get("labels") or {}).items())
    platform.show(
        changed,
        lambda: platform.out.say(
            f"{row['name']}: labels {shown or text.NOTHING}, for rules "
            f"{changed.get('label') or text.NOTHING}"
        ),
    )


# --- keeping and ending


@contexts.command()
@_several
@click.option("--for", "for_", metavar="DURATION", help="So long from now: 2h, 7d, 1h30m.")
@click.option("--until", metavar="MOMENT", help="Such as 2026-03-01T12:00:00Z.")
@click.option("--tier", type=click.Choice(["any", "hot", "durable"]), help="Where it stays.")
@click.option("--reason", metavar="TEXT", help="Shown to others.")
@_where
@platform_options
def pin(
    platform: Connection,
    names: tuple[str, ...],
    for_: str | None,
    until: str | None,
    tier: str | None,
    reason: str | None,
    space: str | None,
    tenant: str | None,
) -> None:
    """Keep contexts whatever the quota's pressure, until a moment."""
    if (for_ is None) == (until is None):
        raise click.UsageError("give either --for or --until")
    body = {"for": for_, "until": until, "tier": tier, "reason": reason}

    def act(row: dict[str, Any]) -> tuple[Any, str]:
        answer = platform.call("POST", f"/contexts/{row['id']}/pin", body)
        until = text.when(answer["pinned_until"], datetime.now(UTC))
        return answer, f"pinned until {until}, {_kept(answer, 'kept')}"

    _each(platform, _found(platform, names, space, tenant), act)


def _kept(answer: dict[str, Any], member: str) -> str:
    lost = answer.get("lost")
    return f"{text.count(answer.get(member))} blocks" + (
        f", {text.count(lost)} are lost" if lost else ""
    )


@contexts.command()
@_several
@click.option("--pin", "pin_", type=click.IntRange(min=1), help="Of operators: this pin.")
@click.option("--all", "everybody", is_flag=True, help="Of operators: everybody's pins.")
@_where
@platform_options
def unpin(
    platform: Connection,
    names: tuple[str, ...],
    pin_: int | None,
    everybody: bool,
    space: str | None,
    tenant: str | None,
) -> None:
    """End your pin on contexts."""
    body = {"pin": pin_, "all": everybody or None}

    def act(row: dict[str, Any]) -> tuple[Any, str]:
        answer = platform.call("POST", f"/contexts/{row['id']}/unpin", body)
        left = text.when(answer.get("pinned_until"), datetime.now(UTC))
        words = f"{text.count(answer.get('removed'))} pins ended"
        return answer, words + (f", others pin it until {left}" if left != text.NOTHING else "")

    _each(platform, _found(platform, names, space, tenant), act)


@contexts.command()
@_several
@click.option("--for", "for_", metavar="DURATION", required=True, help="2h, 7d, 1h30m.")
@_where
@platform_options
def extend(
    platform: Connection, names: tuple[str, ...], for_: str, space: str | None, tenant: str | None
) -> None:
    """Have contexts end so long from now at the earliest."""

    def act(row: dict[str, Any]) -> tuple[Any, str]:
        answer = platform.call("POST", f"/contexts/{row['id']}/extend", {"for": for_})
        return answer, f"extended by {for_} from now, {_kept(answer, 'extended')}"

    _each(platform, _found(platform, names, space, tenant), act)


@contexts.command()
@_several
@click.option("--at", metavar="MOMENT", help="Then instead of now: 2026-03-01T12:00:00Z.")
@click.option("--dry-run", is_flag=True, help="Say what would go, change nothing.")
@_yes
@_where
@platform_options
def expire(
    platform: Connection,
    names: tuple[str, ...],
    at: str | None,
    dry_run: bool,
    yes: bool,
    space: str | None,
    tenant: str | None,
) -> None:
    """End contexts: remove their blocks, except those that other contexts hold."""
    found = _found(platform, names, space, tenant)
    if dry_run or not (yes or at):
        would = [
            platform.call("POST", f"/contexts/{row['id']}/expire", {"dry_run": True})
            for row in found
        ]
        if dry_run:
            answers = iter(would)
            _each(platform, found, lambda row: _expired(next(answers), "would remove"))
            return
        for row, answer in zip(found, would, strict=True):
            platform.out.note(f"{row['name']}: {_expired(answer, 'would remove')[1]}")
    elif not yes:
        platform.out.note(f"{', '.join(row['name'] for row in found)}: would end at {at}")
    platform.out.confirm(f"Expire {_named(found)}?", yes=yes)

    def act(row: dict[str, Any]) -> tuple[Any, str]:
        answer = platform.call("POST", f"/contexts/{row['id']}/expire", {"at": at})
        return (answer, f"ends at {at}") if at else _expired(answer, "removed")

    _each(platform, found, act)


def _expired(answer: dict[str, Any], verb: str) -> tuple[Any, str]:
    words = (
        f"{verb} {text.count(answer.get('removed'))} blocks "
        f"({text.size(answer.get('removed_bytes'))})"
    )
    if answer.get("shared"):
        words += f"; {text.count(answer['shared'])} shared ones stay"
    if answer.get("lost"):
        words += f"; {text.count(answer['lost'])} were lost before"
    return answer, words


def _named(found: list[dict[str, Any]]) -> str:
    return repr(found[0]["name"]) if len(found) == 1 else f"these {len(found)} contexts"


@contexts.command()
@_several
@_yes
@_where
@platform_options
def rm(
    platform: Connection, names: tuple[str, ...], yes: bool, space: str | None, tenant: str | None
) -> None:
    """Forget contexts and their pins; their blocks stay for as long as others or the space say.

    `expire` removes blocks.
    """
    found = _found(platform, names, space, tenant)
    if not yes:
        now = datetime.now(UTC)
        for row in found:
            platform.out.note(
                f"{row['name']}: {text.count(row['tokens'])} tokens, pinned {pinned(row, now)}"
            )
    platform.out.confirm(f"Forget {_named(found)}?", yes=yes)

    def act(row: dict[str, Any]) -> tuple[Any, str]:
        return platform.call("DELETE", f"/contexts/{row['id']}"), "forgotten; its blocks stay"

    _each(platform, found, act)


@contexts.command()
@_one
@click.option("--engine", metavar="ENGINE", help="Name or number.  [default: one of the space]")
@click.option("--no-wait", is_flag=True, help="Return once the job is there.")
@_where
@platform_options
def warm(
    platform: Connection,
    context: str,
    engine: str | None,
    no_wait: bool,
    space: str | None,
    tenant: str | None,
) -> None:
    """Have a registered engine compute what is not stored, and wait for it."""
    row = find_context(platform, context, space=space, tenant=tenant)
    chosen = find_engine(platform, engine)["id"] if engine else None
    job = platform.call("POST", f"/contexts/{row['id']}/warm", {"engine": chosen})
    if not no_wait:
        job = follow(platform, job)
    platform.show(job, lambda: platform.out.say(f"{row['name']}: job {job['id']} {job['state']}"))


@contexts.command()
@click.argument("action", type=click.Choice(["pin", "unpin", "expire", "label", "delete"]))
@filters
@click.option("--for", "for_", metavar="DURATION", help="Of pin.")
@click.option("--until", metavar="MOMENT", help="Of pin.")
@click.option("--tier", type=click.Choice(["any", "hot", "durable"]), help="Of pin.")
@click.option("--reason", metavar="TEXT", help="Of pin.")
@click.option(
    "--set",
    "set_",
    metavar="KEY=VALUE",
    multiple=True,
    help="Of label; may be given several times.",
)
@click.option("--remove", metavar="KEY", multiple=True, help="Of label.")
@click.option("--preview", is_flag=True, help="Say what it would touch, change nothing.")
@click.option("--no-wait", is_flag=True, help="Return once the job is there.")
@_yes
@platform_options
def bulk(
    platform: Connection,
    action: str,
    for_: str | None,
    until: str | None,
    tier: str | None,
    reason: str | None,
    set_: tuple[str, ...],
    remove: tuple[str, ...],
    preview: bool,
    no_wait: bool,
    yes: bool,
    **options: Any,
) -> None:
    """Pin, unpin, expire, label or delete all contexts that fit the filters."""
    if action == "pin" and (for_ is None) == (until is None):
        raise click.UsageError("pin needs either --for or --until")
    if action == "label" and not (set_ or remove):
        raise click.UsageError("label needs --set or --remove")
    arguments: dict[str, Any] = {"for": for_, "until": until, "tier": tier, "reason": reason}
    if set_ or remove:
        arguments["labels"] = {**dict(_pairs(set_)), **dict.fromkeys(remove)}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    body = {"action": action, "filter": query_of(platform, options), "arguments": arguments}
    would = platform.call("POST", "/contexts/bulk/preview", body)
    words = _bulk_words(action, would)
    if preview:
        platform.show(would, lambda: platform.out.say(words))
        return
    if not yes:
        platform.out.note(words)
    platform.out.confirm(f"{action.capitalize()} them?", yes=yes)
    job = platform.call("POST", "/contexts/bulk", {"token": would["token"]})
    if not no_wait:
        job = follow(platform, job)
    platform.show(job, lambda: platform.out.say(f"{words}; job {job['id']} {job['state']}"))


def _bulk_words(action: str, would: dict[str, Any]) -> str:
    words = (
        f"{action}: {text.count(would.get('contexts'))} contexts, "
        f"{text.count(would.get('blocks'))} blocks, {text.size(would.get('bytes'))}"
    )
    if would.get("shared_bytes") is not None:
        words += f", {text.size(would['shared_bytes'])} of them shared with others"
    if action == "expire" and would.get("freed_bytes") is not None:
        words += f", {text.size(would['freed_bytes'])} become free"
    return words

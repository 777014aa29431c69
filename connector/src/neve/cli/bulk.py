"""`neve contexts bulk`: one action on all contexts that fit, after a preview."""

from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.context_list import FILTERS, filters, labels_of, query_of
from neve.cli.jobs import follow


@click.command()
@click.argument(
    "action", type=click.Choice(["pin", "unpin", "extend", "expire", "label", "delete"])
)
@filters
@click.option("--every", is_flag=True, help="All contexts of the tenant, without a filter.")
@click.option("--for", "for_", metavar="DURATION", help="Of pin and extend.")
@click.option("--until", metavar="MOMENT", help="Of pin.")
@click.option("--tier", type=click.Choice(["any", "hot", "durable"]), help="Of pin.")
@click.option("--reason", metavar="TEXT", help="Of pin.")
@click.option("--everybodys", is_flag=True, help="Of unpin, for operators: pins of everybody.")
@click.option("--set", "set_", metavar="KEY=VALUE", multiple=True, help="Of label; repeatable.")
@click.option("--remove", metavar="KEY", multiple=True, help="Of label; repeatable.")
@click.option("--preview", is_flag=True, help="Say what it would touch, change nothing.")
@click.option("--no-wait", is_flag=True, help="Return once the job is there.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@platform_options
def bulk(
    platform: Connection,
    action: str,
    every: bool,
    for_: str | None,
    until: str | None,
    tier: str | None,
    reason: str | None,
    everybodys: bool,
    set_: tuple[str, ...],
    remove: tuple[str, ...],
    preview: bool,
    no_wait: bool,
    yes: bool,
    **options: Any,
) -> None:
    """Pin, unpin, extend, expire, label or delete all contexts that fit the filters.

    It is done to the contexts of the preview and to no others.
    """
    arguments: dict[str, Any] = {
        "for": for_,
        "until": until,
        "tier": tier,
        "reason": reason,
        "all": everybodys or None,
    }
    if set_ or remove:
        arguments["labels"] = {**labels_of(set_), **dict.fromkeys(remove)}
    _check(action, arguments)
    if every == any(options[each] not in (None, ()) for each in FILTERS if each != "tenant"):
        raise click.UsageError("give filters, or --every for all contexts of the tenant")
    would = platform.call(
        "POST",
        "/contexts/bulk/preview",
        {
            "action": action,
            "filter": query_of(platform, options),
            "every": every or None,
            "arguments": {name: value for name, value in arguments.items() if value is not None},
        },
    )
    words = _words(action, would)
    if preview or not would["contexts"]:
        platform.show(would, lambda: platform.out.say(words))
        return
    if not yes:
        platform.out.note(words)
    platform.out.confirm(f"{action.capitalize()} them?", yes=yes)
    job = platform.call("POST", "/contexts/bulk", {"token": would["token"]})
    if not no_wait:
        job = follow(platform, job)
    platform.show(
        job,
        lambda: platform.out.say(f"{words}\nJob {job['id']} {job['state']}{_outcome(job)}"),
    )


def _outcome(job: dict[str, Any]) -> str:
    """The contexts that a job has done and refused so far; empty before it began."""
    detail = job.get("detail") or {}
    if "done" not in detail:
        return ""
    refused = detail.get("refused") or {}
    why = ", ".join(f"{count} {reason}" for reason, count in refused.items())
    return (
        f": {text.count(detail['done'])} of {text.count(detail.get('contexts'))} contexts done, "
        f"{text.count(sum(refused.values()))} refused" + (f" ({why})" if why else "")
    )


def _check(action: str, arguments: dict[str, Any]) -> None:
    """Raises click's `UsageError` for what is missing or belongs to another action."""
    takes = {
        "pin": ("for", "until", "tier", "reason"),
        "unpin": ("all",),
        "extend": ("for",),
        "label": ("labels",),
    }.get(action, ())
    options = {"all": "everybodys", "labels": "set and --remove"}
    for name, value in arguments.items():
        if value is not None and name not in takes:
            raise click.UsageError(f"--{options.get(name, name)}: not of {action}")
    if action == "pin" and (arguments["for"] is None) == (arguments["until"] is None):
        raise click.UsageError("pin needs either --for or --until")
    if action == "extend" and arguments["for"] is None:
        raise click.UsageError("extend needs --for")
    if action == "label" and "labels" not in arguments:
        raise click.UsageError("label needs --set or --remove")


def _words(action: str, would: dict[str, Any]) -> str:
    about = "about " if would.get("is_estimate") else ""
    words = (
        f"{action}: {text.count(would['contexts'])} contexts, "
        f"{text.count(would.get('blocks'))} blocks, {about}{text.size(would.get('bytes'))}"
    )
    if would.get("shared_bytes"):
        words += f"; {about}{text.size(would['shared_bytes'])} shared with others"
    if would.get("freed_bytes"):
        words += f"; {about}{text.size(would['freed_bytes'])} become free"
    if would.get("pinned_by_others"):
        words += f"; {text.count(would['pinned_by_others'])} pinned by others"
    for why, count in (would.get("refused") or {}).items():
        words += f"; {text.count(count)} refused: {why}"
    return words

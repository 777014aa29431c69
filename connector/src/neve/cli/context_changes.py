"""`neve contexts create`, `rename`, `label`, `pin`, `unpin`, `extend`, `expire`, `rm`, `warm`."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.context_list import labels_of, pinned
from neve.cli.context_names import all_of, one, several, where, yes_option
from neve.cli.jobs import follow
from neve.cli.names import find_context, find_engine, find_space
from neve.cli.prompts import prompt_of, prompt_options


def _each(
    platform: Connection,
    found: list[dict[str, Any]],
    act: Callable[[dict[str, Any]], tuple[Any, str]],
) -> None:
    """Acts on one context after the other. With --json: a list of {id, name, answer}."""
    answers = []
    for row in found:
        answer, words = act(row)
        answers.append({"id": row["id"], "name": row["name"], "answer": answer})
        if not platform.out.as_json:
            platform.out.say(f"{row['name']}: {words}")
    if platform.out.as_json:
        platform.out.document(answers)


@click.command()
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
        "labels": labels_of(labels) or None,
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


@click.command()
@one
@click.argument("new", metavar="NEW_NAME")
@where
@platform_options
def rename(
    platform: Connection, context: str, new: str, space: str | None, tenant: str | None
) -> None:
    """Give a context another name."""
    row = find_context(platform, context, space=space, tenant=tenant)
    changed = platform.call("PATCH", f"/contexts/{row['id']}", {"name": new})
    platform.show(changed, lambda: platform.out.say(f"{row['name']}: now {changed['name']}"))


@click.command()
@one
@click.argument("labels", metavar="KEY=VALUE|KEY-...", nargs=-1)
@click.option("--rule-label", metavar="LABEL", help="The label that retention rules match.")
@where
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
    body: dict[str, Any] = {"label": rule_label}
    if labels:
        removed = [each[:-1] for each in labels if each.endswith("-") and "=" not in each]
        set_ = labels_of(each for each in labels if "=" in each or not each.endswith("-"))
        body["labels"] = {**dict.fromkeys(removed), **set_}  # null removes
    changed = platform.call("PATCH", f"/contexts/{row['id']}", body)
    shown = " ".join(f"{key}={value}" for key, value in (changed.get("labels") or {}).items())
    platform.show(
        changed,
        lambda: platform.out.say(
            f"{row['name']}: labels {shown or text.NOTHING}, for rules "
            f"{changed.get('label') or text.NOTHING}"
        ),
    )


@click.command()
@several
@click.option("--for", "for_", metavar="DURATION", help="So long from now: 2h, 7d, 1h30m.")
@click.option("--until", metavar="MOMENT", help="Such as 2026-03-01T12:00:00Z.")
@click.option("--tier", type=click.Choice(["any", "hot", "durable"]), help="Where it stays.")
@click.option("--reason", metavar="TEXT", help="Shown to others.")
@where
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

    _each(platform, all_of(platform, names, space, tenant), act)


def _kept(answer: dict[str, Any], member: str) -> str:
    lost = answer.get("lost")
    return f"{text.count(answer.get(member))} blocks" + (
        f", {text.count(lost)} are lost" if lost else ""
    )


@click.command()
@several
@click.option("--pin", "pin_", type=click.IntRange(min=1), help="Of operators: this pin.")
@click.option("--all", "everybody", is_flag=True, help="Of operators: everybody's pins.")
@where
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
        ended = answer.get("removed")
        words = f"{text.count(ended)} pin{'s' * (ended != 1)} ended"
        return answer, words + (f", others pin it until {left}" if left != text.NOTHING else "")

    _each(platform, all_of(platform, names, space, tenant), act)


@click.command()
@several
@click.option("--for", "for_", metavar="DURATION", required=True, help="2h, 7d, 1h30m.")
@where
@platform_options
def extend(
    platform: Connection, names: tuple[str, ...], for_: str, space: str | None, tenant: str | None
) -> None:
    """Have contexts end so long from now at the earliest."""

    def act(row: dict[str, Any]) -> tuple[Any, str]:
        answer = platform.call("POST", f"/contexts/{row['id']}/extend", {"for": for_})
        return answer, f"extended by {for_} from now, {_kept(answer, 'extended')}"

    _each(platform, all_of(platform, names, space, tenant), act)


@click.command()
@several
@click.option("--at", metavar="MOMENT", help="Then instead of now: 2026-03-01T12:00:00Z.")
@click.option("--dry-run", is_flag=True, help="Say what would go, change nothing.")
@yes_option
@where
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
    found = all_of(platform, names, space, tenant)
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


@click.command()
@several
@yes_option
@where
@platform_options
def rm(
    platform: Connection, names: tuple[str, ...], yes: bool, space: str | None, tenant: str | None
) -> None:
    """Forget contexts and their pins; their blocks stay for as long as others or the space say.

    `expire` removes blocks.
    """
    found = all_of(platform, names, space, tenant)
    if not yes:
        now = datetime.now(UTC)
        for row in found:
            left = pinned(row, now)
            kept = "not pinned" if left == text.NOTHING else f"pinned for {left}"
            platform.out.note(f"{row['name']}: {text.count(row['tokens'])} tokens, {kept}")
    platform.out.confirm(f"Forget {_named(found)}?", yes=yes)

    def act(row: dict[str, Any]) -> tuple[Any, str]:
        return platform.call("DELETE", f"/contexts/{row['id']}"), "forgotten; its blocks stay"

    _each(platform, found, act)


@click.command()
@one
@click.option("--engine", metavar="ENGINE", help="Name or number.  [default: one of the space]")
@click.option("--no-wait", is_flag=True, help="Return once the job is there.")
@prompt_options
@where
@platform_options
def warm(
    platform: Connection,
    context: str,
    engine: str | None,
    no_wait: bool,
    space: str | None,
    tenant: str | None,
    **prompt: Any,
) -> None:
    """Have a registered engine compute what is not stored, and wait for it.

    A context that a request made needs its prompt: the platform has no tokens of it.
    """
    body = prompt_of(**prompt, is_needed=False)
    row = find_context(platform, context, space=space, tenant=tenant)
    body["engine"] = find_engine(platform, engine)["id"] if engine else None
    job = platform.call("POST", f"/contexts/{row['id']}/warm", body)
    if not no_wait:
        job = follow(platform, job)
    platform.show(job, lambda: platform.out.say(f"{row['name']}: job {job['id']} {job['state']}"))

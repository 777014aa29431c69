"""`neve samples`: what is sampled of a tenant's traffic, and the samples as a trace."""

from datetime import UTC, datetime

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.contexts import write_lines


@click.group()
def samples() -> None:
    """Samples of traffic: what is stored, and a trace for `neve simulate`."""


@samples.command()
@click.option("--tenant", metavar="SLUG", help="Needed if you see several.")
@platform_options
def show(platform: Connection, tenant: str | None) -> None:
    """Show whether traffic is sampled, at which rate, and what is stored."""
    found = platform.get("/samples", tenant=tenant)
    stored = f"{text.size(found['size_bytes'])} in {text.count(found['files'])} files"
    now = datetime.now(UTC)

    def say() -> None:
        rate = found["rate"]
        platform.out.facts(
            [
                ("tenant", found["tenant"]),
                ("sampled", f"1 of {round(1 / rate)} blocks" if rate else "no: switched off"),
                ("stored", stored),
                ("oldest", text.age(found["first"], now)),
                ("newest", text.age(found["last"], now)),
                ("kept", f"{found['keep_days']} days"),
            ]
        )

    platform.show(found, say)


@samples.command()
@click.option("--tenant", metavar="SLUG", help="Needed if you see several.")
@click.option("--from", "since", metavar="MOMENT", help="[default: 24 hours ago]")
@click.option("--to", "until", metavar="MOMENT", help="[default: now]")
@click.option("--output", "-o", type=click.Path(dir_okay=False, writable=True))
@platform_options
def export(
    platform: Connection,
    tenant: str | None,
    since: str | None,
    until: str | None,
    output: str | None,
) -> None:
    """Write the samples as a trace of JSON lines, for `neve simulate`."""
    query = {"tenant": tenant, "from": since, "to": until}
    write_lines(platform, platform.lines("/samples/export", **query), output)

"""The commands `neve plan …`: answers by arithmetic, without a platform.

Each is a module of this package with a command of its name, loaded when it is called or helped.
"""

import importlib
from collections.abc import Mapping

import click

# Command → what `neve plan --help` says. A test holds the words to the commands'.
COMMANDS: Mapping[str, str] = {
    "size": "Say how many bytes a model's KV takes.",
    "breakeven": "Say from which prefix length on loading KV is faster than computing it.",
    "fleet": "Say how many machines a hit rate takes, and what limits first.",
    "prfaas": "Say which prompts another cluster should compute.",
}


class PlanGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"neve.cli.plan.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=PlanGroup)
def plan() -> None:
    """Plan before anything runs: sizes, break-even, machines.

    No command of this group needs a platform or a key.
    """

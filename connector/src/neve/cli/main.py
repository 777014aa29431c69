"""The command `neve`: its commands by name, each loaded when it is called or helped.

`neve --help` and `neve version` load click alone: neither numpy, httpx nor rich. `neve.cli.exits`
has the exit codes.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import click

from neve.cli.exits import COMMAND, INTERRUPTED, JSON_MODE, USAGE, exit_code, show
from neve.errors import NeveError

# Section → command → (module, what `neve --help` says). A test holds the words to the commands'.
SECTIONS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Contexts": {
        "contexts": ("contexts", "Named prompts whose KV is stored: find, make, keep, warm, end."),
        "events": ("events", "List the latest events, or follow them."),
        "usage": ("usage", "Show hit rate, traffic and misses over time."),
        "explore": ("explore", "Show a measure by its parts, what changed most first."),
        "why": ("why", "Say why a request missed, or where a context is."),
        "savings": ("savings", "Show what stored context saved and cost."),
        "top": ("top", "Show the platform live, full screen."),
        "mcp": ("mcp", "Offer contexts as tools to an agent."),
    },
    "Team and platform": {
        "login": ("login", "Store a platform's address and an API key as a profile."),
        "logout": ("login", "Forget a profile and its key."),
        "whoami": ("login", "Show the key in use: its name, role, scopes, tenants and end."),
        "keys": ("keys", "API keys: list, create, rotate, revoke."),
        "quota": ("keys", "Show what is used of the quota."),
        "what-if": ("what_if", "Say what other quotas and policies would give."),
        "policy": ("policy", "How long blocks stay: show, change, try."),
        "prices": (
            "savings",
            "Prices of GPUs, memory, storage and requests, which savings count with.",
        ),
        "nodes": ("nodes", "List engines that are connected now."),
        "spaces": ("spaces", "KV layouts: list them, compare two."),
        "engines": ("nodes", "List registered engines."),
        "jobs": ("jobs", "Background work: list, wait, cancel, retry."),
        "incidents": ("incidents", "What needs a person: list, show, acknowledge, mute, own."),
        "stores": ("stores", "S3 buckets that hold segments, and moves between them."),
        "samples": ("samples", "Samples of traffic: what is stored, and a trace of them."),
        "audit": ("audit", "List who changed what, the newest first."),
        "webhooks": ("webhooks", "Addresses that are told of events."),
    },
    "Nodes": {
        "doctor": ("doctor", "Check everything between here and a cached token."),
        "ping": ("ping", "Check endpoint, key, Valkey and S3 one by one."),
        "router": ("router", "Serve an OpenAI-compatible proxy before decode nodes."),
        "replay": ("replay_command", "Replay a workload through the real client."),
        "plan": ("plan", "Plan before anything runs: sizes, break-even, machines."),
        "codec-check": ("codec_check", "Measure what storing a model's KV with loss changes."),
        "simulate": ("simulate", "Play a recorded workload on simulated tiers."),
    },
    "This command": {
        "completion": ("completion", "Print what makes a shell complete `neve`."),
        "version": ("version", "Print the version of this library."),
    },
}
_COMMANDS = {name: found for section in SECTIONS.values() for name, found in section.items()}
# Former names, which no help lists: name → module of the command.
_FORMER: Mapping[str, str] = {"breakeven": "plan.breakeven"}


class NeveGroup(click.Group):
    """Loads commands by name; turns errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = _COMMANDS[cmd_name][0] if cmd_name in _COMMANDS else _FORMER.get(cmd_name)
        if where is None:
            return None
        module = importlib.import_module(f"neve.cli.{where}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, words) for name, (_, words) in commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Of names alone, so that no command is loaded."""
        from click.shell_completion import CompletionItem

        return [
            CompletionItem(name, help=words)
            for name, (_, words) in _COMMANDS.items()
            if name.startswith(incomplete)
        ]

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            error.show()
            raise click.exceptions.Exit(USAGE) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            error.show()
            ctx.exit(USAGE)
        except NeveError as error:
            show(error, as_json=bool(ctx.meta.get(JSON_MODE)), command=ctx.meta.get(COMMAND))
            ctx.exit(exit_code(error))
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.group(cls=NeveGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Neve: a shared KV cache for LLM inference.

    `neve login` connects this command to a platform.
    """

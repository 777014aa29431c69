"""The endpoint and the node key of `ping` and `replay`: options and environment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from neve.errors import Misuse
from neve.node.session import check_url

F = TypeVar("F", bound=Callable[..., Any])


def node_key_options(command: F) -> F:
    """Adds --endpoint, --api-key and --api-key-file."""
    for option in (
        click.option(
            "--api-key-file",
            type=click.Path(dir_okay=False, path_type=Path),
            help="File that holds the key; wins over --api-key.",
        ),
        click.option(
            "--api-key",
            envvar="NEVE_API_KEY",
            help="Key of role node [env NEVE_API_KEY]; others on this machine can see an option's "
            "value.",
        ),
        click.option(
            "--endpoint",
            envvar="NEVE_ENDPOINT",
            help="URL of the cache endpoint [env NEVE_ENDPOINT].",
        ),
    ):
        command = option(command)
    return command


def node_credentials(
    endpoint: str | None, api_key: str | None, api_key_file: Path | None
) -> tuple[str, str]:
    """Returns (endpoint's URL, API key). Raises `Misuse`, which names the option to set."""
    if api_key_file is not None:
        try:
            api_key = api_key_file.read_text().strip()
        except OSError as error:
            raise Misuse(
                f"cannot read {api_key_file} ({error.strerror}); give the file that holds the key",
                field="--api-key-file",
            ) from error
    if not endpoint:
        raise Misuse(
            "no endpoint: set NEVE_ENDPOINT or give --endpoint, such as http://127.0.0.1:8000"
        )
    if not api_key:
        raise Misuse(
            "no API key: set NEVE_API_KEY or give --api-key-file; keys of role node are issued on "
            "the dashboard, and `make up` keeps the demo node's in var/demo.key"
        )
    return check_url(endpoint), api_key

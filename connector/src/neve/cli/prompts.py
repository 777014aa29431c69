"""A prompt as token ids, text or chat messages: the options of `contexts create` and `lookup`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from neve.errors import Misuse

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(dir_okay=False, allow_dash=True)
_MOST_BYTES = 64 << 20


def prompt_options(command: F) -> F:
    """Files may be `-`, standard input. The command gets them as keyword arguments, to be given to
    `prompt_of`."""
    for option in reversed(
        (
            click.option("--text", "text_", metavar="TEXT", help="The prompt itself."),
            click.option("--text-file", type=_FILE, help="File with the prompt; - is stdin."),
            click.option(
                "--messages",
                type=_FILE,
                help="File with chat messages: a JSON list, or an object as the body of a chat "
                "completion (messages, tools, chat_template_kwargs).",
            ),
            click.option("--tokens", type=_FILE, help="File with token ids: a JSON list."),
            click.option("--tools", type=_FILE, help="File with the tools of the chat: JSON."),
            click.option("--salt", help="The request's cache_salt."),
        )
    ):
        command = option(command)
    return command


def prompt_of(
    *,
    text_: str | None,
    text_file: str | None,
    messages: str | None,
    tokens: str | None,
    tools: str | None,
    salt: str | None,
    is_needed: bool = True,
) -> dict[str, Any]:
    """Members of a request's body. Raises click's `UsageError` unless exactly one prompt is given,
    or none if none is needed; `Misuse` if a file cannot be read."""
    given = [each for each in (text_, text_file, messages, tokens) if each is not None]
    if not given and not is_needed:
        return {}
    if len(given) != 1:
        raise click.UsageError("give one of --text, --text-file, --messages and --tokens")
    body: dict[str, Any] = {"salt": salt}
    if text_ is not None:
        body["text"] = text_
    elif text_file is not None:
        body["text"] = _read(text_file)
    elif tokens is not None:
        body["tokens"] = _json(tokens, "--tokens")
        if not isinstance(body["tokens"], list):
            raise Misuse(f"{tokens} is no JSON list of token ids", field="--tokens")
    elif messages is not None:
        body |= _chat(_json(messages, "--messages"), messages)
    if tools is not None:
        if "messages" not in body:
            raise click.UsageError("--tools goes with --messages")
        body["tools"] = _json(tools, "--tools")
    return body


_CHAT = (
    *("messages", "tools", "chat_template_kwargs", "add_generation_prompt"),
    *("continue_final_message", "add_special_tokens"),
)


def _chat(found: Any, file: str) -> dict[str, Any]:
    if isinstance(found, list):
        return {"messages": found}
    if isinstance(found, dict) and isinstance(found.get("messages"), list):
        return {name: found[name] for name in _CHAT if name in found}
    raise Misuse(
        f"{file} holds neither a list of messages nor an object with `messages`",
        field="--messages",
    )


def _json(file: str, option: str) -> Any:
    try:
        return json.loads(_read(file))
    except ValueError as error:
        raise Misuse(f"{file} is no JSON: {error}", field=option) from error


def _read(file: str) -> str:
    try:
        if file == "-":
            return sys.stdin.read(_MOST_BYTES)
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Misuse(f"{file} is not UTF-8 text") from error
    except OSError as error:
        raise Misuse(f"cannot read {file}: {error.strerror}") from error

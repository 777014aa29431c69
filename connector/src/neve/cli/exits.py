"""Exit codes of `neve`, and how an error becomes one of them and words on standard error."""

import json
from typing import Any

import click

from neve.cli.text import printable
from neve.errors import DeadlineExceeded, Misuse, NeveError, Refused, Unavailable

ERROR = 1  # anything else; a check or a job failed; a question was answered with no
WRONG_BLOCK = 2  # `neve replay` read a wrong block
NOT_FOUND = 3  # no object has this name or id, or several have it
NOT_ALLOWED = 4  # no key, an unknown key, or one without the role or scope
REFUSED = 5  # the platform refuses in the present state: quota, pins of others, a limit
UNAVAILABLE = 6  # not reachable, overloaded or too slow: try again later
USAGE = 64  # EX_USAGE of sysexits.h: a wrong command line, or a value that the platform refuses
INTERRUPTED = 130  # Ctrl-C, as shells say it

JSON_MODE = "neve.cli.as_json"  # of click's `Context.meta`: the command runs with --json

COMMAND = "neve.cli.command"  # likewise: the command that runs

_BY_STATUS = {
    400: USAGE,
    401: NOT_ALLOWED,
    403: NOT_ALLOWED,
    404: NOT_FOUND,
    422: USAGE,
    429: UNAVAILABLE,
}


class NotFound(NeveError):
    """No object has the given name, or several have it; the text lists them."""


class NoKey(Misuse):
    """There is no endpoint or no key to call it with."""


class NeedsTerminal(Misuse):
    """The command asks before it acts, and there is nobody to ask."""


class Failed(NeveError):
    """The command did its work, and the outcome is bad: a failed job, a failed check."""


def exit_code(error: Exception) -> int:
    status = getattr(error, "status", None)
    if isinstance(error, NotFound):
        return NOT_FOUND
    if isinstance(error, NoKey):
        return NOT_ALLOWED
    if isinstance(error, NeedsTerminal):
        return USAGE
    if isinstance(status, int):
        if status in _BY_STATUS:
            return _BY_STATUS[status]
        return UNAVAILABLE if status >= 500 else REFUSED
    if isinstance(error, Refused):
        return REFUSED
    return UNAVAILABLE if isinstance(error, Unavailable | DeadlineExceeded) else ERROR


def describe(error: Exception, command: click.Command | None = None) -> dict[str, Any]:
    """The error as members of a JSON object: error (text), exit_code, and kind, field, remedy,
    status, request_id where they are known. `command`: whose options the remedy names."""
    detail = str(getattr(error, "detail", None) or error)
    found: dict[str, Any] = {"error": detail}
    for name in ("kind", "field", "remedy", "status", "request_id"):
        value = getattr(error, name, None)
        if value is not None and value != "":
            found[name] = value if isinstance(value, int) else str(value)
    if found.get("kind") == "malformed" and "field" in found:
        found["remedy"] = f"Correct {_given_as(str(found['field']), command)}."
    return {**found, "exit_code": exit_code(error)}


def _given_as(field: str, command: click.Command | None) -> str:
    """How the command line gives a member of a request."""
    params = {param.name: param for param in command.params} if command else {}
    if field == "endpoint" and "s3" in params:  # --endpoint names the platform
        field = "s3"
    if field in params:
        return max(params[field].opts, key=len)
    if field == "secret_key" and "access_key" in params:
        return "the secret key (NEVE_SECRET)"
    arguments = [each for each in params.values() if isinstance(each, click.Argument)]
    if any(each.metavar == field.upper() for each in arguments):
        return field.upper()
    return f"`{field}`"


def words(error: Exception, command: click.Command | None = None) -> str:
    """The error as lines for people: the text with its field, then what to do."""
    told = describe(error, command)
    text, field, fix = told["error"], told.get("field"), told.get("remedy")
    if field and field not in text:
        text = f"{field}: {text}"
    return printable(text, keep_lines=True) + (f"\nFix: {printable(fix)}" if fix else "")


def show(error: Exception, *, as_json: bool, command: click.Command | None = None) -> None:
    """Writes the error to standard error: words, or with `as_json` one JSON document."""
    if as_json:
        click.echo(json.dumps(describe(error, command)), err=True)
    else:
        click.echo(f"Error: {words(error, command)}", err=True)

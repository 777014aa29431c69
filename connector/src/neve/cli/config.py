"""Profiles: an endpoint with its key under a name, in a file that only its owner may read.

The file is `$XDG_CONFIG_HOME/neve/config.toml` (`~/.config` without the variable). `neve login`
writes it. NEVE_ENDPOINT and NEVE_API_KEY win over it. A profile's key goes to the profile's own
endpoint only.
"""

import os
import re
import shlex
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkstemp

from neve.cli.exits import NoKey
from neve.errors import Misuse
from neve.node.session import check_key, check_url

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,49}")
_MOST_BYTES = 1 << 20
_HEAD = """\
# Written by `neve login` and `neve logout`, which drop comments. It holds keys: keep it private.
"""


@dataclass(frozen=True)
class Profile:
    endpoint: str
    api_key: str = field(repr=False)


@dataclass(frozen=True)
class Config:
    """`default`: name of the profile that is used unless another is asked for."""

    profiles: Mapping[str, Profile] = field(default_factory=dict)
    default: str | None = None

    def named(self, name: str) -> Profile:
        if name not in self.profiles:
            known = ", ".join(sorted(self.profiles)) or "none"
            raise NoKey(
                f"there is no profile {name!r} in {config_path()} (there: {known}); make it with "
                f"`neve login --profile {name}`"
            )
        return self.profiles[name]


@dataclass(frozen=True)
class Credentials:
    """`profile`: name of the profile that gave the key; None: the environment or an option did."""

    endpoint: str
    api_key: str = field(repr=False)
    profile: str | None = None


def config_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME", "")
    # A relative path is invalid. Source: XDG Base Directory Specification 0.8.
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".config"
    return folder / "neve" / "config.toml"


def load() -> Config:
    """The stored profiles; an empty `Config` without a file. Raises `Misuse`, which says what to
    do, if others may read the file or it is no configuration."""
    path = config_path()
    try:
        with path.open("rb") as file:
            _refuse_readable_by_others(path, os.fstat(file.fileno()))
            text = file.read(_MOST_BYTES).decode()
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise Misuse(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Misuse(f"{path} is not UTF-8; remove it and log in again") from error
    try:
        return _parse(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, Misuse) as error:
        raise Misuse(f"{path}: {error}; correct it, or remove it and log in again") from error


def _refuse_readable_by_others(path: Path, found: os.stat_result) -> None:
    if os.name == "posix" and stat.S_IMODE(found.st_mode) & 0o077:
        raise Misuse(
            f"others may read {path}, which holds keys: run `chmod 600 {shlex.quote(str(path))}`; "
            "if others have accounts here, rotate its keys too"
        )


def _parse(raw: Mapping[str, object]) -> Config:
    profiles = raw.get("profiles", {})
    if not isinstance(profiles, Mapping):
        raise Misuse("needs tables [profiles.NAME]", field="profiles")
    found = {}
    for name, values in profiles.items():
        if not isinstance(values, Mapping):
            raise Misuse("needs to be a table", field=f"profiles.{name}")
        endpoint, key = values.get("endpoint"), values.get("api_key")
        if not isinstance(endpoint, str) or not isinstance(key, str):
            raise Misuse("needs endpoint and api_key", field=f"profiles.{name}")
        found[name] = Profile(check_url(endpoint), check_key(key))
    default = raw.get("default")
    return Config(found, default if isinstance(default, str) else None)


def save(config: Config) -> Path:
    """Replaces the file atomically, with mode 0600 in a folder of mode 0700."""
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.parent.chmod(0o700)
    target = path.resolve()  # a link stays a link
    number, new = mkstemp(dir=target.parent, prefix=".config.", suffix=".new")  # mode 0600
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(_render(config))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, target)
    except BaseException:
        Path(new).unlink(missing_ok=True)
        raise
    return path


def _render(config: Config) -> str:
    lines = [_HEAD]
    if config.default:
        lines.append(f"default = {_quoted(config.default)}\n")
    for name, profile in sorted(config.profiles.items()):
        lines.append(f"\n[profiles.{name}]\n")
        lines.append(f"endpoint = {_quoted(profile.endpoint)}\n")
        lines.append(f"api_key = {_quoted(profile.api_key)}\n")
    return "".join(lines)


def _quoted(text: str) -> str:
    """A basic string of TOML. Raises `Misuse` unless the text is printable ASCII."""
    if not (text.isascii() and text.isprintable()):
        raise Misuse(f"{text!a} has characters that the file of profiles does not take")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def check_name(name: str) -> str:
    """Raises `Misuse` unless the name can stand in `[profiles.NAME]`."""
    if not _NAME.fullmatch(name):
        raise Misuse("needs 1 to 50 letters, digits, - or _", field="profile")
    return name


def find_credentials(profile: str | None = None, endpoint: str | None = None) -> Credentials:
    """Endpoint and key: from `endpoint` and the environment, else from the profile.

    `profile` None: NEVE_PROFILE, else the file's default. Raises `NoKey` if there is none.
    """
    endpoint = endpoint or os.environ.get("NEVE_ENDPOINT") or None
    key = os.environ.get("NEVE_API_KEY") or None
    if endpoint and key:
        return Credentials(check_url(endpoint), check_key(key))
    config = load()
    name = profile or os.environ.get("NEVE_PROFILE") or config.default
    stored = config.named(name) if name else None
    if endpoint is None and stored is None:
        raise NoKey(
            "not logged in: run `neve login http://HOST:PORT`, or set NEVE_ENDPOINT and "
            "NEVE_API_KEY (`make up` writes a key of the demo team to var/team.key)"
        )
    url = check_url(endpoint) if endpoint else stored.endpoint  # type: ignore[union-attr]
    if key:
        return Credentials(url, check_key(key))
    if stored is None or stored.endpoint != url:
        own = f"profile {name!r} has a key for {stored.endpoint}, which" if stored else "no key"
        raise NoKey(
            f"{own} is not sent to {url}: set NEVE_API_KEY, or run `neve login {url}`"
            if stored
            else f"no key for {url}: set NEVE_API_KEY, or run `neve login {url}`"
        )
    return Credentials(url, stored.api_key, name)

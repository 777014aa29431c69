"""A command in a terminal of its own: what it draws, and what it does when keys are pressed."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Mapping
from typing import Self

DEADLINE_S = 60.0
ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[()][0-9A-B]|[=>78]|\][^\x07]*\x07)")


class Terminal:
    """Context manager: `python -m neve` in a pseudo terminal of `columns` × `rows`."""

    def __init__(
        self, *arguments: str, env: Mapping[str, str], columns: int = 80, rows: int = 24
    ) -> None:
        self.output = ""
        self._arguments = [sys.executable, "-m", "neve", *arguments]
        dropped = ("COLUMNS", "LINES", "NO_COLOR", "NEVE_ENDPOINT", "NEVE_API_KEY", "NEVE_PROFILE")
        own = {name: value for name, value in os.environ.items() if name not in dropped}
        self._env = {**own, "TERM": "xterm-256color", **env}
        self._size = struct.pack("HHHH", rows, columns, 0, 0)
        self._status: int | None = None

    def __enter__(self) -> Self:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, self._size)
        self._pid = os.fork()
        if self._pid == 0:
            os.login_tty(slave)
            os.execve(self._arguments[0], self._arguments, self._env)
        os.close(slave)
        self._fd = master
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        if self._status is None:
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def wait_for(self, text: str) -> str:
        """Returns all output so far, without escape sequences, once `text` is in it."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.plain():
            assert time.monotonic() < deadline, f"{text!r} never came:\n{self.plain()}"
            assert self._read(), f"ended without {text!r}:\n{self.plain()}"
        return self.plain()

    def end(self) -> int:
        """Reads until the command ends; returns its exit code."""
        deadline = time.monotonic() + DEADLINE_S
        while self._read():
            assert time.monotonic() < deadline, f"never ended:\n{self.plain()}"
        self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._status

    def plain(self) -> str:
        return ESCAPES.sub("", self.output).replace("\r\n", "\n")

    def _read(self) -> bool:
        """False: the command has closed the terminal."""
        if select.select([self._fd], [], [], 0.2)[0]:
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:  # EIO: nobody holds the other end
                return False
            self.output += data.decode(errors="replace")
            return bool(data)
        return True

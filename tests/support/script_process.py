"""A script in a process of its own, driven line by line: a JSON command in, a JSON answer out."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self


class ScriptProcess:
    """Use as a context manager. `log` gets what the process prints."""

    def __init__(
        self, python: Path, script: Path, log: Path, environment: Mapping[str, str]
    ) -> None:
        self._command = ["setpriv", "--pdeathsig", "KILL", str(python), str(script)]
        self._environment = environment
        self.log = log

    def __enter__(self) -> Self:
        self._log = self.log.open("ab")
        self._process = subprocess.Popen(
            self._command,
            env=dict(self._environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        return self

    def __exit__(self, *exc: object) -> None:
        """Ends the process as a user would: no more input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def ask(self, do: str, **command: Any) -> Any:
        """One command. Raises RuntimeError with the process's error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **command}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine's process ended:\n{self.log.read_text()[-4000:]}")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

"""Jumps of the wall clock: a preloaded library adds the number in a file to a process's time."""

import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")
_OFFSET = struct.Struct("<q")


class Clock:
    """The wall clock of all processes that were started with `environment`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._library = folder / "clock.so"
        self._file = folder / f"{name}.clock"
        if not self._library.exists():
            command = ["cc", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
            subprocess.run([*command, "-o", self._library, _SOURCE], check=True)
        self._file.write_bytes(_OFFSET.pack(0))

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "NEVE_TORTURE_CLOCK": str(self._file)}

    @property
    def offset_s(self) -> int:
        return _OFFSET.unpack(self._file.read_bytes())[0]

    @offset_s.setter
    def offset_s(self, seconds: int) -> None:
        with self._file.open("r+b") as file:  # in place: others have it mapped
            file.write(_OFFSET.pack(seconds))

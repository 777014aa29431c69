"""The node and worker processes of a trial: starts, stops and kills them, reads their messages."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

Tell = Callable[[Any], None]
GONE = (EOFError, OSError)  # what a wire raises whose other end was killed


@dataclass
class Member:
    """One process. `start_again` makes the next one in its place."""

    role: str
    process: BaseProcess
    wire: Connection
    tell: Tell
    start_again: Callable[[], "Member"]

    def signal(self, number: int) -> None:
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, number)


@dataclass
class Crew:
    """All of a trial's processes. Always `kill_all` in the end."""

    processes: ForkServerContext
    members: list[Member] = field(default_factory=list)

    def start(self, role: str, target: Callable[..., None], *args: Any, tell: Tell) -> Member:
        """Runs `target(wire, *args)` in a process; `tell` gets what it says."""
        ours, theirs = self.processes.Pipe()
        process = self.processes.Process(target=target, args=(theirs, *args), daemon=True)
        process.start()
        theirs.close()
        member = Member(
            role, process, ours, tell, lambda: self.start(role, target, *args, tell=tell)
        )
        self.members.append(member)
        return member

    def of(self, role: str) -> list[Member]:
        return [member for member in self.members if member.role == role]

    def kill(self, member: Member) -> None:
        """Sends SIGKILL, then reads the messages sent before."""
        if member in self.members:
            member.process.kill()
            self._bury(member)

    def hear(self, timeout_s: float) -> None:
        """Waits for messages up to `timeout_s` and hands them on."""
        by_wire = {member.wire: member for member in self.members}
        for wire in wait(list(by_wire), timeout_s):
            member = by_wire[wire]
            try:
                self._take(member)
            except GONE:
                self._bury(member)

    def ask_to_end(self) -> None:
        for member in self.members:
            with suppress(*GONE):
                member.wire.send("end")

    def kill_all(self) -> None:
        for member in list(self.members):
            self.kill(member)

    def _take(self, member: Member) -> None:
        message = member.wire.recv()
        if message != ("done",):
            member.tell(message)

    def _bury(self, member: Member) -> None:
        member.process.join()
        with suppress(*GONE):
            while member.wire.poll(0):
                self._take(member)
        member.wire.close()
        member.process.close()
        self.members.remove(member)


STOP, CONTINUE = signal.SIGSTOP, signal.SIGCONT

"""Lets a server that cannot choose answer by another congestion control than the system's default.

A GET is sent by the server, so its congestion control decides; with `bbr`, the default of some
hosts, a loopback stream falls to a third or less (docs/decisions/004-sockets.md). Accepted
connections inherit that of the listening socket. Valkey has no setting for it, so the process that
started it borrows the listening socket and sets it there. That needs no privilege: the kernel
allows it to the same user, and under Yama's ptrace_scope 1 to an ancestor.
"""

import ctypes
import os
import socket
import stat
from pathlib import Path
from typing import Final

# Paces nothing that waits for nothing. An unprivileged process may set the allowed ones only.
WANTED: Final = (b"cubic", b"reno")
_PIDFD_GETFD: Final = 438  # Source: Linux, include/uapi/asm-generic/unistd.h; since 5.6
_LISTEN: Final = 10  # Source: Linux, include/net/tcp_states.h


def system_default() -> str:
    """Of new sockets here; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return ""


def avoid_bbr(pid: int) -> str:
    """Sets it on all listening TCP sockets of a process. Returns what they have now.

    Raises OSError when the kernel refuses; the server then goes on as it was.
    """
    name = system_default()
    if name.encode() in WANTED:
        return name
    pidfd = os.pidfd_open(pid)
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if _is_socket(link):
                with _borrow(pidfd, int(link.name)) as sock:
                    if _listens(sock):
                        name = _choose(sock)
    finally:
        os.close(pidfd)
    return name


def _is_socket(link: Path) -> bool:
    try:
        return stat.S_ISSOCK(link.stat().st_mode)
    except OSError:  # closed meanwhile
        return False


def _borrow(pidfd: int, number: int) -> socket.socket:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"pidfd_getfd: {os.strerror(error)}")
    return socket.socket(fileno=fd)


def _listens(sock: socket.socket) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return False
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _LISTEN


def _choose(sock: socket.socket) -> str:
    for wanted in WANTED:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, wanted)
        except OSError:
            continue
        break
    return (
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).partition(b"\0")[0].decode()
    )

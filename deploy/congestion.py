"""Sets the TCP congestion control of a server that has no setting for it, such as Valkey.

The server sends the bytes of a GET, so its congestion control limits them: with `bbr`, the default
of some hosts, a loopback stream falls to a third or less (docs/decisions/004-sockets.md). Accepted
connections inherit the setting of the listening socket, so the process that started the server
borrows that socket and changes it. No privilege needed: the kernel allows it to the same user, and
under Yama's ptrace_scope 1 to an ancestor.
"""

import ctypes
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Final

# Neither paces packets. An unprivileged process may set only algorithms that the system allows.
WANTED: Final = (b"cubic", b"reno")
_PIDFD_GETFD: Final = 438  # Source: Linux, include/uapi/asm-generic/unistd.h; since 5.6
_MAX_PACING_RATE: Final = 47  # Source: Linux, include/uapi/asm-generic/socket.h
_LISTEN: Final = 10  # Source: Linux, include/net/tcp_states.h


def system_default() -> str:
    """The congestion control of new sockets; empty if the kernel does not say."""
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return ""


def avoid_bbr(pid: int) -> str:
    """Set an algorithm of WANTED on all listening TCP sockets of a process. Returns the one in use.

    Raises OSError if the kernel refuses; the server then continues unchanged.
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


def pace(pid: int, bytes_per_s: int | None) -> int:
    """Let every TCP connection of a process send so fast at most; None: without a bound. Returns
    how many sockets heard of it; connections that it accepts later inherit the bound.

    For measurements. Raises OSError if the kernel refuses.
    """
    rate = ((1 << 64) - 1 if bytes_per_s is None else bytes_per_s).to_bytes(8, sys.byteorder)
    pidfd, told = os.pidfd_open(pid), 0
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if _is_socket(link):
                with _borrow(pidfd, int(link.name)) as sock:
                    if sock.family == socket.AF_INET and sock.type == socket.SOCK_STREAM:
                        sock.setsockopt(socket.SOL_SOCKET, _MAX_PACING_RATE, rate)
                        told += 1
    finally:
        os.close(pidfd)
    return told


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

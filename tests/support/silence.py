"""A network that forgets a connection without a word, as firewalls and NATs do."""

import ctypes
import socket
import struct

_SO_ATTACH_FILTER = 26  # Source: asm-generic/socket.h
_DROP = struct.pack("HBBI", 0x06, 0, 0, 0)  # classic BPF: "ret #0", nothing of a packet is kept


def fall_silent(sock: socket.socket) -> None:
    """From now on the kernel drops whatever comes in for `sock`, and acknowledges none of it."""
    program = ctypes.create_string_buffer(_DROP)
    where = struct.pack("HP", 1, ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, where)

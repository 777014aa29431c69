"""Requests to addresses that users gave: engines and webhooks. All of them go through `send`.

A user must not reach through the platform what only the platform reaches (its Valkeys, metadata
servers, the operator's network). So the name is resolved once, each of its addresses is checked
against NEVE_OUTBOUND_ALLOW, and the connection goes to a checked address, while TLS and the Host
header still carry the name: a name that resolves to something else later (DNS rebinding) gains
nothing. Redirects are answers like others, proxies of the environment are ignored, and time and
bytes are bounded.
"""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from django.conf import settings
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout, Url, parse_url

from base.problems import Problem
from base.turns import Turns

Address = IPv4Address | IPv6Address

PUBLIC = "public"  # in NEVE_OUTBOUND_ALLOW: every globally routable address
MOST_URL = 2000  # characters
MOST_HEADER_BYTES = 64 << 10
RESOLVE_S = 5.0
CONNECT_S = 5.0  # to one address
_RESOLVING = threading.BoundedSemaphore(64)  # a resolver that hangs holds a thread each
# For web requests that ask addresses of one tenant: those that hang hold a thread each.
WEB = Turns(
    8,
    "8 requests of the tenant wait for its engines and webhooks. Are all of these reachable?",
)

# Servers that give credentials to whoever asks from within a cloud. Reachable only if the setting
# names exactly their address: a range around them does not count.
METADATA = frozenset(
    ip_address(each)
    for each in (
        *("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23"),
        *("100.100.100.200", "168.63.129.16", "192.0.0.192"),
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# Within global unicast, yet they lead elsewhere or nowhere: 6to4 (and its relays), protocol
# assignments with Teredo, documentation.
_NOT_PUBLIC = tuple(
    map(ip_network, ("2002::/16", "2001::/23", "2001:db8::/32", "3fff::/20", "192.88.99.0/24"))
)


class Unreachable(Exception):
    """No answer: the target refused, was too slow, sent too much, or TLS failed. Says which."""


@dataclass(frozen=True)
class Answer:
    """What the target answered, redirects and errors included. `headers` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Raises Unreachable if the body is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise Unreachable("the answer is no JSON") from error


def check_form(url: str, *, field: str) -> None:
    """Refuse what is no plain http or https URL. Resolves nothing. Raises Problem (malformed)."""
    _parse(url, field)


def check(url: str, *, field: str) -> None:
    """Refuse a URL that `send` would refuse now. A name that does not resolve now passes.

    For the moment at which a user gives the address; `send` checks again each time.
    Raises Problem (malformed, address-refused) with `field`.
    """
    parts = _parse(url, field)
    with suppress(Unreachable):
        _resolve(parts, field, deadline=time.monotonic() + RESOLVE_S)


def check_not_link_local(url: str, *, field: str) -> None:
    """Refuse a URL whose host is, or resolves to, a link-local address or a metadata server.

    For addresses that operators give and that may be private. A name that does not resolve now
    passes. Raises Problem (malformed) with `field`.
    """
    parts = _parse(url, field)
    host = (parts.host or "").strip("[]")
    with suppress(Unreachable):
        for each in _look_up(host, parts.port or 443, time.monotonic() + RESOLVE_S):
            address = _inner(ip_address(each))
            if address.is_link_local or address in METADATA:
                raise Problem(
                    "malformed",
                    f"{field}: {host} is a link-local address or a cloud's metadata server: no S3 "
                    "is there.",
                    field=field,
                )


def send(
    method: str,
    url: str,
    *,
    field: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
    most_bytes: int = 1 << 20,
    stop: threading.Event | None = None,
) -> Answer:
    """Send one request and return the answer, whatever its status.

    `field`: the member that holds `url`, for the refusal. `timeout_s` bounds everything together:
    name, connection, headers, body. `stop`: once set, the connection is closed and Unreachable
    raised. Blocks; from any thread.
    Raises Problem (malformed, address-refused) if the target is not allowed, Unreachable if no
    whole answer of at most `most_bytes` came in time.
    """
    deadline = time.monotonic() + timeout_s
    stop = stop or threading.Event()
    parts = _parse(url, field)
    addresses = _resolve(parts, field, deadline=deadline)
    why: Exception = Unreachable("no address")
    for address in addresses[:4]:
        with _Watch(deadline, stop) as watch:
            try:
                return _request(method, parts, address, watch, body, headers or {}, most_bytes)
            except _NotConnected as error:
                why = error  # nothing was sent: another address may answer
            except (HTTPError, OSError, ValueError) as error:
                raise Unreachable(watch.reason() or _words(error)) from error
            if reason := watch.reason():
                raise Unreachable(reason) from why
    raise Unreachable(_words(why)) from why


class _NotConnected(Exception):
    """No connection to this address."""


def _parse(url: str, field: str) -> Url:
    """Parse once: the parts that are checked are the parts that are used."""

    def refuse(why: str) -> Problem:
        return Problem(
            "malformed", f"{field}: {why}; write such as https://host.example/path", field=field
        )

    if len(url) > MOST_URL:
        raise refuse(f"longer than {MOST_URL} characters")
    if any(ord(each) <= 32 or each in "\x7f\\" for each in url):
        raise refuse("has a space, a backslash or a control character")
    try:
        parts = parse_url(url)
    except HTTPError as error:
        raise refuse("no URL") from error
    if parts.scheme not in ("http", "https") or not parts.host:
        raise refuse("no http or https URL")
    if parts.auth is not None:
        raise refuse("has a user or a password in it")
    if parts.fragment is not None:
        raise refuse("has a fragment")
    if "%" in parts.host or len(parts.host) > 255:
        raise refuse("no host name or address")
    if parts.port is not None and not 1 <= parts.port <= 65535:
        raise refuse("no port from 1 to 65535")
    return parts


def _resolve(parts: Url, field: str, *, deadline: float) -> list[Address]:
    """All addresses of the host, each of them allowed.

    Raises Problem (address-refused) if one is not, Unreachable if the name has none in time.
    """
    host = (parts.host or "").strip("[]")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found: list[Address] = []
    for each in _look_up(host, port, deadline):
        address = ip_address(each)
        if address not in found:
            found.append(address)
    for address in found:
        if not is_allowed(address):
            raise Problem(
                "address-refused",
                f"{field}: the platform may not connect to {host}"
                + ("" if str(address) == host else f" ({address})")
                + "; an operator may add its range to NEVE_OUTBOUND_ALLOW",
                field=field,
            )
    return found


def _look_up(host: str, port: int, deadline: float) -> list[str]:
    """getaddrinfo, in a thread of its own since it knows no deadline."""
    if not _RESOLVING.acquire(blocking=False):
        raise Unreachable("too many names are being resolved")
    found: list[str] = []
    failed: list[Exception] = []

    def look_up() -> None:
        try:
            for *_, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                found.append(str(where[0]))
        except (OSError, UnicodeError) as error:
            failed.append(error)
        finally:
            _RESOLVING.release()

    thread = threading.Thread(target=look_up, name="neve-resolve", daemon=True)
    thread.start()
    thread.join(min(RESOLVE_S, max(0.0, deadline - time.monotonic())))
    if thread.is_alive():
        raise Unreachable(f"{host} was not resolved in time")
    if failed or not found:
        raise Unreachable(f"{host} does not resolve") from (failed[0] if failed else None)
    return found


def is_allowed(address: Address) -> bool:
    """Whether NEVE_OUTBOUND_ALLOW lets the platform connect there.

    An IPv4 address inside an IPv6 one (mapped, NAT64) is checked as the IPv4 address that it is.
    """
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        address = _inner(address)
    if address.is_multicast or address.is_unspecified:
        return False
    networks = [ip_network(each) for each in settings.OUTBOUND_ALLOW if each != PUBLIC]
    if address in METADATA:
        return any(address in each and each.num_addresses == 1 for each in networks)
    if any(address in each for each in networks):
        return True
    return PUBLIC in settings.OUTBOUND_ALLOW and _is_public(address)


def _inner(address: Address) -> Address:
    """The IPv4 address inside a mapped or NAT64 one; else the same."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    outside = any(address in each for each in _NOT_PUBLIC)
    return address.is_global and not address.is_reserved and not outside


class _Watch:
    """Shuts the connection down at the deadline or once `stop` is set.

    Timeouts of a socket count from its last byte, so a peer that sends a byte now and then would
    hold a request for ever.
    """

    def __init__(self, deadline: float, stop: threading.Event) -> None:
        self.deadline = deadline
        self._stop = stop
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_over = False

    def left_s(self) -> float:
        return max(0.001, self.deadline - time.monotonic())

    def reason(self) -> str:
        """Why there is no answer, if it was the watch that ended the request."""
        if self._stop.is_set():
            return "stopped"
        return "no whole answer in time" if time.monotonic() >= self.deadline else ""

    def over(self, connection: socket.socket) -> None:
        """Watch a new connection. Its own duplicate: TLS takes the original's descriptor."""
        with self._lock:
            self._close()
            self._socket = connection.dup()
            if self._is_over:
                self._shut()

    def __enter__(self) -> "_Watch":
        threading.Thread(target=self._run, name="neve-outbound-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        with self._lock:
            self._close()

    def _run(self) -> None:
        while not self._done.wait(min(0.1, self.left_s())):
            if self._stop.is_set() or time.monotonic() >= self.deadline:
                with self._lock:
                    self._is_over = True
                    self._shut()
                return

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _request(
    method: str,
    parts: Url,
    address: Address,
    watch: _Watch,
    body: bytes | None,
    headers: Mapping[str, str],
    most_bytes: int,
) -> Answer:
    given = {name.lower(): value for name, value in headers.items()}
    given["host"] = parts.netloc or ""
    given.setdefault("user-agent", "neve")
    given["accept-encoding"] = "identity"
    given["connection"] = "close"
    with _pool(parts, address, watch) as pool:
        response = pool.urlopen(
            method,
            parts.request_uri,
            body=body,
            headers=given,
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=Timeout(total=watch.left_s(), connect=min(CONNECT_S, watch.left_s())),
            preload_content=False,
            decode_content=False,
        )
        try:
            if sum(len(k) + len(v) for k, v in response.headers.items()) > MOST_HEADER_BYTES:
                raise Unreachable(f"the answer's headers exceed {MOST_HEADER_BYTES} bytes")
            pieces, size = [], 0
            while piece := response.read1(64 << 10, decode_content=False):
                pieces.append(piece)
                size += len(piece)
                if size > most_bytes:
                    raise Unreachable(f"the answer exceeds {most_bytes} bytes")
            if reason := watch.reason():
                raise Unreachable(reason)  # shut down amid a body without a length
            found = {name.lower(): value for name, value in response.headers.items()}
            return Answer(status=response.status, headers=found, body=b"".join(pieces))
        finally:
            response.close()


def _pool(parts: Url, address: Address, watch: _Watch) -> HTTPConnectionPool:
    """A pool of one connection, to `address` under the name of the URL."""
    host, name = str(address), (parts.host or "").strip("[]")
    if parts.scheme == "http":
        plain = HTTPConnectionPool(host, parts.port or 80, maxsize=1)
        plain.ConnectionCls = _watched(HTTPConnection, watch)
        return plain
    tls = HTTPSConnectionPool(
        host,
        parts.port or 443,
        maxsize=1,
        ssl_context=_tls(),
        server_hostname=name,
    )
    tls.ConnectionCls = _watched(HTTPSConnection, watch)
    return tls


@cache
def _tls() -> ssl.SSLContext:
    """Loads the system's authorities, or those of SSL_CERT_FILE."""
    return ssl.create_default_context()


def _watched(kind: Any, watch: _Watch) -> Any:
    """`kind` of connection, under `watch` from its first byte."""

    class Watched(kind):  # type: ignore[misc]  # mypy knows no classes as values
        def _new_conn(self) -> socket.socket:
            try:
                connection: socket.socket = super()._new_conn()
            except (HTTPError, OSError) as error:
                raise _NotConnected(_words(error)) from error
            watch.over(connection)
            return connection

    return Watched


_WORDS: list[tuple[type[BaseException], Callable[[BaseException], str]]] = [
    (ssl.SSLCertVerificationError, lambda e: f"TLS: {getattr(e, 'verify_message', '') or e}"),
    (ssl.SSLError, lambda e: f"TLS: {getattr(e, 'reason', None) or 'failed'}"),
    (ConnectionRefusedError, lambda e: "the connection was refused"),
    (ConnectionResetError, lambda e: "the connection was reset"),
    (TimeoutError, lambda e: "no answer in time"),
]


def _words(error: BaseException) -> str:
    """A sentence of the cause without addresses of objects."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Unreachable | _NotConnected):
            return str(cause)
        for kind, words in _WORDS:
            if isinstance(cause, kind):
                return words(cause)
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        reason = cause.args[-1] if cause.args else None
        cause = cause.__cause__ or (reason if isinstance(reason, BaseException) else None)
    return "the target sent no whole HTTP answer"

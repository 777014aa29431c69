"""Requests to addresses that users gave, against real servers on loopback."""

import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from base import outbound
from base.outbound import Unreachable, send
from base.problems import Problem
from support.certificates import issue, make_ca
from support.scripted_http import ScriptedHttp, answer

LOOPBACK = ["127.0.0.0/8", "::1/128"]


@pytest.fixture(autouse=True)
def allow(settings):
    settings.OUTBOUND_ALLOW = ["public", *LOOPBACK]
    return settings


def get(url, **how):
    return send("GET", url, field="base_url", **how)


def refusal(url):
    with pytest.raises(Problem) as refused:
        get(url)
    assert refused.value.members == {"field": "base_url"}
    assert refused.value.status == 400
    return refused.value.kind


@pytest.fixture
def resolves(monkeypatch):
    """Answers of the resolver, by name; a list of lists gives a new one each time."""
    names, asked, real = {}, [], socket.getaddrinfo

    def look_up(host, port, *rest, **how):
        if host not in names:
            return real(host, port, *rest, **how)
        asked.append(host)
        found = names[host]
        found = found.pop(0) if isinstance(found[0], list) else found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(outbound.socket, "getaddrinfo", look_up)
    names["asked"] = asked
    return names


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ftp://127.0.0.1/",
            "file:///etc/passwd",
            "//127.0.0.1/",
            "127.0.0.1",
            "http://",
            "https:///x",
        ),
        *("http://user:pw@127.0.0.1/", "http://u@127.0.0.1/", "http://127.0.0.1/#part"),
        *(
            "http://127.0.0.1:0/",
            "http://127.0.0.1:70000/",
            "http://127.0.0.1/ x",
            "http://a\r\nb/",
        ),
        *("http://[fe80::1%25lo]/", "http://" + "a" * 300 + ".example/", "http://a/" + "b" * 3000),
        *("gopher://127.0.0.1/", "http://127.0.0.1\\@example.com/"),
    ],
)
def test_only_plain_http_urls_pass(url):
    assert refusal(url) == "malformed"


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
        ),
        *(
            "169.254.169.254",
            "169.254.1.1",
            "224.0.1.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
        ),
        *("198.18.0.1", "192.88.99.1", "168.63.129.16", "::", "::1", "::ffff:127.0.0.1"),
        *(
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
        ),
        *("2002:7f00:1::", "2001::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
        *("ff0e::1", "2001:db8::1", "100::1"),
    ],
)
def test_by_default_only_addresses_of_the_internet_are_allowed(settings, address):
    settings.OUTBOUND_ALLOW = ["public"]
    host = f"[{address}]" if ":" in address else address
    assert refusal(f"http://{host}/") == "address-refused"


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_allowed(settings, address):
    settings.OUTBOUND_ALLOW = ["public"]
    assert outbound.is_allowed(outbound.ip_address(address))
    settings.OUTBOUND_ALLOW = ["10.0.0.0/8"]  # only what is named
    assert not outbound.is_allowed(outbound.ip_address(address))
    assert outbound.is_allowed(outbound.ip_address("::ffff:10.2.3.4"))


def test_a_metadata_server_is_reached_only_under_its_own_address(settings):
    metadata = outbound.ip_address("169.254.169.254")
    settings.OUTBOUND_ALLOW = ["0.0.0.0/0", "169.254.0.0/16"]
    assert not outbound.is_allowed(metadata)
    settings.OUTBOUND_ALLOW = ["169.254.169.254/32"]
    assert outbound.is_allowed(metadata)


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f.0.0.1", "017700000001"])
def test_other_spellings_of_loopback_are_loopback(settings, host):
    settings.OUTBOUND_ALLOW = ["public"]
    with ScriptedHttp(answer(200, b"secret")) as server:
        assert refusal(f"http://{host}:{server.port}/") == "address-refused"
        assert server.connections == 0


def test_an_address_is_checked_when_it_is_given(settings, resolves):
    settings.OUTBOUND_ALLOW = ["public"]
    resolves["inside.example"] = ["10.0.0.1"]
    resolves["outside.example"] = ["8.8.8.8"]
    with pytest.raises(Problem, match="NEVE_OUTBOUND_ALLOW"):
        outbound.check("http://inside.example/", field="url")
    outbound.check("http://outside.example/", field="url")


def test_a_name_that_does_not_resolve_yet_may_be_given(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "unknown")

    monkeypatch.setattr(outbound.socket, "getaddrinfo", unknown)
    outbound.check("http://later.example/", field="url")
    with pytest.raises(Unreachable, match=r"later\.example does not resolve"):
        get("http://later.example/")


def test_one_refused_address_of_a_name_refuses_it(resolves):
    with ScriptedHttp(answer(200)) as server:
        resolves["two.example"] = ["127.0.0.1", "10.0.0.1"]
        assert refusal(f"http://two.example:{server.port}/") == "address-refused"
        assert server.connections == 0


def test_a_name_is_resolved_once_and_cannot_change_before_the_connection(resolves, settings):
    """DNS rebinding: the second answer would lead to another server."""
    settings.OUTBOUND_ALLOW = ["127.0.0.1/32"]
    with ScriptedHttp(answer(200, b"checked")) as server:
        resolves["turns.example"] = [["127.0.0.1"], ["127.0.0.2"]]
        found = get(f"http://turns.example:{server.port}/v1/models?a=b")
        assert (found.status, found.body) == (200, b"checked")
        assert resolves["asked"] == ["turns.example"]
        (request,) = server.requests
        assert request.startswith(b"GET /v1/models?a=b HTTP/1.1\r\n")
        assert f"host: turns.example:{server.port}\r\n".encode() in request.lower()


def test_the_next_address_is_tried_where_one_refuses(resolves):
    with ScriptedHttp(answer(200, b"second")) as server:
        resolves["two.example"] = ["127.0.0.2", "127.0.0.1"]
        assert get(f"http://two.example:{server.port}/").body == b"second"


def test_proxies_of_the_environment_are_ignored(monkeypatch):
    with ScriptedHttp(answer(200, b"direct")) as server, ScriptedHttp(answer(200)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert get(f"http://127.0.0.1:{server.port}/").body == b"direct"
        assert proxy.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_and_not_followed(status):
    with ScriptedHttp(answer(200, b"secret")) as inside:
        redirect = answer(status, b"", f"Location: http://127.0.0.1:{inside.port}/")
        with ScriptedHttp(redirect) as server:
            found = get(f"http://127.0.0.1:{server.port}/")
        assert (found.status, found.body, inside.connections) == (status, b"", 0)


def test_a_body_and_headers_are_sent():
    received = []

    class Engine(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.headers, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(201)
            self.end_headers()
            self.wfile.write(b"{}")

    with HTTPServer(("127.0.0.1", 0), Engine) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        found = send(
            "POST",
            f"http://127.0.0.1:{server.server_port}/tokenize",
            field="base_url",
            body=b'{"a": 1}',
            headers={"Authorization": "Bearer k", "Host": "other.example"},
        )
    assert (found.status, found.json()) == (201, {})
    ((headers, body),) = received
    assert (headers["Authorization"], body) == ("Bearer k", b'{"a": 1}')
    assert headers.get_all("Host") == [f"127.0.0.1:{server.server_port}"]


def drip(piece, every_s=0.05):
    def send_slowly(sock):
        while True:
            sock.sendall(piece)
            time.sleep(every_s)

    return send_slowly


@pytest.mark.parametrize(
    "slow",
    [
        drip(b"H"),
        lambda sock: (sock.sendall(b"HTTP/1.1 200 -\r\n"), drip(b"a")(sock)),
        lambda sock: (sock.sendall(b"HTTP/1.1 200 -\r\n\r\n"), drip(b"a")(sock)),
        lambda sock: (sock.sendall(answer(200, length=1000)), drip(b"a")(sock)),
        drip(b"HTTP/1.1 100 Continue\r\n\r\n"),
        lambda sock: time.sleep(30),
    ],
    ids=["status", "headers", "body", "body of a length", "continue", "silence"],
)
def test_the_time_of_a_whole_request_is_bounded(slow):
    with ScriptedHttp(slow) as server, pytest.raises(Unreachable, match="in time"):
        get(f"http://127.0.0.1:{server.port}/", timeout_s=0.5)


def test_a_peer_that_does_not_read_is_left_in_time():
    with ScriptedHttp(lambda sock: time.sleep(30)) as server:
        with pytest.raises(Unreachable, match="in time"):
            send(
                "POST",
                f"http://127.0.0.1:{server.port}/",
                field="url",
                body=b"x" * (64 << 20),
                timeout_s=0.5,
            )


def test_a_resolver_that_hangs_is_left_in_time(monkeypatch):
    hang = threading.Event()

    def look_up(*_, **__):
        hang.wait(60)
        return []

    monkeypatch.setattr(outbound.socket, "getaddrinfo", look_up)
    with pytest.raises(Unreachable, match="not resolved in time"):
        get("http://slow.example/", timeout_s=0.3)
    hang.set()


@pytest.mark.parametrize(
    "large",
    [
        answer(200, b"x" * 2000),
        answer(200, b"", length=1 << 40) + b"x" * 2000,
        b"HTTP/1.1 200 -\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"x" * 2000,
        answer(200, b"", *(f"X-{n}: {'y' * 9000}" for n in range(8))),
        b"HTTP/1.1 200 -\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"HTTP/1.1 200 -\r\nX: " + b"y" * (1 << 20),
    ],
    ids=["body", "claimed", "chunks", "headers", "many headers", "a header"],
)
def test_the_bytes_of_an_answer_are_bounded(large):
    with ScriptedHttp(large) as server, pytest.raises(Unreachable):
        get(f"http://127.0.0.1:{server.port}/", most_bytes=1000)


def test_a_packed_body_is_not_unpacked():
    with ScriptedHttp(answer(200, b"\x1f\x8b", "Content-Encoding: gzip")) as server:
        assert get(f"http://127.0.0.1:{server.port}/").body == b"\x1f\x8b"
        assert b"accept-encoding: identity" in server.requests[0].lower()


@pytest.mark.parametrize(
    "broken",
    [b"SSH-2.0-x\r\n", b"", answer(200, b"half", length=9)],
    ids=["another protocol", "nothing", "half a body"],
)
def test_an_answer_that_is_none_is_unreachable(broken):
    def close_after(sock):
        sock.sendall(broken)

    with ScriptedHttp(close_after) as server, pytest.raises(Unreachable):
        get(f"http://127.0.0.1:{server.port}/")


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="the connection was refused"):
            get(f"http://127.0.0.1:{free.getsockname()[1]}/")


def test_a_request_that_is_stopped_closes_its_connection():
    stop, closed = threading.Event(), threading.Event()

    def wait(sock):
        stop.set()
        if sock.recv(1) == b"":
            closed.set()

    with ScriptedHttp(wait) as server:
        with pytest.raises(Unreachable, match="stopped"):
            get(f"http://127.0.0.1:{server.port}/", timeout_s=60, stop=stop)
        assert closed.wait(10)


class TestTls:
    @pytest.fixture
    def server(self, tmp_path, monkeypatch):
        ca = make_ca(tmp_path, "ca")
        issue(tmp_path, "ca", "engine", "DNS:engine.example")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "engine.crt", tmp_path / "engine.key")
        self.names = []
        context.sni_callback = lambda _, name, __: self.names.append(name)
        trusting = ssl.create_default_context(cafile=str(ca))
        monkeypatch.setattr(outbound, "_tls", lambda: trusting)
        with ScriptedHttp(answer(200, b"sealed"), context=context) as server:
            yield server

    def test_the_certificate_is_checked_for_the_name_of_the_url(self, server, resolves):
        resolves["engine.example"] = resolves["other.example"] = ["127.0.0.1"]
        assert get(f"https://engine.example:{server.port}/").body == b"sealed"
        assert self.names == ["engine.example"]
        with pytest.raises(Unreachable, match=r"TLS: .*other\.example"):
            get(f"https://other.example:{server.port}/")
        with pytest.raises(Unreachable, match=r"TLS: .*127\.0\.0\.1"):
            get(f"https://127.0.0.1:{server.port}/")

    def test_an_unknown_authority_is_refused(self, server, resolves, monkeypatch):
        monkeypatch.setattr(outbound, "_tls", ssl.create_default_context)
        resolves["engine.example"] = ["127.0.0.1"]
        with pytest.raises(Unreachable, match="TLS: "):
            get(f"https://engine.example:{server.port}/")

    def test_a_handshake_that_never_ends_is_left_in_time(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with pytest.raises(Unreachable, match="in time"):
                get(f"https://127.0.0.1:{listener.getsockname()[1]}/", timeout_s=0.5)

"""`neve` in a terminal, against a platform whose answers are hostile."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from rich.cells import cell_len

from neve.planner.prices import PRICE_NAMES
from support.terminal import Terminal

EVIL = "\x1b]0;owned\x07\x1b[2Jx\r\x9b31m\u202e"
SHOWN = r"\x1b]0;owned\x07\x1b[2Jx\x0d\x9b31m\u202e"
ID = "822474d4-aa0b-4178-a28f-1e0a5ad9c6b7"
AT = "2026-03-01T12:00:00+00:00"

CONTEXT = {
    **{"id": ID, "tenant": EVIL, "space": 1, "name": EVIL, "label": EVIL, "labels": {EVIL: EVIL}},
    **{"owner": EVIL, "blocks": 1, "tokens": 256, "size_bytes": 1024, "state": "stored"},
    **{"pinned_until": None, "created_at": AT, "last_used_at": AT, "expired_at": None},
}
SPACE = {
    **{"id": 1, "name": EVIL, "tenant": EVIL, "fingerprint": EVIL, "chunk_tokens": 256},
    **{"identity": {"model": EVIL, "dtype": EVIL, "bytes_per_token": 1}, "created_at": AT},
}
JOB = {
    **{"id": ID, "kind": EVIL, "tenant": EVIL, "state": "failed", "error": f"{EVIL}\n{EVIL}"},
    **{"progress": 0.5, "blocks": 1, "bytes": 1, "created_at": AT, "duration_s": 1.0},
    **{"log": [{"at": AT, "words": EVIL}], "detail": {EVIL: EVIL}, "requested_by": EVIL},
}
NODE = {
    **{"node": EVIL, "space": 1, "engine": {"name": EVIL, "version": EVIL}, "breaker": EVIL},
    **{"totals": {}, "opened_at": AT, "ended_at": None},
}
ANSWERS: dict[str, Any] = {
    "/contexts": [CONTEXT],
    f"/contexts/{ID}": {
        **CONTEXT,
        "pins": [{"id": 1, "owner": EVIL, "reason": EVIL, "until": AT}],
        "residency": None,
    },
    "/spaces": [SPACE],
    "/spaces/1": SPACE,
    "/spaces/1/lineage": {
        **{"tokens": 0, "children": [], "more": 0},
        "contexts": [{"id": ID, "name": EVIL, "tokens": 1}],
    },
    "/jobs": [JOB],
    f"/jobs/{ID}": JOB,
    "/nodes": [NODE],
    "/audit": [
        {"at": AT, "actor_name": EVIL, "action": EVIL, "object_type": EVIL, "object_id": EVIL}
    ],
    "/engines": [{"id": 1, "name": EVIL, "state": EVIL, "error": EVIL, "base_url": EVIL}],
    "/webhooks": [{"id": 1, "url": EVIL, "types": [EVIL], "is_active": True}],
    "/webhooks/1/deliveries": [
        {
            **{"created_at": AT, "type": EVIL, "state": EVIL, "attempts": 1},
            "log": [{"status": 500, "error": EVIL}],
        }
    ],
    "/spaces/1/compare": {
        "differences": [{"field": EVIL, "this": EVIL, "other": EVIL, "fix": EVIL}]
    },
    "/events": [
        {
            **{"id": "1", "type": EVIL, "at": AT, "tenant": EVIL},
            **{"subject": {"type": "context", "id": ID, "name": EVIL}, "data": {EVIL: EVIL}},
        }
    ],
    "/keys": [{"id": 1, "name": EVIL, "role": EVIL, "tenant": EVIL, "created_at": AT}],
    "/me": {
        **{"name": EVIL, "role": "team", "scopes": ["read"], "key": None, "rate_limit": None},
        "tenants": [{"slug": EVIL, "name": EVIL, "may_write": True}],
    },
    "/policies/x": {"tenant": EVIL, "max_age_s": None},
    "/usage": {"resolution_s": 10, "points": []},
    "/savings": {
        "formula": EVIL,
        "rows": [
            {
                **{"month": EVIL, "tenant": EVIL, "space": None, "currency": EVIL},
                **{"gross": "1", "costs": "2", "net": "-1", "notes": {EVIL: EVIL}},
                "lines": [
                    {
                        **{"name": EVIL, "quantity": "1", "unit": EVIL, "price": EVIL},
                        **{"per": EVIL, "amount": "-1"},
                    }
                ],
            }
        ],
    },
    "/prices": {
        **dict.fromkeys(PRICE_NAMES, EVIL),
        **{"valid_from": EVIL, "currency": EVIL, "versions": [{"valid_from": EVIL}] * 2},
    },
}
COMMANDS = [
    ("contexts", "ls"),
    ("contexts", "show", ID),
    ("contexts", "tree", "1"),
    ("spaces", "ls"),
    ("jobs", "ls"),
    ("jobs", "show", ID),
    ("jobs", "log", ID),
    ("nodes",),
    ("audit",),
    ("engines",),
    ("webhooks", "ls"),
    ("webhooks", "log", "1"),
    ("spaces", "compare", "1", "1"),
    ("events",),
    ("keys", "ls"),
    ("whoami",),
    ("policy", "show", "--tenant", "x"),
    ("savings",),
    ("prices", "show"),
]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = ANSWERS.get(urlsplit(self.path).path.removeprefix("/api/v1"))
        status, kind = 200, "application/json"
        if answer is None:
            status, kind = 404, "application/problem+json"
            answer = {"type": "/problems/not-found", "title": EVIL, "status": 404, "detail": EVIL}
        elif isinstance(answer, list):
            answer = {"next": None, "previous": None, "next_cursor": None, "results": answer}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def hostile() -> Iterator[dict[str, str]]:
    """The environment of a command that talks to a platform full of escape sequences."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    yield {"NEVE_ENDPOINT": url, "NEVE_API_KEY": "neve_abc_secret"}
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_name_reaches_the_terminal_as_a_command(hostile, command):
    with Terminal(*command, env=hostile, columns=300) as terminal:
        assert terminal.end() == 0, terminal.plain()
    assert SHOWN[:20] in terminal.plain()
    for mark in ("\x1b]0;owned", "\x1b[2J", "\x9b", "\u202e", "x\r"):
        assert mark not in terminal.output.replace("\r\n", "\n"), command


def test_an_error_reaches_the_terminal_escaped(hostile):
    with Terminal("contexts", "show", ID.replace("8", "9"), env=hostile) as terminal:
        assert terminal.end() == 3
    assert SHOWN in terminal.plain()
    assert "\x1b]0" not in terminal.output


@pytest.mark.parametrize("command", [("contexts", "ls"), ("nodes",), ("jobs", "ls"), ("audit",)])
def test_tables_fit_80_columns(hostile, command):
    with Terminal(*command, env=hostile) as terminal:
        assert terminal.end() == 0
    lines = terminal.plain().splitlines()
    assert len(lines) == 2
    assert max(map(cell_len, lines)) <= 80


def test_colours_are_for_terminals_that_want_them(hostile):
    with Terminal("contexts", "ls", env=hostile) as terminal:
        terminal.end()
    assert "\x1b[32mstored" in terminal.output
    with Terminal("contexts", "ls", env={**hostile, "NO_COLOR": "1"}) as terminal:
        terminal.end()
    assert "\x1b[32m" not in terminal.output

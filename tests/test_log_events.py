"""Each log call names a registered event with its fields; each registered event is logged."""

import ast
import logging
from pathlib import Path

import pytest

from base import log_events as platform_events
from neve import log_events as node_events
from neve.log_events import LogEvent, events_of, redact

ROOT = Path(__file__).resolve().parents[1]
METHODS = {"debug", "info", "warning", "error", "exception", "critical"}
SET_UP = {"guard.py", "observing.py"}  # set levels and handlers
# Module of the table → (its events, the sources that log them).
TABLES = {
    "neve.log_events": (node_events, ("connector/src/neve",)),
    "base.log_events": (platform_events, ("platform", "cacheapi", "dashboard", "workers")),
}


def files_of(folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def calls_of(path, module):
    """(name of the event's constant, keywords, line) of each `log_events.X.log(…)`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        match node.func:
            case ast.Attribute(ast.Attribute(ast.Name("log_events"), name), "log"):
                assert not node.args
                yield name, {keyword.arg for keyword in node.keywords}, node.lineno
            case ast.Attribute(_, "getLogger"):
                assert path.name in SET_UP, f"{path}:{node.lineno}: log an event of {module}"
            case ast.Attribute(ast.Name("logging"), method):
                assert method not in METHODS, f"{path}:{node.lineno}: log an event of {module}"


@pytest.mark.parametrize("module", TABLES)
def test_calls_and_table_agree(module):
    table, folders = TABLES[module]
    events, logged = events_of(vars(table)), set()
    for path in files_of(folders):
        if path.name == "log_events.py":
            continue
        for name, keywords, line in calls_of(path, module):
            where = f"{path.relative_to(ROOT)}:{line}"
            assert name in events, f"{where}: {name} is not in {module}"
            assert keywords - {"exc_info"} == set(events[name].fields), where
            logged.add(name)
    assert logged == set(events)


@pytest.mark.parametrize("module", TABLES)
def test_rows_are_whole_and_names_are_theirs_alone(module):
    events = events_of(vars(TABLES[module][0])).values()
    names = [event.name for event in events]
    assert len(set(names)) == len(names) > 20
    for event in events:
        assert event.meaning.endswith(".")
        assert event.remedy.endswith((".", "?"))
        assert not {"event", "level", "logger", "timestamp"} & set(event.fields)
        assert not {"password", "secret", "token", "prompt", "url"} & set(event.fields)


def test_a_line_has_the_name_the_fields_and_the_callers_place(caplog):
    event = LogEvent("neve.try.out", logging.WARNING, ("blocks", "detail"), "", "", effect="so")
    event.log(blocks=3, detail='it said "no"')
    (record,) = caplog.records
    assert record.getMessage() == "neve.try.out blocks=3 detail='it said \"no\"' (so)"
    assert (record.name, record.levelname, record.filename) == (
        *("neve.try", "WARNING"),
        Path(__file__).name,
    )


SECRET = "Zz9" * 14


@pytest.mark.parametrize(
    "text",
    [
        f"key neve_abcdefgh12_{SECRET[:40]} is unknown",
        f"GET http://s3:8333/b/k?X-Amz-Algorithm=A&X-Amz-Credential=C&X-Amz-Signature={SECRET}",
        f"/b/k?versionId=1&X-Amz-Signature={SECRET} timed out",
        f"{{'Authorization': 'Bearer {SECRET}'}}",
        f"AWS4-HMAC-SHA256 Credential=k/1/s3, SignedHeaders=host, Signature={SECRET}",
        f"cannot reach valkey://:{SECRET}@hot:6379/0",
        f"postgres://neve:{SECRET}@db/neve",
        f"Cookie: sessionid={SECRET}; theme=dark",
    ],
)
def test_known_shapes_of_secrets_are_taken_out(text):
    assert SECRET[:8] not in redact(text)


def test_what_is_no_secret_stays():
    text = "neve_commit t7.k12 http://s3:8333/b/k?partNumber=3 http://host:80/a@b neve_abcdefgh12"
    assert redact(text) == text

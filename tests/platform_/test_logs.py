"""Log lines of the platform: what they carry, and what they never show."""

import json
import logging
from dataclasses import replace

import pytest
from structlog.contextvars import bound_contextvars, clear_contextvars

from base import log_events
from base.logs import LineFormatter, config


def record(message, *args, name="neve", exc_info=None):
    return logging.LogRecord(name, logging.WARNING, __file__, 1, message, args, exc_info)


def event_record(event, **fields):
    from neve.log_events import LogLine

    return record("%s", LogLine(event, fields))


@pytest.fixture(autouse=True)
def nothing_bound():
    """What earlier tests of this process bound to their work."""
    clear_contextvars()


@pytest.fixture(params=["console", "json"])
def formatter(request):
    return LineFormatter(request.param)


def test_json_has_the_event_its_fields_and_the_work_under_way():
    with bound_contextvars(request_id="r1", tenant="acme"):
        line = LineFormatter("json").format(
            event_record(log_events.ENQUEUE_FAILED, job="j1", error=OSError("gone"))
        )
    found = json.loads(line)
    assert found.pop("timestamp").endswith("Z")
    assert found == {
        **{"event": "enqueue_failed", "level": "warning", "logger": "neve"},
        **{"job": "j1", "error": "gone", "request_id": "r1", "tenant": "acme"},
    }


def test_libraries_look_the_same():
    with bound_contextvars(request_id="r1"):
        line = LineFormatter("json").format(record("Not Found: %s", "/x", name="django.request"))
    found = json.loads(line)
    assert (found["event"], found["logger"]) == ("Not Found: /x", "django.request")
    assert found["request_id"] == "r1"


def test_a_traceback_shows_no_values(formatter):
    prompt = "a prompt".upper()

    def fail(text):
        raise ValueError("too long")

    try:
        fail(prompt)
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    said = formatter.format(record("broken", exc_info=info))
    assert "too long" in said
    assert "in fail" in said
    assert prompt not in said


def test_the_settings_secrets_are_in_no_line(formatter, settings):
    settings.ENV = replace(
        settings.ENV,
        hot_url="valkey://:hot-password@a:1,b:2/0",
        bus_url="redis://:bus-password@c:3/0",
        database={**settings.ENV.database, "PASSWORD": "data-password"},
    )
    env = settings.ENV
    shown = [env.secret_key, env.key_pepper, env.s3_secret_key]
    shown += ["hot-password", "bus-password", "data-password"]
    for secret in shown:
        assert secret not in formatter.format(record("it is %s here", secret))
        assert secret not in formatter.format(event_record(log_events.HINT_FAILED, error=secret))


def test_everything_goes_through_one_handler():
    found = config("json")
    assert set(found["handlers"]) == {"stderr"}
    assert found["root"]["handlers"] == ["stderr"]
    assert not any(logger.get("handlers") for logger in found["loggers"].values())

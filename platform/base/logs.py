"""One log format for the platform, Django, Celery, uvicorn and boto3.

structlog renders the records of the standard library's loggers: `console` lines for people, or
`json`, one object a line, for a collector (NEVE_LOG_FORMAT). Lines carry the fields of the current
request (`request_id`, `tenant`, `tenant_id`, `key` (its prefix), `user`, `session`, `node`), of the
`socket`, or of the task: `task_id`, `kind`, `job`, and the `request_id` that asked for the job.

Not django-structlog: it logs two more lines for each request and task, periodic ones included.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

from django.conf import settings
from structlog.contextvars import merge_contextvars
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.processors import JSONRenderer, TimeStamper, format_exc_info
from structlog.stdlib import ProcessorFormatter, add_log_level, add_logger_name

from neve.log_events import LogLine, redact

Fields = MutableMapping[str, Any]

# They log every periodic task, every second; GET /metrics counts the runs.
QUIET = ("celery.worker.strategy", "celery.app.trace", "celery.beat")
# Loggers that otherwise write through handlers of their own.
TAKEN_OVER = ("django", "django.server", "uvicorn", "uvicorn.error", "uvicorn.access")


def config(log_format: str) -> dict[str, Any]:
    """Django's LOGGING. Everything goes to stderr."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": LineFormatter, "log_format": log_format}},
        "filters": {"count": {"()": "base.counting.CountEvents"}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "line",
                "filters": ["count"],
            }
        },
        "root": {"handlers": ["stderr"], "level": "INFO"},
        "loggers": {name: {"handlers": [], "propagate": True} for name in TAKEN_OVER}
        | {name: {"level": "WARNING"} for name in QUIET},
    }


class LineFormatter(ProcessorFormatter):
    """One line for each record, tracebacks below it (`console`) or inside it (`json`)."""

    def __init__(self, log_format: str) -> None:
        renderers: list[Any] = [format_exc_info, JSONRenderer()]
        if log_format == "console":
            # structlog's default prints the values of local variables: keys and prompts.
            renderers = [
                ConsoleRenderer(
                    colors=sys.stderr.isatty(),
                    exception_formatter=plain_traceback,
                    pad_event_to=0,
                    pad_level=False,
                )
            ]
        super().__init__(
            processors=[ProcessorFormatter.remove_processors_meta, *renderers],
            foreign_pre_chain=[
                merge_contextvars,
                _own_fields,
                _trace,
                add_log_level,
                add_logger_name,
                TimeStamper(fmt="iso", utc=True),
            ],
            pass_foreign_args=True,
        )

    def format(self, record: logging.LogRecord) -> str:
        """Render without the installation's secrets and without anything that looks like one."""
        line = super().format(record)
        for secret in settings.ENV.secrets():
            line = line.replace(secret, "[secret]")
        return redact(line)


def _own_fields(logger: object, method: str, fields: Fields) -> Fields:
    """Replace an event's rendered line by its name and fields."""
    match fields.pop("positional_args"):
        case (LogLine() as line,):
            effect = {"effect": line.event.effect} if line.event.effect else {}
            own = {
                name: value if isinstance(value, int | float) else str(value)
                for name, value in line.fields.items()
            }
            fields.update({"event": line.event.name, **own, **effect})
    return fields


def _trace(logger: object, method: str, fields: Fields) -> Fields:
    """Add the id of the current OpenTelemetry trace, if tracing is on (`base.tracing`)."""
    if (otel := sys.modules.get("opentelemetry.trace")) is not None:
        found = otel.get_current_span().get_span_context()
        if found.is_valid:
            fields["trace_id"] = otel.format_trace_id(found.trace_id)
    return fields

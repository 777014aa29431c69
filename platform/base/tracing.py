"""Traces by OpenTelemetry, where OTEL_EXPORTER_OTLP_ENDPOINT is set; otherwise nothing is imported.
(redis-py loads OpenTelemetry's metrics API by itself where that is installed.)

Requests, tasks, calls of Valkey and of S3 are spans. One trace goes from a request through the
Celery message to the job's task. The other OTEL_… variables work as everywhere.
Packages: requirements-otel.txt.
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from base import log_events


def start(service: str) -> None:
    """Once in each process, after it was forked, and in web before Django is set up.

    `service` names it in traces, unless OTEL_SERVICE_NAME does.
    """
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.botocore import BotocoreInstrumentor
        from opentelemetry.instrumentation.celery import CeleryInstrumentor
        from opentelemetry.instrumentation.django import DjangoInstrumentor
        from opentelemetry.instrumentation.redis import RedisInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log_events.TRACING_OFF.log(error=error)
        return
    os.environ.setdefault("OTEL_SERVICE_NAME", service)
    provider = TracerProvider(resource=Resource.create())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    DjangoInstrumentor().instrument(response_hook=_name_request)
    for instrumentor in (CeleryInstrumentor, RedisInstrumentor, BotocoreInstrumentor):
        instrumentor().instrument()


def untraced() -> AbstractContextManager[None]:
    """Inside, calls of Valkey and S3 are no spans: for what runs each second."""
    otel: Any = sys.modules.get("opentelemetry.instrumentation.utils")
    quiet: AbstractContextManager[None] = otel.suppress_instrumentation() if otel else nullcontext()
    return quiet


def _name_request(span: Any, request: Any, response: Any) -> None:
    if span is not None and span.is_recording():
        span.set_attribute("neve.request_id", getattr(request, "request_id", ""))

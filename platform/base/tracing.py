"""OpenTelemetry traces if OTEL_EXPORTER_OTLP_ENDPOINT is set; otherwise nothing is imported.
(redis-py imports OpenTelemetry's metrics API itself if installed.)

Requests, tasks and calls of Valkey and S3 are spans. A trace follows a request through the Celery
message into the job's task. The other OTEL_… variables have their standard meaning.
Packages: requirements-otel.txt.
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from base import log_events


def start(service: str) -> None:
    """Start tracing. Call once in each process: after the fork, and in web before Django's setup.

    `service` is the process's name in traces, unless OTEL_SERVICE_NAME is set.
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
    """Context in which Valkey and S3 calls make no spans: for work that repeats every second."""
    otel: Any = sys.modules.get("opentelemetry.instrumentation.utils")
    quiet: AbstractContextManager[None] = otel.suppress_instrumentation() if otel else nullcontext()
    return quiet


def _name_request(span: Any, request: Any, response: Any) -> None:
    if span is not None and span.is_recording():
        span.set_attribute("neve.request_id", getattr(request, "request_id", ""))

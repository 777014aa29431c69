"""Traces: one from a request to its job's task, sent to a collector; and nothing when off."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import urllib3
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from base import tracing
from support.servers import ROOT, SecondWeb, wait_until

pytestmark = pytest.mark.integration

KEY = (
    "from tenants.services import issue_key; "
    "print(issue_key(tenant=None, role='operator', name='t')[1])"
)


@pytest.fixture
def collector():
    """A collector of OTLP over HTTP, and the spans that it got: (service, span)."""
    spans = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                told = {pair.key: pair.value.string_value for pair in group.resource.attributes}
                for scope in group.scope_spans:
                    spans.extend((told["service.name"], span) for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()
        thread.join()


def test_one_trace_goes_from_the_request_through_the_message_to_the_task(
    control_plane, collector, monkeypatch
):
    url, spans = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    key = control_plane.manage("shell", "--no-imports", "-v0", "-c", KEY).split()[-1]

    def traces():
        """Id of the trace → its (service, name of a span)."""
        found = {}
        for service, span in list(spans):
            found.setdefault(span.trace_id, set()).add((service, span.name))
        return found

    def arrived():
        return any(
            {("neve-web", "POST api/v1/jobs$"), ("neve-worker", "run/workers.reconcile")} <= names
            for names in traces().values()
        )

    with SecondWeb(control_plane) as web, control_plane.workers():
        headers = {"Authorization": f"Bearer {key}", "X-Request-ID": "traced"}
        sent = urllib3.request(
            "POST", f"{web.url}/api/v1/jobs", json={"kind": "reconcile"}, headers=headers
        )
        assert sent.status == 201
        try:
            wait_until(arrived, what="the spans of one trace")
        except TimeoutError as error:
            error.add_note(str(sorted({name for names in traces().values() for name in names})))
            raise
    marked = {
        span.name
        for _, span in spans
        for pair in span.attributes
        if pair.key == "neve.request_id" and pair.value.string_value == "traced"
    }
    assert marked == {"POST api/v1/jobs$"}


def test_without_the_variable_nothing_is_imported():
    code = "import sys, controlplane.asgi; sys.exit('opentelemetry.instrumentation' in sys.modules)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'platform'}"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_without_the_packages_the_log_says_how_to_get_them(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    tracing.start("neve-web")
    assert "tracing_off" in caplog.text

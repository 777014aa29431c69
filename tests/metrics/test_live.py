"""A real web process and a real worker: their metrics, and their log lines."""

import json
import re
from contextlib import contextmanager

import pytest
import urllib3
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from dashboard.consumers import TRY_AGAIN
from metrics.table import PLATFORM, TENANT
from support.servers import SecondWeb, wait_until

pytestmark = pytest.mark.integration

SESSION = (
    "from importlib import import_module; from django.conf import settings; "
    "from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY; "
    "from django.contrib.auth.models import User; user = User.objects.get(username='operator'); "
    "session = import_module(settings.SESSION_ENGINE).SessionStore(); "
    "session[SESSION_KEY] = str(user.pk); "
    "session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]; "
    "session[HASH_SESSION_KEY] = user.get_session_auth_hash(); session.save(); "
    "print(session.session_key)"
)
KEY = (
    "from tenants.services import issue_key; "
    "print(issue_key(tenant=None, role='operator', name='m')[1])"
)


@pytest.fixture(scope="module")
def platform(control_plane):
    with control_plane.workers():
        yield control_plane


def run(platform, code):
    return platform.manage("shell", "--no-imports", "-v0", "-c", code).split()[-1]


@pytest.fixture(scope="module")
def key(platform):
    return run(platform, KEY)


@pytest.fixture
def send(platform, key):
    def send_one(method, path, *, url=platform.url, headers=(), **options):
        headers = {"Authorization": f"Bearer {key}", **dict(headers)}
        return urllib3.request(method, url + path, headers=headers, timeout=30, **options)

    return send_one


@pytest.fixture
def scrape(send):
    """(name, sorted labels) → number, and the families' names."""

    def scrape_one(**where):
        answer = send("GET", "/metrics", **where)
        assert answer.status == 200
        families = list(text_string_to_metric_families(answer.data.decode()))
        found = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }
        return found, {family.name for family in families if family.samples}

    return scrape_one


@contextmanager
def greeted_socket(url, headers):
    """Yields False if the server says to come again, as it does once the bus was away."""
    with connect(url, additional_headers=headers) as ws:
        try:
            assert json.loads(ws.recv(timeout=20)) == {"hello": True}
        except ConnectionClosedError as closed:
            if closed.rcvd.code != TRY_AGAIN:
                raise
            yield False
        else:
            yield True


def test_every_metric_of_the_table_is_exposed_and_no_other(platform, send, scrape):
    cookie = {"Cookie": f"sessionid={run(platform, SESSION)}", "Origin": platform.url}
    answer = send("POST", "/api/v1/jobs", json={"kind": "reconcile"})
    assert answer.status == 201, answer.data

    def is_counted():
        found, _ = scrape()
        return found.get(("neve_task_seconds_count", ("kind", "reconcile")), 0) >= 1

    def a_socket_is_counted():
        """Within seconds, unless it was closed since the bus was away: pages then make another."""
        with greeted_socket(f"{platform.url.replace('http', 'ws')}/ws/usage", cookie) as greeted:
            if greeted:
                wait_until(
                    lambda: scrape()[0]["neve_web_sockets",] == 1, timeout_s=20, what="its count"
                )
            return greeted

    wait_until(is_counted, what="a run of reconcile")
    wait_until(a_socket_is_counted, timeout_s=300, what="a socket")
    found, names = scrape()
    assert names == {row.name for row in (*TENANT, *PLATFORM)}
    created = ("neve_web_requests_total", ("route", "/api/v1/jobs"), ("status", "201"))
    assert found[created] >= 1  # an answer of the bus that came late is counted again
    took = ("neve_web_request_seconds_bucket", ("le", "+Inf"), ("route", "/metrics"))
    assert found[took] >= 1
    assert found["neve_task_failures_total", ("kind", "reconcile")] == 0
    for name, *labels in found:
        assert not re.search(r"neve_[a-z0-9]{10}_\w", f"{name}{labels}")


def test_any_web_process_tells_what_all_of_them_counted(platform, send, scrape):
    refused = ("neve_web_requests_total", ("route", "/api/v1/spaces"), ("status", "405"))
    with SecondWeb(platform) as second:
        urls = [platform.url, second.url]
        before = scrape()[0].get(refused, 0)
        for n in range(6):
            assert send("DELETE", "/api/v1/spaces", url=urls[n % 2]).status == 405
        for url in urls:
            wait_until(
                lambda url=url: scrape(url=url)[0].get(refused) == before + 6,
                what="the counts of both",
            )


def test_a_jobs_lines_have_the_request_that_asked_for_it(platform, send, key):
    headers = {"X-Request-ID": "asked-by-a-test"}
    answer = send("POST", "/api/v1/jobs", json={"kind": "prune"}, headers=headers)
    job = answer.json()["id"]
    log = platform.folder / "worker.log"

    def found():
        lines = [line for line in log.read_text().splitlines() if f"job={job}" in line]
        return any("job_done" in line and "request_id=asked-by-a-test" in line for line in lines)

    wait_until(found, what="the job's line")
    assert send("GET", "/nowhere").status == 404
    said = (platform.folder / "web.log").read_text() + log.read_text()
    assert "Not Found: /nowhere" in said
    for secret in (key, platform.node_key, *platform._secrets.values(), platform.s3.secret_key):
        assert secret not in said
    assert "succeeded in" not in said  # Celery's line for each tick

"""Two web processes of one platform: they count together, and do together what is asked once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3

from support import testsettings
from support.servers import ControlPlane, SecondWeb

pytestmark = pytest.mark.integration

RATE = 30
AT_ONCE = 12


@pytest.fixture(scope="module")
def platform(s3):
    server = ControlPlane(Path(testsettings.FOLDER, "web_processes"), s3)
    server.settings["RATE_CALLER"] = f"{RATE}/day"
    with server:
        yield server


@pytest.fixture(scope="module")
def urls(platform):
    with SecondWeb(platform) as second:
        yield [platform.url, second.url]


@pytest.fixture
def send(platform, urls):
    """Sends the n-th request of an operator key of its own, by turns to both processes."""
    code = (
        "from tenants.services import issue_key; "
        "print(issue_key(tenant=None, role='operator', name='x')[1])"
    )
    key = platform.manage("shell", "--no-imports", "-v0", "-c", code).split()[-1]

    def send_one(n, method="GET", path="/api/v1/usage", headers=(), **options):
        headers = {"Authorization": f"Bearer {key}", **dict(headers)}
        return urllib3.request(
            method, urls[n % 2] + path, headers=headers, timeout=30, retries=False, **options
        )

    return send_one


def at_once(count, send_one):
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(send_one, range(count)))


def test_both_count_together_and_miss_no_parallel_request(send):
    answers = at_once(RATE + 10, send)
    assert [answer.status for answer in answers].count(200) == RATE
    assert [answer.status for answer in answers].count(429) == 10


def test_of_parallel_requests_with_one_key_one_is_done(send):
    body = {"tenant": "demo", "label": "parallel", "overrides": {"priority": 7}}

    def add(n):
        headers = {"Idempotency-Key": "one"}
        return send(n, "POST", "/api/v1/rules", headers=headers, json=body)

    answers = at_once(AT_ONCE, add)
    done = [answer for answer in answers if answer.status == 201]
    first = [answer for answer in done if "Idempotent-Replayed" not in answer.headers]
    assert len(first) == 1
    assert {answer.data for answer in done} == {first[0].data}
    assert {answer.status for answer in answers} <= {201, 409}
    assert len(send(0, path="/api/v1/rules?label=parallel").json()["results"]) == 1
    assert add(1).headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("trouble", ["kill", "freeze"])
def test_without_the_bus_the_api_answers_and_keys_hold(platform, send, trouble):
    label = f"without-{trouble}"
    body = {"tenant": "demo", "label": label, "overrides": {"priority": 7}}
    getattr(platform.bus, trouble)()
    try:
        assert {answer.status for answer in at_once(RATE + 10, send)} == {200}
        for n in range(2):
            headers = {"Idempotency-Key": label}
            answer = send(n, "POST", "/api/v1/rules", headers=headers, json=body)
            assert answer.status == 201
        assert answer.headers["Idempotent-Replayed"] == "true"
    finally:
        platform.bus.restart() if trouble == "kill" else platform.bus.thaw()

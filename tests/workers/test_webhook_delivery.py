"""Beat and a Celery worker deliver to a webhook that was made over REST."""

import pytest
import urllib3

from support.servers import wait_until
from support.webhook_receiver import Receiver

pytestmark = pytest.mark.integration


def test_a_worker_delivers_what_the_test_button_sends(control_plane):
    code = (
        "from tenants.services import issue_key; "
        "print(issue_key(tenant=None, role='operator', name='hooks')[1])"
    )
    key = control_plane.manage("shell", "--no-imports", "-v0", "-c", code).split()[-1]

    def post(path, body=None):
        headers = {"Authorization": f"Bearer {key}"}
        answer = urllib3.request(
            "POST", f"{control_plane.url}/api/v1/webhooks{path}", json=body or {}, headers=headers
        )
        assert 200 <= answer.status < 300, answer.data
        return answer.json()

    with control_plane.workers(), Receiver() as receiver:
        hook = post("", {"tenant": "demo", "url": receiver.url})
        post(f"/{hook['id']}/test")
        wait_until(lambda: bool(receiver.requests), what="a delivery by Celery")
        assert receiver.verified(hook["secret"])[0]["type"] == "webhook.test"

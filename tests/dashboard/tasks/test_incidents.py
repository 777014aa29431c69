"""The incident replayed: a cold quota fills while a replay runs. The first screen names cause and
lever, the lever's link leads to the quota, and a larger one brings the hits back.

Conversations come anew all the time and each is read five times, further apart than the hot tier
reaches: what the cold tier refuses is lost before it is read again.
"""

import json
import re
import secrets
import subprocess
import sys
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from support.browser import PICTURES, axe
from support.servers import wait_until

pytestmark = pytest.mark.browser

MIB = 1 << 20
RATE = 16  # requests a second, of which each fifth begins a conversation of 512 KiB
READS, APART = 5, 80  # of a conversation, in requests
IDS = 4  # of 512 tokens each
HOT_MIB, COLD_MIB = 8, 48  # 5 s of new conversations, and half a minute of them
SLOW_S = 300  # far more than anything takes on a busy machine

_MAKE = """
from retention.services import set_policy
from tenants.audit import SYSTEM
from tenants.models import Membership
from django.contrib.auth.models import User
from tenants.services import create_tenant, issue_key
tenant = create_tenant(
    slug="{slug}", name="Incident", hot_bytes={hot}, cold_bytes={cold}, overcommit=True
)
set_policy(tenant=tenant, actor=SYSTEM, cold_full="refuse")
person = User.objects.create_user("{slug}", password="{password}")
Membership.objects.create(user=person, tenant=tenant, role="team")
print("KEY", issue_key(tenant=tenant, role="node", name="replay")[1])
print("TEAM", issue_key(tenant=tenant, role="team", name="looks")[1])
"""


def write_trace(path: Path, conversations: int) -> None:
    """Each conversation at READS places, APART requests from one another."""
    places: dict[int, int] = {}
    place = 0
    for one in range(conversations):
        while place in places:
            place += 1
        for read in range(READS):
            at = place + read * APART
            while at in places:
                at += 1
            places[at] = one
    with path.open("w") as trace:
        for at in sorted(places):
            ids = [places[at] * IDS + part for part in range(IDS)]
            line = {"timestamp": at, "input_length": 512 * IDS, "output_length": 1}
            trace.write(json.dumps({**line, "hash_ids": ids}) + "\n")


class Replay:
    """`neve replay` against a tenant of its own."""

    def __init__(self, platform, folder: Path) -> None:
        self.platform, self.slug = platform, f"inc{secrets.token_hex(3)}"
        self.password = secrets.token_hex(8)
        made = platform.manage(
            "shell",
            "-v",
            "0",
            "-c",
            _MAKE.format(
                slug=self.slug, hot=HOT_MIB * MIB, cold=COLD_MIB * MIB, password=self.password
            ),
        )
        key, self.team = (re.search(rf"{name} (\S+)", made)[1] for name in ("KEY", "TEAM"))
        write_trace(folder / "trace.jsonl", 4000)
        command = [Path(sys.executable).with_name("neve"), "replay", folder / "trace.jsonl"]
        command += ["--endpoint", platform.url, "--api-key", key, "--rate", str(RATE), "--quiet"]
        command += ["--kv-bytes-per-token", "256", "--node", "replay-of-incident"]
        self.process = subprocess.Popen(
            [*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def get(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self.team}"}
        request = urllib.request.Request(f"{self.platform.url}/api/v1/{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def opened(self) -> tuple[float, float]:
        """When the hits began to fall, and when the incident opened, in Unix seconds."""
        (row,) = self.get("incidents?kind=hit_rate")["results"]
        since, opened = (datetime.fromisoformat(row[name]) for name in ("since", "opened_at"))
        return since.timestamp(), opened.timestamp()

    def seen(self) -> float:
        """The newest hit rate, of 10 s or more; 0 without traffic."""
        points = self.get("usage?range=15m")["points"][-2:]
        asked = sum(each["requested_blocks"] for each in points)
        hits = sum(each["hit_hot_blocks"] + each["hit_cold_blocks"] for each in points)
        return hits / asked if asked else 0.0


@pytest.fixture(scope="module")
def replay(control_plane, tmp_path_factory):
    with control_plane.workers():
        replay = Replay(control_plane, tmp_path_factory.mktemp("incident"))
        yield replay
        replay.process.terminate()
        replay.process.wait(30)


@pytest.fixture
def case(walker, replay):
    """What the overview says of the tenant, once its hits have fallen; `shown_at`: when."""
    case = walker.page.locator(".case", has_text=replay.slug)
    expect(case).to_contain_text(f"{replay.slug}: hit rate −", timeout=SLOW_S * 1000)
    case.shown_at = time.time()
    return case


def test_the_first_screen_names_cause_and_lever(walker, replay, case):
    """How soon: tests/incidents/test_falls.py, whose clock no busy machine delays. Printed here."""
    page = walker.page
    expect(case).to_have_attribute("data-cause", "unflushed")
    expect(case).to_contain_text("Refused by cold quota")
    expect(case).to_contain_text("Its cold quota is full, so flushes are refused")
    expect(case).to_contain_text(f"now {COLD_MIB} MiB")
    began, opened = replay.opened()
    seconds = f"opened {opened - began:.1f} s after the hits began to fall, "
    print(seconds + f"on the page after {case.shown_at - began:.1f} s")
    reasons = page.locator("[data-reason=unflushed]")
    expect(reasons).to_contain_text("refused by cold quota")
    PICTURES.mkdir(exist_ok=True)
    for width in (1440, 390):
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            page.set_viewport_size({"width": width, "height": 900})
            page.screenshot(path=PICTURES / f"test-incident-{theme}-{width}.png")
            assert axe(page) == []
    page.set_viewport_size({"width": 1440, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert walker.clicks() == 0


def test_why_the_hit_rate_dropped_with_the_lever_as_a_member(open_page, replay, case):
    member = open_page(person=(replay.slug, replay.password))
    member.start(f"{replay.platform.url}/")
    page = member.page
    case = page.locator(".case", has_text=replay.slug)
    expect(case).to_contain_text("Refused by cold quota")
    case.get_by_role("link", name="Try it").first.click()
    page.wait_for_url("**/what-if/**")
    lever = page.get_by_role("spinbutton", name="Cold quota")
    expect(lever).to_have_value(f"{round(2 * COLD_MIB / 1024, 3):g}")
    assert member.clicks() <= 3


def test_the_levers_link_leads_to_the_quota_and_a_larger_one_brings_hits_back(walker, replay, case):
    page = walker.page
    case.get_by_role("link", name="Change the quota").first.click()
    page.wait_for_url(f"**/tenants/{replay.slug}/**")
    field = page.get_by_label("Cold quota", exact=True)
    field.fill("2 GiB")
    field.press("Enter")
    expect(page.get_by_label("Cold quota", exact=True)).to_have_value(re.compile("2 GiB"))
    assert walker.clicks() <= 3
    wait_until(lambda: replay.seen() > 0.6, timeout_s=SLOW_S, every_s=1, what="hits that are back")

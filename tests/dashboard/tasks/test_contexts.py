"""What people do with contexts, and the clicks that each task may cost, from the first screen."""

import re
import secrets

import pytest
from playwright.sync_api import expect

from dashboard import formats
from neve.formats.keys import BucketKeys
from neve.index.tier import HotTier, Location
from support.browser import PICTURES, axe

pytestmark = pytest.mark.browser

BLOCK = 1000  # bytes
_WORK = """
from catalog import jobs
from catalog.kinds import BULK
from catalog.models import Job
from catalog.targets import Opener
from contexts import bulk
for job in Job.unscoped.filter(kind="bulk", state="queued"):
    with jobs.job_run(job.pk) as run:
        bulk.work(Opener(BULK, job.tenant_id, run), job.tenant_id, **job.arguments)
"""


class Space:
    """The demo tenant's space as a node fills it: one prompt, tools below it, and a book, each time
    a larger one."""

    made = 0

    def __init__(self, control_plane, node):
        self.platform, self.node = control_plane, node
        self.tag = secrets.token_hex(3)
        system, tools = self.store(4), self.store(3)
        self.own = {f"agent-{self.tag}-{n}": self.store(2 + n) for n in range(3)}
        Space.made += 1
        self.big = self.store(40 + 4 * Space.made)
        node.report(f"system-{self.tag}", system)
        for name, tail in self.own.items():
            node.report(name, system + tools + tail)
        node.report(f"book-{self.tag}", self.big)

    def store(self, count):
        ids = [secrets.token_bytes(16) for _ in range(count)]
        with self.platform.hot.client() as client:
            for id_ in ids:
                key = BucketKeys(self.node.tenant_id, 0).block(self.node.space_id, id_)
                client.set(key, bytes(BLOCK), px=60_000)
            tier = HotTier(client.execute_command, self.node.tenant_id)
            tier.commit(self.node.space_id, [(id_, BLOCK, 256) for id_ in ids])
        return ids

    def stored(self, ids):
        with self.platform.hot.client() as client:
            found = HotTier(client.execute_command, self.node.tenant_id).match(ids)
        return sum(isinstance(each, Location) for each in found)

    def used(self):
        with self.platform.hot.client() as client:
            return HotTier(client.execute_command, self.node.tenant_id).usage().hot_bytes


@pytest.fixture
def space(control_plane, node):
    return Space(control_plane, node)


@pytest.fixture(params=["operator", "member"])
def someone(request):
    """An operator and a member of the tenant at the first screen."""
    return request.getfixturevalue("walker" if request.param == "operator" else "member_walker")


def open_contexts(page):
    page.get_by_role("link", name="Contexts", exact=True).click()
    page.wait_for_url("**/contexts/**")


def test_the_largest_context_and_what_expiring_it_frees(someone, space):
    page = someone.page
    open_contexts(page)
    panel = page.get_by_role("region", name="Selected")
    expect(panel.get_by_role("heading")).to_contain_text(f"book-{space.tag}")
    freed = formats.bytes_quantity(len(space.big) * BLOCK)
    expect(panel.locator("[data-frees]")).to_have_text(f"{freed.value} {freed.unit}")
    assert someone.clicks() <= 2
    assert someone.errors == []


def test_a_pin_until_friday_and_its_end(someone, space):
    page = someone.page
    open_contexts(page)
    page.get_by_role("link", name=f"agent-{space.tag}-1", exact=True).click()
    page.get_by_label("Pin until").fill("Friday 18:00")
    page.get_by_role("button", name="Pin", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="Pinned until Fri")).to_contain_text(
        "10 blocks are kept"
    )
    end = page.locator("[data-end]").first
    expect(end).to_contain_text(re.compile(r"\d{4}-\d\d-\d\d 18:00:00"))
    assert someone.clicks() <= 3
    page.get_by_role("button", name="Unpin", exact=True).click()
    expect(page.get_by_text("Nobody pins it.")).to_be_visible()
    assert someone.errors == []


def test_a_subtree_is_expired_after_its_preview(someone, space, control_plane):
    page = someone.page
    open_contexts(page)
    cell = page.get_by_role("treeitem", name=re.compile(f"^agent-{space.tag}-…"))
    cell.click(position={"x": 6, "y": 30})  # its text is cut off, its box is not
    panel = page.get_by_role("region", name="Selected")
    expect(panel.get_by_role("heading")).to_contain_text(f"agent-{space.tag}-…")
    freed = (3 + 2 + 3 + 4) * BLOCK
    panel.get_by_role("button", name="Expire…").click()
    asked = page.locator("[data-asked]")
    expect(asked).to_contain_text("Expire 3 contexts?")
    expect(asked).to_contain_text(re.compile(r"Frees 11.7\sKiB: 11.7\sKiB in Valkey at once"))
    expect(asked).to_contain_text(re.compile(r"3.91\sKiB shared with 1 context outside stay"))
    before = space.used()
    asked.get_by_role("button", name=re.compile("^Expire 3 contexts: frees 11.7")).click()
    expect(page.locator("#job")).to_contain_text("Expiring 3 contexts")
    assert someone.clicks() <= 4
    control_plane.manage("shell", "-v", "0", "-c", _WORK)
    expect(page.locator("#job")).to_contain_text("3 done")
    assert before - space.used() == freed
    assert space.stored([id_ for ids in space.own.values() for id_ in ids]) == 0
    assert someone.errors == []


def test_the_tree_is_walked_by_keyboard_and_read_by_screen_readers(walker, space):
    page = walker.page
    open_contexts(page)
    root = page.get_by_role("treeitem").first
    page.locator("[data-icicle] [tabindex='0']").focus()
    page.keyboard.press("Home")
    expect(root).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator("[data-icicle] :focus")).to_have_attribute("aria-level", "2")
    first = page.evaluate("document.activeElement.id")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") != first
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(page.locator(".trail a")).to_have_text("Whole space")
    expect(page.locator(f"[id='{first}']")).to_be_focused()
    assert "top=" in page.url
    page.keyboard.press("Backspace")
    expect(page.locator(".trail a")).to_have_count(0)
    found = [each for each in axe(page) if each.startswith(("serious", "critical"))]
    assert found == []
    assert walker.errors == []


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_pages_fit_a_phone_and_a_desk(open_page, space, control_plane, theme):
    for width, height in ((1440, 900), (390, 844)):
        watched = open_page(
            viewport={"width": width, "height": height}, color_scheme=theme, device_scale_factor=1
        )
        page = watched.page
        page.goto(f"{control_plane.url}/contexts/?q={space.tag}")
        expect(page.get_by_role("tree")).to_be_visible()
        for name in ("contexts", "context"):
            if name == "context":
                link = page.get_by_role("link", name=f"agent-{space.tag}-1", exact=True)
                page.goto(control_plane.url + link.first.get_attribute("href"))
            page.screenshot(path=PICTURES / f"{name}-{theme}-{width}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = [each for each in axe(page) if each.startswith(("serious", "critical"))]
            assert found == [], name
        assert watched.errors == []

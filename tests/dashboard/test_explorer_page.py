"""The page Explorer: what it answers as HTML and CSV, and in a browser."""

import csv
import io
import json
import re
import time

import pytest
from django.urls import reverse

from catalog.models import Slice
from support.browser import PICTURES, axe
from support.rows import make_space
from support.servers import ControlPlane
from support.sliced_tenants import SLUGS

SEED = "import sys; sys.path.insert(0, 'tests'); from support.sliced_tenants import seed; seed()"


def put(tenant, kind, back_s, *, space=None, name="", **counts):
    bucket_ts = int(time.time() - back_s) // 60 * 60
    number = 0 if space is None else space.pk
    Slice.unscoped.create(
        tenant=tenant,
        kind=kind,
        resolution_s=60,
        bucket_ts=bucket_ts,
        space_number=number,
        name=name,
        **counts,
    )


@pytest.fixture
def fallen(acme, globex):
    """acme: 80 → 40 %; globex: 50 → 55 %."""
    for tenant, then, now in ((acme, 80, 40), (globex, 50, 55)):
        space = make_space(tenant, f"{tenant.slug}-space")
        for kind, where in (("tenant", {}), ("place", {"space": space, "name": "gpu-1"})):
            put(tenant, kind, 1500, prompt_tokens=10_000, hit_tokens=100 * then, **where)
            put(
                tenant,
                kind,
                300,
                prompt_tokens=10_000,
                hit_tokens=100 * now,
                misses={"unflushed": 20, "never_stored": 5},
                **where,
            )


def page(browser, **query):
    return browser.get(reverse("dashboard:explorer"), query)


def chart_of(answer):
    found = re.search(
        r'<script id="explorer-data" type="application/json">(.*?)</script>',
        answer.content.decode(),
    )
    return json.loads(found[1])


@pytest.mark.integration
@pytest.mark.django_db
@pytest.mark.usefixtures("hot_tier")
class TestAnswers:
    def test_what_changed_most_comes_first(self, people, fallen):
        answer = page(people["operator"])
        text = answer.content.decode()
        assert text.index(">acme</a>") < text.index(">globex</a>")
        assert "▼\N{NO-BREAK SPACE}40\N{NO-BREAK SPACE}pt" in text
        assert "acme-space · 1 node" in text
        assert "= 9500 of 20k prompt tokens" in re.sub(r"<[^>]+>", "", text)
        chart = chart_of(answer)
        assert [line["name"] for line in chart["lines"]] == ["all", "acme", "globex"]
        assert {each["reason"] for each in chart["reasons"]} == {"unflushed", "never_stored"}
        points = sum(len(line["values"]) for line in chart["lines"])
        assert points <= 1000

    def test_a_row_scopes_the_page(self, people, fallen):
        chart = chart_of(page(people["operator"], range="1h"))
        url = chart["lines"][1]["url"]
        assert {"tenant=acme", "split=space", "range=1h"} <= set(url.partition("?")[2].split("&"))
        text = people["operator"].get(url).content.decode()
        assert ">acme-space</a>" in text
        assert "globex" not in text.split("data-explorer")[1]

    def test_csv_has_all_rows_with_plain_numbers(self, people, fallen):
        answer = page(people["operator"], format="csv")
        rows = list(csv.DictReader(io.StringIO(b"".join(answer.streaming_content).decode())))
        assert [(row["name"], float(row["value"]), float(row["before"])) for row in rows] == [
            ("acme", 0.4, 0.8),
            ("globex", 0.55, 0.5),
        ]
        assert float(rows[0]["change"]) == pytest.approx(-0.4)
        assert rows[0]["main_reason"] == "unflushed"

    def test_members_see_their_own_parts(self, people, fallen):
        text = page(people["viewer"]).content.decode()
        assert "acme-space" in text
        assert "globex" not in text
        assert page(people["viewer"], tenant="globex").status_code == 404
        assert "acme" not in page(people["stranger"]).content.decode()

    @pytest.mark.parametrize("measure", ["load_p99", "miss_blocks", "hot_used", "read_bytes"])
    @pytest.mark.parametrize("split", ["", "tenant", "node", "label", "reason", "tier"])
    def test_every_measure_and_split_answers(self, people, fallen, measure, split):
        answer = page(people["operator"], measure=measure, split=split)
        assert answer.status_code == 200
        assert b"None" not in answer.content

    def test_both_tails_and_what_is_clipped(self, people, acme):
        put(acme, "tenant", 60, load_ms={"<=1": 10, "<=5": 80, "+Inf": 10})
        text = page(people["operator"], measure="load_p99", split="tenant").content.decode()
        said = re.sub(r"<[^>]+>", "", text)
        assert "100 loads: 1 % within 0.1 ms, half within 3.5 ms" in said
        assert "99 % need more than 5000 ms" in said
        assert "10.0 % took at most 1 ms, the first bound; 10.0 % more than 5 s" in said

    @pytest.mark.parametrize(
        "query", [{"measure": "luck"}, {"split": "star"}, {"against": "ever"}, {"extra": "1"}]
    )
    def test_nonsense_is_not_found(self, people, query):
        assert page(people["operator"], **query).status_code == 404

    def test_a_query_more_a_page_not_a_row(self, people, fallen, django_assert_max_num_queries):
        with django_assert_max_num_queries(30):
            page(people["operator"])


@pytest.fixture(scope="module")
def sliced(control_plane: ControlPlane) -> ControlPlane:
    control_plane.manage("shell", "-v", "0", "-c", SEED)
    return control_plane


@pytest.mark.browser
def test_it_says_who_fell_and_a_click_goes_there(open_page, sliced):
    watched = open_page(color_scheme="dark")
    page = watched.page
    page.goto(f"{sliced.url}/explorer/?range=6h")
    PICTURES.mkdir(exist_ok=True)
    page.wait_for_selector("#explorer-reasons .scatterlayer")
    page.screenshot(path=PICTURES / "test-explorer-dark.png", full_page=True)
    first = page.locator("[data-part=list-explorer] tbody tr").first
    assert first.locator("th").inner_text() == SLUGS[0]
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**split=space**")
    page.screenshot(path=PICTURES / "test-explorer-space.png", full_page=True)
    assert axe(page) == []
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{sliced.url}/explorer/?range=6h&measure=load_p99&split=node")
    page.wait_for_selector("#explorer-lines .main-svg")
    page.screenshot(path=PICTURES / "test-explorer-phone.png", full_page=True)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(f"{sliced.url}/explorer/?range=6h")
    page.screenshot(path=PICTURES / "test-explorer-light.png", full_page=True)
    assert watched.errors == []


@pytest.mark.browser
def test_a_drag_on_a_chart_zooms_and_the_address_says_so(open_page, sliced):
    page = open_page().page
    page.goto(f"{sliced.url}/explorer/?range=6h")
    plot = page.locator("#explorer-lines .nsewdrag").first
    box = plot.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, y, steps=5)
    page.mouse.up()
    page.wait_for_url("**from=**")
    assert "to=" in page.url
    chart = json.loads(page.locator("#explorer-data").text_content())
    assert 3600 <= chart["end"] - chart["start"] <= 7800

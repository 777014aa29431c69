"""Figures lead to pages that exist, and commands that people copy hold plain words only."""

import re
import shlex

import pytest

from catalog.models import Space
from dashboard.snippets import another_node
from support.rows import IDENTITY, make_segment, make_session, make_space

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


def test_every_figure_that_is_a_link_leads_to_a_page(people, acme, hot_tier):
    space = make_space(acme)
    node = make_session(space, totals={"requested_tokens": 100, "hot_read_bytes": 5})
    make_segment(space)
    seen: set[str] = set()
    for path in ("/nodes/", f"/nodes/{node.pk}/", "/tiers/", "/spaces/", f"/spaces/{space.pk}/"):
        text = people["operator"].get(path).content.decode()
        main = text.partition("<main")[2].partition("</main>")[0]
        links = {each.replace("&amp;", "&") for each in re.findall(r'href="(/[^"]+)"', main)}
        for each in links - seen:
            assert people["operator"].get(each).status_code == 200, (path, each)
        seen |= links
    measures = set(re.findall(r"measure=(\w+)", " ".join(seen)))
    assert {"hit_tokens", "hit_rate", "dropped", "refused", "miss_blocks"} <= measures
    assert {"hot_used", "cold_used", "dirty_age", "read_bytes", "write_bytes"} <= measures


def test_a_node_shows_how_to_start_another_with_its_kv(people, acme):
    node = make_session(make_space(acme, "chat"))
    page = people["team"].get(f"/nodes/{node.pk}/").content.decode()
    assert "vllm serve chat --dtype bfloat16" in page
    assert "&quot;space&quot;: &quot;chat&quot;" in page


def test_a_command_has_the_flags_of_the_identity(acme):
    identity = {**IDENTITY, "dtype": "torch.bfloat16", "kv_dtype": "fp8:torch.uint8", "tp_size": 4}
    words = shlex.split(another_node("https://neve", Space(name="chat", identity=identity)))
    assert words[words.index("--kv-cache-dtype") + 1] == "fp8"
    assert words[words.index("--tensor-parallel-size") + 1] == "4"
    assert words[words.index("--dtype") + 1] == "bfloat16"


def test_names_that_a_shell_would_read_stay_out_of_a_command():
    identity = {**IDENTITY, "model": "a'; rm -rf ~", "dtype": "$(id)"}
    command = another_node("https://neve", Space(name="x'y", identity=identity))
    assert "vllm serve MODEL" in command
    assert not {"rm", "$(id)", "x'y"} & set(re.split(r"\s+", command))
    assert command.count("'") == 2

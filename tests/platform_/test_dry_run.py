"""What a change would remove, as a pure decision, and as a command."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from contexts.dry_run import effect_on
from contexts.stored import Standing
from neve.index.scan import IndexEntry
from neve.index.tier import BlockTerms
from support.rows import make_space, make_tenant

NOW = 1_000_000


def entry(**fields):
    plain = {
        "id": bytes(16), "is_hot": True, "is_cold": True, "is_dirty": False, "space_id": 1,
        "size_bytes": 100, "expires_s": 0, "pinned_s": 0, "segment": 1, "stored_s": NOW - 100,
        "idle_s": 0, "priority": 5, "held": False,
    }  # fmt: skip
    return IndexEntry(**{**plain, **fields})


@pytest.mark.parametrize(
    ("fields", "terms", "used_s", "effect"),
    [
        ({}, BlockTerms(), NOW - 50, "stays"),
        ({}, BlockTerms(ttl_s=100), NOW, "goes"),
        ({}, BlockTerms(ttl_s=101), NOW, "stays"),
        ({}, BlockTerms(ttl_s=50, until_s=NOW + 1), NOW, "stays"),
        ({"pinned_s": NOW + 1}, BlockTerms(ttl_s=50), None, "stays"),
        ({"pinned_s": NOW - 1}, BlockTerms(ttl_s=50), None, "goes"),
        ({"expires_s": NOW - 1}, BlockTerms(ttl_s=50), NOW, "stays"),  # it goes anyhow
        ({}, BlockTerms(idle_s=50), NOW - 50, "cools"),
        ({}, BlockTerms(idle_s=51), NOW - 50, "stays"),
        ({"is_cold": False}, BlockTerms(idle_s=50), NOW - 50, "goes"),
        ({"is_dirty": True}, BlockTerms(idle_s=50), None, "stays"),
        ({"is_hot": False}, BlockTerms(idle_s=50), None, "stays"),
    ],
)
def test_what_would_go(fields, terms, used_s, effect):
    removed, cooled = effect_on([entry(**fields)], [Standing(terms, False)], [used_s], NOW)
    assert (len(removed), len(cooled)) == {"stays": (0, 0), "goes": (1, 0), "cools": (0, 1)}[effect]


@pytest.mark.integration
@pytest.mark.django_db
class TestCommand:
    @pytest.fixture(autouse=True)
    def servers(self, clean_hot):
        self.tenant = make_tenant("acme")

    def run(self, *args):
        out = StringIO()
        call_command("retention_dry_run", *args, stdout=out)
        return dict(line.split("=") for line in out.getvalue().split())

    def test_it_prints_the_figures(self, tmp_path):
        rules = tmp_path / "rules.json"
        space = make_space(self.tenant)
        rules.write_text(json.dumps([{"space": space.pk, "overrides": {"max_age_s": 60}}]))
        figures = self.run("acme", "cold_ttl_s=60", "max_age_s=null", f"--rules={rules}")
        assert (figures["removed_blocks"], figures["is_complete"]) == ("0", "True")

    @pytest.mark.parametrize(
        "args", [("nobody",), ("acme", "ttl=5"), ("acme", "priority=x"), ("acme", "priority=99")]
    )
    def test_what_makes_no_sense_is_refused(self, args):
        with pytest.raises(CommandError):
            self.run(*args)

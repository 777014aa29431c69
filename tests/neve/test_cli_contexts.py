"""`neve contexts` and its neighbours against a live platform, as a person and a script use them."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from neve.api import Neve as Api
from neve.cli.main import main
from support.chains import CHUNK_TOKENS, ENGINE, IDENTITY, Chain, PatientClient
from support.servers import ControlPlane

pytestmark = pytest.mark.integration

Neve = Callable[..., Result]


@pytest.fixture(scope="module")
def stored(control_plane: ControlPlane) -> dict[str, str]:
    """Contexts of two spaces: name → id. `cli-twin` stands in both."""
    found = {}
    for space, names in (
        ("cli-a", ("cli-one", "cli-two", "cli-twin")),
        ("cli-b", ("cli-twin",)),
    ):
        identity = replace(IDENTITY, dtype="float16" if space == "cli-b" else "float32")
        with PatientClient.connect(
            control_plane.url,
            control_plane.node_key,
            identity,
            node="cli",
            engine=ENGINE,
            space=space,
        ) as client:
            chain = Chain(client, 3, seed=31)
            assert chain.put() == [None] * 3
            for name in names:
                tokens = 3 * client.session.chunk_tokens
                found[f"{space}/{name}"] = client.report_context(name, chain.ids, tokens=tokens)
    return found


@pytest.fixture
def neve(control_plane: ControlPlane, stored: dict[str, str], tmp_path) -> Neve:
    env = {
        "NEVE_ENDPOINT": control_plane.url,
        "NEVE_API_KEY": control_plane.team_key,
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    return lambda *arguments, **options: CliRunner(env={**env, **options.pop("env", {})}).invoke(
        main, arguments, **options
    )


def rows(done: Result) -> list[str]:
    assert done.exit_code == 0, done.stderr
    return done.stdout.splitlines()


def document(done: Result):
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_contexts_are_listed_for_people_and_for_programs(neve, stored):
    lines = rows(neve("contexts", "ls", "--search", "cli-", "--sort", "name"))
    assert lines[0].split()[:3] == ["NAME", "SPACE", "STATE"]
    assert [line.split()[0] for line in lines[1:]] == ["cli-one", "cli-twin", "cli-twin", "cli-two"]
    found = document(neve("contexts", "ls", "--search", "cli-", "--json"))
    assert {row["name"] for row in found} == {"cli-one", "cli-two", "cli-twin"}
    assert {row["id"] for row in found} == set(stored.values())


def test_a_list_that_is_cut_says_how_many_there_are(neve):
    done = neve("contexts", "ls", "--search", "cli-", "--limit", "3")
    assert len(rows(done)) == 4
    assert "3 of 4:" in done.stderr
    everything = neve("contexts", "ls", "--search", "cli-", "--limit", "1", "--all")
    assert len(rows(everything)) == 5
    assert everything.stderr == ""


def test_an_empty_list_is_no_error(neve):
    done = neve("contexts", "ls", "--search", "no such context")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "No contexts fit" in done.stderr
    assert document(neve("contexts", "ls", "--search", "no such", "--json")) == []


def test_a_context_is_found_by_name_or_id_and_an_ambiguous_name_lists_candidates(neve, stored):
    by_name = document(neve("contexts", "show", "cli-one", "--json"))
    assert by_name["id"] == stored["cli-a/cli-one"]
    assert document(neve("contexts", "show", by_name["id"], "--json"))["name"] == "cli-one"
    done = neve("contexts", "show", "cli-twin")
    assert done.exit_code == 3
    for place in ("cli-a/cli-twin", "cli-b/cli-twin"):
        assert stored[place] in done.stderr
    assert "--space" in done.stderr
    there = document(neve("contexts", "show", "cli-twin", "--space", "cli-b", "--json"))
    assert there["id"] == stored["cli-b/cli-twin"]


LOSE = """
from catalog.models import Space
space = Space.unscoped.get(name="cli-b")
space.identity["codec"] = "{codec}"
space.measured_loss = {{"error": 0.0103, "kl": 1.2e-4}}
space.save()
"""


def test_kv_that_is_stored_with_loss_is_marked(neve, control_plane):
    control_plane.manage("shell", "-v0", "-c", LOSE.format(codec="int8"))
    shown = neve("contexts", "show", "cli-twin", "--space", "cli-b").output
    assert "lossy: int8, error 0.0103, KL 1.2e-04" in shown
    assert "int8" in neve("spaces", "ls").output
    control_plane.manage("shell", "-v0", "-c", LOSE.format(codec="none"))
    assert "lossy" not in neve("contexts", "show", "cli-twin", "--space", "cli-b").output


def test_a_name_that_is_not_there_names_what_is_near(neve):
    done = neve("contexts", "show", "cli-t")
    assert done.exit_code == 3
    assert "'cli-two'" in done.stderr
    done = neve("contexts", "show", "00000000-0000-4000-8000-000000000000", "--json")
    assert (done.exit_code, done.stdout) == (3, "")
    told = json.loads(done.stderr)
    assert (told["kind"], told["status"], told["exit_code"]) == ("not-found", 404, 3)


def test_a_context_is_shown_with_pins_and_residency(neve):
    assert neve("contexts", "pin", "cli-one", "--for", "2h", "--reason", "demo").exit_code == 0
    shown = "\n".join(rows(neve("contexts", "show", "cli-one")))
    for words in ("768 tokens in 3 blocks", "demo", "hot", "durable", "usable"):
        assert words in shown
    assert "(in 1h5" in shown
    assert rows(neve("contexts", "unpin", "cli-one")) == ["cli-one: 1 pin ended"]


def test_several_contexts_are_acted_on_at_once_and_none_if_one_is_missing(neve):
    done = neve("contexts", "pin", "cli-one", "cli-nope", "--for", "1h")
    assert done.exit_code == 3
    assert document(neve("contexts", "ls", "--search", "cli-", "--pinned", "--json")) == []
    both = document(neve("contexts", "extend", "cli-one", "cli-two", "--for", "7d", "--json"))
    assert [each["name"] for each in both] == ["cli-one", "cli-two"]
    assert all(each["answer"]["extended"] == 3 for each in both)


def test_what_is_destroyed_is_shown_and_asked_for(neve):
    done = neve("contexts", "expire", "cli-two")
    assert done.exit_code == 64  # nobody can answer
    assert "would remove 0 blocks" in done.stderr  # all are shared
    assert "--yes" in done.stderr
    done = neve("contexts", "rm", "cli-two")
    assert done.exit_code == 64
    assert "768 tokens" in done.stderr
    assert document(neve("contexts", "show", "cli-two", "--json"))["expired_at"] is None


def test_a_wrong_value_is_refused_with_its_field_and_its_remedy(neve):
    done = neve("contexts", "pin", "cli-one", "--for", "soon")
    assert done.exit_code == 64
    assert "for" in done.stderr
    assert "Fix:" in done.stderr


def test_a_key_that_is_not_known_says_what_to_do(neve):
    done = neve("contexts", "ls", env={"NEVE_API_KEY": "neve_abcdefghij_secret"})
    assert done.exit_code == 4
    assert "Fix:" in done.stderr


def test_two_contexts_are_compared_and_a_space_is_a_tree(neve):
    shown = "\n".join(rows(neve("contexts", "diff", "cli-one", "cli-two")))
    assert "768 tokens in 3 blocks" in shown
    tree = rows(neve("contexts", "tree", "cli-a"))
    assert tree[0] == "cli-a"
    assert any("cli-one  768 tokens" in line for line in tree)
    assert document(neve("contexts", "tree", "cli-a", "--json"))["context_count"] == 3


def test_usage_spaces_nodes_and_audit_are_listed(neve, stored):
    assert any("prompts" in line for line in rows(neve("usage", "--range", "1h")))
    by_space = rows(neve("usage", "--range", "1h", "--by", "space"))
    assert by_space[0].split()[:3] == ["SPACE", "PROMPT", "TOKENS"]
    assert any(line.startswith("cli-a ") for line in by_space)
    assert any("cli-a" in line for line in rows(neve("spaces", "ls", "--model", "test/model")))
    assert any(line.startswith("cli ") for line in rows(neve("nodes", "--all")))
    lines = rows(neve("audit", "--object", stored["cli-a/cli-one"], "--action", "context.record"))
    assert len(lines) == 2
    assert any("demo team" in line for line in rows(neve("keys", "ls")))
    assert isinstance(document(neve("jobs", "ls", "--json")), list)


def test_savings_and_prices_are_shown(neve, stored):
    assert isinstance(document(neve("savings", "--json"))["rows"], list)
    lines = rows(neve("savings", "--csv"))
    assert lines[0].startswith("month,tenant,space_id,space,currency,gross")
    assert any(line.split()[0] == "gpu_hour" for line in rows(neve("prices", "show")))
    refused = neve("prices", "set", "--gpu-hour", "1")  # the key is a team's
    assert refused.exit_code == 4


def test_completion_offers_names_of_contexts(control_plane, neve, stored):
    done = neve(env={"_NEVE_COMPLETE": "bash_complete", "COMP_WORDS": "neve contexts pin cli-o",
                     "COMP_CWORD": "3"}, prog_name="neve")  # fmt: skip
    assert "plain,cli-one" in done.stdout.splitlines()


def test_two_spaces_are_compared_with_what_to_set(neve):
    shown = neve("spaces", "compare", "cli-a", "cli-b").stdout.splitlines()
    assert shown[:3] == ["dtype", "  cli-a: float32", "  cli-b: float16"]
    assert shown[3].startswith("  fix: ")
    same = neve("spaces", "compare", "cli-a", "cli-a")
    assert same.stdout == "They are equal: their engines share blocks.\n"


def test_a_name_and_labels_are_changed(neve):
    shown = rows(neve("contexts", "label", "cli-one", "team=blue", "old=1"))
    assert shown == ["cli-one: labels old=1 team=blue, for rules —"]
    rows(neve("contexts", "label", "cli-one", "old-", "stage=test", "--rule-label", "agent"))
    row = document(neve("contexts", "show", "cli-one", "--json"))
    assert (row["labels"], row["label"]) == ({"team": "blue", "stage": "test"}, "agent")
    found = document(neve("contexts", "ls", "--labels", "team=blue", "--labels", "stage=test",
                          "--json"))  # fmt: skip
    assert [each["name"] for each in found] == ["cli-one"]
    assert rows(neve("contexts", "rename", "cli-one", "cli-1st")) == ["cli-one: now cli-1st"]
    assert rows(neve("contexts", "rename", "cli-1st", "cli-one")) == ["cli-1st: now cli-one"]


def test_contexts_are_chosen_by_filters(neve):
    def names(*filters: str) -> set[str]:
        return {row["name"] for row in document(neve("contexts", "ls", "--json", *filters))}

    assert names("--glob", "cli-t*", "--space", "cli-a") == {"cli-twin", "cli-two"}
    assert names("--name", "cli-one", "--newer-than", "1d") == {"cli-one"}
    assert names("--name", "cli-one", "--older-than", "1d") == set()
    assert names("--glob", "cli-*", "--min-tokens", "1000") == set()
    assert names("--glob", "cli-*", "--model", "no such") == set()
    assert {"cli-one"} <= names("--glob", "cli-*", "--state", "stored", "--not-pinned")


def test_many_are_acted_on_after_a_preview(control_plane, neve):
    done = neve("contexts", "bulk", "pin", "--for", "1h")
    assert done.exit_code == 64  # neither filters nor --every
    pin = ("contexts", "bulk", "pin", "--glob", "cli-t*", "--space", "cli-a", "--for", "1h")
    preview = document(neve(*pin, "--preview", "--json"))
    assert preview["contexts"] == 2
    done = neve(*pin)
    assert done.exit_code == 64
    assert "2 contexts, 3 blocks" in done.stderr
    assert "--yes" in done.stderr
    assert rows(neve("contexts", "bulk", "delete", "--glob", "no-such-*", "--yes")) == [
        "delete: 0 contexts, 0 blocks, 0 B"
    ]
    job = document(neve(*pin, "--yes", "--no-wait", "--json"))
    with control_plane.workers():
        done = neve("jobs", "wait", job["id"], "--timeout", "2m")
        assert done.exit_code == 0, done.stderr
    pinned = document(neve("contexts", "ls", "--glob", "cli-*", "--pinned", "--json"))
    assert {row["name"] for row in pinned} == {"cli-twin", "cli-two"}
    with control_plane.workers():
        done = neve(*pin, "--yes")
    assert "2 of 2 contexts done, 0 refused" in done.stdout


def test_contexts_are_exported_as_lines(neve, stored, tmp_path):
    lines = rows(neve("contexts", "export", "--search", "cli-"))
    assert {json.loads(line)["id"] for line in lines} == set(stored.values())
    file = tmp_path / "contexts.csv"
    done = neve("contexts", "export", "--search", "cli-", "--format", "csv", "-o", str(file))
    assert (done.exit_code, done.stdout) == (0, "")
    table = list(csv.DictReader(file.open(newline="")))
    assert {row["id"] for row in table} == set(stored.values())
    lines = rows(neve("audit", "--action", "context.record", "--export", "jsonl"))
    assert {json.loads(line)["action"] for line in lines} == {"context.record"}


def prompt_file(folder: Path, *, more: int = 0) -> str:
    """Token ids of the contexts of `stored`, and `more` that are stored nowhere."""
    tokens = np.random.default_rng(31).integers(0, 50_000, 3 * CHUNK_TOKENS).tolist()
    file = folder / "tokens.json"
    file.write_text(json.dumps([*tokens, *range(more)]))
    return str(file)


def test_an_engine_and_a_webhook_are_named_by_what_people_see(control_plane, neve, stored):
    nothing = "http://127.0.0.1:9"
    with Api(control_plane.url, control_plane.team_key) as api:
        space = api.spaces.list(name="cli-a").first().id
        api.engines.create(name="cli-gpu", base_url=nothing, model="m", spaces=[space])
        hook = api.webhooks.create(url=f"{nothing}/neve", types=["webhook.test"]).id
    done = neve("engines", "--check", "cli-gpu")
    assert "refused" in next(line for line in rows(done) if "cli-gpu" in line)
    assert any(line.startswith(f"{hook[:8]} ") for line in rows(neve("webhooks", "ls")))
    assert f"log {hook[:8]}`" in rows(neve("webhooks", "test", f"{nothing}/neve"))[0]
    assert any("webhook.test" in line for line in rows(neve("webhooks", "log", hook[:8])))
    done = neve("webhooks", "log", "zz")
    assert done.exit_code == 3
    assert "neve webhooks ls" in done.stderr


def test_a_prompt_is_looked_up(neve, stored, tmp_path):
    prompt = prompt_file(tmp_path, more=CHUNK_TOKENS)
    found = document(neve("contexts", "lookup", "--space", "cli-a", "--tokens", prompt, "--json"))
    assert (found["tokens"], found["usable_tokens"]) == (4 * CHUNK_TOKENS, 3 * CHUNK_TOKENS)
    shown = neve("contexts", "lookup", "--space", "cli-a", "--tokens", prompt).stdout
    assert "1,024 tokens" in shown
    assert "768 tokens (75.0%)" in shown
    assert "cli-one" in shown
    done = neve("contexts", "lookup", "--space", "cli-a")
    assert done.exit_code == 64
    done = neve("contexts", "lookup", "--space", "cli-a", "--text", "hello")
    assert done.exit_code == 5  # no engine puts it into tokens
    assert "engine" in done.stderr


def test_a_context_is_made_of_token_ids_and_none_can_warm_it(neve, stored, tmp_path):
    create = ("contexts", "create", "cli-made", "--space", "cli-a", "--labels", "team=blue")
    done = neve(*create, "--tokens", prompt_file(tmp_path, more=CHUNK_TOKENS))
    assert rows(done)[0].startswith("cli-made: made, 1,024 tokens, id ")
    assert document(neve("contexts", "show", "cli-made", "--json"))["labels"] == {"team": "blue"}
    done = neve("contexts", "warm", "cli-made")
    assert done.exit_code == 5
    assert "Fix:" in done.stderr
    messages = tmp_path / "messages.json"
    messages.write_text('{"model": "x"}')
    done = neve("contexts", "create", "cli-no", "--space", "cli-a", "--messages", str(messages))
    assert done.exit_code == 1
    assert "neither a list of messages" in done.stderr
    rows(neve("contexts", "rm", "cli-made", "--yes"))

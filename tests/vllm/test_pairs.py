"""Models that share a producer's KV and models that nearly do, as an engine computes them."""

import random
import time

import pytest

from support.pairs import READERS, RESPELLED, UNTRAINED

pytestmark = pytest.mark.vllm

_random = random.Random(13)
PROMPTS = [[_random.randrange(255) for _ in range(700)] for _ in range(3)]  # without token 255
PROMPT = {"tokens": PROMPTS[0][:200], "max_tokens": 1}
WHOLE = 640  # the chunks of a prompt that are found

MAKE_FAMILY = """
from catalog import families
from catalog.models import Family, NodeSession
from tenants.audit import SYSTEM
space = NodeSession.unscoped.filter(node="producer").latest("opened_at").space
of = {"tenant": space.tenant, "space_id": space.pk, "actor": SYSTEM}
family = Family.unscoped.filter(space=space).first()  # other tests may have made it one
print((family or families.create_family(name="readers", **of)).name)
"""
SHOW_MEMBERS = """
from catalog.models import FamilyMember
for each in FamilyMember.unscoped.all():
    print(each.model, each.state, each.hit_tokens > 0, sep="|")
"""


@pytest.fixture(scope="module")
def process(fresh_process, icarus):
    with fresh_process("pairs", PYTHONPATH=icarus) as process:
        yield process


def test_kv_is_equal_where_nothing_below_it_differs(process, model, pairs):
    answers, kv = {}, {}
    for name in ("producer", "twin", "nudged", *READERS, UNTRAINED):
        folder = model if name == "producer" else pairs / name
        process.start(None, model=str(folder))
        answers[name] = process.generate(PROMPT)[0]["logprobs"]
        kv[name] = list(process.ask("kv").values())
        process.ask("stop")
    same = {name: [a == b for a, b in zip(kv["producer"], kv[name], strict=True)] for name in kv}
    assert same.pop("nudged") == [True, True, True, False]
    assert all(all(each) for each in same.values()), same
    assert answers[UNTRAINED] == answers["producer"]
    others = ("producer", "twin", *READERS)
    assert len({str(answers[name]) for name in others}) == len(others)


def test_a_reader_loads_what_its_producer_computed(platform, process, model, pairs):
    def start(folder, node, **family):
        neve = {
            "endpoint": platform.url, "api_key": platform.node_key, "node": node,
            "load": "always", "max_chunk_tokens": 64, "canary": 0,
            "match_deadline_s": 5, "load_deadline_s": 20,
        }  # fmt: skip
        process.start(neve | family, model=str(folder), engine={"enable_prefix_caching": False})

    def ask(prompt):
        """Tokens, and how many of the prompt's were reused. All saves have ended."""
        asked = {"tokens": prompt, "max_tokens": 8, "params": {"neve": {}}}
        said = process.generate(asked)[0]
        process.ask("store_all")
        return said["tokens"], said["params"]["neve"]["reused_tokens"]

    start(model, "producer")
    own = [ask(prompt)[0] for prompt in PROMPTS]
    family = platform.manage("shell", "-v", "0", "-c", MAKE_FAMILY).split()[-1]
    process.ask("stop")

    start(pairs / READERS[0], "reader", family=family)
    alone = [ask(prompt) for prompt in PROMPTS[:2]]  # a proof needs two prompts
    assert all(reused == 0 and tokens not in own for tokens, reused in alone)
    until(lambda: ask(PROMPTS[2])[1])
    assert [ask(prompt) for prompt in PROMPTS[:2]] == [(tokens, WHOLE) for tokens, _ in alone]
    process.ask("stop")

    # No prompt shows in which token it differs: a proof by prompts would let it in.
    start(pairs / RESPELLED, "respelled", family=family)
    until(lambda: "selective_weights" in process.log.read_text())
    assert [ask(prompt)[1] for prompt in PROMPTS] == [0, 0, 0]
    process.ask("stop")
    members = platform.manage("shell", "-v", "0", "-c", SHOW_MEMBERS).split()
    assert "reader-a|attached|True" in members
    assert not [each for each in members if each.startswith("respelled")]


def until(is_true):
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)

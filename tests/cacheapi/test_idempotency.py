"""A change that is repeated under its Idempotency-Key happens once, and is answered the same."""

from datetime import timedelta

import pytest
from django.utils import timezone

from base import answers
from base.models import StoredAnswer
from retention import services
from retention.models import RetentionRule
from retention.services import add_rule
from support.rows import make_everything, make_key
from tenants.models import ApiKey, AuditEvent

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

RULES = "/api/v1/rules"
RULE = {"tenant": "acme", "label": "agent", "overrides": {"priority": 7}}


@pytest.fixture
def add(operator, tenant):
    """POST of a rule with a key (None: without one)."""

    def send(key="k-1", body=RULE, path=RULES, caller=operator):
        return caller.send("post", path, body, headers={"Idempotency-Key": key} if key else {})

    return send


def kind_of(answer):
    return answer.json()["type"].rsplit("/", 1)[-1]


def rules():
    return RetentionRule.unscoped.count()


def test_a_repetition_gets_the_first_answer_and_changes_nothing(add):
    first, second = add(), add()
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.content == second.content
    assert first["Content-Type"] == second["Content-Type"]
    assert "Idempotent-Replayed" not in first
    assert second["Idempotent-Replayed"] == "true"
    assert rules() == AuditEvent.unscoped.filter(action="retention.rule.add").count() == 1


def test_without_a_key_nothing_is_kept(add):
    add(None), add(None)
    assert (rules(), StoredAnswer.objects.count()) == (2, 0)


def test_the_answer_without_a_body_is_repeated_too(add, operator):
    path = f"{RULES}/{add(None).json()['id']}"
    seen = [operator.delete(path, headers={"Idempotency-Key": "gone"}) for _ in range(2)]
    assert [(answer.status_code, answer.content) for answer in seen] == [(204, b"")] * 2
    assert operator.delete(path).status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (RULES, {**RULE, "label": "other"}),
        ("/api/v1/keys", {"name": "x", "role": "operator"}),
    ],
)
def test_another_request_under_the_same_key_is_422(add, path, body):
    add()
    answer = add(path=path, body=body)
    assert answer.status_code == 422
    assert kind_of(answer) == "idempotency-key-reused"
    assert answer.json()["field"] == "Idempotency-Key"


def test_the_order_of_members_is_not_another_request(add):
    add()
    assert add(body=dict(reversed(RULE.items())))["Idempotent-Replayed"] == "true"


def test_another_caller_has_keys_of_its_own(add, operator):
    other = type(operator)(make_key(None, "operator"))
    assert add().json()["id"] != add(caller=other).json()["id"]


def test_who_may_not_do_it_gets_no_answer_that_another_got(add, team):
    add()
    assert add(caller=team).status_code == 403


def test_while_the_first_is_running_a_repetition_is_409(add, monkeypatch):
    inside = []

    def slow(**fields):
        inside.append(add())
        return add_rule(**fields)

    monkeypatch.setattr(services, "add_rule", slow)
    assert add().status_code == 201
    (early,) = inside
    assert early.status_code == 409
    assert kind_of(early) == "idempotency-in-progress"
    assert early["Retry-After"]
    assert rules() == 1


def test_a_refusal_frees_the_key(add):
    assert add(body={**RULE, "overrides": {"priority": 77}}).status_code == 400
    assert "Idempotent-Replayed" not in (put_right := add())
    assert put_right.status_code == 201


def test_a_bug_frees_the_key(add, operator, monkeypatch):
    operator.raise_request_exception = False
    with monkeypatch.context() as patch:
        patch.setattr(services, "add_rule", lambda **fields: 1 / 0)
        assert add().status_code == 500
    assert add().status_code == 201


@pytest.mark.parametrize(
    ("status", "age", "expected"),
    [
        (201, timedelta(hours=23), "replayed"),
        (201, timedelta(hours=25), "anew"),
        (None, timedelta(minutes=4), "in progress"),
        (None, timedelta(minutes=6), "anew"),
    ],
)
def test_an_answer_is_kept_for_a_day_and_a_killed_request_blocks_its_key_for_minutes(
    add, status, age, expected
):
    first = add()
    StoredAnswer.objects.update(status=status, claimed_at=timezone.now() - age)
    second = add()
    if expected == "in progress":
        assert second.status_code == 409
    else:
        assert second.status_code == 201
        assert (second.json() == first.json()) is (expected == "replayed")
    assert rules() == (2 if expected == "anew" else 1)


def test_who_was_taken_over_neither_overwrites_nor_frees_the_key():
    request = {"caller": "c", "key": "k", "fingerprint": "f"}
    slow = answers.claim(**request)
    slow.claimed_at -= timedelta(minutes=6)
    StoredAnswer.objects.update(claimed_at=slow.claimed_at)
    quick = answers.claim(**request)
    answers.keep(quick, status=200, body="1")
    answers.keep(slow, status=200, body="2")
    answers.release(slow)
    assert answers.claim(**request).body == "1"


def test_the_secret_of_a_new_key_is_never_kept(operator, db):
    def issue():
        body = {"name": "ci", "role": "operator"}
        return operator.send("post", "/api/v1/keys", body, headers={"Idempotency-Key": "k"})

    first, second = issue().json(), issue().json()
    assert first["key"].startswith("neve_")
    assert second == {**first, "key": None}
    assert ApiKey.unscoped.filter(name="ci").count() == 1
    row = StoredAnswer.objects.get()
    secret = first["key"].rsplit("_", 1)[1]
    assert not any(secret in str(value) for value in vars(row).values())


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", '"open', "é"])
def test_a_malformed_key_is_400(add, key):
    answer = add(key) if key else add('""')
    assert answer.status_code == 400
    assert answer.json()["field"] == "Idempotency-Key"
    assert rules() == 0


def test_a_key_may_stand_in_quotes(add):
    assert add("k").json() == add('"k"').json()


def test_a_read_takes_no_notice_of_the_header(operator, tenant):
    for _ in range(2):
        answer = operator.get(RULES, headers={"Idempotency-Key": "two words"})
        assert "Idempotent-Replayed" not in answer
    assert answer.status_code == 200


def test_old_answers_are_pruned(add):
    add("old")
    StoredAnswer.objects.update(claimed_at=timezone.now() - timedelta(hours=25))
    add("young")
    assert answers.prune() == 1
    assert add("young")["Idempotent-Replayed"] == "true"


def test_an_answer_without_a_body_is_repeated_where_others_hold_secrets(operator, tenant):
    path = f"/api/v1/webhooks/{make_everything(tenant)['webhook'].pk}"
    for _ in range(2):
        assert operator.delete(path, headers={"Idempotency-Key": "gone"}).status_code == 204
    assert operator.delete(path).status_code == 404

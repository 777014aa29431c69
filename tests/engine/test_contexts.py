"""Contexts on their way to the platform, which may be away."""

import threading

import pytest

from neve.engine import contexts
from neve.engine.contexts import ContextReports, FinishedRequest
from neve.engine.params import RequestParams
from neve.errors import Refused, Unavailable
from support.servers import wait_until


class Platform:
    """A link and its client in one. `trouble` is raised in place of an answer."""

    def __init__(self):
        self.client = self
        self.trouble = None
        self.asked = 0
        self.seen = []
        self.labels = {}
        self.counted = []

    def report_context(self, name, ids, *, tokens, label, labels, pin_s, prompt_tokens, hit_tokens):
        self.asked += 1
        if self.trouble is not None:
            raise self.trouble
        self.seen.append((name, ids, tokens, label, pin_s))
        self.labels[name] = labels
        self.counted.append((prompt_tokens, hit_tokens))
        return f"id-of-{name}"


@pytest.fixture
def platform(monkeypatch):
    monkeypatch.setattr(contexts, "DELAY_S", 0.0)
    monkeypatch.setattr(contexts, "RETRY_S", 0.02)
    return Platform()


@pytest.fixture
def reports(platform):
    made = ContextReports([platform], shards=1)
    yield made
    made.close()


def ended(name):
    params = RequestParams(name=name, pin_s=60, label="agent")
    return FinishedRequest(
        params, [(b"a",), (b"b",)], chunk_tokens=64, prompt_tokens=130, hit_tokens=64
    )


def names(platform):
    return [seen[0] for seen in platform.seen]


def test_a_context_is_told_with_its_chain(platform, reports):
    reports.add(ended("x"))
    wait_until(lambda: platform.seen, what="a report")
    assert platform.seen == [("x", [b"a", b"b"], 128, "agent", 60)]
    assert platform.counted == [(130, 64)]


def test_hits_are_told_once_an_engine(platform):
    other = Platform()
    reports = ContextReports([platform, other], shards=1)
    params = RequestParams(name="x")
    reports.add(FinishedRequest(params, [(b"a", b"b")], 64, prompt_tokens=130, hit_tokens=64))
    wait_until(lambda: other.seen, what="both reports")
    reports.close()
    assert [platform.counted, other.counted] == [[(130, 64)], [(0, 0)]]


def test_labels_are_told_and_the_answer_s_id_is_known_from_then_on(platform, reports):
    assert reports.id_of("x") is None
    params = RequestParams(name="x", labels={"team": "blue"})
    reports.add(FinishedRequest(params, [(b"a",)], chunk_tokens=64))
    wait_until(lambda: reports.id_of("x"), what="an id")
    assert reports.id_of("x") == "id-of-x"
    assert platform.labels == {"x": {"team": "blue"}}


def test_so_many_ids_are_remembered(platform, reports, monkeypatch):
    monkeypatch.setattr(contexts, "MOST_KNOWN", 2)
    for name in "abac":
        reports.add(ended(name))
    wait_until(lambda: reports.id_of("c"), what="the last id")
    assert [reports.id_of(name) for name in "abc"] == ["id-of-a", None, "id-of-c"]


def test_every_space_hears_of_its_own_columns(platform):
    other = Platform()
    reports = ContextReports([platform, other], shards=2)
    ids = [(b"a", b"b", b"c", b"d")]
    reports.add(FinishedRequest(RequestParams(name="x"), ids, 64))
    reports.close()
    assert [seen[1] for seen in platform.seen + other.seen] == [
        [b"a", b"b"],
        [b"c", b"d"],
    ]


def test_of_several_groups_the_first_one_s_ids_are_the_chain(platform):
    other = Platform()
    reports = ContextReports([platform, other], shards=1, groups=2)
    ids = [
        (b"a", b"window of a", b"b", b"window of b"),
        (b"c", b"window of c", b"d", b"window of d"),
    ]
    reports.add(FinishedRequest(RequestParams(name="x"), ids, 64))
    reports.close()
    assert [seen[1] for seen in platform.seen + other.seen] == [[b"a", b"c"], [b"b", b"d"]]


def test_contexts_wait_in_order_for_a_platform_that_is_away(platform, reports, caplog):
    platform.trouble = Unavailable("away")
    for name in "xyz":
        reports.add(ended(name))
    wait_until(lambda: platform.asked > 3, what="tries")
    platform.trouble = None
    wait_until(lambda: len(platform.seen) == 3, what="reports")
    assert names(platform) == ["x", "y", "z"]
    assert caplog.text.count("neve.context.kept") == 1


@pytest.mark.parametrize("trouble", [Refused("no such session"), RuntimeError("a bug")])
def test_what_is_refused_is_not_repeated_and_holds_up_nobody(platform, reports, trouble):
    platform.trouble = trouble
    reports.add(ended("x"))
    wait_until(lambda: platform.asked, what="a try")
    platform.trouble = None
    reports.add(ended("y"))
    wait_until(lambda: platform.seen, what="a report")
    assert (names(platform), platform.asked) == (["y"], 2)


def test_so_many_wait_and_the_oldest_are_dropped(platform, reports, monkeypatch):
    monkeypatch.setattr(contexts, "MOST_WAITING", 2)
    platform.trouble = Unavailable("away")
    for name in "wxyz":
        reports.add(ended(name))
    asked = platform.asked
    wait_until(lambda: platform.asked > asked + 1, what="another try")
    platform.trouble = None
    wait_until(lambda: len(platform.seen) == 2, what="reports")
    assert names(platform) == ["y", "z"]


def test_an_engine_that_ends_sends_what_waits_without_delay(platform, monkeypatch):
    monkeypatch.setattr(contexts, "DELAY_S", 1000.0)
    reports = ContextReports([platform], shards=1)
    for name in "xy":
        reports.add(ended(name))
    reports.close()
    assert names(platform) == ["x", "y"]


def test_an_engine_that_ends_asks_an_absent_platform_once(platform, monkeypatch, caplog):
    monkeypatch.setattr(contexts, "DELAY_S", 1000.0)
    platform.trouble = Unavailable("away")
    reports = ContextReports([platform], shards=1)
    for name in "xyz":
        reports.add(ended(name))
    reports.close()
    assert platform.asked == 1
    assert "neve.context.left count=3" in caplog.text


def test_an_engine_that_ends_does_not_wait_for_an_answer_for_ever(platform, monkeypatch):
    monkeypatch.setattr(contexts, "CLOSE_S", 0.05)
    asked, answer = threading.Event(), threading.Event()

    def never(*_, **__):
        asked.set()
        answer.wait(60)
        answer.set()

    monkeypatch.setattr(platform, "report_context", never)
    reports = ContextReports([platform], shards=1)
    reports.add(ended("x"))
    asked.wait(20)
    reports.close()
    assert not answer.is_set()
    answer.set()

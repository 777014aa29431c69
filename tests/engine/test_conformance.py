"""The reference adapter keeps the contract, and the suite notices adapters that break it."""

import os
from typing import Any

import pytest

from neve.datapath.local import Ghosts, LocalTier
from support.adapter_suite import CHUNK, AdapterSuite, prompt
from support.grouped_engine import GroupedAdapter
from support.reference_engine import ReferenceAdapter
from support.servers import wait_until

pytestmark = pytest.mark.integration


class TestReferenceAdapter(AdapterSuite):
    @pytest.fixture
    def lab(self, lab_of):
        return lab_of(ReferenceAdapter)

    def test_crowded_engines_preempt(self, lab):
        self.test_preempted_requests_say_the_same_and_store_nothing_wrong(lab)
        assert lab.preemptions > 0


class TestLocalTier(AdapterSuite):
    """Blocks are kept at their first load, and read from files by the engines after it."""

    @pytest.fixture
    def lab(self, lab_of, tmp_path, monkeypatch):
        monkeypatch.setattr(Ghosts, "has", lambda self, id_: True)
        return lab_of(ReferenceAdapter, local_dir=str(tmp_path), local_bytes=1 << 30)

    def test_prompts_from_files_say_the_same(self, lab, tmp_path, monkeypatch):
        read = []
        monkeypatch.setattr(LocalTier, "read", _noting(read, LocalTier.read))
        asked = prompt(4 * CHUNK + 3)
        expected = self.alone(lab, asked)
        self.store(lab, asked)

        def load():
            assert self.load(lab, asked) == (expected, [4 * CHUNK])
            return read

        wait_until(load, what="a load from files")
        for path in tmp_path.glob("*/*/*/*"):  # and torn files are no blocks
            os.truncate(path, 100)
        load()


class TestGroupedAdapter(AdapterSuite):
    """Full attention, a window and a state, in groups of their own."""

    @pytest.fixture
    def lab(self, lab_of):
        return lab_of(GroupedAdapter)

    def test_a_prompt_of_whole_chunks_still_gets_its_first_token(self, lab):
        """A state can't be taken back by a token: the last chunk is computed."""
        asked = prompt(2 * CHUNK)
        expected = self.alone(lab, asked)
        self.store(lab, asked)
        assert self.load(lab, asked) == (expected, [CHUNK])

    def test_what_the_engine_has_itself_is_kept(self, lab):
        pytest.skip("this engine has no prefix cache")

    def test_crowded_engines_preempt(self, lab):
        self.test_preempted_requests_say_the_same_and_store_nothing_wrong(lab)
        assert lab.preemptions > 0


def _noting(read, method):
    def note(self, transfer, blocks, settle):
        read.append(blocks)
        return method(self, transfer, blocks, settle)

    return note


class OffersStatesLate(GroupedAdapter):
    """Two steps after they were computed: by then their blocks are others'."""

    def plan(self, scheduled, *, states, **more):
        self.kept = [*getattr(self, "kept", [{}, {}]), states]
        return super().plan(scheduled, states=self.kept.pop(0), **more)


class NoFences(GroupedAdapter):
    def before_step(self, plan):
        plan.handed_on = frozenset()
        super().before_step(plan)


class HidesFailedLoads(GroupedAdapter):
    def after_step(self, plan):
        copied, loaded, _ = super().after_step(plan)
        return copied, loaded, set()


class ClaimsAll(ReferenceAdapter):
    def claimed_tokens(self, request, local_tokens):
        return self.scheduler.matched_tokens(request.name, local_tokens)


class ClaimsTooMuch(ReferenceAdapter):
    def claimed_tokens(self, request, local_tokens):
        found = super().claimed_tokens(request, local_tokens)
        return found + 16 if found and found + 16 < len(request.tokens) else found


class ForgetsItsOwnTokens(ReferenceAdapter):
    """Says that nothing is local, so what is local is overwritten or counted twice."""

    def claimed_tokens(self, request, local_tokens):
        return super().claimed_tokens(request, 0)


class WaitsForLoads(ReferenceAdapter):
    def before_step(self, plan):
        super().before_step(plan)
        self.early = set()
        while {load.request_id for load in plan.loads} - self.early:
            self.early |= self.worker.poll_loads(plan)

    def after_step(self, plan):
        poll, self.worker.poll_loads = self.worker.poll_loads, lambda plan: poll(plan) | self.early
        found = super().after_step(plan)
        self.worker.poll_loads = poll
        return found


class ComputesBeforeTheLoadEnded(ReferenceAdapter):
    def blocks_allocated(self, request, external_tokens):
        super().blocks_allocated(request, external_tokens)
        request.state, request.computed = "running", request.computed + external_tokens


class FreesBlocksBeforeTheyAreCopied(ReferenceAdapter):
    def request_ended(self, request):
        return False, super().request_ended(request)[1]

    def after_step(self, plan):
        return set(), *super().after_step(plan)[1:]


class HidesPreemptions(ReferenceAdapter):
    def plan(self, scheduled, *, computes, preempted):
        return super().plan(scheduled, computes=computes, preempted=set())


class ForgetsFailedBlocks(ReferenceAdapter):
    def after_step(self, plan):
        copied, loaded, _ = super().after_step(plan)
        return copied, loaded, set()


class HidesFailedBlocks(ReferenceAdapter):
    """The engine computes them, but the scheduler side takes the load for good."""

    def after_step(self, plan):
        note = self.scheduler.note_results
        self.scheduler.note_results = lambda report, *, failed_blocks, loaded: note(
            report, failed_blocks=(), loaded=loaded
        )
        return super().after_step(plan)


class EndsLoadsTwice(ReferenceAdapter):
    def after_step(self, plan):
        copied, loaded, failed = super().after_step(plan)
        for request_id in loaded:
            self.scheduler.note_results(
                self.worker.report(), failed_blocks=failed, loaded=[request_id]
            )
        return copied, loaded, failed


class EndsRequestsTwice(ReferenceAdapter):
    def request_ended(self, request):
        super().request_ended(request)
        return super().request_ended(request)


class LosesLoads(ReferenceAdapter):
    def before_step(self, plan):
        self.worker.begin_step(plan)


class LosesSaves(ReferenceAdapter):
    def plan(self, scheduled, *, computes, preempted):
        plan = super().plan(scheduled, computes=computes, preempted=preempted)
        plan.saves.clear()
        return plan


class SavesBeforeTheStep(ReferenceAdapter):
    def before_step(self, plan):
        super().before_step(plan)
        self.worker.end_step(plan)

    def after_step(self, plan):
        end_step, self.worker.end_step = self.worker.end_step, lambda _: None
        found = super().after_step(plan)
        self.worker.end_step = end_step
        return found


class DropsTheSalt(ReferenceAdapter):
    def request_came(self, request):
        salt, request.salt = request.salt, b""
        super().request_came(request)
        request.salt = salt


class CopiesTheTokens(ReferenceAdapter):
    def request_came(self, request):
        tokens, request.tokens = request.tokens, list(request.tokens)
        super().request_came(request)
        request.tokens = tokens


SUITE = AdapterSuite()
CAUGHT_BY: list[tuple[type[ReferenceAdapter] | type[GroupedAdapter], Any]] = [
    (ClaimsAll, SUITE.test_a_prompt_of_whole_chunks_still_gets_its_first_token),
    (OffersStatesLate, SUITE.test_a_fresh_engine_reuses_what_another_stored),
    (NoFences, SUITE.test_blocks_are_reused_only_after_they_were_copied_out),
    (HidesFailedLoads, SUITE.test_spoilt_blocks_are_computed),
    (ClaimsTooMuch, SUITE.test_a_fresh_engine_reuses_what_another_stored),
    (ForgetsItsOwnTokens, SUITE.test_what_the_engine_has_itself_is_kept),
    (WaitsForLoads, SUITE.test_a_fresh_engine_reuses_what_another_stored),
    (ComputesBeforeTheLoadEnded, SUITE.test_a_fresh_engine_reuses_what_another_stored),
    (FreesBlocksBeforeTheyAreCopied, SUITE.test_blocks_are_reused_only_after_they_were_copied_out),
    (HidesPreemptions, SUITE.test_preempted_requests_say_the_same_and_store_nothing_wrong),
    (ForgetsFailedBlocks, SUITE.test_lost_blocks_are_computed),
    (ForgetsFailedBlocks, SUITE.test_spoilt_blocks_are_computed),
    (HidesFailedBlocks, SUITE.test_lost_blocks_are_computed),
    (EndsLoadsTwice, SUITE.test_a_fresh_engine_reuses_what_another_stored),
    (EndsRequestsTwice, SUITE.test_a_fresh_engine_reuses_what_another_stored),
    (LosesLoads, SUITE.test_a_fresh_engine_reuses_what_another_stored),
    (LosesSaves, SUITE.test_a_fresh_engine_reuses_what_another_stored),
    (SavesBeforeTheStep, SUITE.test_a_fresh_engine_reuses_what_another_stored),
    (DropsTheSalt, SUITE.test_kv_of_another_salt_is_not_found),
    (CopiesTheTokens, SUITE.test_the_answer_is_stored_with_its_prompt),
]


@pytest.mark.parametrize(
    ("adapter", "test"), [pytest.param(*each, id=each[0].__name__) for each in CAUGHT_BY]
)
def test_an_adapter_that_breaks_the_contract_is_caught(lab_of, adapter, test):
    with pytest.raises(AssertionError) as caught:
        test(lab_of(adapter))
    print(f"{adapter.__name__}: {caught.value}"[:300])

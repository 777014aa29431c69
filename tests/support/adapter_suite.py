"""The conformance suite of engine adapters: subclass `AdapterSuite` with a fixture `lab`.

Tests check what the engine's users see: tokens equal those without Neve, and stored KV is reused.
`Lab` is the interface to an engine and its store.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from support.servers import ValkeyServer

CHUNK = 64  # tokens of a block in these tests


@dataclass(frozen=True)
class Prompt:
    tokens: Sequence[int]
    max_tokens: int = 4
    salt: str = ""


@dataclass(frozen=True)
class Answer:
    """`reused`: prompt tokens that were loaded from Neve."""

    tokens: Sequence[int]
    reused: int


class Serving(Protocol):
    """A running engine."""

    def answer(self, *prompts: Prompt) -> list[Answer]:
        """Serve the prompts concurrently until all have ended."""
        ...

    def store_all(self) -> None:
        """Wait until all saves are stored or refused."""
        ...

    def abort(self, prompt: Prompt) -> None:
        """Start the prompt and abort it during its load."""
        ...

    def violations(self) -> list[str]:
        """Violations that `ContractWatch` recorded, loads not ended and blocks not freed."""
        ...


class ValkeyStore:
    """What a `Lab` does to its store, where that is one Valkey."""

    def __init__(self, valkey: ValkeyServer) -> None:
        self._valkey = valkey

    def _change_blocks(self, change: Any) -> None:
        with self._valkey.client() as client:
            keys = sorted(key for key in client.scan_iter(count=1000) if b":b:" in key)
            for key in keys[::2]:
                change(client, key)

    def lose_blocks(self) -> None:
        self._change_blocks(lambda client, key: client.delete(key))

    def spoil_blocks(self) -> None:
        self._change_blocks(lambda client, key: client.setrange(key, 100, b"\x55\xaa"))

    @contextmanager
    def stall(self) -> Iterator[None]:
        self._valkey.freeze()
        try:
            yield
        finally:
            self._valkey.thaw()


class Lab(Protocol):
    """Makes engines of one kind over one store, which is empty when a test starts."""

    def serve(
        self, *, neve: bool = True, crowded: bool = False, defers: bool = False
    ) -> AbstractContextManager[Serving]:
        """A new engine. `crowded`: so little KV memory that concurrent requests are preempted.
        `defers`: copies out of KV memory are delayed."""
        ...

    def lose_blocks(self) -> None:
        """Delete every second stored block, but keep its index entry."""
        ...

    def spoil_blocks(self) -> None:
        """Change one byte of every second stored block."""
        ...

    def stall(self) -> AbstractContextManager[None]:
        """Context in which the store does not answer."""
        ...


def prompt(length: int, seed: int = 1, **more: Any) -> Prompt:
    return Prompt([random.Random(seed).randrange(250) for _ in range(length)], **more)


class AdapterSuite:
    """Each test checks one promise of docs/engine-adapters.md."""

    @staticmethod
    def alone(lab: Lab, *prompts: Prompt) -> list[Sequence[int]]:
        """Tokens of the engine without Neve."""
        with lab.serve(neve=False) as engine:
            return [answer.tokens for answer in engine.answer(*prompts)]

    @staticmethod
    @contextmanager
    def serving(lab: Lab, **situation: bool) -> Iterator[Serving]:
        """Run an engine; afterwards check that it kept the contract."""
        with lab.serve(**situation) as engine:
            yield engine
            violations = engine.violations()
            assert not violations, "\n".join(violations)

    def store(self, lab: Lab, *prompts: Prompt, **situation: bool) -> list[Sequence[int]]:
        """Compute and store the prompts in a new engine; return its tokens."""
        with self.serving(lab, **situation) as engine:
            answers = engine.answer(*prompts)
            engine.store_all()
        assert {answer.reused for answer in answers} == {0}
        return [answer.tokens for answer in answers]

    def load(self, lab: Lab, *prompts: Prompt, **situation: bool) -> tuple[list[Any], list[int]]:
        """(tokens of a new engine, number of reused tokens of each prompt)."""
        with self.serving(lab, **situation) as engine:
            answers = engine.answer(*prompts)
            engine.store_all()
        return [answer.tokens for answer in answers], [answer.reused for answer in answers]

    def test_a_fresh_engine_reuses_what_another_stored(self, lab: Lab) -> None:
        asked = prompt(3 * CHUNK + 20), prompt(2 * CHUNK + 1, 2), prompt(CHUNK - 1, 3)
        expected = self.alone(lab, *asked)
        assert self.store(lab, *asked) == expected
        assert self.load(lab, *asked) == (expected, [3 * CHUNK, 2 * CHUNK, 0])

    def test_a_prompt_of_whole_chunks_still_gets_its_first_token(self, lab: Lab) -> None:
        asked = prompt(2 * CHUNK)
        expected = self.alone(lab, asked)
        self.store(lab, asked)
        tokens, (reused,) = self.load(lab, asked)
        assert tokens == expected
        assert CHUNK < reused <= 2 * CHUNK

    def test_the_answer_is_stored_with_its_prompt(self, lab: Lab) -> None:
        first = prompt(CHUNK + 10, max_tokens=CHUNK)
        (answer,) = self.store(lab, first)
        next_turn = Prompt([*first.tokens, *answer, *range(30)])
        expected = self.alone(lab, next_turn)
        assert self.load(lab, next_turn) == (expected, [2 * CHUNK])

    def test_what_the_engine_has_itself_is_kept(self, lab: Lab) -> None:
        """The engine's own prefix ends inside a chunk: the rest of the chunk is loaded."""
        long = prompt(3 * CHUNK + 5)
        short = Prompt(long.tokens[: CHUNK + CHUNK // 2 + 1], max_tokens=1)
        expected = self.alone(lab, long)
        self.store(lab, long)
        with self.serving(lab) as engine:
            engine.answer(short)
            (answer,) = engine.answer(long)
        assert answer.tokens == expected[0]
        assert 0 < answer.reused <= 2 * CHUNK

    def test_kv_of_another_salt_is_not_found(self, lab: Lab) -> None:
        plain, salted = prompt(2 * CHUNK + 5), prompt(2 * CHUNK + 5, salt="s")
        expected = self.alone(lab, salted)
        self.store(lab, plain)
        assert self.load(lab, salted) == (expected, [0])
        assert self.load(lab, salted)[1] == [2 * CHUNK]

    def test_lost_blocks_are_computed(self, lab: Lab) -> None:
        asked = prompt(4 * CHUNK + 5), prompt(4 * CHUNK + 9, 2)
        expected = self.alone(lab, *asked)
        self.store(lab, *asked)
        lab.lose_blocks()
        tokens, reused = self.load(lab, *asked)
        assert tokens == expected
        assert sum(reused) < 8 * CHUNK

    def test_spoilt_blocks_are_computed(self, lab: Lab) -> None:
        asked = prompt(4 * CHUNK + 5), prompt(4 * CHUNK + 9, 2)
        expected = self.alone(lab, *asked)
        self.store(lab, *asked)
        lab.spoil_blocks()
        tokens, reused = self.load(lab, *asked)
        assert tokens == expected
        assert sum(reused) < 8 * CHUNK

    def test_preempted_requests_say_the_same_and_store_nothing_wrong(self, lab: Lab) -> None:
        asked = [prompt(2 * CHUNK + 9 * n, n, max_tokens=CHUNK) for n in range(1, 6)]
        expected = self.alone(lab, *asked)
        assert self.store_crowded(lab, asked) == expected
        tokens, reused = self.load(lab, *asked)
        assert tokens == expected
        assert sum(reused) > 0
        assert self.load(lab, *asked, crowded=True)[0] == expected

    def store_crowded(self, lab: Lab, asked: Sequence[Prompt]) -> list[Sequence[int]]:
        """Preempted requests may find blocks that they stored themselves."""
        with self.serving(lab, crowded=True, defers=True) as engine:
            tokens = [answer.tokens for answer in engine.answer(*asked)]
            engine.store_all()
            return tokens

    def test_blocks_are_reused_only_after_they_were_copied_out(self, lab: Lab) -> None:
        asked = [prompt(2 * CHUNK + 5, n) for n in range(1, 13)]
        expected = self.alone(lab, *asked)
        with self.serving(lab, crowded=True, defers=True) as engine:
            assert [answer.tokens for answer in engine.answer(*asked)] == expected
            engine.store_all()
        assert self.load(lab, *asked)[0] == expected

    def test_an_aborted_load_leaves_nothing_behind(self, lab: Lab) -> None:
        asked, other = prompt(4 * CHUNK + 5), prompt(3 * CHUNK, 2)
        expected = self.alone(lab, asked, other)
        self.store(lab, asked)
        with self.serving(lab, defers=True) as engine:
            engine.abort(asked)
            answers = engine.answer(other, asked)
        assert [answer.tokens for answer in answers] == expected[::-1]

    def test_a_store_that_stalls_stops_no_request(self, lab: Lab) -> None:
        asked = prompt(2 * CHUNK + 5), prompt(CHUNK + 9, 2)
        expected = self.alone(lab, *asked)
        with self.serving(lab) as engine, lab.stall():
            assert [answer.tokens for answer in engine.answer(*asked)] == expected

"""Built-in workloads: endless, seeded streams of requests with a bounded working set.

- `chat`: users talk to a few assistants. Sessions of one assistant share its system prompt; every
  turn repeats the conversation so far and adds an answer and a question.
- `agents`: loops over a long prompt of instructions and tools. A step adds a short thought and a
  tool's output, which may be long.
- `mixed`: both.

A fixed number of conversations is open at a time, and their popularity drifts. An ended
conversation makes room for a new one; some ended conversations continue later. So a cache sees
hits, first uses, and returns after long pauses, whose blocks are evicted or cold.

Workload and seed determine all requests, in every process: `random.Random` and BLAKE2b, no `hash`.
"""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b

from neve.replay.trace import TRACE_BLOCK_TOKENS, Request

OPEN_CONVERSATIONS = 20
_ENDED_KEPT = 40
_RETURN_CHANCE = 0.2
# Least requests of other conversations between two of one: its answer takes time.
_REST_REQUESTS = 8
_DRIFT_REQUESTS = 40
_MEAN_GAP_MS = 200.0


class Workload(StrEnum):
    CHAT = "chat"
    AGENTS = "agents"
    MIXED = "mixed"


@dataclass(frozen=True)
class _Kind:
    """One kind of conversation. Pairs are (least, most) of a uniform draw. A conversation longer
    than `most_tokens` ends for good."""

    label: str
    prompts: int
    prompt_tokens: tuple[int, int]
    question_tokens: tuple[int, int]
    answer_tokens: tuple[int, int]
    turns: tuple[int, int]
    most_tokens: int


_CHAT = _Kind("chat", 4, (600, 2_000), (30, 700), (80, 900), (2, 14), 16_384)
_AGENT = _Kind("agent", 3, (2_500, 5_000), (100, 2_500), (40, 300), (6, 24), 32_768)
_KINDS = {
    Workload.CHAT: (_CHAT,),
    Workload.AGENTS: (_AGENT,),
    # Agents are fewer than chats, but have more tokens each.
    Workload.MIXED: (_CHAT, _CHAT, _AGENT),
}


@dataclass
class _Conversation:
    """The text so far as runs of (text's name, tokens); the runs determine the hash ids."""

    kind: _Kind
    turns_left: int
    runs: list[tuple[str, int]]
    whole_ids: list[int] = field(default_factory=list)
    digest: bytes = b""

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens in self.runs)


class Generator:
    """An endless iterator of requests, determined by `workload` and `seed`."""

    def __init__(self, workload: Workload, *, seed: int) -> None:
        self._workload = workload
        self._random = random.Random(f"{workload.value}:{seed}")
        self._seed = seed
        self._born = 0
        self._now_ms = 0.0
        self._ended: dict[str, deque[_Conversation]] = {}
        self._resting: deque[int] = deque(maxlen=_REST_REQUESTS)
        kinds = _KINDS[workload]
        self._slots = [self._begin(kinds[i % len(kinds)]) for i in range(OPEN_CONVERSATIONS)]
        self._ranks = list(range(OPEN_CONVERSATIONS))

    def __iter__(self) -> Iterator[Request]:
        count = 0
        while True:
            if count and count % _DRIFT_REQUESTS == 0:
                # The most popular slot becomes the least popular: popularity drifts.
                self._ranks.append(self._ranks.pop(0))
            count += 1
            yield self._next()

    def _next(self) -> Request:
        slot = self._pick_slot()
        conversation = self._slots[slot]
        kind = conversation.kind
        self._ask(conversation)
        ids = _extend_ids(conversation)
        answer = self._random.randint(*kind.answer_tokens)
        request = Request(
            timestamp_ms=self._now_ms,
            input_tokens=conversation.tokens,
            output_tokens=answer,
            hash_ids=ids,
            conversation=f"demo-{kind.label}-{slot:02d}",
            label=kind.label,
        )
        self._now_ms += self._random.expovariate(1 / _MEAN_GAP_MS)
        conversation.runs.append((self._new_text("answer"), answer))
        conversation.turns_left -= 1
        if conversation.turns_left == 0 or conversation.tokens > kind.most_tokens:
            self._slots[slot] = self._replace(conversation)
        return request

    def _pick_slot(self) -> int:
        rested = [slot for slot in self._ranks if slot not in self._resting]
        weights = [1 / (rank + 1) for rank in range(len(rested))]
        (slot,) = self._random.choices(rested, weights)
        self._resting.append(slot)
        return slot

    def _begin(self, kind: _Kind) -> _Conversation:
        prompt = self._random.randrange(kind.prompts)
        # Seeded by the prompt: all conversations with this prompt get the same length.
        sizes = random.Random(f"{self._seed}:{kind.label}:{prompt}")
        runs = [(f"{self._seed}:{kind.label}:prompt:{prompt}", sizes.randint(*kind.prompt_tokens))]
        return _Conversation(kind, self._random.randint(*kind.turns), runs)

    def _replace(self, ended: _Conversation) -> _Conversation:
        """Returns a new conversation, or sometimes an earlier one to continue."""
        shelf = self._ended.setdefault(ended.kind.label, deque(maxlen=_ENDED_KEPT))
        returning = None
        if shelf and self._random.random() < _RETURN_CHANCE:
            returning = shelf[self._random.randrange(len(shelf))]
            shelf.remove(returning)
            returning.turns_left = self._random.randint(1, 3)
        if ended.tokens <= ended.kind.most_tokens:
            shelf.append(ended)
        return returning or self._begin(ended.kind)

    def _ask(self, conversation: _Conversation) -> None:
        tokens = self._random.randint(*conversation.kind.question_tokens)
        conversation.runs.append((self._new_text("question"), tokens))

    def _new_text(self, what: str) -> str:
        self._born += 1
        return f"{self._seed}:{self._workload.value}:{what}:{self._born}"


def _extend_ids(conversation: _Conversation) -> tuple[int, ...]:
    """Returns the conversation's hash ids. Caches ids of whole blocks, not of a partial last one.

    An id hashes the previous id and the pieces of runs in its block, so two conversations share
    exactly the whole blocks of their common beginning.
    """
    whole, rest = divmod(conversation.tokens, TRACE_BLOCK_TOKENS)
    for block in range(len(conversation.whole_ids), whole):
        conversation.digest = _block_digest(conversation, block, TRACE_BLOCK_TOKENS)
        conversation.whole_ids.append(_as_hash_id(conversation.digest))
    partial = [_as_hash_id(_block_digest(conversation, whole, rest))] if rest else []
    return (*conversation.whole_ids, *partial)


def _block_digest(conversation: _Conversation, block: int, tokens: int) -> bytes:
    first, last = block * TRACE_BLOCK_TOKENS, block * TRACE_BLOCK_TOKENS + tokens
    pieces = [conversation.digest.hex()]
    start = 0
    for text, length in conversation.runs:
        begin, end = max(first, start), min(last, start + length)
        if begin < end:
            pieces.append(f"{text}[{begin - start}:{end - start}]")
        start += length
    return blake2b("|".join(pieces).encode(), digest_size=8, person=b"neve.replay").digest()


def _as_hash_id(digest: bytes) -> int:
    return int.from_bytes(digest, "little")

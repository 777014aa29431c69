"""Write traffic of one kind as a trace in Mooncake's format, for docs/planning.md.

    python examples/planning/traces.py agent > agent.jsonl

The traffic is made up, not recorded: kinds and seed determine every line. Use a trace of your own
requests for decisions (`neve samples export`, or a log of vLLM).

- chat: sessions of a few turns with one of four assistants; a turn repeats the conversation.
- agent: loops over long instructions and tools; each step adds a tool's output. A third of the
  loops wait ten minutes for a person, once.
- rag: questions about one of 400 documents, a few of them popular. A prompt is instructions, then
  the document, then the question: in another order there would be nothing to reuse.
"""

import argparse
import heapq
import json
import random
import sys
from collections.abc import Iterator
from hashlib import blake2b

BLOCK_TOKENS = 512
Runs = list[tuple[str, int]]  # a prompt: names of texts, with their tokens
Request = tuple[float, Runs, int]  # seconds, prompt, tokens of the answer


def chat(draws: random.Random) -> Iterator[Request]:
    """New sessions at 0.5 a second, 6 turns on average."""

    def session(start_s: float, number: int) -> Iterator[Request]:
        assistant = draws.randrange(4)
        runs = [(f"assistant {assistant}", 700 + 300 * assistant)]
        for turn in range(1 + round(draws.expovariate(1 / 5))):
            runs.append((f"question {number}.{turn}", draws.randint(30, 900)))
            answer = draws.randint(80, 700)
            yield start_s, list(runs), answer
            runs.append((f"answer {number}.{turn}", answer))
            start_s += draws.lognormvariate(4.0, 1.0)  # half of the users answer within 55 s

    return _merge(session, draws, gap_s=2.0)


def agent(draws: random.Random) -> Iterator[Request]:
    """New loops every 8 seconds, 20 steps on average."""

    def loop(start_s: float, number: int) -> Iterator[Request]:
        tools = draws.randrange(3)
        runs = [(f"tools {tools}", 9_000 + 3_000 * tools), (f"task {number}", 600)]
        pause_at = draws.randrange(1, 12) if draws.random() < 0.33 else None
        for step in range(1 + round(draws.expovariate(1 / 19))):
            answer = draws.randint(60, 500)
            yield start_s, list(runs), answer
            runs.append((f"call {number}.{step}", answer))
            runs.append((f"output {number}.{step}", draws.randint(100, 4_000)))
            start_s += 600 if step == pause_at else draws.lognormvariate(2.0, 0.8)
            if sum(tokens for _, tokens in runs) > 120_000:
                return

    return _merge(loop, draws, gap_s=8.0)


def rag(draws: random.Random) -> Iterator[Request]:
    """A question every second."""
    sizes = [draws.randint(4_000, 24_000) for _ in range(400)]
    weights = [1 / (rank + 1) ** 0.9 for rank in range(400)]
    now_s, number = 0.0, 0
    while True:
        (document,) = draws.choices(range(400), weights)
        question = (f"question {number}", draws.randint(30, 200))
        runs = [("instructions", 1_024), (f"document {document}", sizes[document]), question]
        yield now_s, runs, draws.randint(100, 500)
        now_s += draws.expovariate(1.0)
        number += 1


KINDS = {"chat": (chat, 4_000), "agent": (agent, 3_000), "rag": (rag, 3_000)}


def _merge(begin, draws: random.Random, *, gap_s: float) -> Iterator[Request]:
    """Requests of all sessions in order of time; a new session every `gap_s` on average."""
    waiting = []
    next_s, number = 0.0, 0
    while True:
        while not waiting or next_s <= waiting[0][0]:
            session = begin(next_s, number)
            heapq.heappush(waiting, (next_s, number, next(session), session))
            next_s += draws.expovariate(1 / gap_s)
            number += 1
        _, key, request, session = heapq.heappop(waiting)
        yield request
        if (following := next(session, None)) is not None:
            heapq.heappush(waiting, (following[0], key, following, session))


def block_ids(runs: Runs) -> list[int]:
    """An id for each 512 tokens, the last one for the rest: equal id, equal whole prefix."""
    ids, digest, start = [], b"", 0
    pieces: list[str] = []
    room = BLOCK_TOKENS
    for name, tokens in runs:
        start = 0
        while start < tokens:
            taken = min(room, tokens - start)
            pieces.append(f"{name}[{start}:{start + taken}]")
            start, room = start + taken, room - taken
            if not room:
                digest = blake2b(digest + "|".join(pieces).encode(), digest_size=6).digest()
                ids.append(int.from_bytes(digest, "big"))
                pieces, room = [], BLOCK_TOKENS
    if pieces:
        digest = blake2b(digest + "|".join(pieces).encode(), digest_size=6).digest()
        ids.append(int.from_bytes(digest, "big"))
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    kind, usual = KINDS[args.kind]
    requests = kind(random.Random(f"{args.kind}:{args.seed}"))
    for _ in range(args.requests or usual):
        at_s, runs, answer = next(requests)
        row = {
            "timestamp": round(1000 * at_s),
            "input_length": sum(tokens for _, tokens in runs),
            "output_length": answer,
            "hash_ids": block_ids(runs),
        }
        sys.stdout.write(json.dumps(row, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

"""Answers with a user's memories as prefix: named, pinned, and loaded in the next session."""

import argparse
import hashlib
import os
import time
from pathlib import Path

os.environ.setdefault("MEM0_TELEMETRY", "False")

from mem0 import Memory
from openai import OpenAI

from neve.api import Neve

USER = "ada"
SIZE = 64  # of an embedding


class WordCounts:
    """An embedder of mem0 without a model: words by their hash."""

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        counts = [0.0] * SIZE
        for word in text.lower().split():
            counts[hashlib.sha256(word.encode()).digest()[0] % SIZE] += 1.0
        return counts


def open_memory(folder: Path) -> Memory:
    os.environ.setdefault("OPENAI_API_KEY", "none")
    store = {"path": str(folder / "qdrant"), "on_disk": True, "embedding_model_dims": SIZE}
    memory = Memory.from_config(
        {
            "vector_store": {"provider": "qdrant", "config": store},
            "history_db_path": str(folder / "history.db"),
        }
    )
    memory.embedding_model = WordCounts()
    return memory


def prefix_of(memory: Memory) -> str:
    """All facts, oldest first: a new one leaves the tokens before it as they were."""
    rows = memory.get_all(filters={"user_id": USER})["results"]
    facts = [row["memory"] for row in sorted(rows, key=lambda row: row["created_at"])]
    return "You are an assistant. What you know of the user: " + " ".join(
        f"The user {fact}." for fact in facts
    )


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--folder", type=Path, required=True)
    arguments.add_argument("facts", nargs="*")
    given = arguments.parse_args()
    memory = open_memory(given.folder)
    for fact in given.facts:
        memory.add(fact, user_id=USER, infer=False)

    with Neve(os.environ["NEVE_ENDPOINT"], os.environ["NEVE_API_KEY"]) as neve:
        engine = neve.engines.list(state="healthy").first()
        if engine is None:
            raise SystemExit("no healthy engine: see `neve engines`")
        openai = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", f"{engine.base_url}/v1"))
        name = f"memory-of-{USER}"
        prefix = {"role": "system", "content": prefix_of(memory)}
        question = {"role": "user", "content": "What shall I drink?"}
        answer = openai.chat.completions.create(
            model=engine.model,
            messages=[prefix, question],
            max_tokens=8,
            temperature=0,
            extra_body={"kv_transfer_params": {"neve": {"context": name, "label": "memory"}}},
        )
        told = answer.kv_transfer_params["neve"]
        print(f"reused tokens: {told['reused_tokens']}")

        # The node reports the context half a second after the request.
        deadline = time.monotonic() + 30
        while (context := neve.contexts.list(name=name).first()) is None:
            if time.monotonic() > deadline:
                raise SystemExit(f"the node did not report the context {name}")
            time.sleep(0.2)
        pinned = neve.contexts.pin(context.id, for_="7d", reason="the user's memory")
        print(f"pinned until {pinned.pinned_until}: {pinned.kept} blocks")


if __name__ == "__main__":
    main()

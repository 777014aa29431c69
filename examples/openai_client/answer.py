"""Makes a context from messages, warms it, looks it up, and answers with its tokens."""

import os

from openai import OpenAI

from neve.api import Neve

HANDBOOK = "You answer questions of the shop's customers. " + " ".join(
    f"Rule {n}: goods of class {n} may be returned within {10 + n} days." for n in range(1, 7)
)
SYSTEM = {"role": "system", "content": HANDBOOK}
QUESTION = {"role": "user", "content": "May I return goods of class 4 after two weeks?"}


def main() -> None:
    with Neve(os.environ["NEVE_ENDPOINT"], os.environ["NEVE_API_KEY"]) as neve:
        engine = neve.engines.list(state="healthy").first()
        if engine is None:
            raise SystemExit("no healthy engine: see `neve engines`")
        space = engine.spaces[0]

        context = neve.contexts.create(space=space, name="handbook", messages=[SYSTEM])
        print(f"context {context.id}: {context.tokens} tokens, {context.state}")
        job = neve.contexts.warm(context.id)
        job = neve.jobs.wait(job.id, on_progress=lambda job: print(f"warm: {job.state}"))
        if job.state != "done":
            raise SystemExit(f"warming failed: {job.error}")

        chat = [SYSTEM, QUESTION]
        found = neve.lookup(space=space, messages=chat)
        print(f"lookup: {found.usable_tokens} of {found.tokens} tokens can be loaded")

        openai = OpenAI(
            base_url=os.environ.get("OPENAI_BASE_URL", f"{engine.base_url}/v1"),
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
        )
        answer = openai.chat.completions.create(
            model=engine.model,
            messages=chat,
            max_tokens=8,
            temperature=0,
            extra_body={"kv_transfer_params": {"neve": {}}},  # asks for the figures
        )
        told = answer.kv_transfer_params["neve"]  # an extra member of vLLM's answers
        print(f"answer: {answer.choices[0].message.content!r}")
        print(f"reused tokens: {told['reused_tokens']}")


if __name__ == "__main__":
    main()

"""A LangGraph agent: think, use a slow tool with the context pinned, think again."""

import operator
import os
import time
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from openai import OpenAI

from neve.api import Neve
from neve.api.models import Context

TASK = "You watch over a cluster and report on it. " + " ".join(
    f"Step {n}: compare queue {n} with its limit." for n in range(1, 9)
)
LONGEST_TOOL = "15m"


class State(TypedDict):
    thread: str
    messages: Annotated[list[dict[str, Any]], operator.add]
    reused_tokens: Annotated[list[int], operator.add]


class Agent:
    def __init__(self, neve: Neve, openai: OpenAI, model: str) -> None:
        self.neve, self.openai, self.model = neve, openai, model
        graph = StateGraph(State)
        graph.add_node("think", self.think)
        graph.add_node("use_tool", self.use_tool)
        graph.add_edge(START, "think")
        graph.add_conditional_edges("think", self.next_step, ["use_tool", END])
        graph.add_edge("use_tool", "think")
        self.graph = graph.compile()

    def think(self, state: State) -> dict[str, Any]:
        """One turn of the model, in the thread's context."""
        answer = self.openai.chat.completions.create(
            model=self.model,
            messages=state["messages"],
            max_tokens=8,
            temperature=0,
            extra_body={"kv_transfer_params": {"neve": {"context": state["thread"]}}},
        )
        said = {"role": "assistant", "content": answer.choices[0].message.content or ""}
        told = answer.kv_transfer_params["neve"]
        return {"messages": [said], "reused_tokens": [told["reused_tokens"]]}

    def use_tool(self, state: State) -> dict[str, Any]:
        """Runs the tool while the thread's blocks stay, whatever other traffic does."""
        context = self.recorded(state["thread"])
        pinned = self.neve.contexts.pin(context.id, for_=LONGEST_TOOL, reason="waits for a tool")
        print(f"pinned until {pinned.pinned_until}: {pinned.kept} blocks")
        result = {"role": "user", "content": f"The tool says: {slow_tool()}"}
        return {"messages": [result]}

    def next_step(self, state: State) -> str:
        """A real agent follows the model's tool calls; this one uses its tool once."""
        return "use_tool" if len(state["reused_tokens"]) == 1 else END

    def recorded(self, name: str) -> Context:
        """The context, which the node reports half a second after the request."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            context = self.neve.contexts.list(name=name).first()
            if context is not None:
                return context
            time.sleep(0.2)
        raise SystemExit(f"the node did not report the context {name}")

    def run(self, thread: str) -> State:
        first = {"role": "system", "content": TASK}
        state = self.graph.invoke({"thread": thread, "messages": [first], "reused_tokens": []})
        self.neve.contexts.unpin(self.recorded(thread).id)
        return state


def slow_tool() -> str:
    time.sleep(1)
    return "queue 3 is above its limit"


def main() -> None:
    with Neve(os.environ["NEVE_ENDPOINT"], os.environ["NEVE_API_KEY"]) as neve:
        engine = neve.engines.list(state="healthy").first()
        if engine is None:
            raise SystemExit("no healthy engine: see `neve engines`")
        openai = OpenAI(
            base_url=os.environ.get("OPENAI_BASE_URL", f"{engine.base_url}/v1"),
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
        )
        state = Agent(neve, openai, engine.model).run("agent-7")
    before, after = state["reused_tokens"]
    print(f"reused tokens: {before} before the tool, {after} after it")


if __name__ == "__main__":
    main()

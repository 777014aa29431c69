"""Real readers of KV events in processes of their own, and a publisher in the form of vLLM's.

Source of the form: vllm/distributed/kv_events.py, ZmqEventPublisher.
"""

import json
import re
import time
from collections import deque
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import urllib3
import zmq

from neve.engine.events import ChunkRemoved, ChunkStored
from support.servers import Server, free_port, http_status

END = (-1).to_bytes(8, "big", signed=True)


def hash_of(engine_hash: bytes) -> int:
    """As vLLM publishes hashes by default: 64 bits."""
    return int.from_bytes(engine_hash[-8:], "big")


def as_wire(event: ChunkStored | ChunkRemoved, block_tokens: int) -> dict[str, Any]:
    """What `neve.vllm.router_events` makes of an event, as vLLM encodes it."""
    hashes = [hash_of(each) for each in event.hashes]
    if isinstance(event, ChunkRemoved):
        return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "STORAGE"}
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": None if event.parent is None else hash_of(event.parent),
        "token_ids": list(event.tokens),
        "block_size": block_tokens,
        "lora_id": event.lora_id,
        "medium": "STORAGE",
        "lora_name": event.lora_name,
    }


class Publisher:
    """Belongs to the thread that made it, except the replies to replays."""

    def __init__(self, *, first_port: int = 0, buffer: int = 10_000) -> None:
        self.first_port = first = first_port or free_port(2)
        self.endpoint = f"tcp://127.0.0.1:{first}"
        self.replay_endpoint = f"tcp://127.0.0.1:{first + 1}"
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.XPUB)  # a PUB that hears of subscriptions
        self._pub.bind(self.endpoint)
        self._sent: deque[tuple[int, bytes]] = deque(maxlen=buffer)
        self._next = 0
        self.replays = 0
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()

    def has_reader(self) -> bool:
        """Whether somebody subscribed since the last call."""
        return bool(self._pub.poll(0)) and bool(self._pub.recv())

    def send(self, *events: dict[str, Any], lost: bool = False) -> None:
        """One batch. `lost`: it goes only into the buffer, as if the network had dropped it."""
        self.send_payload(msgspec.msgpack.encode([time.time(), list(events), 0]), lost=lost)

    def send_payload(self, payload: bytes, *, lost: bool = False) -> None:
        self._sent.append((self._next, payload))
        if not lost:
            self._pub.send_multipart((b"", self._next.to_bytes(8, "big"), payload))
        self._next += 1

    def _serve(self) -> None:
        replay = self._context.socket(zmq.ROUTER)
        replay.bind(self.replay_endpoint)
        try:
            while True:
                client, _, start = replay.recv_multipart()
                self.replays += 1
                for number, payload in list(self._sent):
                    if number >= int.from_bytes(start, "big"):
                        frames = (client, b"", b"", number.to_bytes(8, "big"), payload)
                        replay.send_multipart(frames)
                replay.send_multipart((client, b"", b"", END, b""))
        except zmq.ContextTerminated:
            replay.close(0)

    def close(self) -> None:
        self._pub.close(0)
        self._context.term()
        self._thread.join(10)


class DynamoIndexer(Server):
    """`python -m dynamo.indexer`: knows for each worker which blocks it has in which tier."""

    name = "dynamo-indexer"

    def __init__(self, folder: Path, python: Path, *, block_tokens: int) -> None:
        super().__init__(folder)
        self._python, self._block_tokens = python, block_tokens
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [str(self._python), "-m", "dynamo.indexer", "--port", str(self.port)]

    def ready(self) -> bool:
        return http_status(f"{self.url}/health") == 200

    def register(self, worker: int, publisher: Publisher) -> None:
        self._post(
            "/register",
            instance_id=worker,
            endpoint=publisher.endpoint,
            replay_endpoint=publisher.replay_endpoint,
            model_name="m",
            block_size=self._block_tokens,
        )

    def unregister(self, worker: int) -> None:
        self._post("/unregister", instance_id=worker, model_name="m")

    def matched(self, tokens: Sequence[int]) -> dict[int, int]:
        """Worker → tokens of the prompt that it has on its GPU or in storage."""
        found = self._post("/query", token_ids=list(tokens), model_name="m")["instances"]
        return {int(worker): tiers["longest_matched"] for worker, tiers in found.items()}

    def _post(self, path: str, **body: Any) -> Any:
        answer = urllib3.request("POST", self.url + path, json=body)
        assert answer.status in (200, 201), (answer.status, answer.data)
        return json.loads(answer.data)


class RoutedWorker:
    """A server that answers with its own name. Its prompts are token ids in decimal digits, and it
    renders them as vLLM's /v1/completions/render does."""

    def __init__(self) -> None:
        worker, self.publisher = self, Publisher()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({"object": "list", "data": [{"id": "m", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("/render"):
                    ids = [int(word) for word in body["prompt"].split()]
                    self._answer([{"request_id": "cmpl-1", "token_ids": ids, "model": "m"}])
                    return
                choice = {"index": 0, "text": worker.url, "finish_reason": "stop"}
                self._answer({"object": "text_completion", "model": "m", "choices": [choice]})

            def _answer(self, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *words: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.publisher.close()


class VllmRouter(Server):
    """`vllm-router` with the policy kv_aware over two workers."""

    name = "vllm-router"

    def __init__(
        self, folder: Path, python: Path, workers: Sequence[RoutedWorker], *, block_tokens: int
    ) -> None:
        super().__init__(folder)
        self._python, self._workers, self._block_tokens = python, workers, block_tokens
        self.port, self._metrics = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        sources: list[str] = []
        for each in self._workers:
            publisher = each.publisher
            sources += ["--kv-event-source", f"{each.url}={publisher.endpoint}"]
            sources += ["--kv-event-replay-source", f"{each.url}={publisher.replay_endpoint}"]
        return [
            *(str(self._python), "-m", "vllm_router.launch_router", "--policy", "kv_aware"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--prometheus-port", str(self._metrics), "--prometheus-host", "127.0.0.1"),
            *("--worker-urls", *(each.url for each in self._workers)),
            *("--kv-event-block-size", str(self._block_tokens), "--kv-event-model", "m"),
            *sources,
            *("--log-level", "debug"),  # says how many tokens it counts as there
        ]

    def ready(self) -> bool:
        return http_status(f"{self.url}/health") == 200

    def route(self, tokens: Sequence[int]) -> tuple[str, int]:
        """(the chosen worker's address, tokens that the router counts as there)."""
        body = {"model": "m", "prompt": " ".join(map(str, tokens)), "max_tokens": 1}
        answer = urllib3.request("POST", f"{self.url}/v1/completions", json=body)
        assert answer.status == 200, answer.data
        log = re.sub(r"\x1b\[\d*m", "", self.log.read_text())  # colours
        credited = re.findall(r"credited_prefix_tokens=(\d+)", log)
        return answer.json()["choices"][0]["text"], int(credited[-1])

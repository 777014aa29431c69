"""neve's client, and the Python transport that its native core replaced."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from contestant import MATCH_PAYLOAD_BYTES, Contestant, Plan
from python_transport import Call, Get, Put, SocketTransport, ValkeyAddress

from neve.datapath.client import BlockRef, Client
from neve.errors import NeveError
from neve.formats.block import HEADER_BYTES, BlockHeader, checksum, encode_header, verify
from neve.formats.keys import BucketKeys
from neve.formats.space import SpaceIdentity
from neve.index.library import call
from neve.index.tier import Location, Tier, commit_args, decode_match

DEADLINE_S = 60.0
TOKENS = 256
API_KEY = "neve_test_secret"


def identity() -> SpaceIdentity:
    return SpaceIdentity(
        model="benchmark",
        revision="1",
        dtype="bfloat16",
        kv_dtype="bfloat16",
        layout="benchmark",
        layout_version=1,
        engine_block_tokens=TOKENS,
        bytes_per_token=1024,
    )


class Neve(Contestant):
    """The public client; the measurement includes checksums, commits and touches."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.sent = plan.data()
        self.buffers = plan.buffers()
        self.client = Client.connect(
            plan.endpoint_url,
            API_KEY,
            identity(),
            node="benchmark",
            engine={"name": "benchmark", "version": "1"},
            connections=plan.connections,
            put_bytes_in_flight=4 << 30,
        )
        self.locations = [Location(Tier.HOT, HEADER_BYTES + plan.block_bytes)] * plan.batch_blocks
        self.refs = [BlockRef(id_, bytes(16), TOKENS) for id_ in self.ids]

    def start_get(self, number: int, slot: int) -> object:
        rows = self.batch(number)
        return self.client.get_many(
            self.ids[rows.start : rows.stop],
            list(self.buffers[slot]),
            locations=self.locations,
            deadline_s=DEADLINE_S,
        )

    def start_put(self, number: int) -> object:
        rows = self.batch(number)
        return self.client.put_many(
            self.refs[rows.start : rows.stop],
            list(self.sent[rows.start : rows.stop]),
            deadline_s=DEADLINE_S,
        )

    def finish(self, started: object) -> None:
        outcomes = started.wait()  # type: ignore[attr-defined]
        if any(outcome is not None for outcome in outcomes):
            raise RuntimeError(f"missed: {set(outcomes)}")

    def loaded(self, slot: int) -> np.ndarray:
        return self.buffers[slot]

    def store_match_blocks(self, ids: list[bytes]) -> None:
        payload = np.zeros(MATCH_PAYLOAD_BYTES, dtype=np.uint8)
        refs = [BlockRef(id_, bytes(16), TOKENS) for id_ in ids]
        self.finish(self.client.put_many(refs, [payload] * len(ids), deadline_s=DEADLINE_S))

    def match(self, ids: list[bytes]) -> None:
        found = self.client.match(ids, deadline_s=DEADLINE_S)
        if len(found.locations) != len(ids):
            raise RuntimeError(f"match found {len(found.locations)}: {found.miss}")


class PythonTransport(Contestant):
    """One thread per connection moves a part of each batch; verifies, touches, commits."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.sent = plan.data()
        self.buffers = plan.buffers()
        addresses = [ValkeyAddress((f"127.0.0.1:{port}",)) for port in plan.ports]
        self.transports = [SocketTransport(address) for address in addresses]
        self.lanes = plan.connections
        self.threads = ThreadPoolExecutor(self.lanes * len(plan.ports))

    def start_get(self, number: int, slot: int) -> list[Future[None]]:
        first = self.batch(number).start
        return [
            self.threads.submit(self._get, home, part, slot, first)
            for home, part in self._parts(self.batch(number))
        ]

    def start_put(self, number: int) -> list[Future[None]]:
        return [
            self.threads.submit(self._put, home, part)
            for home, part in self._parts(self.batch(number))
        ]

    def finish(self, started: list[Future[None]]) -> None:
        for future in started:
            future.result()

    def loaded(self, slot: int) -> np.ndarray:
        return self.buffers[slot]

    def match(self, ids: list[bytes]) -> None:
        """Look up in one bucket, as with a single Valkey."""
        (reply,) = self._run(0, [Call(tuple(call("locate", self._bucket(0), "1", *ids)))])
        assert isinstance(reply, bytes)
        if not all(isinstance(answer, Location) for answer in decode_match(reply)):
            raise RuntimeError("match did not find all")

    def store_match_blocks(self, ids: list[bytes]) -> None:
        payload = memoryview(bytes(MATCH_PAYLOAD_BYTES))
        self._store(0, list(ids), [payload] * len(ids))

    def _parts(self, rows: range) -> list[tuple[int, list[int]]]:
        """(primary, rows) for each connection: the primary's rows split over its connections."""
        parts = []
        for home in range(len(self.plan.ports)):
            mine = [i for i in rows if self.plan.homes[self.plan.bucket(self.ids[i])] == home]
            size = -(-len(mine) // self.lanes) or 1
            parts += [(home, mine[at : at + size]) for at in range(0, len(mine), size)]
        return parts

    def _get(self, home: int, rows: list[int], slot: int, first: int) -> None:
        payloads = [memoryview(self.buffers[slot][i - first]) for i in rows]
        headers = memoryview(bytearray(HEADER_BYTES * len(rows)))
        gets = [
            Get(self.plan.key(self.ids[i]), headers[n * 64 : n * 64 + 64], payloads[n])
            for n, i in enumerate(rows)
        ]
        touches = [
            Call(tuple(call("touch", self._bucket(bucket), *ids)))
            for bucket, ids in self._by_bucket([self.ids[i] for i in rows]).items()
        ]
        self._run(home, [*gets, *touches])
        for get, i in zip(gets, rows, strict=True):
            verify(get.header, get.payload, expect_id=self.ids[i])

    def _put(self, home: int, rows: list[int]) -> None:
        self._store(home, [self.ids[i] for i in rows], [memoryview(self.sent[i]) for i in rows])

    def _store(self, home: int, ids: list[bytes], payloads: Sequence[memoryview]) -> None:
        operations: list[Put | Call] = []
        for id_, payload in zip(ids, payloads, strict=True):
            header = BlockHeader(id_, bytes(16), TOKENS, len(payload), checksum(payload), bytes(4))
            operations.append(Put(self.plan.key(id_), encode_header(header), payload))
        size = HEADER_BYTES + len(payloads[0])
        for bucket, part in self._by_bucket(ids).items():
            keys = tuple(map(self.plan.key, part))
            blocks = [(id_, size, TOKENS) for id_ in part]
            args = commit_args(self.plan.space_id, blocks)
            command = call("commit", self._bucket(bucket), *args, blocks=keys)
            operations.append(Call(tuple(command)))
        self._run(home, operations)

    def _run(self, home: int, operations: Sequence[Get | Put | Call]) -> list[object]:
        deadline = time.monotonic() + DEADLINE_S
        results = self.transports[home].run(operations, deadline=deadline)
        for result in results:
            if isinstance(result, NeveError):
                raise result
        return results

    def _bucket(self, number: int) -> BucketKeys:
        return BucketKeys(self.plan.tenant_id, number)

    def _by_bucket(self, ids: list[bytes]) -> dict[int, list[bytes]]:
        parts: dict[int, list[bytes]] = {}
        for id_ in ids:
            parts.setdefault(self.plan.bucket(id_), []).append(id_)
        return parts


CONTESTANTS: dict[str, type[Contestant]] = {"neve": Neve, "python": PythonTransport}

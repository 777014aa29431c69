"""A node's process: puts, finds and gets random chains through the real client; reports it.

Messages to the test: ("tried" | "stored" | "refused", ids), ("served", count), ("wrong", ids),
("missed", {reason: count}), ("local", blocks read from the local tier). "refused": a quota had no
room. "tried" is sent before the attempt, so that the test also knows the blocks of a killed node.
"""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neve.datapath.client import BlockRef, Client
from neve.errors import MissReason, NeveError
from neve.formats.space import SpaceIdentity
from torture import model

MODEL = "torture"
IDENTITY = SpaceIdentity(MODEL, "1", "float32", "float32", "torture", 1, 16, 64)
LOSSY = replace(IDENTITY, codec="int8")  # another space, so other ids: a mix shows as wrong bytes
ENGINE = {"name": "torture", "version": "1"}
OP_S = 1.0  # deadline of one call
CONNECT_S = 15.0
READ_S = 5.0


class Local(NamedTuple):
    """The local tier that all nodes of a trial share."""

    folder: Path
    most_bytes: int


def run_node(
    wire: Connection,
    url: str,
    api_key: str,
    name: str,
    seed: int,
    chains: int,
    local: Local,
    identity: SpaceIdentity = IDENTITY,
) -> None:
    """Works until `wire` says something or closes. `chains`: the seed of the tenant's chains."""
    with connect(url, api_key, name, promote=True, local=local, identity=identity) as client:
        wire.send(("ready", None))
        node = _Node(wire, client, random.Random(seed), chains)
        while not wire.poll(node.rng.uniform(0, 0.01)):
            node.step()
        wire.send(("local", client.stats.totals().counters["hit_local_blocks"]))
        wire.send(("done",))


def read_all(
    wire: Connection,
    url: str,
    api_key: str,
    chains: int,
    local: Local | None,
    identities: Sequence[SpaceIdentity],
) -> None:
    """Asks for every block of these spaces.

    Tells ("read", {id: None or the miss's reason or "wrong"}). Asks again for each missed block
    alone: another block of the batch may have caused the miss.
    """
    for identity in identities:
        with connect(
            url, api_key, "reader", promote=False, local=local, identity=identity
        ) as client:
            if client.local:
                client.local.flush(READ_S)  # until it has looked into its directory
            for chain in range(model.CHAINS):
                ids = _ids(client, chains, chain)
                outcomes = _read(client, ids)
                for id_ in [id_ for id_, outcome in outcomes.items() if outcome is not None]:
                    outcomes.update(_read(client, [id_]))
                wire.send(("read", outcomes))
    wire.send(("done",))


def connect(
    url: str,
    api_key: str,
    name: str,
    *,
    promote: bool,
    local: Local | None = None,
    identity: SpaceIdentity = IDENTITY,
) -> Client:
    """Connects; tries again until the platform answers."""
    end = time.monotonic() + CONNECT_S
    options: dict[str, Any] = {"promote": promote}
    if local:
        options |= {"local_dir": str(local.folder), "local_bytes": local.most_bytes}
    while True:
        try:
            return Client.connect(url, api_key, identity, node=name, engine=ENGINE, **options)
        except NeveError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _ids(client: Client, chains: int, chain: int) -> list[bytes]:
    tokens = model.chain_tokens(chains, chain)
    return client.hasher.chain(tokens, parent=client.hasher.root())


def _read(client: Client, ids: list[bytes]) -> dict[bytes, str | None]:
    outcomes: dict[bytes, str | None] = {}
    found = {}
    for id_ in ids:
        match = client.match([id_], deadline_s=READ_S)
        if match.locations:
            found[id_] = match.locations[0]
        else:
            outcomes[id_] = str(match.miss)
    buffers = [np.zeros(model.payload_bytes(id_), np.uint8) for id_ in found]
    got = client.get_many(
        list(found), buffers, locations=list(found.values()), deadline_s=READ_S
    ).wait(2 * READ_S)
    for id_, buffer, outcome in zip(found, buffers, got, strict=True):
        is_right = buffer.tobytes() == model.payload(id_)
        outcomes[id_] = str(outcome) if outcome is not None else None if is_right else "wrong"
    return outcomes


class _Node:
    def __init__(self, wire: Connection, client: Client, rng: random.Random, chains: int) -> None:
        self.wire = wire
        self.client = client
        self.rng = rng
        self.chains = [_ids(client, chains, n) for n in range(model.CHAINS)]

    def step(self) -> None:
        ids = self.rng.choice(self.chains)
        act = self.rng.choices((self.put, self.get, self.report), (6, 6, 1))[0]
        act(ids)

    def put(self, ids: list[bytes]) -> None:
        first = self.rng.choice((0, 0, 4, 8))
        part = ids[first : first + self.rng.randint(1, model.CHAIN_BLOCKS)]
        parents = [self.client.hasher.root(), *ids][first:]
        blocks = [
            BlockRef(id_, parent, model.CHUNK_TOKENS)
            for id_, parent in zip(part, parents, strict=False)
        ]
        self.wire.send(("tried", part))
        payloads = [model.payload(id_) for id_ in part]
        outcomes = self.client.put_many(blocks, payloads, deadline_s=OP_S).wait(OP_S + 5)
        for said, wanted in (("stored", None), ("refused", MissReason.QUOTA)):
            such = [id_ for id_, outcome in zip(part, outcomes, strict=True) if outcome is wanted]
            self.wire.send((said, such))

    def get(self, ids: list[bytes]) -> None:
        locations = self.client.match(ids).locations
        part = ids[: len(locations)]
        buffers = [np.zeros(model.payload_bytes(id_), np.uint8) for id_ in part]
        outcomes = self.client.get_many(part, buffers, locations=locations, deadline_s=OP_S).wait(
            OP_S + 5
        )
        wrong, missed = [], Counter()
        for id_, buffer, outcome in zip(part, buffers, outcomes, strict=True):
            if outcome is not None:
                missed[str(outcome)] += 1
            elif buffer.tobytes() != model.payload(id_):
                wrong.append(id_)
        self.wire.send(("served", len(part) - missed.total() - len(wrong)))
        if wrong:
            self.wire.send(("wrong", wrong))
        if missed:
            self.wire.send(("missed", dict(missed)))

    def report(self, ids: list[bytes]) -> None:
        """Reports a context, and pins some of them."""
        pin_s = self.rng.choice((None, None, 30))
        try:
            self.client.report_context(
                f"c{ids[0].hex()[:8]}", ids, tokens=len(ids) * model.CHUNK_TOKENS, pin_s=pin_s
            )
        except NeveError as error:
            self.wire.send(("missed", {f"context: {type(error).__name__}": 1}))

"""Chains of random blocks, a provisioned hot tier and a connected client for tests."""

from functools import partialmethod

import numpy as np

from neve.datapath.client import BlockRef, Client, Match
from neve.errors import MissReason
from neve.formats.keys import BucketKeys, bucket_of
from neve.formats.space import SpaceIdentity
from neve.index.library import load_functions
from neve.index.tier import BlockTerms, HotTier
from support.cache_endpoint import API_KEY, TENANT_ID, CacheEndpoint
from support.servers import ValkeyServer

IDENTITY = SpaceIdentity(
    model="test/model",
    revision="1",
    dtype="bfloat16",
    kv_dtype="bfloat16",
    layout="test",
    layout_version=1,
    engine_block_tokens=16,
    bytes_per_token=512,
)
ENGINE = {"name": "test", "version": "1"}
CHUNK_TOKENS = 256
PAYLOAD = CHUNK_TOKENS * IDENTITY.bytes_per_token
GIB = 1 << 30
# Far above what a look-up takes while other tests load the machine.
PATIENCE_S = 10.0


def provision(server: ValkeyServer, *, hot_bytes: int = GIB, buckets: int = 1) -> HotTier:
    with server.client() as client:
        load_functions(client)
    hot = HotTier(server.client().execute_command, TENANT_ID, buckets)
    hot.set_policy(hot_bytes=hot_bytes, cold_bytes=GIB, terms=BlockTerms(flush_after_s=None))
    return hot


class PatientClient(Client):
    """Its look-ups wait `PATIENCE_S` by default, not `MATCH_S`: a busy machine is no miss."""

    match = partialmethod(Client.match, deadline_s=PATIENCE_S)
    match_again = partialmethod(Client.match_again, deadline_s=PATIENCE_S)
    locate = partialmethod(Client.locate, deadline_s=PATIENCE_S)
    locate_again = partialmethod(Client.locate_again, deadline_s=PATIENCE_S)


def connect(endpoint: CacheEndpoint, **options: object) -> Client:
    return PatientClient.connect(
        endpoint.url, API_KEY, IDENTITY, node="gpu-1", engine=ENGINE, **options
    )


class Chain:
    """`count` random blocks of one chain, and buffers to load them into."""

    def __init__(self, client: Client, count: int, seed: int = 1) -> None:
        random = np.random.default_rng(seed)
        tokens = random.integers(0, 50_000, count * CHUNK_TOKENS).tolist()
        root = client.hasher.root()
        self.client = client
        self.ids = client.hasher.chain(tokens, parent=root)
        parents = [root, *self.ids]
        self.blocks = [
            BlockRef(id_, parent, CHUNK_TOKENS)
            for id_, parent in zip(self.ids, parents, strict=False)
        ]
        self.sent = random.integers(0, 256, (count, PAYLOAD), dtype=np.uint8)
        self.back = np.zeros_like(self.sent)

    def put(self, deadline_s: float = 10) -> list[MissReason | None]:
        transfer = self.client.put_many(self.blocks, list(self.sent), deadline_s=deadline_s)
        return transfer.wait(deadline_s + PATIENCE_S)

    def get(self, match: Match | None = None, deadline_s: float = 10) -> list[MissReason | None]:
        match = match or self.client.match(self.ids, deadline_s=PATIENCE_S)
        found = len(match.locations)
        transfer = self.client.get_many(
            self.ids[:found],
            list(self.back[:found]),
            locations=match.locations,
            deadline_s=deadline_s,
        )
        return transfer.wait(deadline_s + PATIENCE_S)

    def key(self, index: int) -> bytes:
        session = self.client.session
        bucket = bucket_of(self.ids[index], session.buckets)
        return BucketKeys(TENANT_ID, bucket).block(session.space_id, self.ids[index])


def counters(client: Client) -> dict[str, int]:
    return {name: count for name, count in client.stats.totals().counters.items() if count}

"""The cache endpoint of the control plane: handshake, heartbeats, contexts, segment addresses.

Control traffic only, no block bytes. Each call is one HTTP request on the caller's thread.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import urllib3

from neve.errors import Misuse, Refused, Unavailable
from neve.formats.parts import PartGroup
from neve.formats.space import MAX_CHUNK_TOKENS, SpaceIdentity
from neve.node.address import ValkeyAddress
from neve.node.membership import Attested, Membership, MemberState
from neve.node.requests import RingTerms
from neve.node.sampling import SampleTerms

# Ends the node name of a scheduler in a process of its own; its ranks have the name without.
SCHEDULER_PART: Final = "/scheduler"


@dataclass(frozen=True)
class Session:
    """The handshake's answer. `fingerprint`: 32 bytes, equal to this node's own computation.
    `identity`: of this engine. `membership`: None unless the handshake named a family; then the
    fingerprint is of the family's producer."""

    id: str
    tenant_id: int
    tenant_slug: str
    space_id: int
    space_name: str
    fingerprint: bytes
    chunk_tokens: int
    buckets: int
    valkey: ValkeyAddress
    s3: dict[str, Any]
    policy: dict[str, Any]
    heartbeat_s: float
    identity: SpaceIdentity
    membership: Membership | None = None
    sample: SampleTerms | None = None  # None: do not sample
    requests: RingTerms | None = None  # None: keep no requests

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any], identity: SpaceIdentity) -> Self:
        """Raises `Refused` if the platform's fingerprint differs from this node's computation."""
        tenant, space, valkey = answer["tenant"], answer["space"], answer["valkey"]
        family = answer.get("family")
        membership = None if family is None else Membership.from_answer(family, identity)
        session = cls(
            id=str(answer["session"]),
            tenant_id=int(tenant["id"]),
            tenant_slug=str(tenant["slug"]),
            space_id=int(space["id"]),
            space_name=str(space["name"]),
            fingerprint=bytes.fromhex(space["fingerprint"]),
            chunk_tokens=int(space["chunk_tokens"]),
            buckets=int(answer["buckets"]),
            valkey=ValkeyAddress(
                seeds=tuple(valkey["seeds"]),
                tls=bool(valkey.get("tls", False)),
                username=valkey.get("username"),
                password=valkey.get("password"),
            ),
            s3=dict(answer.get("s3") or {}),
            policy=dict(answer.get("policy") or {}),
            heartbeat_s=float(answer["heartbeat_s"]),
            identity=identity,
            membership=membership,
            sample=SampleTerms.from_answer(answer.get("sample")),
            requests=RingTerms.from_answer(answer.get("requests")),
        )
        named = identity if membership is None else membership.producer
        own = named.fingerprint(tenant_id=session.tenant_id, chunk_tokens=session.chunk_tokens)
        if own != session.fingerprint:
            raise Refused(
                f"the platform computes {session.fingerprint.hex()}, this node {own.hex()}: "
                "use the same version of neve on both",
                field="fingerprint",
            )
        return session


def check_url(url: str) -> str:
    """Returns the URL without a slash at its end. Raises `Misuse` unless it is http(s)://host…"""
    try:
        parsed = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError:
        parsed = urllib3.util.Url()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise Misuse(
            f"need an address such as http://127.0.0.1:8000, got {url!r}", field="endpoint"
        )
    return url.rstrip("/")


def check_key(api_key: str) -> str:
    """Returns the key without surrounding white space. Raises `Misuse` if it is empty or not
    printable ASCII; unlike the HTTP library's error, the text does not show the key."""
    key = api_key.strip()
    if not re.fullmatch(r"[!-~]+", key):
        raise Misuse("is empty, or has characters that no key has", field="api_key")
    return key


class Endpoint:
    """Calls of `/cache/v1`. Thread-safe.

    All raise `Refused` (the platform refuses: do not repeat) and `Unavailable` (the platform is
    unreachable or failing: try later).
    """

    def __init__(self, url: str, api_key: str, timeout_s: float = 3.0) -> None:
        self.url = check_url(url)
        self.api_key = check_key(api_key)
        self._headers = {"Authorization": f"Bearer {self.api_key}", "Accept": "application/json"}
        self._timeout_s = timeout_s
        self._pool = urllib3.PoolManager(maxsize=4)
        # Retry only failed connects, so that no request is sent twice.
        self._retries = urllib3.Retry(1, connect=1, read=0, redirect=0, status=0, other=0)

    def open_session(
        self,
        identity: SpaceIdentity,
        *,
        node: str,
        engine: Mapping[str, str | int],
        instance: str | None = None,
        space: str | None = None,
        family: Mapping[str, str] | None = None,
        selective_weights: str = "",
        max_chunk_tokens: int = MAX_CHUNK_TOKENS,
        groups: Sequence[PartGroup] = (),
        near_stores: Sequence[str] = (),
    ) -> Session:
        """Performs the handshake. `instance`: identifies the engine in all of its handshakes.
        `engine`: name and version; url, model, gpus and shards if the platform may call it.

        `family`: its name and this engine's kind of device. `selective_weights`: digest of the
        weights that only some tokens reach (rows of embeddings, experts), which a family's proof by
        prompts may miss; "": the worker's handshake tells it. `groups`: KV groups, if a chunk is
        stored as one part for each. `near_stores`: names of S3 stores to read from first.
        """
        answer = self._request(
            "POST",
            "/cache/v1/sessions",
            {
                "node": node,
                **({} if instance is None else {"instance": instance}),
                "engine": dict(engine),
                "identity": identity.as_dict(),
                "space": space,
                **({} if family is None else {"family": dict(family)}),
                **({"selective_weights": selective_weights} if selective_weights else {}),
                "max_chunk_tokens": max_chunk_tokens,
                # Platforms before groups refuse the member.
                **({"near_stores": list(near_stores)} if near_stores else {}),
                **({"groups": [group.as_dict() for group in groups]} if groups else {}),
            },
        )
        try:
            return Session.from_answer(answer, identity)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unavailable(f"{self.url}: the handshake's answer misses {error}") from error

    def heartbeat(self, session_id: str, report: Mapping[str, Any]) -> dict[str, Any]:
        """Returns policy, heartbeat_s, topology, sample.

        `Refused` with status 404: open a new session."""
        return self._request("POST", f"/cache/v1/sessions/{session_id}/heartbeat", report)

    def end_session(self, session_id: str) -> None:
        self._request("DELETE", f"/cache/v1/sessions/{session_id}")

    def report_attestation(self, session_id: str, found: Attested) -> MemberState:
        """Returns the engine's state from now on."""
        body = {name: value for name, value in asdict(found).items() if value is not None}
        answer = self._request("POST", f"/cache/v1/sessions/{session_id}/attestation", body)
        try:
            return MemberState(answer["state"])
        except (KeyError, ValueError) as error:
            raise Unavailable(f"{self.url}: the attestation's answer misses {error}") from error

    def segment_urls(
        self, session_id: str, segments: Sequence[int], *, timeout_s: float
    ) -> tuple[dict[int, str], float]:
        """Returns (presigned GET URL by live segment of this tenant, seconds until they expire).

        The URL is empty while no store answers that has the segment.
        """
        path = f"/cache/v1/sessions/{session_id}/segments?ids={','.join(map(str, segments))}"
        answer = self._request("GET", path, timeout_s=timeout_s)
        try:
            urls = {int(number): str(url) for number, url in answer["segments"].items()}
            urls |= {int(number): "" for number in answer.get("away", ())}
            return urls, float(answer["expires_s"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unavailable(f"{self.url}: the list of segments misses {error}") from error

    def removals(self, session_id: str, cursor: str | None) -> tuple[list[bytes], str, bool]:
        """(ids of blocks of the session's space that left behind the cursor, the next cursor,
        whether earlier removals are not all known). None: begins now.

        `Refused` with status 404: the session ended, or the platform is older."""
        query = "" if cursor is None else f"?after={cursor}"
        answer = self._request("GET", f"/cache/v1/sessions/{session_id}/removals{query}")
        try:
            removed = [bytes.fromhex(id_) for id_ in answer["removed"]]
            return removed, str(answer["cursor"]), bool(answer["reset"])
        except (KeyError, TypeError, ValueError) as error:
            raise Unavailable(f"{self.url}: the list of removals misses {error}") from error

    def record_context(self, context: Mapping[str, Any]) -> dict[str, Any]:
        return self._request("POST", "/cache/v1/contexts", context)

    def close(self) -> None:
        self._pool.clear()

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """`timeout_s`: a shorter timeout, which also disables the retry of a failed connect."""
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            response = self._pool.request(
                method,
                self.url + path,
                headers=headers,
                body=None if body is None else json.dumps(body).encode(),
                timeout=urllib3.Timeout(total=min(self._timeout_s, timeout_s or self._timeout_s)),
                retries=self._retries if timeout_s is None else False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"{self.url} cannot be reached: {error}") from error
        answer = _parse(response.data)
        if 200 <= response.status < 300:
            return answer
        raise _problem(self.url, response.status, answer)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data) if data else {}
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _problem(url: str, status: int, problem: Mapping[str, Any]) -> Refused | Unavailable:
    """Turns a problem document (RFC 9457) into an error."""
    detail = str(problem.get("detail") or problem.get("title") or f"HTTP {status}")
    if status >= 500 or status in (408, 425, 429):
        return Unavailable(f"{url}: {detail}")
    if status == 401:
        return Refused(f"{url} does not accept the API key: check it ({detail})", status=status)
    if not problem:  # Neve always sends a problem document
        return Refused(f"{url} is no Neve endpoint (HTTP {status}): check the URL", status=status)
    if "expected" in problem or "got" in problem:
        detail += f" (expected {problem.get('expected')!r}, got {problem.get('got')!r})"
    field = problem.get("field")
    kind = str(problem.get("type", "")).rpartition("/")[2] or None
    return Refused(detail, field=None if field is None else str(field), status=status, kind=kind)

"""`neve ping`: checks endpoint, key, Valkey and S3 in the order of a node's use, and how to fix
each."""

import secrets
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import urllib3

from neve.cli.node_key import node_credentials, node_key_options
from neve.datapath.client import BlockRef, Client
from neve.datapath.cold import AddressRefused, ColdReader
from neve.datapath.transport import ReplyError
from neve.datapath.usage import read_usage
from neve.errors import NeveError, Refused, Unavailable
from neve.formats.space import SpaceIdentity
from neve.node.session import Session
from neve.replay.report import format_bytes

TIMEOUT_S = 5.0
_PAYLOAD_BYTES_PER_TOKEN = 64
IDENTITY = SpaceIdentity(
    model="neve-ping",
    revision="ping",
    dtype="bfloat16",
    kv_dtype="auto",
    layout="ping",
    layout_version=1,
    engine_block_tokens=16,
    bytes_per_token=_PAYLOAD_BYTES_PER_TOKEN,
)


@dataclass(frozen=True)
class Check:
    """Result of one check. `fix`: what to do; None if the check passed."""

    name: str
    detail: str
    fix: str | None = None

    @property
    def ok(self) -> bool:
        return self.fix is None


@click.command()
@node_key_options
def ping(endpoint: str | None, api_key: str | None, api_key_file: Path | None) -> None:
    """Check endpoint, key, Valkey and S3 one by one.

    Opens a session in a space named after the model "neve-ping", stores one small block there,
    reads it back, and ends the session.
    """
    url, key = node_credentials(endpoint, api_key, api_key_file)
    ok = True
    for check in run_checks(url, key):
        ok = ok and check.ok
        mark = click.style("ok  ", fg="green") if check.ok else click.style("FAIL", fg="red")
        click.echo(f"{mark}  {check.name:<9} {check.detail}")
        if check.fix:
            click.echo(f"      {'':<9} fix: {check.fix}")
    if not ok:
        sys.exit(1)


def run_checks(url: str, api_key: str) -> Iterator[Check]:
    """Yields each check when it ends; skips checks that depend on a failed one."""
    endpoint = check_endpoint(url)
    yield endpoint
    if not endpoint.ok:
        return
    try:
        client = Client.connect(
            url,
            api_key,
            IDENTITY,
            node=f"ping-{socket.gethostname()}",
            engine={"name": "ping", "version": "1"},
        )
    except NeveError as error:
        yield Check("key", str(error), fix_of_refusal(error))
        return
    try:
        session = client.session
        yield Check("key", f"tenant {session.tenant_slug} (id {session.tenant_id})")
        valkey = check_valkey(session)
        yield valkey
        if valkey.ok:
            yield check_block(client)
        yield check_s3(session)
    finally:
        client.close()


def check_endpoint(url: str) -> Check:
    """Checks that a platform answers at `url` and accepts the URL's host name."""
    try:
        answer = get(f"{url.rstrip('/')}/cache/v1/")
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        return Check(
            "endpoint",
            f"{url}: {_cause(error)}",
            "start the platform (`make up`), or correct host and port of the endpoint",
        )
    if answer.status >= 500:
        return Check("endpoint", f"{url} answers HTTP {answer.status}", "look at the web log")
    if b"/unknown-host" in answer.data:
        return Check(
            "endpoint",
            f"{url}: the platform does not know this host name as its own",
            "on the platform: add the name to NEVE_HOSTS, or set NEVE_URL to the address that "
            "nodes use, and start it again",
        )
    return Check("endpoint", f"{url} answers")


def check_valkey(session: Session) -> Check:
    """Logs in as the tenant's user and asks the function library for the tenant's usage."""
    where = ", ".join(session.valkey.seeds)
    try:
        usage = read_usage(session)
    except ReplyError as error:
        return Check(
            "valkey",
            f"{where}: {error}",
            "run `manage.py provision`: it loads users and functions",
        )
    except NeveError as error:
        return Check(
            "valkey",
            f"{where}: {error}",
            "check that valkey-hot runs and this host may reach it; NEVE_HOT_SEEDS of the "
            "platform is the address that nodes are told",
        )
    return Check(
        "valkey",
        f"{where} as {session.valkey.username}: hot {format_bytes(usage.hot_bytes)} of "
        f"{format_bytes(usage.quota_hot_bytes)}, cold {format_bytes(usage.cold_bytes)} of "
        f"{format_bytes(usage.quota_cold_bytes)}",
    )


def check_block(client: Client) -> Check:
    """Stores a block of random bytes under a new id and reads it back."""
    session = client.session
    root = client.hasher.root(salt=secrets.token_bytes(16))
    (block_id,) = client.hasher.chain([0] * session.chunk_tokens, parent=root)
    payload = secrets.token_bytes(session.chunk_tokens * _PAYLOAD_BYTES_PER_TOKEN)
    buffer = bytearray(len(payload))
    try:
        block = BlockRef(block_id, root, session.chunk_tokens)
        (reason,) = client.put_many([block], [bytearray(payload)], deadline_s=TIMEOUT_S).wait()
        if reason is not None:
            return Check("block", f"could not be stored: {reason}", _fix_of_put(reason))
        match = client.match([block_id])
        if not match.locations:
            return Check("block", f"is not found after it was stored: {match.miss}", "try again")
        (reason,) = client.get_many(
            [block_id], [buffer], locations=match.locations, deadline_s=TIMEOUT_S
        ).wait()
    except NeveError as error:
        return Check("block", str(error), "look at the log of valkey-hot")
    if reason is not None or buffer != payload:
        return Check("block", f"was not read back: {reason}", "look at the log of valkey-hot")
    return Check("block", f"{format_bytes(len(payload))} stored, found and read back")


def check_s3(session: Session) -> Check:
    """Reads through a presigned address, as a node reads cold blocks."""
    url = str(session.s3.get("endpoint"))
    probe = session.s3.get("probe")
    if not isinstance(probe, str):
        return Check("s3", f"{url}: no address to try", "use the same version of neve on both")
    reader = ColdReader(lambda numbers, timeout_s: ({}, 0.0))
    try:
        reader.probe(probe, time.monotonic() + TIMEOUT_S)
    except AddressRefused as error:
        return Check("s3", f"{url}: presigned address refused, reason {error.reason}", str(error))
    except NeveError as error:
        return Check(
            "s3",
            f"{url}: {error}",
            "check NEVE_S3_ENDPOINT of the platform and S3's log; `manage.py bootstrap` writes the "
            "object that is read here",
        )
    finally:
        reader.close()
    return Check("s3", f"{url} answers through a presigned address; bucket {session.s3['bucket']}")


def get(url: str) -> urllib3.BaseHTTPResponse:
    return urllib3.request(
        "GET", url, timeout=TIMEOUT_S, retries=urllib3.Retry(1, redirect=False, status=0)
    )


def _cause(error: Exception) -> str:
    """The error's text without urllib3's words about retries."""
    return str(getattr(error, "reason", error))


def fix_of_refusal(error: NeveError) -> str:
    status, kind = (error.status, error.kind) if isinstance(error, Refused) else (None, None)
    if isinstance(error, Unavailable):
        return "the platform is not ready: look at the web log"
    if status == 401:
        return "use a key of role node that is neither revoked nor expired (dashboard, API keys)"
    if kind == "tenant-cut-off":
        return "find out which node took too much; then an operator lets the tenant in again"
    if status == 403:
        return "this key has another role: nodes need one of role node"
    if status == 409:
        return "end other nodes of this tenant, or raise its node limit"
    return "correct what the message names"


def _fix_of_put(reason: str) -> str:
    if reason == "quota":
        return "raise the tenant's hot quota, or let the worker flush so that blocks become clean"
    return "look at the log of valkey-hot"

"""What an operator looks after: each line says how it is, and what to do if it is not well.

Nothing here waits for another machine: servers and certificates are asked in the background
(`dashboard.probes`), everything else is read from the database.
"""

import platform
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import django
from allauth.mfa.models import Authenticator
from cryptography import x509
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connection
from django.db.models import Count, Min
from django.utils import timezone

from catalog.kinds import KINDS, QUEUES
from catalog.models import Job, NodeSession, Round, Store
from dashboard import formats, probes
from tenants import second_factor
from tenants.room import read_room

WELL, NEEDS, BAD, UNKNOWN = "well", "needs", "bad", "unknown"
SIGNS = {WELL: "✔", NEEDS: "▲", BAD: "✕", UNKNOWN: "○"}
SKEW_S = 2.0  # as heartbeats are placed in buckets of 10 s
SILENT = timedelta(minutes=2)
CERTIFICATE_SOON = timedelta(days=21)
BACKUP_OLD = timedelta(days=2)
ROUND_OLD = timedelta(days=2)
QUEUE_OLD_S = 60.0
MOST_NAMED = 3
MOST_VERSIONS = 10  # nodes say which they are


@dataclass(frozen=True)
class Line:
    """`fix`: what to do; empty if there is nothing to do. `link`: name of a page that has more."""

    name: str
    state: str
    words: str
    fix: str = ""
    link: str = ""

    @property
    def sign(self) -> str:
        return SIGNS[self.state]


@dataclass(frozen=True)
class Part:
    title: str
    lines: list[Line]


def parts() -> list[Part]:
    return [
        Part("Versions", list(_versions())),
        Part("Settings", list(_settings())),
        Part("Servers and memory", list(_servers())),
        Part("Queues", list(_queues())),
        Part("Clocks", list(_clocks())),
        Part("Certificates", list(_certificates())),
        Part("Backup and rounds", [_backup(), *_rounds()]),
    ]


def _live() -> list[NodeSession]:
    since = timezone.now() - SILENT
    rows = NodeSession.unscoped.filter(ended_at=None, last_heartbeat_at__gte=since)
    return list(rows.only("node", "engine", "about"))


def _versions() -> Iterator[Line]:
    web = version("neve")
    words = f"neve {web}, Django {django.get_version()}, Python {platform.python_version()}"
    yield Line("Web", WELL, f"{words}, {connection.vendor}")
    workers = probes.WORKERS.read()
    yield (
        Line("Workers", WELL, f"{workers.words} answer")
        if workers.is_well
        else Line(
            *("Workers", UNKNOWN, "not asked yet")
            if workers.is_well is None
            else ("Workers", BAD, "none answers", "Start them: celery -A controlplane worker")
        )
    )
    found = Counter(str(each.about.get("version") or "unknown") for each in _live())
    if not found:
        yield Line("Nodes", UNKNOWN, "no node is live", link="nodes")
        return
    words = ", ".join(f"{count} × {name}" for name, count in found.most_common(MOST_VERSIONS))
    drifted = set(found) - {web}
    fix = f"Update these nodes to {web}." if drifted else ""
    yield Line("Nodes", NEEDS if drifted else WELL, words, fix, link="nodes")


def _settings() -> Iterator[Line]:
    env = settings.ENV
    if env.debug:
        yield Line("Debug", BAD, "error pages show settings", "Set NEVE_DEBUG=false and restart.")
    is_tls = env.url.scheme == "https"
    yield Line(
        "Address",
        WELL if is_tls else NEEDS,
        env.url.geturl() or "as each request names it",
        ""
        if is_tls
        else "Put TLS in front and set NEVE_URL=https://…: passwords and keys cross "
        "the network in the clear otherwise.",
    )
    yield Line(
        "Mail",
        WELL if env.mail_url else NEEDS,
        env.mail_from if env.mail_url else "none is sent",
        ""
        if env.mail_url
        else "Set NEVE_MAIL_URL and NEVE_MAIL_FROM, so that invitations and "
        "incidents reach people.",
    )
    without = _operators_without_factor()
    is_asked = env.second_factor != second_factor.OPTIONAL
    yield Line(
        "Second factor",
        WELL if is_asked or not without else NEEDS,
        f"asked of {env.second_factor}" if is_asked else f"operators without one: {without}",
        ""
        if is_asked or not without
        else "Set one up on the page Account, then NEVE_SECOND_FACTOR=operators.",
        link="account",
    )
    yield Line("Single sign-on", WELL, env.oidc_url or "not used")
    sessions = len(_live())
    if connection.vendor == "sqlite" and sessions > 50:
        yield Line(
            "Database",
            NEEDS,
            f"SQLite with {sessions} live nodes",
            "Move to PostgreSQL: NEVE_DATABASE_URL=postgres://…",
        )


def _operators_without_factor() -> int:
    on = Authenticator.objects.filter(type=Authenticator.Type.TOTP).values("user_id")
    operators = get_user_model().objects.filter(is_staff=True, is_active=True)
    return int(operators.exclude(pk__in=on).count())


def _servers() -> Iterator[Line]:
    for name, probe, fix in (
        ("valkey-hot", probes.HOT, "Look at the Valkey of NEVE_HOT_URL."),
        ("S3", probes.COLD, "Look at NEVE_S3_ENDPOINT and its bucket."),
    ):
        answer = probe.read()
        if answer.is_well is None:
            yield Line(name, UNKNOWN, "not asked yet", link="tiers")
        elif answer.is_well:
            yield Line(name, WELL, "answers", link="tiers")
        else:
            yield Line(name, BAD, f"does not answer: {answer.words}", fix, link="tiers")
    for store in Store.objects.filter(is_default=False):
        if store.failing_since is None:
            yield Line(f"S3 {store.name}", WELL, "answers", link="tiers")
        else:
            fix = "Look at that S3. If it is lost for good: `neve stores rm`."
            yield Line(
                f"S3 {store.name}", BAD, f"does not answer: {store.error}", fix, link="tiers"
            )
    room = read_room()
    if room is None:
        yield Line("Memory promise", UNKNOWN, "valkey-hot does not say how much it has")
        return
    ratio = room.promised_bytes / max(room.capacity_bytes, 1)
    promised, capacity = (
        str(formats.bytes_quantity(each)) for each in (room.promised_bytes, room.capacity_bytes)
    )
    yield Line(
        "Memory promise",
        WELL if ratio <= 1 else NEEDS,
        f"{promised} promised to tenants, {capacity} fit ({ratio:.1f} ×)",
        ""
        if ratio <= 1
        else "Lower hot quotas, or give valkey-hot more memory: tenants may take "
        "each other's room.",
        link="tenants",
    )


def _queues() -> Iterator[Line]:
    now = timezone.now()
    found: dict[str, tuple[int, datetime]] = {}
    rows = Job.unscoped.filter(state=Job.State.QUEUED).order_by()
    for kind, count, oldest in rows.values_list("kind").annotate(
        jobs=Count("pk"), oldest=Min("created_at")
    ):
        queue = KINDS[kind].queue if kind in KINDS else kind
        before = found.get(queue, (0, oldest))
        found[queue] = (before[0] + count, min(before[1], oldest))
    for queue in QUEUES:
        if queue not in found:
            yield Line(queue, WELL, "nothing waits")
            continue
        depth, oldest = found[queue]
        age_s = max((now - oldest).total_seconds(), 0.0)
        is_old = age_s > QUEUE_OLD_S
        words = f"{depth} waiting, oldest {formats.duration_quantity(age_s)}"
        fix = f"Start more workers of the queue {queue}." if is_old else ""
        yield Line(queue, NEEDS if is_old else WELL, words, fix, link="jobs")


def _clocks() -> Iterator[Line]:
    skews = sorted(
        (
            (abs(float(each.about["skew_s"])), float(each.about["skew_s"]), each.node)
            for each in _live()
            if isinstance(each.about.get("skew_s"), (int, float))
        ),
        reverse=True,
    )
    if not skews:
        yield Line("Nodes", UNKNOWN, "no live node says its time")
        return
    wrong = [each for each in skews if each[0] > SKEW_S]
    worst = ", ".join(f"{node} {skew:+z.1f} s" for _, skew, node in skews[:MOST_NAMED])
    fix = "Run an NTP client on these hosts." if wrong else ""
    words = f"{len(wrong)} of {len(skews)} more than {SKEW_S:.0f} s off; worst {worst}"
    yield Line("Nodes", NEEDS if wrong else WELL, words, fix, link="nodes")


# ---- certificates


def _endpoints() -> list[tuple[str, str, int]]:
    """Name, host and port of each TLS server that the settings name."""
    env = settings.ENV
    found = []
    for name, text in (
        ("NEVE_URL", env.url.geturl()),
        ("NEVE_HOT_URL", env.hot_url.split(",")[0]),
        ("NEVE_S3_ENDPOINT", env.s3_endpoint),
        ("NEVE_OIDC_URL", env.oidc_url),
    ):
        url = urlsplit(text)
        if url.scheme in ("https", "valkeys", "rediss") and url.hostname:
            found.append((name, url.hostname, url.port or (443 if url.scheme == "https" else 6379)))
    return found


def _ask_certificate(host: str, port: int) -> str:
    """When it ends, in ISO 8601. It need not be trusted here: only its end is read."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, port), timeout=5) as plain:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            der = secure.getpeercert(binary_form=True) or b""
    return x509.load_der_x509_certificate(der).not_valid_after_utc.isoformat()


_CERTIFICATES: dict[tuple[str, int], probes.Probe] = {}


def _certificates() -> Iterator[Line]:
    endpoints = _endpoints()
    if not endpoints:
        yield Line("TLS", UNKNOWN, "no setting names a TLS server")
    for name, host, port in endpoints:
        probe = _CERTIFICATES.setdefault(
            (host, port),
            probes.Probe(
                f"certificate of {host}:{port}",
                lambda host=host, port=port: _ask_certificate(host, port),  # type: ignore[misc]
                every_s=3600,
            ),
        )
        answer = probe.read()
        if not answer.is_well:
            is_unknown = answer.is_well is None
            words = "not asked yet" if is_unknown else f"no TLS answer: {answer.words}"
            fix = "" if is_unknown else f"Look at the server of {name}."
            yield Line(name, UNKNOWN if is_unknown else BAD, words, fix)
            continue
        yield certificate_line(name, datetime.fromisoformat(answer.words), timezone.now())


def certificate_line(name: str, end: datetime, now: datetime) -> Line:
    left = end - now
    words = f"ends {end:%Y-%m-%d}, in {left.days} days"
    if left <= timedelta(0):
        return Line(name, BAD, f"ended {end:%Y-%m-%d}", "Renew it now: clients refuse it.")
    if left < CERTIFICATE_SOON:
        return Line(name, NEEDS, words, "Renew it; does the renewal run?")
    return Line(name, WELL, words)


def _backup() -> Line:
    stamp = settings.ENV.backup_stamp
    if not stamp:
        return Line(
            *("Backup", UNKNOWN, "the platform does not know when the last one was made"),
            "Let the backup touch a file when it is done, and name the file in NEVE_BACKUP_STAMP.",
        )
    try:
        at = datetime.fromtimestamp(Path(stamp).stat().st_mtime, UTC)
    except OSError:
        return Line("Backup", BAD, f"{stamp} is not there", "Did a backup ever end? See its log.")
    age = timezone.now() - at
    words = f"{formats.duration_quantity(max(age.total_seconds(), 0.0))} old"
    is_old = age > BACKUP_OLD
    return Line("Backup", NEEDS if is_old else WELL, words, "Look at its log." if is_old else "")


def _rounds() -> Iterator[Line]:
    now = timezone.now()
    rows = list(Round.unscoped.all())
    for side, label in Round.Side.choices:
        of_side = [row for row in rows if row.side == side]
        if not of_side:
            yield Line(f"Reconcile {side}", UNKNOWN, f"{label}: no round yet")
            continue
        ended = [row.ended_at for row in of_side if row.ended_at is not None]
        late = [row for row in of_side if now - (row.ended_at or row.begun_at or now) > ROUND_OLD]
        words = f"{len(ended)} of {len(of_side)} rounds ended"
        if ended:
            age_s = max((now - min(ended)).total_seconds(), 0.0)
            words += f", the oldest {formats.duration_quantity(age_s)} ago"
        fix = "Do workers of the queue room-at-risk keep up?" if late else ""
        yield Line(f"Reconcile {side}", NEEDS if late else WELL, words, fix, link="jobs")

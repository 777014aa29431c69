"""Keeps a node's session alive: heartbeats with counters, and a new handshake when one is needed.

An undelivered delta is sent again under its old sequence number, so that the platform counts it
once. During an outage of the platform, the data path goes on with its current session.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from importlib.metadata import version
from typing import Any, Final, Protocol

from neve import log_events
from neve.errors import MissReason, NeveError, Refused
from neve.node.requests import RequestRecord, RingTerms
from neve.node.sampling import SampleTerms, Taken
from neve.node.session import Endpoint, Session
from neve.node.stats import Counts, Stats

_VERSION: Final = version("neve")
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_CALM_S: Final = 60.0  # handshakes further apart are unrelated: the pause starts small again


class SessionUser(Protocol):
    """The data path that uses the session: `neve.datapath.hotpath.HotPath`."""

    @property
    def session(self) -> Session: ...
    @property
    def breaker(self) -> StrEnum: ...
    def refresh(self, session: Session) -> None:
        """Applies the policy of `session`, which is the current session otherwise."""

    def adopt(self, session: Session) -> None:
        """Switches to the address and credentials of a new session."""

    def suspend(self, reason: MissReason) -> None:
        """Misses every block for `reason` until `adopt`."""


class HeartbeatLoop:
    """One daemon thread that sends heartbeats. `reopen` repeats the handshake."""

    def __init__(
        self,
        endpoint: Endpoint,
        reopen: Callable[[], Session],
        path: SessionUser,
        stats: Stats,
        *,
        after_beat: Callable[[], None] = lambda: None,
        on_unknown_key: Callable[[], None] = lambda: None,
    ) -> None:
        """Called from the thread: `after_beat` after each answered heartbeat, `on_unknown_key` when
        the platform does not accept the API key (any more)."""
        self._endpoint = endpoint
        self._reopen = reopen
        self._path = path
        self._stats = stats
        self._after_beat = after_beat
        self._on_unknown_key = on_unknown_key
        self._sampling = stats.sampling
        self._sampling.set_terms(path.session.sample)
        self._ring = stats.requests
        self._ring.set_terms(path.session.requests)
        self._wake = threading.Event()
        self._stopping = False
        self._wants_handshake = False
        self._handshake_pause_s = _FIRST_PAUSE_S
        self._last_handshake = float("-inf")
        self._seq = 0
        self._undelivered: Counts | None = None
        self._samples: Taken | None = None  # of the same delta
        self._records: list[RequestRecord] = []  # of the same delta
        self._topology: str | None = None
        self._thread = threading.Thread(target=self._run, name="neve-heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask_rehandshake(self) -> None:
        """Requests a new session soon. Cheap, may be called often."""
        if not self._wants_handshake:
            self._wants_handshake = True
            self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """Ends the thread, then tries to send the last counters and to end the session.

        The session is ended even if the counters were not taken: else a node that was stopped in
        good order would look like one that crashed.
        """
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._beat()
        try:
            self._endpoint.end_session(self._path.session.id)
        except NeveError as error:
            log_events.SESSION_END_FAILED.log(detail=error)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._pause_s())
            self._wake.clear()
            if self._stopping:
                return
            try:
                if self._wants_handshake:
                    self._handshake()
                elif self._beat():
                    self._after_beat()
            except NeveError as error:
                log_events.HEARTBEAT_RENEWAL_FAILED.log(detail=error)
            except Exception:  # a boundary: one failure must not end the loop
                log_events.HEARTBEAT_FAILED.log(exc_info=True)

    def _pause_s(self) -> float:
        if not self._wants_handshake:
            return self._path.session.heartbeat_s
        return max(0.0, self._last_handshake + self._handshake_pause_s - time.monotonic())

    def _beat(self) -> bool:
        """Sends one delta. Returns whether the platform accepted it."""
        if self._undelivered is None:
            self._undelivered = self._stats.take()
            self._samples = self._sampling.take()
            self._records = self._ring.take()
            self._seq += 1
        session = self._path.session
        report: dict[str, Any] = {
            "seq": self._seq,
            **self._undelivered.as_dict(),
            "breaker": self._path.breaker.value,
        }
        if self._stats.speeds:
            report["speeds"] = dict(self._stats.speeds)
        samples = self._samples.encode() if self._samples and self._sampling.is_on else None
        if samples is not None:  # a platform before samples gives no terms and gets none
            report["samples"] = samples
        # Platforms before the ring give no terms; they have no lossy codecs either.
        if self._ring.terms is not None or self._stats.loss is not None:
            report |= self._told()
        try:
            answer = self._endpoint.heartbeat(session.id, report)
        except Refused as error:
            if error.is_malformed and self._ring.terms is not None:
                log_events.HEARTBEAT_REQUESTS_LOST.log(detail=error)
                self._records = []
                self._ring.set_terms(None)
                return self._beat()
            if error.is_malformed and samples is not None:
                log_events.HEARTBEAT_SAMPLES_LOST.log(detail=error)
                self._samples = None
                self._sampling.set_terms(None)
                return self._beat()
            if error.is_malformed and any(self._undelivered.as_dict().values()):
                # Drop the refused counts: a heartbeat without them keeps the session alive.
                log_events.HEARTBEAT_COUNTS_LOST.log(detail=error)
                self._undelivered = Counts()
                return self._beat()
            if error.status != 404:
                self._suspend(error)
            self.ask_rehandshake()
            return False
        except NeveError as error:
            log_events.HEARTBEAT_KEPT.log(detail=error)
            return False
        self._undelivered = self._samples = None
        self._records = []
        self._adjust(session, answer)
        return True

    def _told(self) -> dict[str, Any]:
        """Records of requests, and what the node says of itself."""
        now_s = self._ring.clock()
        last = log_events.last_error()
        node: dict[str, Any] = {"clock_s": time.time(), "version": _VERSION}
        if last is not None:
            node |= {"error": last.text, "error_age_s": round(time.monotonic() - last.at_s, 3)}
        if self._stats.loss is not None:
            node["loss"] = self._stats.loss.as_dict()
        records = [record.as_dict(now_s) for record in self._records]
        return {"about": node, **({"requests": records} if records else {})}

    def _adjust(self, session: Session, answer: dict[str, Any]) -> None:
        """Applies the policy, interval and topology of a heartbeat's answer."""
        policy, heartbeat_s = answer.get("policy"), answer.get("heartbeat_s")
        if isinstance(policy, dict):
            session = replace(session, policy=policy)
        if isinstance(heartbeat_s, int | float) and heartbeat_s > 0:
            session = replace(session, heartbeat_s=float(heartbeat_s))
        session = replace(session, sample=SampleTerms.from_answer(answer.get("sample")))
        self._sampling.set_terms(session.sample)
        if (terms := RingTerms.from_answer(answer.get("requests"))) and session.requests:
            terms = replace(terms, kin=session.requests.kin)  # of the handshake
        self._ring.set_terms(terms)
        self._path.refresh(session)
        topology = answer.get("topology")
        if self._topology is not None and topology != self._topology:
            self.ask_rehandshake()
        self._topology = topology

    def _handshake(self) -> None:
        now = time.monotonic()
        due = self._last_handshake + self._handshake_pause_s
        if now < due:
            return  # woken early, for another reason
        calm = now - self._last_handshake > _CALM_S
        self._handshake_pause_s = (
            _FIRST_PAUSE_S if calm else min(2 * self._handshake_pause_s, _LONGEST_PAUSE_S)
        )
        self._last_handshake = now
        old = self._path.session
        try:
            session = self._reopen()
        except Refused as error:
            self._suspend(error)
            return
        except NeveError as error:
            log_events.HANDSHAKE_FAILED.log(detail=error)
            return
        if (session.fingerprint, session.chunk_tokens) != (old.fingerprint, old.chunk_tokens):
            # This process hashes block ids with the old fingerprint; they would never match.
            log_events.HANDSHAKE_OTHER_SPACE.log(old=old.space_name, new=session.space_name)
            self._path.suspend(MissReason.FINGERPRINT)
            return
        self._wants_handshake = False
        self._topology = None
        if self._undelivered is not None:
            self._seq = 1  # the undelivered counts become the new session's first
        else:
            self._seq = 0
        self._path.adopt(session)
        self._sampling.set_terms(session.sample)
        self._ring.set_terms(session.requests)
        log_events.HANDSHAKE_RENEWED.log(space=session.space_name)

    def _suspend(self, error: Refused) -> None:
        log_events.SESSION_REFUSED.log(detail=error)
        is_clash = error.kind == "fingerprint-clash"
        self._path.suspend(MissReason.FINGERPRINT if is_clash else MissReason.BREAKER)
        if error.status == 401:
            self._on_unknown_key()

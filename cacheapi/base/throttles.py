"""Rate limits of the APIs: requests in a window, counted over all web processes.

valkey-bus counts with INCR, so that no parallel request is missed. Windows begin at multiples of
their length; across the end of one, up to twice the rate passes. While the bus does not answer,
nobody is limited: the log says so once, and the bus is tried again every `QUIET_S`.

Every answer to a known caller says what is left: `RateLimit-Limit`, `-Remaining`, `-Reset`.
Source: draft-ietf-httpapi-ratelimit-headers-07.
"""

import hashlib
import math
import time
from typing import Any, ClassVar

from django.conf import settings
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated, Throttled
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import SimpleRateThrottle

from base import log_events
from base.once import once
from cacheapi.base.access import caller

QUIET_S = 5.0


class SharedThrottle(SimpleRateThrottle):
    """Subclasses name the scope (its rate is in settings; None: no limit) and who is counted."""

    duration: int  # seconds; the base sets both where there is a rate
    num_requests: int
    ask_again_at: ClassVar[float | None] = None  # time.monotonic(); None: the bus answers

    def allow_request(self, request: Request, view: Any) -> bool:
        who, again_at = self.get_cache_key(request, view), SharedThrottle.ask_again_at
        is_quiet = again_at is not None and time.monotonic() < again_at
        if self.rate is None or who is None or is_quiet:
            return True
        self.now = self.timer()
        try:
            count = self._count(f"{self.scope}:{who}:{int(self.now // self.duration)}")
        except (RedisError, ValueError) as error:  # ValueError: the bus was emptied in between
            if again_at is None:
                log_events.RATE_LIMITS_OFF.log(error=error)
            SharedThrottle.ask_again_at = time.monotonic() + QUIET_S
            return True
        SharedThrottle.ask_again_at = None
        if request.user is not None:
            self._tell(request, count)
        return count <= self.num_requests

    def wait(self) -> float:
        """Seconds to the next window."""
        return self.duration - self.now % self.duration

    def _tell(self, request: Any, count: int) -> None:
        """What `SlowDown` puts into the answer."""
        request.rate_limit = {
            "RateLimit-Limit": str(self.num_requests),
            "RateLimit-Remaining": str(max(0, self.num_requests - count)),
            "RateLimit-Reset": str(math.ceil(self.wait())),
        }

    def _count(self, key: str) -> int:
        counted = _bus().pipeline(transaction=False)
        counted.incr(f"neve:requests:{key}")
        counted.expire(f"neve:requests:{key}", 2 * self.duration, nx=True)
        count: int = counted.execute()[0]
        return count


@once
def _bus() -> Redis:
    """One for all threads, with one retry, for a connection that a restarted bus has closed.

    Django's cache would ask three times for a count.
    """
    found: Redis = Redis.from_url(
        settings.ENV.bus_url, socket_timeout=1, retry=Retry(NoBackoff(), 1)
    )
    return found


class CallerThrottle(SharedThrottle):
    """An API key, or a person in all browsers. Their names are unique (`Principal.name`)."""

    scope = "caller"

    def get_cache_key(self, request: Request, view: Any) -> str | None:
        if request.user is None:
            return None
        return hashlib.sha256(caller(request).name.encode()).hexdigest()


class NodeThrottle(SharedThrottle):
    """By node key, which all nodes of a tenant may share, and by kind of request: a flood of
    contexts does not hold up heartbeats."""

    scope = "node"

    def get_cache_key(self, request: Request, view: Any) -> str:
        return f"{type(view).__name__}:{request.auth.pk}"


class AddressThrottle(SharedThrottle):
    """By address, requests without valid credentials only: callers may share an address."""

    scope = "address"

    def get_cache_key(self, request: Request, view: Any) -> str | None:
        return None if request.user is not None else self.get_ident(request)


class SlowDown:  # no APIView itself: views load this module
    """For views: an address that fails to authenticate too often gets 429; known callers are
    counted also where they are refused, and learn what is left of their rate."""

    def check_permissions(self, request: Request) -> None:
        if request.user is not None:
            super().check_throttles(request)  # type: ignore[misc]
        super().check_permissions(request)  # type: ignore[misc]

    def check_throttles(self, request: Request) -> None:
        if request.user is None:  # others were counted above
            super().check_throttles(request)

    def finalize_response(
        self, request: Request, response: Response, *args: Any, **kwargs: Any
    ) -> Response:
        for name, value in getattr(request, "rate_limit", {}).items():
            response[name] = value
        answer: Response = super().finalize_response(request, response, *args, **kwargs)  # type: ignore[misc]
        return answer

    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, (AuthenticationFailed, NotAuthenticated)):
            throttle = AddressThrottle()
            if not throttle.allow_request(self.request, self):  # type: ignore[attr-defined]
                exc = Throttled(throttle.wait())
        answer: Response = super().handle_exception(exc)  # type: ignore[misc]
        return answer

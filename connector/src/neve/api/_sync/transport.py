"""Sends requests: authorisation, retries, problems."""

import json
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from neve.api.errors import ApiProblem, problem_of
from neve.api.records import Record, record_of
from neve.api.retries import RETRIED_STATUSES, pause_s, retry_after_s
from neve.api.values import query_of
from neve.errors import Closed, DeadlineExceeded, Unavailable

R = TypeVar("R", bound=Record)
JSON = "application/json"
_NO_JSON = object()


class Transport:
    """Sends requests to one platform with one key.

    Repeats a request after connection errors, timeouts, 429, 502, 503 and 504. Each change has an
    Idempotency-Key, so a repeated change happens once.
    """

    def __init__(self, http: httpx.Client, *, retries: int) -> None:
        self._http = http
        self._retries = retries

    def close(self) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        into: type[R],
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        etag: str | None = None,
    ) -> R:
        """Returns the answer as a record. Raises `ApiProblem`, `Unavailable`,
        `DeadlineExceeded`."""
        response = self._send(method, path, query, body, etag)
        return record_of(into, _json_of(response), response.headers.get("ETag"))

    def call_for_json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        etag: str | None = None,
    ) -> Any:
        """As `call`; returns the JSON, None for an empty answer."""
        response = self._send(method, path, query, body, etag)
        return _json_of(response) if response.content else None

    @contextmanager
    def stream(
        self,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        accept: str,
        headers: Mapping[str, str] | None = None,
        read_timeout_s: float | None = None,
    ) -> Iterator[httpx.Response]:
        """Opens a GET whose answer is read in parts; only opening it is repeated."""
        request = self._http.build_request(
            "GET", path, params=query_of(query or {}), headers={"Accept": accept, **(headers or {})}
        )
        if read_timeout_s is not None:
            request.extensions["timeout"]["read"] = read_timeout_s
        response = self._answer(request, stream=True)
        try:
            yield response
        except httpx.TransportError as error:
            raise _trouble(request, error) from error
        finally:
            response.close()

    def lines(self, path: str, *, query: Mapping[str, Any]) -> Iterator[str]:
        """The lines of an export, without line ends."""
        with self.stream(path, query=query, accept="*/*") as response:
            for line in response.iter_lines():
                yield line

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: Mapping[str, Any] | None,
        etag: str | None,
    ) -> httpx.Response:
        headers = {"Accept": JSON}
        if method != "GET":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        if etag is not None:
            headers["If-Match"] = etag
        content = None
        if body is not None:
            headers["Content-Type"] = JSON
            content = json.dumps(body).encode()
        request = self._http.build_request(
            method, path, params=query_of(query or {}), headers=headers, content=content
        )
        return self._answer(request)

    def _answer(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        """The answer of a request that succeeded, repeated as often as allowed."""
        for attempt in range(self._retries + 1):
            is_last = attempt == self._retries
            wait_s: float | None = None
            try:
                response = self._http.send(request, stream=stream)
            except httpx.TransportError as error:
                if is_last:
                    raise _trouble(request, error) from error
            except RuntimeError as error:  # httpx's word for a closed client
                raise Closed("the client was closed") from error
            else:
                if response.is_success:
                    return response
                response.read()
                response.close()
                problem = _problem(response)
                wait_s = problem.retry_after_s
                if is_last or not _may_repeat(problem):
                    raise problem
            time.sleep(pause_s(attempt, wait_s, random.random()))
        raise AssertionError("the last attempt returns or raises")


def _may_repeat(problem: ApiProblem) -> bool:
    return problem.status in RETRIED_STATUSES or problem.kind == "idempotency-in-progress"


def _problem(response: httpx.Response) -> ApiProblem:
    return problem_of(
        response.status_code,
        _parsed(response),
        request_id=response.headers.get("X-Request-ID"),
        retry_after_s=retry_after_s(response.headers.get("Retry-After")),
    )


def _parsed(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return _NO_JSON


def _json_of(response: httpx.Response) -> Any:
    parsed = _parsed(response)
    if parsed is _NO_JSON:
        raise Unavailable(f"{response.url} does not answer JSON: is it a Neve platform?")
    return parsed


def _trouble(request: httpx.Request, error: httpx.TransportError) -> Exception:
    where = f"{request.url.scheme}://{request.url.netloc.decode()}"
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceeded(f"{where} did not answer in time ({type(error).__name__})")
    return Unavailable(f"{where}: {error or type(error).__name__}; check endpoint and network")

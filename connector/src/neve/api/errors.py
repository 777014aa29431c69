"""What the platform's refusals look like to a program."""

from collections.abc import Mapping
from typing import Any

from neve.api.remedies import REMEDIES
from neve.errors import NeveError

_KNOWN = ("type", "title", "status", "detail", "field")
_BY_STATUS = {
    401: REMEDIES["unauthorized"],
    403: REMEDIES["forbidden"],
    404: REMEDIES["not-found"],
    429: REMEDIES["throttled"],
}


class ApiProblem(NeveError):
    """The platform refused a request (RFC 9457).

    `kind` tells refusals apart: the last part of the problem's type, such as "pin-budget". Newer
    platforms may have kinds that this version does not know.

    Attributes:
        kind, title, detail, status: of the problem.
        field: the parameter or member that is wrong, or None.
        members: what this kind adds, such as {"limit": "contexts", "most": 10000}.
        request_id: names the request in the platform's log, or None.
        remedy: what the caller can do, in a sentence.
        retry_after_s: how long the platform asks to wait, or None.
    """

    def __init__(
        self,
        kind: str,
        *,
        title: str,
        detail: str,
        status: int,
        field: str | None = None,
        members: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.title = title
        self.detail = detail
        self.status = status
        self.field = field
        self.members = dict(members or {})
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    @property
    def remedy(self) -> str:
        if self.kind == "http":
            return (
                "Check that the endpoint is the web address of Neve; behind a proxy, look at the "
                "proxy's log."
            )
        known = REMEDIES.get(self.kind) or _BY_STATUS.get(self.status)
        if known:
            return known
        if self.status >= 500:
            return "Repeat it later; if it stays, report it with the request's id."
        return "Correct what the message names."

    def __str__(self) -> str:
        about = f"{self.field}: " if self.field and self.field not in self.detail else ""
        return f"{about}{self.detail} ({self.kind}). {self.remedy}"


def problem_of(
    status: int, document: object, *, request_id: str | None, retry_after_s: float | None
) -> ApiProblem:
    """`document` is the answer's JSON, or None where a proxy answered something else."""
    if not isinstance(document, dict) or not isinstance(document.get("type"), str):
        return ApiProblem(
            "http",
            title=f"HTTP {status}",
            detail=f"HTTP {status} without a problem document: a proxy answered, or another server",
            status=status,
            request_id=request_id,
            retry_after_s=retry_after_s,
        )
    field = document.get("field")
    return ApiProblem(
        document["type"].rstrip("/").rpartition("/")[2],
        title=str(document.get("title", "")),
        detail=str(document.get("detail", document.get("title", ""))),
        status=status,
        field=field if isinstance(field, str) else None,
        members={name: value for name, value in document.items() if name not in _KNOWN},
        request_id=request_id,
        retry_after_s=retry_after_s,
    )

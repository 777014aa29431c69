"""Schemathesis hooks for `fuzz_api`: rules of valid requests that no schema can express.

Generated references match no row, generated times are in the past, generated cursors match no page.
The hooks put real values into requests that should be valid; invalid requests stay unchanged.
"""

import json
import os
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import schemathesis
from schemathesis import GenerationMode

RUN: dict[str, Any] = json.loads(os.environ.get("NEVE_FUZZ", "{}"))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    own_keys = [str(RUN[name]) for name in RUN if name.endswith("_id")]
    if case.operation.path.endswith("/revoke") and str(case.path_parameters["id"]) in own_keys:
        case.path_parameters["id"] = 999_999_999  # no such row: the run must keep its own keys
    if case.meta is None or case.meta.generation.mode == GenerationMode.POSITIVE:
        _make_true(case)


def _make_true(case: Any) -> None:
    if case.query:
        case.query.pop("cursor", None)
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = str(uuid4())
    path = case.operation.path
    if case.path_parameters and "session_id" in case.path_parameters and case.method != "DELETE":
        case.path_parameters["session_id"] = RUN["session"]
    if not isinstance(case.body, dict):
        return
    body = case.body
    for name in ("until", "expires_at"):
        if body.get(name):
            body[name] = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    if body.get("for"):
        body["for"] = "1h30m"  # a pattern says nothing of the longest duration
    if path.endswith("/keys"):
        body["tenant"] = None if body.get("role") == "operator" else "fuzzed"
    elif path.endswith("/jobs"):
        body.pop("tenant", None)
        body |= {} if body.get("kind") in RUN["of_all_tenants"] else {"tenant": "fuzzed"}
    elif "tenant" in body:
        body["tenant"] = "fuzzed"
    if "session" in body:
        body["session"] = RUN["session"]
    if "identity" in body:
        body["identity"] |= {"tp_size": 1, "tp_rank": 0, "pp_size": 1, "pp_rank": 0}
        for group in body.get("groups", ()):
            group["span_tokens"] = 100 if group["kind"] in ("window", "local") else None
        if body.get("space") is not None:
            body.pop("family", None)
    policies = [body, body.get("policy"), body.get("overrides")]
    for rule in [body, *body.get("rules", ())]:
        if path.endswith(("/rules", "/dry-run", "/rules/{id}")) and rule is not body.get("policy"):
            policies.append(rule.get("overrides"))
            rule |= {"space": None} if "space" in rule else {}
            if "overrides" in rule or path.endswith("/rules/{id}"):
                rule["label"] = "fuzz"
    for policy in policies:
        if policy and "flush_mode" in policy:
            policy["flush_after_s"] = 5 if policy["flush_mode"] == "after" else None
        elif policy and "flush_after_s" in policy:
            policy |= {"flush_mode": "after", "flush_after_s": 5}

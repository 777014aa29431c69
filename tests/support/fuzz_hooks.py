"""Schemathesis hooks for `fuzz_api`: rules of valid requests that no schema can express.

Generated references match no row, generated times are in the past, generated cursors match no page.
The hooks put real values into requests that should be valid; invalid requests stay unchanged.
"""

import json
import os
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import schemathesis
from schemathesis import GenerationMode

# As cacheapi.base.etags has it.
ETAGS = r'\*|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*'
RUN: dict[str, Any] = json.loads(os.environ.get("NEVE_FUZZ", "{}"))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    _spare_own_rows(case)
    if case.headers and re.fullmatch(ETAGS, str(case.headers.get("If-Match", ""))):
        case.headers.pop("If-Match")  # well-formed, and of no object
    if case.meta is None or case.meta.generation.mode == GenerationMode.POSITIVE:
        _make_true(case)


def _spare_own_rows(case: Any) -> None:
    """The run keeps its keys, its viewer, its tenant and its node's session."""
    path, own = case.operation.path, case.path_parameters or {}
    taken = {
        "keys": [str(RUN[f"{role}_id"]) for role in ("operator", "team", "reader", "node")],
        "members": [str(RUN["viewer_id"])],
    }
    resource = path.split("/")[3]
    is_change = case.method != "GET"
    if is_change and str(own.get("id")) in taken.get(resource, ()):
        own["id"] = 999_999_999  # no such row
    if case.method == "DELETE" and own.get("id") == RUN["context"]:
        own["id"] = str(uuid4())
    ends = path.endswith("/end") or case.method == "DELETE"
    if is_change and ends and RUN["session"] in (own.get("session_id"), own.get("id")):
        own[next(iter(own))] = str(uuid4())
    if own.get("slug") == "fuzzed":
        if isinstance(case.body, dict) and "is_active" in case.body:
            case.body["is_active"] = True
        if case.method == "DELETE" and case.query:
            case.query.pop("confirm", None)


def _make_true_query(query: Any) -> None:
    for name in ("cursor", "after"):
        query.pop(name, None)
    for name, value in (("labels", "team=blue"), ("types", "job.done")):
        if name in query:
            query[name] = value


def _make_true_bulk(body: dict[str, Any]) -> None:
    """Each action has its own arguments, and a filter or `every`."""
    body["arguments"] = {
        "pin": {"for": "2h"},
        "extend": {"for": "2h"},
        "label": {"label": "fuzz"},
    }.get(body["action"], {})
    body["filter"], body["every"] = {"tenant": "fuzzed", "labels": "team=blue"}, False


def _make_true_store(case: Any, body: dict[str, Any]) -> None:
    """A new one is a bucket that is there; of the default store most is in the environment."""
    if case.method == "POST":
        body |= RUN["store"]
        return
    kept = {"priority", "gib_month", "put_1000", "get_1000", "egress_gb", "move_bytes_per_s"}
    for name in body.keys() - kept:
        del body[name]
    body.setdefault("priority", 100)


def _make_true(case: Any) -> None:
    if case.query:
        _make_true_query(case.query)
    if case.headers:
        case.headers.pop("Last-Event-ID", None)
        case.headers.pop("If-Match", None)  # of no object
        if "Idempotency-Key" in case.headers:
            case.headers["Idempotency-Key"] = str(uuid4())
    path = case.operation.path
    if path.endswith(("/what-if/recommendation", "/samples", "/samples/export")):
        case.query = {**(case.query or {}), "tenant": "fuzzed"}  # operators name one
    if path.endswith("/why") and case.query:
        case.query["q"] = "no-such-request"
    if case.path_parameters and "session_id" in case.path_parameters and case.method != "DELETE":
        case.path_parameters["session_id"] = RUN["session"]
    if not isinstance(case.body, dict):
        return
    body = case.body
    for name in ("until", "expires_at", "at"):
        if body.get(name):
            body[name] = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    if "owner" in body:
        body["owner"] = "viewer"  # names of people are references, too
    if path.endswith("/heartbeat"):  # what engines tell in no fixed form is read, or left out
        body["requests"], body["about"], body["samples"] = [], {}, {}
    if "email" in body:
        body["email"] = "somebody@example.com"
    if "spaces" in body:
        body["spaces"] = []
    if "labels" in body:
        body["labels"] = {"team": "blue"}
    if "overlap" in body:
        body["overlap"] = "1h"
    if "expires_in" in body:
        body["expires_in"] = "1h30m"
        body.pop("expires_at", None)
    if "url" in body:
        body["url"] = "http://127.0.0.1:9/hook"
    if "types" in body:
        body["types"] = ["job.*"]
    if path.endswith("/families"):
        body["space"] = RUN["space"]
    if path.endswith("/members"):
        body["user"] = "viewer"
    if path.endswith(("/engines", "/webhooks")):
        body["tenant"] = "fuzzed"
    if path.endswith("/warm"):
        body.clear()
    if "space" in body and path.endswith(("/lookup", "/contexts", "/why")):
        kept = {name: body[name] for name in ("name", "label") if name in body}
        body.clear()
        body |= {**kept, "space": RUN["space"], "tokens": [*range(600)]}
    if "/warm-policies" in path:
        is_new = path.endswith("/warm-policies")
        body.clear()
        body |= {"context": RUN["context"], "mode": "keep"} if is_new else {"is_paused": True}
    if isinstance(body.get("engine"), dict):
        for name in body["engine"].keys() - {"name", "version"}:
            del body["engine"][name]
    if "base_url" in body:
        body["base_url"] = "http://127.0.0.1:9"  # nobody listens: the engine is unhealthy
    if path.endswith("/what-if"):  # whether a change has sense depends on today's quota
        body.clear()
        body |= {"tenant": "fuzzed", "changes": [{"hot": "x2"}], "window": "1h"}
    if path.endswith("/bulk/preview"):
        _make_true_bulk(body)
    if "/stores" in path:
        _make_true_store(case, body)
    if "/move-rules" in path:
        body.pop("source", None)
        body |= {"target": "default", "is_copy": False}
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
        if policy and policy is not body and path.endswith(("/rules", "/dry-run")):
            policy.pop("cold_codec", None)  # of a space alone
        if policy and "flush_mode" in policy:
            policy["flush_after_s"] = 5 if policy["flush_mode"] == "after" else None
        elif policy and "flush_after_s" in policy:
            policy |= {"flush_mode": "after", "flush_after_s": 5}

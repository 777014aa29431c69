"""Operations that are agreed and not served yet: the client has them already.

An operation leaves this file when docs/openapi.json has it; when none is left, the file goes.
"""

import copy
from collections.abc import Mapping
from typing import Any

TYPES: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "moment": {"type": "string", "format": "date-time"},
    "duration": {"type": "string", "format": "duration"},
    "object": {"type": "object"},
    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    "any": {},
}

COMPONENTS = {
    "Context": "labels:labels owner:str size_bytes:int? state:str is_pinned:bool pin_tier:str? "
    "last_used_at:moment? checked_at:moment?",
    "ContextDetail": "labels:labels owner:str size_bytes:int? state:str is_pinned:bool "
    "pin_tier:str? last_used_at:moment? checked_at:moment?",
    "ContextPinRequest": "tier:str",
    "ContextExpireRequest": "at:moment",
    "ResidencyRun": "first_token:int tokens:int bytes:int? tier:str? is_durable:bool reason:str?",
    "Runs": "hot:int cold:int lost:int durable:int hot_bytes:int cold_bytes:int durable_bytes:int "
    "hot_tokens:int cold_tokens:int lost_tokens:int durable_tokens:int usable_tokens:int "
    "usable_hot_tokens:int states:int runs:[ResidencyRun]",
    "DiffPart": "tokens:int blocks:int",
    "Diff": "shared_tokens:int shared_blocks:int parts_at_token:int? only_this:DiffPart "
    "only_other:DiffPart same_space:bool",
    "LineageContext": "id:str name:str tokens:int",
    "LineageNode": "tokens:int blocks:int contexts:[LineageContext] children:[LineageNode] more:any",
    "SharingContext": "id:str name:str shared_tokens:int",
    "LookupCost": "load_s:float? compute_s:float? verdict:str basis:str",
    "Lookup": "tokens:int hot_tokens:int cold_tokens:int lost_tokens:int usable_tokens:int "
    "usable_hot_tokens:int contexts:[SharingContext] cost:LookupCost",
    "BulkPreview": "token:str contexts:int blocks:int bytes:int shared_bytes:int freed_bytes:int "
    "expires_at:moment",
    "EngineEndpoint": "id:int tenant:str? name:str base_url:str model:str spaces:[int] state:str "
    "checked_at:moment? error:str source:str",
    "WarmPolicy": "id:int context:str mode:str cron:str? time_zone:str engine:int? is_paused:bool "
    "last_run_at:moment? next_run_at:moment? last_job:str?",
    "TenantMember": "id:int tenant:str user:str role:str",
    "Me": "name:str role:str scopes:[str] tenants:[str] expires_at:moment? rate_limit:int",
    "SpaceDifference": "field:str this:any other:any remedy:str",
    "SpaceComparison": "fields:[SpaceDifference] is_same:bool",
    "EventRow": "id:str type:str at:moment tenant:str? subject:object data:object",
    "Webhook": "id:str tenant:str? url:str types:[str] is_active:bool secret:str? created_at:moment",
    "Delivery": "id:str event:str state:str attempts:int status:int? at:moment? error:str",
}

PROMPT = "tokens:[int] text:str messages:[object] tools:[object] chat_template_kwargs:object "
PROMPT += "add_generation_prompt:bool salt:str"
FILTERS = (
    "tenant:str name:str glob:str search:str label:str labels:str model:str space:int state:str "
)
FILTERS += "pinned:bool used_before:moment used_after:moment created_before:moment "
FILTERS += (
    "created_after:moment min_tokens:int max_tokens:int min_bytes:int max_bytes:int owner:str"
)

# id: method, path, query, body (members with * are required), answer ("[X]": a list of X)
OPERATIONS: dict[str, tuple[str, str, str, str, str]] = {
    "contexts_create": (
        "post", "/contexts", "", f"space*:int name*:str {PROMPT} label:str labels:labels", "Context",
    ),
    "contexts_update": (
        "patch", "/contexts/{id}", "", "name:str label:str labels:labels", "Context",
    ),
    "contexts_warm": ("post", "/contexts/{id}/warm", "", "engine:int", "Job"),
    "contexts_residency": ("get", "/contexts/{id}/residency", "blocks:bool", "", "Runs"),
    "contexts_diff": ("get", "/contexts/{id}/diff", "with*:str", "", "Diff"),
    "contexts_export": ("get", "/contexts/export", f"format:str {FILTERS}", "", "export"),
    "contexts_bulk_preview": (
        "post", "/contexts/bulk/preview", "", "action*:str filter*:object arguments:object",
        "BulkPreview",
    ),
    "contexts_bulk": ("post", "/contexts/bulk", "", "token*:str", "Job"),
    "lookup": ("post", "/lookup", "", f"space*:int {PROMPT}", "Lookup"),
    "spaces_lineage": (
        "get", "/spaces/{id}/lineage", "limit:int depth:int min_tokens:int", "", "LineageNode",
    ),
    "spaces_compare": ("get", "/spaces/{id}/compare", "with*:int", "", "SpaceComparison"),
    "engines_list": ("get", "/engines", "tenant:str page_size:int ordering:str", "",
                     "[EngineEndpoint]"),
    "engines_create": ("post", "/engines", "",
                       "name*:str base_url*:str model*:str tenant:str spaces:[int] api_key:str",
                       "EngineEndpoint"),
    "engines_get": ("get", "/engines/{id}", "", "", "EngineEndpoint"),
    "engines_update": ("patch", "/engines/{id}", "",
                       "name:str base_url:str model:str spaces:[int] api_key:str", "EngineEndpoint"),
    "engines_delete": ("delete", "/engines/{id}", "", "", ""),
    "engines_check": ("post", "/engines/{id}/check", "", "", "EngineEndpoint"),
    "warm_policies_list": ("get", "/warm-policies", "tenant:str context:str page_size:int", "",
                           "[WarmPolicy]"),
    "warm_policies_create": ("post", "/warm-policies", "",
                             "context*:str mode*:str cron:str time_zone:str engine:int "
                             "is_paused:bool", "WarmPolicy"),
    "warm_policies_get": ("get", "/warm-policies/{id}", "", "", "WarmPolicy"),
    "warm_policies_update": ("patch", "/warm-policies/{id}", "",
                             "mode:str cron:str time_zone:str engine:int is_paused:bool",
                             "WarmPolicy"),
    "warm_policies_delete": ("delete", "/warm-policies/{id}", "", "", ""),
    "tenants_create": ("post", "/tenants", "", "slug*:str name:str node_limit:int", "Tenant"),
    "tenants_update": ("patch", "/tenants/{slug}", "", "name:str node_limit:int is_active:bool",
                       "Tenant"),
    "tenants_quota": ("get", "/tenants/{slug}/quota", "", "", "Quota"),
    "members_list": ("get", "/members", "tenant:str page_size:int", "", "[TenantMember]"),
    "members_create": ("post", "/members", "", "tenant*:str user*:str role*:str", "TenantMember"),
    "members_update": ("patch", "/members/{id}", "", "role:str", "TenantMember"),
    "members_delete": ("delete", "/members/{id}", "", "", ""),
    "keys_rotate": ("post", "/keys/{id}/rotate", "", "overlap:duration", "IssuedKey"),
    "audit_export": ("get", "/audit/export", "format:str tenant:str action:str actor:str", "",
                     "export"),
    "me_get": ("get", "/me", "", "", "Me"),
    "events_list": ("get", "/events", "types:str tenant:str page_size:int", "", "[EventRow]"),
    "webhooks_list": ("get", "/webhooks", "tenant:str page_size:int", "", "[Webhook]"),
    "webhooks_create": ("post", "/webhooks", "", "url*:str types:[str] tenant:str", "Webhook"),
    "webhooks_get": ("get", "/webhooks/{id}", "", "", "Webhook"),
    "webhooks_update": ("patch", "/webhooks/{id}", "", "url:str types:[str] is_active:bool",
                        "Webhook"),
    "webhooks_delete": ("delete", "/webhooks/{id}", "", "", ""),
    "webhooks_test": ("post", "/webhooks/{id}/test", "", "", "Delivery"),
    "webhooks_rotate_secret": ("post", "/webhooks/{id}/rotate-secret", "", "", "Webhook"),
    "webhooks_deliveries": ("get", "/webhooks/{id}/deliveries", "page_size:int", "", "[Delivery]"),
    "webhooks_retry_delivery": ("post", "/webhooks/{id}/deliveries/{delivery}/retry", "", "",
                                "Delivery"),
}  # fmt: skip

QUERY_OF_LISTS = {"contexts_list": f"{FILTERS} total:bool ordering:str", "usage": "from:moment "
                  "to:moment step:duration by:str"}  # fmt: skip


def with_planned(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the schema with what it lacks."""
    document: dict[str, Any] = copy.deepcopy(dict(schema))
    components = document["components"]["schemas"]
    for name, text in COMPONENTS.items():
        mine = _object(text)
        own = components.setdefault(name, {"type": "object", "properties": {}})
        own["properties"] = {**own["properties"], **mine["properties"], **own["properties"]}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            known = {one.get("name") for one in operation.get("parameters", ())}
            for name, member in _object(QUERY_OF_LISTS.get(operation["operationId"], ""))[
                "properties"
            ].items():
                if name not in known and path.startswith("/api/"):
                    operation["parameters"].append({"name": name, "in": "query", "schema": member})
    for id_, (method, path, query, body, answer) in OPERATIONS.items():
        methods = document["paths"].setdefault(f"/api/v1{path}", {})
        if method not in methods:
            methods[method] = _operation(id_, path, query, body, answer)
    return document


def _operation(id_: str, path: str, query: str, body: str, answer: str) -> dict[str, Any]:
    tag = path.split("/")[1]
    parameters = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": TYPES["str"]}
        for part in path.split("/")
        if part.startswith("{")
    ]
    wanted = _object(query)
    parameters += [
        {"name": name, "in": "query", "schema": member, "required": name in wanted["required"]}
        for name, member in wanted["properties"].items()
    ]
    operation: dict[str, Any] = {"operationId": id_, "tags": [tag], "parameters": parameters}
    if body:
        operation["requestBody"] = {"content": {"application/json": {"schema": _object(body)}}}
    reference: dict[str, Any] = {"$ref": f"#/components/schemas/{answer.strip('[]')}"}
    if answer.startswith("["):
        results = {"type": "array", "items": reference}
        reference = {"type": "object", "properties": {"next": {}, "results": results}}
    content = {"application/json": {"schema": reference}} if answer else {}
    if answer == "export":
        content = {"text/csv": {}}
    operation["responses"] = {"200": {"content": content}}
    return operation


def _object(text: str) -> dict[str, Any]:
    properties, required = {}, []
    for item in text.split():
        name, _, kind = item.partition(":")
        if name.endswith("*"):
            name = name[:-1]
            required.append(name)
        properties[name] = _type(kind)
    return {"type": "object", "properties": properties, "required": required}


def _type(kind: str) -> dict[str, Any]:
    if kind.endswith("?"):
        return {**_type(kind[:-1]), "nullable": True}
    if kind.startswith("["):
        return {"type": "array", "items": _type(kind[1:-1])}
    return TYPES.get(kind, {"$ref": f"#/components/schemas/{kind}"})

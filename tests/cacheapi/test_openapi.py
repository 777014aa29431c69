"""The OpenAPI document is complete, valid, without warnings; its page needs no other server."""

import re
from io import StringIO
from pathlib import Path

import pytest
from django.contrib.staticfiles import finders
from django.core.management import call_command
from drf_spectacular.generators import SchemaGenerator

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


def test_the_schema_is_valid_without_a_warning():
    call_command("spectacular", validate=True, fail_on_warn=True, stdout=StringIO())


def test_the_committed_document_is_what_the_platform_serves(client):
    served = client.get("/api/v1/schema/")
    assert served["Content-Type"] == "application/json"
    committed = (ROOT / "docs/openapi.json").read_text()
    assert served.content.decode() == committed, "the API has changed: `make openapi`"


def test_it_is_built_once_and_sent_once(client, monkeypatch):
    first = client.get("/api/v1/schema/")
    monkeypatch.setattr(SchemaGenerator, "get_schema", None)
    assert client.get("/api/v1/schema/").content == first.content
    again = client.get("/api/v1/schema/", headers={"If-None-Match": first["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_it_names_both_apis_and_how_to_authenticate(client):
    document = client.get("/api/v1/schema/").json()
    assert "/api/v1/contexts/{id}/pin" in document["paths"]
    assert "/cache/v1/sessions" in document["paths"]
    assert document["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    assert document["paths"]["/cache/v1/sessions"]["post"]["security"] == [{"apiKey": []}]


def operations(document):
    for address, path in document["paths"].items():
        for method, operation in path.items():
            yield address, method, operation


def test_every_operation_names_its_refusals_by_status(client):
    document = client.get("/api/v1/schema/").json()
    for address, method, operation in operations(document):
        refusals = {code for code in operation["responses"] if code[0] in "45"}
        assert {"400", "401", "403", "406", "429", "5XX"} <= refusals
        assert ("404" in refusals) >= ("{" in address)
        assert ({"413", "415"} <= refusals) is (method != "get")
        assert "default" not in operation["responses"]
        for code in refusals:
            assert operation["responses"][code]["$ref"] == f"#/components/responses/{code}"
    for answer in document["components"]["responses"].values():
        schema = answer["content"]["application/problem+json"]["schema"]
        assert schema["$ref"].endswith("/Problem")


def test_kinds_of_problems_are_an_open_list_and_each_has_a_page(client):
    document = client.get("/api/v1/schema/").json()
    kind = document["components"]["schemas"]["Problem"]["properties"]["type"]
    assert "enum" not in kind
    assert "/problems/precondition-failed" in kind["x-extensible-enum"]
    for path in kind["x-extensible-enum"]:
        assert client.get(path).status_code == 200


def test_bodies_are_closed_and_required_where_an_empty_one_is_refused(client):
    document = client.get("/api/v1/schema/").json()
    schemas = document["components"]["schemas"]
    required = set()
    for _, _, operation in operations(document):
        if body := operation.get("requestBody"):
            reference = body["content"]["application/json"]["schema"]["$ref"]
            assert schemas[reference.rsplit("/", 1)[1]]["additionalProperties"] is False
            required |= {operation["operationId"]} if body["required"] else set()
    assert {"contexts_pin", "contexts_extend", "keys_create", "sessions_create"} <= required
    assert not {"contexts_unpin", "contexts_expire"} & required


def test_it_tells_of_idempotency_keys_rates_and_entity_tags_where_they_are(client):
    document = client.get("/api/v1/schema/").json()
    for address, method, operation in operations(document):
        responses = operation["responses"]
        names = {parameter["name"] for parameter in operation.get("parameters", ())}
        is_change = address.startswith("/api/") and method != "get"
        assert ("Idempotency-Key" in names) is is_change
        assert ({"409", "422"} <= set(responses)) is is_change
        assert ("If-Match" in names) is ("412" in responses)
        assert ("If-None-Match" in names) is ("304" in responses)
        (answer, *_) = [each for code, each in responses.items() if code.startswith("2")]
        assert "RateLimit-Remaining" in answer["headers"]
    assert "ETag" in document["paths"]["/api/v1/rules/{id}"]["patch"]["responses"]["200"]["headers"]
    assert "Retry-After" in document["components"]["responses"]["429"]["headers"]


def test_swagger_is_served_locally(client):
    page = client.get("/api/v1/docs/").content.decode()
    addresses = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert addresses
    for address in addresses:
        assert address.startswith("/")
        if address.startswith("/static/"):
            assert finders.find(address.removeprefix("/static/"))
            assert client.get(address).status_code == 200


def test_operations_are_named_by_resource_and_verb(client):
    document = client.get("/api/v1/schema/").json()
    names = [o["operationId"] for path in document["paths"].values() for o in path.values()]
    assert len(set(names)) == len(names)
    assert {"contexts_get", "contexts_pin", "tenants_set_quota", "sessions_heartbeat"} < set(names)
    for name in names:
        assert re.fullmatch("[a-z]+(_[a-z]+)+", name)
        assert not re.search("_(retrieve|destroy|partial_update)$", name)
        assert not re.search("_[a-z]+_create$", name.removeprefix("warm_").removeprefix("move_"))

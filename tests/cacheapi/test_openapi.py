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


def test_every_operation_tells_how_refusals_look(client):
    document = client.get("/api/v1/schema/").json()
    for path in document["paths"].values():
        for operation in path.values():
            answer = operation["responses"]["default"]["content"]["application/problem+json"]
            assert answer["schema"]["$ref"].endswith("/Problem")


def test_it_tells_of_rate_limits_and_idempotency_keys_where_they_are(client):
    document = client.get("/api/v1/schema/").json()
    for address, path in document["paths"].items():
        for method, operation in path.items():
            responses = operation["responses"]
            names = {parameter["name"] for parameter in operation.get("parameters", ())}
            is_limited = address.startswith("/api/")
            takes_key = is_limited and method != "get"
            assert ("429" in responses) is is_limited
            assert ("Idempotency-Key" in names) is takes_key
            assert ({"409", "422"} <= set(responses)) is takes_key
            for status in set(responses) & {"409", "422", "429"}:
                assert set(responses[status]["content"]) == {"application/problem+json"}
    assert "Retry-After" in document["paths"]["/api/v1/usage"]["get"]["responses"]["429"]["headers"]


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
        assert not re.search("_[a-z]+_create$", name)

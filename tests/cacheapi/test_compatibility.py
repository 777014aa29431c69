"""The API keeps what callers of the last release depend on; a break is named here with its reason.

The policy stands in docs/teams.md. After a release, write released_api.json anew: see
`support.api_shape`.
"""

import copy
import json
from pathlib import Path

import pytest

from support.api_shape import broken, shape_of

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
# A line of `broken` → why callers must live with it. CHANGELOG.md says the same.
MEANT: dict[str, str] = dict.fromkeys(
    (
        "PATCH /api/v1/rules/{}: body: context is string, was any",
        "PATCH /api/v1/rules/{}: body: label is string, was any",
        "POST /api/v1/rules: body: context is string, was any",
        "POST /api/v1/rules: body: label is string, was any",
        "POST /cache/v1/contexts: body: label is string, was any",
    ),
    "Strings alone were taken before, too: the schema offered two kinds of strings.",
)


@pytest.fixture(scope="module")
def document():
    return json.loads((ROOT / "docs/openapi.json").read_text())


def test_nothing_breaks_callers_of_the_last_release_unless_it_is_named(document):
    released = json.loads(Path(__file__).with_name("released_api.json").read_text())
    assert broken(released, shape_of(document)) == sorted(MEANT)


def _without_operation(paths, schemas):
    del paths["/api/v1/contexts/{id}/pin"]


def _without_parameter(paths, schemas):
    listed = paths["/api/v1/contexts"]["get"]
    listed["parameters"] = [each for each in listed["parameters"] if each["name"] != "search"]


def _with_a_parameter_required(paths, schemas):
    for each in paths["/api/v1/contexts"]["get"]["parameters"]:
        each["required"] = each["name"] == "search"


def _without_a_word(paths, schemas):
    for each in paths["/api/v1/contexts"]["get"]["parameters"]:
        if each["name"] == "ordering":
            each["schema"]["enum"].remove("name")


def _without_member_of_a_body(paths, schemas):
    del schemas["ContextPinRequest"]["properties"]["for_s"]


def _with_member_of_a_body_required(paths, schemas):
    schemas["ContextExpireRequest"]["required"] = ["dry_run"]


def _with_body_required(paths, schemas):
    paths["/api/v1/contexts/{id}/unpin"]["post"]["requestBody"]["required"] = True


def _without_member_of_an_answer(paths, schemas):
    del schemas["Residency"]["properties"]["hot_bytes"]


def _with_member_of_another_type(paths, schemas):
    schemas["Context"]["properties"]["tokens"]["type"] = "string"


def _without_status(paths, schemas):
    del paths["/api/v1/rules"]["post"]["responses"]["201"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (_without_operation, "POST /api/v1/contexts/{}/pin: is gone"),
        (_without_parameter, "GET /api/v1/contexts: parameters: search is gone"),
        (_with_a_parameter_required, "GET /api/v1/contexts: parameters: search is required"),
        (_without_a_word, "GET /api/v1/contexts: parameters: ordering refuses name"),
        (_without_member_of_a_body, "POST /api/v1/contexts/{}/pin: body: for_s is gone"),
        (_with_member_of_a_body_required, "POST /api/v1/contexts/{}/expire: body: dry_run is"),
        (_with_body_required, "POST /api/v1/contexts/{}/unpin: the body is required"),
        (_without_member_of_an_answer, "answer 200: residency.hot_bytes is gone, or no integer"),
        (_with_member_of_another_type, "answer 200: results.tokens is gone, or no integer"),
        (_without_status, "POST /api/v1/rules: answer 201 is gone"),
    ],
)
def test_each_kind_of_break_is_found(document, change, line):
    changed = copy.deepcopy(document)
    change(changed["paths"], changed["components"]["schemas"])
    found = broken(shape_of(document), shape_of(changed))
    assert any(line in each for each in found), found


def test_additions_break_nobody(document):
    fewer = copy.deepcopy(document)
    del fewer["paths"]["/api/v1/contexts/{id}/pin"]
    _without_parameter(fewer["paths"], {})
    _without_member_of_an_answer({}, fewer["components"]["schemas"])
    assert broken(shape_of(fewer), shape_of(document)) == []

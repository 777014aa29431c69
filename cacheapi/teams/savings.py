"""/api/v1/savings: what stored context saved and cost, by month."""

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from django.http import HttpResponseBase
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from base.exports import cell, csv_lines
from cacheapi.base.access import caller
from cacheapi.base.exports import FORMATS, Csv, JsonLines, sent
from cacheapi.base.queries import TEXT, malformed, number
from cacheapi.base.viewsets import ApiView
from neve.planner.savings import USED_NAMES
from planning import savings

TERMS = ("prefill", "loads", "slower", "hot", "cold", "requests", "egress")


class LineSerializer(serializers.Serializer[Any]):
    name = serializers.ChoiceField(choices=TERMS)
    quantity = serializers.CharField(help_text="decimal")
    unit = serializers.CharField(help_text="of the quantity")
    price = serializers.CharField(help_text="decimal")
    per = serializers.CharField(help_text="of the price")
    amount = serializers.CharField(
        help_text="decimal, signed: the amounts of a row add up to its net"
    )


class MeasuredSerializer(serializers.Serializer[Any]):
    """Measured quantities; microseconds are multiplied by the GPUs of the engine."""

    locals().update({name: serializers.IntegerField() for name in USED_NAMES})


class SpaceOfRowSerializer(serializers.Serializer[Any]):
    id = serializers.IntegerField(help_text="0: what belongs to no space")
    name = serializers.CharField()


class SavingsRowSerializer(serializers.Serializer[Any]):
    month = serializers.CharField()
    tenant = serializers.CharField(help_text="slug")
    space = SpaceOfRowSerializer(allow_null=True, help_text="null: all of the tenant's")
    currency = serializers.CharField()
    gross = serializers.CharField(help_text="decimal: prefill that was saved")
    costs = serializers.CharField(help_text="decimal")
    net = serializers.CharField(help_text="decimal; below 0: a loss")
    lines = LineSerializer(many=True, help_text="terms of the formula that are not 0")
    used = MeasuredSerializer()
    hit_tokens = serializers.IntegerField(help_text="loaded, as each node's data path counted")
    requested_tokens = serializers.IntegerField()
    notes = serializers.DictField(
        child=serializers.CharField(),
        help_text="what is not measured and how figures were shared, by code",
    )


class SavingsSerializer(serializers.Serializer[Any]):
    formula = serializers.CharField()
    rows = SavingsRowSerializer(many=True, help_text="newest month first")


MONTH = {"type": "string", "pattern": "^2[0-9]{3}-(0[1-9]|1[0-2])$"}
PARAMETERS = [
    OpenApiParameter("month", MONTH, description="of UTC, such as 2026-11; absent: this one"),
    OpenApiParameter(
        "months",
        {"type": "integer", "minimum": 1, "maximum": savings.MOST_MONTHS},
        description="so many months that end with `month`; 1 unless given",
    ),
    OpenApiParameter("by", str, enum=savings.BY, description="tenant unless given"),
    OpenApiParameter("tenant", TEXT, description="slug; absent: all that you may see"),
]


@dataclass(frozen=True)
class Asked:
    tenant_ids: Collection[int] | None
    month: date
    months: int
    by: str


def asked(request: Request) -> Asked:
    """Raises Problem: malformed; not-found for a tenant that the caller does not see."""
    given = request.query_params
    by = given.get("by", "tenant")
    if by not in savings.BY:
        raise malformed("by", f"need one of {', '.join(savings.BY)}, got {by[:60]!r}")
    month = savings.month_named(given["month"]) if "month" in given else savings.this_month()
    months = number(request, "months", default=1, least=1, most=savings.MOST_MONTHS)
    slug = given.get("tenant")
    me = caller(request)
    ids = me.tenant_ids if slug is None else frozenset({me.tenant(slug).pk})
    return Asked(ids, month, months, by)


def shown(row: savings.Row) -> dict[str, Any]:
    """A row as the API answers it."""
    return {
        "month": row.month,
        "tenant": row.tenant,
        "space": None if row.space_id is None else {"id": row.space_id, "name": row.space},
        "currency": row.currency,
        **{name: str(getattr(row, name)) for name in ("gross", "costs", "net")},
        "lines": [
            asdict(line) | {"quantity": str(line.quantity), "amount": str(line.amount)}
            for line in row.lines
        ],
        "used": asdict(row.used),
        "hit_tokens": row.hit_tokens,
        "requested_tokens": row.requested_tokens,
        "notes": row.notes,
    }


class SavingsView(ApiView):
    """What stored context saved, and what it cost."""

    takes = {"get": ("month", "months", "by", "tenant")}
    refusals = {"get": (404,)}  # of a tenant that the caller does not see

    @extend_schema(parameters=PARAMETERS, responses=SavingsSerializer)
    def get(self, request: Request) -> Response:
        """Money by tenant or space and month, with the formula and each of its inputs."""
        found = savings.rows(**vars(asked(request)))
        return Response({"formula": savings.FORMULA, "rows": [shown(row) for row in found]})


FLAT = (
    *("month", "tenant", "space_id", "space", "currency", "gross", "loads", "slower", "hot"),
    *("cold", "requests", "egress", "costs", "net", "hit_tokens", "requested_tokens"),
    *USED_NAMES,
    "notes",
)


def flat(row: savings.Row) -> dict[str, Any]:
    """A row of an export. Costs are positive."""
    return {
        **{name: getattr(row, name) for name in ("month", "tenant", "space_id", "space")},
        "currency": row.currency,
        "gross": str(row.gross),
        **{name: str(-row.of(name)) for name in TERMS[1:]},
        "costs": str(row.costs),
        "net": str(row.net),
        "hit_tokens": row.hit_tokens,
        "requested_tokens": row.requested_tokens,
        **asdict(row.used),
        "notes": " ".join(row.notes),
    }


class SavingsExportView(ApiView):
    """Savings as a file, for charge-back."""

    takes = {"get": ("month", "months", "by", "tenant", "format")}
    refusals = {"get": (404,)}
    verbs = {"get": "export"}
    renderer_classes = [JSONRenderer, Csv, JsonLines]

    @extend_schema(
        parameters=[
            *PARAMETERS,
            OpenApiParameter(
                "format", str, enum=list(FORMATS), description="csv unless Accept says otherwise"
            ),
        ],
        responses={
            (200, media_type): OpenApiResponse(str, description="the rows; CSV has a header")
            for media_type in FORMATS.values()
        },
    )
    def get(self, request: Request) -> HttpResponseBase:
        """All rows as CSV or JSON Lines. Amounts are decimals; costs are positive."""
        accepted = getattr(request, "accepted_renderer").format  # noqa: B009  # DRF sets it
        form = request.query_params.get("format", accepted if accepted in FORMATS else "csv")
        if form not in FORMATS:
            raise malformed("format", f"need one of {', '.join(FORMATS)}, got {form[:60]!r}")
        return sent(request, _steps(asked(request), form), form)


def _steps(wanted: Asked, form: str) -> Iterator[bytes]:
    if form == "csv":
        yield csv_lines([list(FLAT)])
    for found in savings.all_rows(**vars(wanted)):
        each = [flat(row) for row in found]
        if form == "csv":
            yield csv_lines([[_cell(row[name]) for name in FLAT] for row in each])
        else:
            yield b"".join(JSONRenderer().render(row) + b"\n" for row in each)


def _cell(value: Any) -> Any:
    """A negative amount is a number, not the beginning of a formula."""
    if isinstance(value, str) and value[:1] == "-" and value[1:].replace(".", "", 1).isdigit():
        return value
    return cell(value)

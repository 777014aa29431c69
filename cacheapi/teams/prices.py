"""/api/v1/prices: what GPUs, memory, storage and requests cost, by their first day."""

import re
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from cacheapi.base.access import Operators
from cacheapi.base.etags import Tagged
from cacheapi.base.fields import StrictSerializer, Text
from cacheapi.base.viewsets import ApiView, checked
from neve.planner.prices import DECIMALS, MOST, PRICE_NAMES
from planning import prices
from planning.models import PriceVersion
from tenants.principal import actor_of

_ABOUT = {
    name: str(PriceVersion._meta.get_field(name).help_text)  # type: ignore[union-attr]
    for name in PRICE_NAMES
}
_AMOUNT = re.compile(rf"\d{{1,7}}(\.\d{{1,{DECIMALS}}})?", re.ASCII)
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


@extend_schema_field({"type": "string", "pattern": rf"^\d{{1,7}}(\.\d{{1,{DECIMALS}}})?$"})
class Amount(serializers.Field[Decimal, Any, str, Any]):
    """A price as decimal text such as "2.35", which no rounding changes."""

    def to_internal_value(self, data: Any) -> Decimal:
        if not isinstance(data, str) or not _AMOUNT.fullmatch(data):
            raise serializers.ValidationError(
                f'need text such as "2.35", at most {DECIMALS} decimals'
            )
        try:
            amount = Decimal(data)
        except InvalidOperation:  # the pattern allows none
            raise serializers.ValidationError("need a number") from None
        if amount > MOST:
            raise serializers.ValidationError(f"need at most {MOST}")
        return amount

    def to_representation(self, value: Any) -> str:
        return prices.shown(Decimal(value))


@extend_schema_field({"type": "string", "format": "date"})
class Day(serializers.Field[date, Any, str, Any]):
    """A day of UTC, such as 2026-11-30."""

    def to_internal_value(self, data: Any) -> date:
        try:
            if not isinstance(data, str) or not _DAY.fullmatch(data):
                raise ValueError
            return date.fromisoformat(data)
        except ValueError:
            raise serializers.ValidationError("need a day such as 2026-11-30") from None

    def to_representation(self, value: Any) -> str:
        return str(value.isoformat())


def _amounts(**options: Any) -> dict[str, Amount]:
    return {name: Amount(help_text=_ABOUT[name], **options) for name in PRICE_NAMES}


class PriceVersionSerializer(serializers.Serializer[Any]):
    valid_from = Day(help_text="first day, UTC")
    currency = serializers.CharField()
    locals().update(_amounts())


class PricesSerializer(PriceVersionSerializer):
    """The prices of today, and all versions."""

    versions = serializers.SerializerMethodField(help_text="newest first")

    @extend_schema_field(PriceVersionSerializer(many=True))
    def get_versions(self, row: PriceVersion) -> Any:
        return PriceVersionSerializer(prices.versions(), many=True).data


@extend_schema_field({"type": "string", "pattern": "^[A-Z]{3}$"})
class Currency(Text):
    pass


class PricesChangeSerializer(StrictSerializer):
    """Absent members keep the value of that day."""

    schema = {"minProperties": 1, "not": {"required": ["valid_from"], "maxProperties": 1}}
    valid_from = Day(
        required=False,
        help_text="first day, UTC; today unless given; from the first of this month to a year "
        "ahead: past months keep their prices",
    )
    currency = Currency(
        max_length=3, required=False, help_text="ISO 4217; changes on the first of a month only"
    )
    locals().update(_amounts(required=False))

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs.keys() - {"valid_from"}:
            names = ", ".join((*PRICE_NAMES, "currency"))
            raise serializers.ValidationError(f"give at least one of {names}")
        return attrs


class PricesView(Tagged, ApiView, GenericViewSet[Any]):
    """Prices that savings and what-if estimates count with."""

    model = PriceVersion
    serializer_class = PricesSerializer

    def get_permissions(self) -> Any:
        return [Operators()] if self.action == "partial_update" else super().get_permissions()

    def get_queryset(self) -> QuerySet[PriceVersion]:
        return PriceVersion.objects.all()

    def get_object(self) -> PriceVersion:
        return prices.in_force(prices.today())

    def is_conditional(self) -> bool:
        return self.action == "partial_update"

    @extend_schema(responses=PricesSerializer)
    def retrieve(self, request: Request) -> Response:
        """The prices of today, and of other times."""
        return Response(PricesSerializer(self.get_object()).data)

    @extend_schema(request=PricesChangeSerializer, responses=PricesSerializer)
    def partial_update(self, request: Request) -> Response:
        """Changes prices from a day on, until the next version's first day."""
        change = checked(PricesChangeSerializer, request)
        prices.change_prices(actor=actor_of(request), seen=self.get_object(), **change)
        return Response(PricesSerializer(self.get_object()).data)

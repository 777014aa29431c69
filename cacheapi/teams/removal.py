"""Removal of a tenant or a space: the answer counts the data until the name confirms it."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request

from base.problems import Problem
from cacheapi.base.queries import TEXT

CONFIRM = OpenApiParameter(
    "confirm", TEXT, description="the name; without it the answer says what would be removed"
)


class RemovalSerializer(serializers.Serializer[Any]):
    """What is deleted."""

    contexts = serializers.IntegerField()
    segments = serializers.IntegerField()
    segment_bytes = serializers.IntegerField()


def require_confirmed(request: Request, name: str, weight: dict[str, int]) -> None:
    """Raises Problem (unconfirmed) that counts the data."""
    if request.query_params.get("confirm") != name:
        facts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in weight.items())
        raise Problem(
            "unconfirmed", f"This removes {facts}. Repeat it with ?confirm={name}.", **weight
        )

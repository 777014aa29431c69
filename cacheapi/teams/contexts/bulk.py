"""/api/v1/contexts/bulk: one action on many contexts, after a preview."""

from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.access import caller
from cacheapi.base.fields import (
    Choice,
    EmptySerializer,
    Flag,
    Moment,
    StrictSerializer,
    Text,
    Uuid,
    unknown,
)
from cacheapi.base.labels import LabelChanges
from cacheapi.base.queries import MOST_CHARACTERS, malformed
from cacheapi.base.viewsets import checked
from cacheapi.teams.contexts.filters import ContextFilter
from cacheapi.teams.contexts.serializers import ContextExtendSerializer, ContextPinSerializer
from cacheapi.teams.jobs import JobSerializer
from catalog.models import BulkAction, Context
from contexts import bulk
from tenants.principal import Principal, actor_of

NAMES = ContextFilter.base_filters


class ContextsUnpinSerializer(StrictSerializer):
    """Your own pins, or for operators those of everybody."""

    all = Flag(default=False, help_text="operators: the pins of everybody")


class ContextsExpireSerializer(StrictSerializer):
    at = Moment(required=False, help_text="not now but then, once no pin is left")


class ContextsLabelSerializer(StrictSerializer):
    """As a change of one context, whose name stays."""

    label = Text(  # type: ignore[assignment]  # DRF takes fields off the class
        max_length=100, required=False, allow_blank=True, help_text="what retention rules match"
    )
    labels = LabelChanges(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs:
            raise serializers.ValidationError({"labels": "give label or labels"})
        return attrs


ARGUMENTS: dict[str, type[StrictSerializer]] = {
    "pin": ContextPinSerializer,
    "unpin": ContextsUnpinSerializer,
    "extend": ContextExtendSerializer,
    "expire": ContextsExpireSerializer,
    "label": ContextsLabelSerializer,
    "warm": EmptySerializer,
    "delete": EmptySerializer,
}


def _filter_schema() -> dict[str, Any]:
    """An object of the list's filters, each a value as in the list's query."""
    text = {"type": "string", "minLength": 1, "maxLength": MOST_CHARACTERS}
    each = {
        name: {**getattr(one, "schema", text), "description": one.extra.get("help_text", "")}
        for name, one in NAMES.items()
    }
    return {
        "type": "object",
        "description": "the filters of the list of contexts, by name",
        "properties": each,
        "additionalProperties": False,
    }


@extend_schema_field(_filter_schema())
class FilterField(serializers.Field[dict[str, str], Any, Any, Any]):
    """The list's filters. Inside: name → text, as in its query."""

    def to_internal_value(self, data: Any) -> dict[str, str]:
        if not isinstance(data, dict):
            raise serializers.ValidationError("need an object of filters")
        return {name: self._text(name, value) for name, value in data.items()}

    @staticmethod
    def _text(name: str, value: Any) -> str:
        if name not in NAMES:
            raise serializers.ValidationError({name: unknown(name, NAMES, "filter")})
        if isinstance(value, bool):
            return "true" if value else "false"
        if not isinstance(value, (str, int)):
            raise serializers.ValidationError({name: "need text, a whole number, true or false"})
        if not str(value).strip():
            raise serializers.ValidationError({name: "is empty: give a value, or leave it out"})
        return str(value)


@extend_schema_field(
    {
        "type": "object",
        "description": "of the action, as in the body of the single one. pin: until or for, "
        "tier, reason; unpin: all; extend: for; expire: at; label: label, labels",
    }
)
class ArgumentsField(serializers.Field[dict[str, Any], Any, Any, Any]):
    def to_internal_value(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise serializers.ValidationError("need an object")
        return data


class BulkPreviewSerializer(StrictSerializer):
    """An action, and the filters that choose its contexts."""

    action = Choice(choices=list(bulk.ACTIONS))
    filter = FilterField()
    every = Flag(
        default=False,
        help_text="true: act on every context of the tenant; needed if no filter but tenant is "
        "given, and refused otherwise",
    )
    arguments = ArgumentsField(default=dict)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        is_open = not set(attrs["filter"]) - {"tenant"}
        if is_open != attrs["every"]:
            words = "no filter is given: every true acts on all contexts of the tenant"
            raise serializers.ValidationError(
                {"every": words if is_open else "leave it out: a filter is given"}
            )
        serializer = ARGUMENTS[attrs["action"]](data=attrs["arguments"])
        if not serializer.is_valid():
            raise serializers.ValidationError({"arguments": serializer.errors})
        return {**attrs, "arguments": _plain(serializer.validated_data)}


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """As JSON values; a length of time that begins now is its end by now."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in arguments.items()
        if name not in ("for", "for_s") or "until" not in arguments
    }


class PreviewSerializer(serializers.Serializer[bulk.Preview]):
    token = serializers.UUIDField(source="bulk.pk", help_text="starts the action; yours alone")
    expires_at = serializers.DateTimeField(source="bulk.expires_at")
    action = serializers.CharField(source="bulk.action")
    arguments = serializers.JSONField(source="bulk.arguments")
    contexts = serializers.IntegerField(
        source="bulk.contexts", help_text="chosen now; the action is done to these and no others"
    )
    pinned_by_others = serializers.IntegerField(help_text="of these, with a pin of somebody else")
    refused = serializers.DictField(
        child=serializers.IntegerField(),
        help_text="of these, would be refused now, by kind of the problem; only for warm",
    )
    blocks = serializers.IntegerField(
        source="weight.blocks",
        help_text="distinct blocks of the unexpired ones, without those that a pin of somebody "
        "else keeps you from expiring and those that would be refused",
    )
    bytes = serializers.IntegerField(source="weight.bytes", help_text="of those that are stored")
    shared_blocks = serializers.IntegerField(
        source="weight.shared_blocks", help_text="that unexpired contexts outside hold too"
    )
    shared_bytes = serializers.IntegerField(source="weight.shared_bytes")
    freed_blocks = serializers.IntegerField(
        help_text="that leave both tiers; 0 unless contexts expire"
    )
    freed_bytes = serializers.IntegerField(help_text="of these, each counted once")
    freed_hot_bytes = serializers.IntegerField(help_text="in Valkey, at once")
    freed_cold_bytes = serializers.IntegerField(
        help_text="in S3, where compaction removes them; a block may be in both"
    )
    sharers = serializers.IntegerField(
        source="weight.sharers", help_text="unexpired contexts outside that hold some of the blocks"
    )
    is_estimate = serializers.BooleanField(
        source="weight.is_estimate", help_text="whether the bytes are extrapolated from a sample"
    )


class BulkSerializer(StrictSerializer):
    token = Uuid(help_text="of a preview")


class BulkActions:
    """For the view of contexts."""

    @extend_schema(request=BulkPreviewSerializer, responses=PreviewSerializer)
    @action(methods=["post"], detail=False, url_path="bulk/preview", url_name="bulk-preview")
    def bulk_preview(self, request: Request) -> Response:
        """Chooses contexts by the list's filters and weighs them. Changes nothing; the token does
        the action to exactly these contexts, for 15 minutes and for you alone."""
        who = _writer(request)
        body = checked(BulkPreviewSerializer, request)
        tenant_id = _tenant_of(who, body["filter"])
        if body["arguments"].get("all") and not who.is_operator:
            raise Problem(
                "forbidden", "all: only operators remove pins of others.", field="arguments.all"
            )
        preview = bulk.preview(
            tenant_id=tenant_id,
            found=_found(request, who, tenant_id, body["filter"]),
            action=body["action"],
            arguments=body["arguments"],
            filter_=body["filter"],
            actor=actor_of(request),
        )
        return Response(PreviewSerializer(preview).data)

    @extend_schema(request=BulkSerializer, responses={202: JobSerializer})
    @action(methods=["post"], detail=False)
    def bulk(self, request: Request) -> Response:
        """Starts the job of a preview: `detail` counts the contexts that it was done to, and
        refusals by reason. The same token again gets the same job."""
        who = _writer(request)
        token = checked(BulkSerializer, request)["token"]
        row = who.rows(BulkAction).defer("chosen").filter(pk=token).first()
        if row is None:
            raise bulk.unknown_token()
        _require_write(who, row.tenant_id)
        job = bulk.take(bulk=row, actor=actor_of(request))
        return Response(JobSerializer(job).data, status=202)


def _writer(request: Request) -> Principal:
    """Raises Problem (forbidden) for people who may only look."""
    who = caller(request)
    if who.writable_ids is not None and not who.writable_ids:
        raise Problem("forbidden", "Your role lets you look, not change.")
    return who


def _require_write(who: Principal, tenant_id: int) -> None:
    if not who.may_write(tenant_id):
        raise Problem("forbidden", "Your role in this tenant lets you look, not change.")


def _tenant_of(who: Principal, filter_: dict[str, str]) -> int:
    """The one tenant that the action is of. Raises Problem: malformed, forbidden."""
    slug = filter_.get("tenant")
    seen = who.tenant_rows() if slug is None else who.tenant_rows().filter(slug=slug)
    two = list(seen[:2])
    if len(two) != 1:
        words = "name the one tenant of the contexts" if two else "there is no such tenant"
        raise malformed("filter.tenant", words)
    _require_write(who, two[0].pk)
    return two[0].pk


def _found(
    request: Request, who: Principal, tenant_id: int, filter_: dict[str, str]
) -> QuerySet[Context]:
    """Raises Problem (malformed) naming the filter that cannot be read."""
    rows = who.rows(Context).filter(tenant_id=tenant_id)
    found = ContextFilter(data=filter_, queryset=rows, request=request)
    if not found.is_valid():
        name, errors = next(iter(found.errors.items()))
        raise malformed(f"filter.{name}", str(errors[0]))
    try:
        return found.qs
    except Problem as problem:  # of a filter with a syntax of its own
        problem.members["field"] = f"filter.{problem.members['field']}"
        raise

"""/api/v1/webhooks: addresses that get a tenant's events, and what was delivered to them."""

from typing import Any

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from base import outbound
from base.problems import Problem
from cacheapi.base.access import caller
from cacheapi.base.fields import Duration, Flag, StrictSerializer, Text
from cacheapi.base.filters import FlagFilter, TenantFilter
from cacheapi.base.viewsets import UUID, ReadOnlyView, TenantOwnedSerializer, checked, no_body
from cacheapi.teams.engines import require_writer, tenant_to_change
from events import webhooks
from events.models import Delivery, Webhook
from tenants.principal import actor_of


class WebhookSerializer(TenantOwnedSerializer):
    id = serializers.UUIDField(source="pk", read_only=True)
    types = serializers.ListField(child=serializers.CharField(), read_only=True)
    last_delivery_at = serializers.DateTimeField(
        source="delivered_at", read_only=True, allow_null=True
    )

    class Meta:
        model = Webhook
        fields: tuple[str, ...] = (
            *("id", "tenant", "url", "types", "is_active", "inactive_reason", "failures"),
            *("failing_since", "last_delivery_at", "previous_until", "created_at", "updated_at"),
        )
        read_only_fields = fields


class WebhookWithSecretSerializer(WebhookSerializer):
    secret = serializers.CharField(
        help_text="verifies signatures, shown only once", read_only=True, allow_null=True
    )

    class Meta(WebhookSerializer.Meta):
        fields = (*WebhookSerializer.Meta.fields, "secret")
        read_only_fields = fields


_TYPES = "of events, with patterns such as context.*; empty: every type"


class WebhookUpdateSerializer(StrictSerializer):
    """Absent members keep their value."""

    schema = {"minProperties": 1}
    url = Text(max_length=500, required=False, help_text="gets a POST for each event")
    types = serializers.ListField(
        child=Text(max_length=40), max_length=webhooks.MOST_TYPES, required=False, help_text=_TYPES
    )
    is_active = Flag(required=False, help_text="true: begin anew with what waits")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs:
            raise serializers.ValidationError("name at least one member to change")
        return attrs


class WebhookCreateSerializer(StrictSerializer):
    tenant = Text(required=False, help_text="slug; not needed with a key of one tenant")
    url = Text(max_length=500, help_text="gets a POST for each event")
    types = serializers.ListField(
        child=Text(max_length=40),
        max_length=webhooks.MOST_TYPES,
        default=list,
        help_text=_TYPES,
    )


class RotateSecretSerializer(StrictSerializer):
    overlap = Duration(
        min_s=0,
        max_s=webhooks.MOST_OVERLAP_S,
        required=False,
        help_text="how long the old secret also signs; 24h unless given",
    )


class AttemptSerializer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    status = serializers.IntegerField(allow_null=True, help_text="null: no answer, see error")
    error = serializers.CharField(allow_blank=True)
    latency_ms = serializers.IntegerField()


class DeliverySerializer(TenantOwnedSerializer):
    webhook = serializers.UUIDField(source="webhook_id", read_only=True)
    event = serializers.UUIDField(source="event.uuid", read_only=True, help_text="webhook-id, too")
    type = serializers.CharField(source="event.kind", read_only=True)
    log = AttemptSerializer(many=True, read_only=True, help_text="the last 20 attempts")

    class Meta:
        model = Delivery
        fields = (
            *("id", "tenant", "webhook", "event", "type", "state", "attempts", "next_attempt_at"),
            *("created_at", "finished_at", "log"),
        )
        read_only_fields = fields


class WebhookFilter(TenantFilter):
    is_active = FlagFilter()


class WebhooksView(ReadOnlyView):
    """Addresses that get a tenant's events, signed as Standard Webhooks."""

    model = Webhook
    lookup_value_regex = UUID
    serializer_class = WebhookSerializer
    filterset_class = WebhookFilter
    secret_members = ("secret",)
    moving = ("failures", "failing_since", "last_delivery_at", "updated_at")
    unconditional = ("test",)

    @extend_schema(request=WebhookCreateSerializer, responses={201: WebhookWithSecretSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Adds a webhook. Only this answer holds its secret; a repeated answer holds null."""
        require_writer(caller(request))
        body = checked(WebhookCreateSerializer, request)
        tenant = tenant_to_change(caller(request), body.pop("tenant", None))
        with outbound.WEB.turn(tenant.pk):
            webhook, secret = webhooks.add(tenant=tenant, actor=actor_of(request), **body)
        return Response({**WebhookSerializer(webhook).data, "secret": secret}, status=201)

    @extend_schema(request=WebhookUpdateSerializer, responses=WebhookSerializer)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Changes a webhook. One that becomes active gets what waits for it at once."""
        webhook = self.object_to_change()
        body = checked(WebhookUpdateSerializer, request)
        with outbound.WEB.turn(webhook.tenant_id):
            webhook = webhooks.change(webhook=webhook, actor=actor_of(request), **body)
        return Response(WebhookSerializer(webhook).data)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Removes a webhook with its deliveries."""
        webhook = self.object_to_change()
        no_body(request)
        webhooks.remove(webhook=webhook, actor=actor_of(request))
        return Response(status=204)

    @extend_schema(request=None, responses={202: DeliverySerializer})
    @action(methods=["post"], detail=True)
    def test(self, request: Request, pk: str) -> Response:
        """Sends an event of type webhook.test to this webhook only. See its deliveries."""
        webhook = self.object_to_change()
        no_body(request)
        return Response(DeliverySerializer(webhooks.test(webhook)).data, status=202)

    @extend_schema(request=RotateSecretSerializer, responses=WebhookWithSecretSerializer)
    @action(methods=["post"], detail=True, url_path="rotate-secret")
    def rotate_secret(self, request: Request, pk: str) -> Response:
        """Makes a new secret, which only this answer holds. The old one also signs for a while."""
        webhook = self.object_to_change()
        body = checked(RotateSecretSerializer, request)
        overlap_s = body.get("overlap", 86_400)
        made, secret = webhooks.rotate(
            webhook=webhook, overlap_s=overlap_s, actor=actor_of(request)
        )
        return Response({**WebhookSerializer(made).data, "secret": secret})


class DeliveryFilter(django_filters.FilterSet):
    state = django_filters.ChoiceFilter(choices=Delivery.State.choices)


_WEBHOOK = OpenApiParameter("webhook", {"type": "string", "format": "uuid"}, "path")


@extend_schema_view(
    list=extend_schema(operation_id="deliveries_list", parameters=[_WEBHOOK]),
    retrieve=extend_schema(operation_id="deliveries_get", parameters=[_WEBHOOK]),
)
class DeliveriesView(ReadOnlyView):
    """What a webhook got, gets and did not get. Bodies of answers are not kept."""

    model = Delivery
    serializer_class = DeliverySerializer
    filterset_class = DeliveryFilter
    select = ("tenant", "event", "webhook")
    unconditional = ("retry",)

    def visible(self) -> QuerySet[Delivery]:
        seen = caller(self.request).rows(Webhook).filter(pk=self.kwargs["webhook"])
        if not seen.exists():
            raise Problem("not-found", "There is no such webhook.")
        return super().visible().filter(webhook_id=self.kwargs["webhook"])

    @extend_schema(
        operation_id="deliveries_retry",
        parameters=[_WEBHOOK],
        request=None,
        responses=DeliverySerializer,
    )
    @action(methods=["post"], detail=True)
    def retry(self, request: Request, webhook: str, pk: str) -> Response:
        """Delivers the event once more, whether it was delivered or not."""
        delivery = self.object_to_change()
        no_body(request)
        return Response(DeliverySerializer(webhooks.retry(delivery)).data)

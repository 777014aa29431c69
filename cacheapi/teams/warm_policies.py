"""/api/v1/warm-policies: contexts that are warmed by the clock, or whenever blocks are lost."""

from typing import Any

import django_filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.access import ScopesOfContexts, caller
from cacheapi.base.fields import Choice, Flag, StrictSerializer, Text, Uuid, WholeNumber
from cacheapi.base.filters import FlagFilter, TenantFilter
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer, checked, no_body
from cacheapi.teams.contexts.warming import engine_of
from cacheapi.teams.engines import require_writer
from catalog.models import Context
from contexts import warm_policies
from engines.models import WarmPolicy
from tenants.principal import actor_of


class WarmPolicySerializer(TenantOwnedSerializer):
    context = serializers.UUIDField(  # type: ignore[assignment]  # DRF takes fields off the class
        source="context_id", read_only=True
    )
    engine = serializers.IntegerField(
        source="engine_id", read_only=True, allow_null=True, help_text="null: any healthy one"
    )
    last_job = serializers.UUIDField(source="last_job_id", read_only=True, allow_null=True)

    class Meta:
        model = WarmPolicy
        fields = (
            *("id", "tenant", "context", "engine", "mode", "cron", "time_zone", "is_paused"),
            *("error", "failures", "last_job", "last_run_at", "next_run_at"),
            *("created_at", "updated_at"),
        )
        read_only_fields = fields


class WarmPolicyUpdateSerializer(StrictSerializer):
    """Absent members keep their value. A change forgets earlier failures."""

    schema: dict[str, Any] = {"minProperties": 1}
    cron = Text(
        max_length=100, required=False, help_text="five fields, with a schedule: 30 7 * * 1-5"
    )
    time_zone = Text(max_length=60, required=False, help_text="such as Europe/Berlin")
    engine = WholeNumber(
        min_value=1, allow_null=True, required=False, help_text="null: any healthy one"
    )
    is_paused = Flag(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs:
            raise serializers.ValidationError("name at least one member to change")
        return attrs


class WarmPolicyCreateSerializer(WarmPolicyUpdateSerializer):
    schema: dict[str, Any] = {}
    context = Uuid(  # type: ignore[assignment]  # DRF takes fields off the class
        help_text="id of a context whose tokens the platform has"
    )
    mode = Choice(
        choices=WarmPolicy.Mode.choices,
        help_text="schedule: by the clock; keep: again whenever blocks are lost",
    )


class WarmPolicyFilter(TenantFilter):
    context = django_filters.UUIDFilter(field_name="context_id")
    paused = FlagFilter(field_name="is_paused")


class WarmPoliciesView(ScopesOfContexts, ReadOnlyView):
    """Contexts that are warmed by the clock, or whenever blocks are lost."""

    model = WarmPolicy
    serializer_class = WarmPolicySerializer
    filterset_class = WarmPolicyFilter
    moving = (  # the platform's own notes
        *("error", "failures", "last_job", "last_run_at", "next_run_at", "updated_at"),
    )

    @extend_schema(request=WarmPolicyCreateSerializer, responses={201: WarmPolicySerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Adds a policy. After five failures in a row it pauses itself, and `error` says why."""
        who = caller(request)
        require_writer(who)
        body = checked(WarmPolicyCreateSerializer, request)
        rows = who.rows(Context).select_related("space", "tenant")
        context = rows.filter(pk=body.pop("context")).first()
        if context is None:
            raise Problem("malformed", "context: there is no such context.", field="context")
        if not who.may_write(context.tenant_id):
            raise Problem("forbidden", "Your role in this tenant lets you look, not change.")
        body["engine"] = engine_of(context.tenant, body.get("engine"))
        policy = warm_policies.add_policy(context=context, actor=actor_of(request), **body)
        return Response(WarmPolicySerializer(policy).data, status=201)

    @extend_schema(request=WarmPolicyUpdateSerializer, responses=WarmPolicySerializer)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Changes, pauses or resumes a policy."""
        policy = self.object_to_change()
        body = checked(WarmPolicyUpdateSerializer, request)
        if "engine" in body:
            body["engine"] = engine_of(policy.tenant, body["engine"])
        policy = warm_policies.change_policy(policy=policy, actor=actor_of(request), **body)
        return Response(WarmPolicySerializer(policy).data)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Removes a policy. Jobs under way go on."""
        policy = self.object_to_change()
        no_body(request)
        warm_policies.remove_policy(policy=policy, actor=actor_of(request))
        return Response(status=204)

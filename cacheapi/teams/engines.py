"""/api/v1/engines: servers of vLLM that tokenise and prefill for the tenant's spaces."""

from typing import Any

import django_filters
from django.db.models import Prefetch
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from base import outbound
from base.problems import Problem
from cacheapi.base.access import caller
from cacheapi.base.fields import Flag, StrictSerializer, Text, WholeNumber
from cacheapi.base.filters import FlagFilter, RowFilter, TenantFilter, TextFilter
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer, checked, no_body
from catalog.models import Space
from engines import services
from engines.models import Engine, Serving
from tenants.models import Tenant
from tenants.principal import Principal, actor_of
from tenants.scope import tenant_scope


class EngineSerializer(TenantOwnedSerializer):
    spaces = serializers.SerializerMethodField(help_text="numbers of the spaces that it serves")
    has_api_key = serializers.SerializerMethodField(help_text="the key itself is never shown")

    class Meta:
        model = Engine
        fields = (
            *("id", "tenant", "name", "base_url", "model", "spaces", "gpus", "has_api_key"),
            "is_prefill",
            *("source", "state", "error", "checked_at", "created_at", "updated_at"),
        )
        read_only_fields = fields

    def get_spaces(self, engine: Engine) -> list[int]:
        return sorted({serving.space_id for serving in engine.servings.all()})

    def get_has_api_key(self, engine: Engine) -> bool:
        return bool(engine.sealed_key)


_URL = "of the server, such as http://gpu-07.example:8000; operators allow address ranges"


class EngineUpdateSerializer(StrictSerializer):
    """Absent members keep their value. Another `base_url` drops the key unless it comes along."""

    schema = {"minProperties": 1}
    name = Text(max_length=100, required=False)
    base_url = Text(max_length=500, required=False, help_text=_URL)
    model = Text(max_length=200, required=False, help_text="the name under which it is served")
    spaces = serializers.ListField(
        child=WholeNumber(min_value=1),
        max_length=services.MOST_REGISTERED,
        required=False,
        help_text="numbers of the spaces that it serves: of the same model and revision",
    )
    api_key = Text(
        max_length=500, allow_blank=True, required=False, help_text="of the server; empty: none"
    )
    gpus = WholeNumber(
        min_value=1,
        max_value=65_536,
        allow_null=True,
        required=False,
        help_text="for the cost of warming; null: TP × PP of its space",
    )
    is_prefill = Flag(
        required=False,
        help_text="of a prefill pool: warm jobs go there first, and routers may take it for one",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs:
            raise serializers.ValidationError("name at least one member to change")
        return attrs


class EngineCreateSerializer(EngineUpdateSerializer):
    schema: dict[str, Any] = {}
    tenant = Text(required=False, help_text="slug; not needed with a key of one tenant")
    name = Text(max_length=100)
    base_url = Text(max_length=500, help_text=_URL)
    model = Text(max_length=200, help_text="the name under which it is served")


class EngineFilter(TenantFilter):
    name = TextFilter()
    space = RowFilter(field_name="servings__space_id", distinct=True, help_text="number of a space")
    is_prefill = FlagFilter(field_name="is_prefill")
    state = django_filters.ChoiceFilter(choices=[(s.value, s.value) for s in Engine.State])
    source = django_filters.ChoiceFilter(choices=[(s.value, s.value) for s in Engine.Source])


class EnginesView(ReadOnlyView):
    """Servers of vLLM that tokenise and prefill for the tenant's spaces."""

    model = Engine
    serializer_class = EngineSerializer
    moving = ("state", "error", "checked_at")
    unconditional = ("check",)
    filterset_class = EngineFilter

    def get_queryset(self) -> Any:
        rows = super().get_queryset()
        if getattr(self, "swagger_fake_view", False):
            return rows
        seen = caller(self.request).rows(Serving)
        return rows.prefetch_related(Prefetch("servings", queryset=seen))

    @extend_schema(request=EngineCreateSerializer, responses={201: EngineSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Registers an engine and checks it at once: see `state` and `error` of the answer."""
        require_writer(caller(request))
        body = checked(EngineCreateSerializer, request)
        tenant = tenant_to_change(caller(request), body.pop("tenant", None))
        spaces = _spaces(tenant, body.pop("spaces", []))
        with outbound.WEB.turn(tenant.pk):
            engine = services.add_engine(
                tenant=tenant, spaces=spaces, actor=actor_of(request), **body
            )
        return Response(EngineSerializer(self._row(engine)).data, status=201)

    @extend_schema(request=EngineUpdateSerializer, responses=EngineSerializer)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Changes a registered engine and checks it anew."""
        engine = self.object_to_change()
        body = checked(EngineUpdateSerializer, request)
        if "spaces" in body:
            body["spaces"] = _spaces(engine.tenant, body["spaces"])
        with outbound.WEB.turn(engine.tenant_id):
            services.change_engine(engine=engine, actor=actor_of(request), **body)
        return Response(EngineSerializer(self._row(engine)).data)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Removes a registered engine. An announced one goes with the session of its node."""
        engine = self.object_to_change()
        no_body(request)
        services.remove_engine(engine=engine, actor=actor_of(request))
        return Response(status=204)

    @extend_schema(request=None, responses=EngineSerializer)
    @action(methods=["post"], detail=True)
    def check(self, request: Request, pk: str) -> Response:
        """Asks the engine now whether it serves its model."""
        engine = self.object_to_change()
        no_body(request)
        with outbound.WEB.turn(engine.tenant_id):
            services.check_engine(engine)
        return Response(EngineSerializer(self._row(engine)).data)

    def _row(self, engine: Engine) -> Engine:
        found: Engine | None = self.get_queryset().filter(pk=engine.pk).first()
        if found is None:
            raise Problem("not-found", "This engine was deleted.")
        return found


def require_writer(who: Principal) -> None:
    """Before a body is read. Raises Problem (forbidden) for people who may only look anywhere."""
    if who.writable_ids is not None and not who.writable_ids:
        raise Problem("forbidden", "Your role lets you look, not change.")


def tenant_to_change(who: Principal, slug: str | None) -> Tenant:
    """The tenant that a new row belongs to: the named one, or the caller's only one.

    Raises Problem: malformed (none is named, or the caller does not see it), forbidden.
    """
    rows = who.tenant_rows()
    found = list(rows.filter(slug=slug) if slug is not None else rows[:2])
    if len(found) != 1:
        words = "name the tenant by its slug." if slug is None else "there is no such tenant."
        raise Problem("malformed", f"tenant: {words}", field="tenant")
    if not who.may_write(found[0].pk):
        raise Problem("forbidden", "Your role in this tenant lets you look, not change.")
    return found[0]


def _spaces(tenant: Tenant, ids: list[int]) -> list[Space]:
    """Raises Problem (malformed) for a space that the tenant does not have."""
    with tenant_scope(tenant.pk):
        found = {space.pk: space for space in Space.objects.filter(pk__in=ids, is_leaving=False)}
    for id_ in ids:
        if id_ not in found:
            raise Problem("malformed", f"spaces: the tenant has no space {id_}.", field="spaces")
    return list(found.values())

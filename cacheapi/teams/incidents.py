"""/api/v1/incidents, /alert-rules, /incident-mail: what needs a person, and who hears of it."""

from datetime import timedelta
from typing import Any

import django_filters
from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.access import Operators, caller
from cacheapi.base.fields import Duration, Flag, Number, StrictSerializer, Text, WholeNumber
from cacheapi.base.filters import TenantFilter
from cacheapi.base.queries import TEXT
from cacheapi.base.viewsets import (
    UUID,
    ApiView,
    ReadOnlyView,
    TenantOwnedSerializer,
    checked,
    no_body,
)
from incidents import rules, services, words
from incidents.assess import Threshold
from incidents.kinds import KINDS, MOST_FOR_S, RuleKind
from incidents.models import Incident
from tenants.models import Tenant
from tenants.principal import actor_of

RULES = [(kind.name, kind.about) for kind in KINDS.values()]
TENANT = OpenApiParameter("tenant", TEXT, description="slug; of all tenants unless given")


class SliceSerializer(serializers.Serializer[Any]):
    """The worst slice; without members where none stands out."""

    split = serializers.CharField(required=False, help_text="node, space or label")
    name = serializers.CharField(required=False)
    before = serializers.FloatField(required=False, help_text="its hit rate before")
    now = serializers.FloatField(required=False)


class LeverSerializer(serializers.Serializer[Any]):
    setting = serializers.CharField()
    name = serializers.CharField(help_text="in words")
    now = serializers.CharField(allow_blank=True, help_text="present value")
    to = serializers.CharField(allow_blank=True, help_text="value to try")
    used = serializers.FloatField(allow_null=True, help_text="share of a quota in use")
    change = serializers.DictField(
        child=serializers.CharField(), help_text="for POST /what-if; empty: it cannot tell"
    )
    gain = serializers.FloatField(
        allow_null=True, help_text="of the hit rate, simulated; null: not simulated"
    )
    error = serializers.FloatField(allow_null=True, help_text="half width of gain's 95 % interval")


class IncidentSerializer(TenantOwnedSerializer):
    id = serializers.UUIDField(source="pk", read_only=True)
    state = serializers.ChoiceField(choices=[("open", "open"), ("ended", "ended")], read_only=True)
    title = serializers.CharField(source="words", read_only=True)
    reason = serializers.SerializerMethodField(help_text="main cause in words")
    slice = SliceSerializer(read_only=True)
    levers = LeverSerializer(many=True, read_only=True)
    facts = serializers.DictField(read_only=True, help_text="figures of its kind")

    class Meta:
        model = Incident
        fields = (
            *("id", "tenant", "kind", "state", "title", "cause", "reason", "since", "opened_at"),
            *("ended_at", "before", "value", "worst", "lost_tokens", "slice", "levers", "facts"),
            *("owner", "acknowledged_at", "acknowledged_by", "muted_until"),
            "operators_muted_until",
        )
        read_only_fields = fields

    def get_reason(self, row: Incident) -> str:
        return words.reason(row.kind, row.cause, row.facts)


class IncidentChangeSerializer(StrictSerializer):
    owner = Text(max_length=200, allow_blank=True, help_text="user name; empty: nobody")


class MuteSerializer(StrictSerializer):
    def get_fields(self) -> Any:  # `for` is a word of Python
        length = Duration(max_s=30 * 86_400, help_text="how long; also if it opens again")
        return {"for": length}


class IncidentFilter(TenantFilter):
    state = django_filters.ChoiceFilter(
        choices=[("open", "open"), ("ended", "ended")], method="by_state"
    )
    kind = django_filters.ChoiceFilter(choices=RULES)

    def by_state(self, rows: QuerySet[Incident], name: str, value: str) -> QuerySet[Incident]:
        return rows.filter(ended_at__isnull=value == "open")


class IncidentsView(ReadOnlyView):
    """What needs a person: cause, worst slice, lever. Ended ones are kept for 90 days."""

    model = Incident
    lookup_field = "uuid"
    lookup_value_regex = UUID
    serializer_class = IncidentSerializer
    filterset_class = IncidentFilter
    orderings = ("-opened_at",)
    never_null = ("opened_at",)
    moving = (
        *("value", "worst", "lost_tokens", "facts", "levers", "slice", "title", "cause"),
        *("reason", "state", "ended_at"),
    )
    unconditional = ("acknowledge",)

    def visible(self) -> QuerySet[Incident]:
        return caller(self.request).rows(Incident).filter(opened_at__isnull=False)

    @extend_schema(request=IncidentChangeSerializer, responses=IncidentSerializer)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Sets the owner: who looks after it. Team keys and members name people of the tenant."""
        row = self.object_to_change()
        body = checked(IncidentChangeSerializer, request)
        changed = services.set_owner(incident=row, actor=actor_of(request), **body)
        return _shown(changed)

    @extend_schema(request=None, responses=IncidentSerializer)
    @action(methods=["post"], detail=True)
    def acknowledge(self, request: Request, uuid: str) -> Response:
        """Says that you look after it: no more mail, and you own it unless somebody does."""
        row = self.object_to_change()
        no_body(request)
        return _shown(services.acknowledge(incident=row, actor=actor_of(request)))

    @extend_schema(request=MuteSerializer, responses=IncidentSerializer)
    @action(methods=["post"], detail=True)
    def mute(self, request: Request, uuid: str) -> Response:
        """Hides it from attention and mail for a while: from operators if one calls, else from the
        tenant's people."""
        row = self.object_to_change()
        seconds = checked(MuteSerializer, request)["for"]
        until = timezone.now() + timedelta(seconds=seconds)
        return _shown(services.mute(incident=row, until=until, actor=actor_of(request)))

    @extend_schema(request=None, responses=IncidentSerializer)
    @action(methods=["post"], detail=True)
    def unmute(self, request: Request, uuid: str) -> Response:
        """Shows it again."""
        row = self.object_to_change()
        no_body(request)
        return _shown(services.mute(incident=row, until=None, actor=actor_of(request)))


def _shown(row: Incident) -> Response:
    return Response(IncidentSerializer(row).data)


class AlertRuleSerializer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(choices=RULES)
    tenant = serializers.CharField(allow_null=True, help_text="null: of all tenants")
    about = serializers.CharField()
    unit = serializers.CharField(help_text="of the threshold")
    threshold = serializers.FloatField()
    for_s = serializers.IntegerField(help_text="seconds that it has to hold")
    is_on = serializers.BooleanField()
    source = serializers.ChoiceField(  # type: ignore[assignment]  # no member of the class itself
        choices=[("default", "default"), ("all", "all"), ("tenant", "tenant")],
        help_text="default, set for all tenants, or the tenant's own",
    )
    default = serializers.FloatField(help_text="threshold unless set")
    least = serializers.FloatField()
    most = serializers.FloatField()


class AlertRuleChangeSerializer(StrictSerializer):
    """Absent members keep their value."""

    schema = {"minProperties": 1}
    threshold = Number(required=False, help_text="in the rule's unit, within its bounds")
    for_s = WholeNumber(max_value=MOST_FOR_S, required=False)
    is_on = Flag(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs:
            raise serializers.ValidationError("name at least one member to change")
        return attrs


class AlertRulesView(ApiView):
    """When incidents open."""

    takes = {"get": ("tenant",)}
    refusals = {"get": (404,)}

    @extend_schema(
        operation_id="alert_rules_list",
        parameters=[TENANT],
        responses=AlertRuleSerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        """The rules in force for a tenant, or those of all tenants."""
        tenant = _tenant(request)
        id_ = None if tenant is None else tenant.pk
        found = rules.in_force([id_])[id_]
        shown = [
            rule_shown(kind, tenant, found[kind.name])
            for kind in KINDS.values()
            if tenant is None or kind.of_tenant
        ]
        return Response(AlertRuleSerializer(shown, many=True).data)


_KIND = OpenApiParameter("kind", {"type": "string", "enum": list(KINDS)}, "path")


class AlertRuleView(ApiView):
    """One rule."""

    permission_classes = (Operators,)
    takes = {"patch": ("tenant",), "delete": ("tenant",)}
    refusals = {"patch": (404,), "delete": (404,)}

    @extend_schema(
        operation_id="alert_rules_change",
        parameters=[_KIND, TENANT],
        request=AlertRuleChangeSerializer,
        responses=AlertRuleSerializer,
    )
    def patch(self, request: Request, kind: str) -> Response:
        """Sets a rule for a tenant, or for all that have none of their own."""
        named, tenant = rules.kind_named(kind), _tenant(request)
        body = checked(AlertRuleChangeSerializer, request)
        now = rules.change(kind=named, tenant=tenant, actor=actor_of(request), **body)
        return Response(AlertRuleSerializer(rule_shown(named, tenant, now)).data)

    @extend_schema(
        operation_id="alert_rules_reset",
        parameters=[_KIND, TENANT],
        request=None,
        responses={200: AlertRuleSerializer},
    )
    def delete(self, request: Request, kind: str) -> Response:
        """Removes what was set: the rule behind it is in force again."""
        named, tenant = rules.kind_named(kind), _tenant(request)
        no_body(request)
        now = rules.reset(kind=named, tenant=tenant, actor=actor_of(request))
        return Response(AlertRuleSerializer(rule_shown(named, tenant, now)).data)


def rule_shown(kind: RuleKind, tenant: Tenant | None, rule: Threshold) -> dict[str, Any]:
    return {
        "kind": kind.name,
        "tenant": None if tenant is None else tenant.slug,
        "about": kind.about,
        "unit": kind.unit,
        "threshold": rule.threshold,
        "for_s": rule.for_s,
        "is_on": rule.is_on,
        "source": rule.source,
        "default": kind.threshold,
        "least": kind.least,
        "most": kind.most,
    }


def _tenant(request: Request) -> Tenant | None:
    slug = request.query_params.get("tenant")
    return None if slug is None else caller(request).tenant(slug)


class MailSerializer(serializers.Serializer[Any]):
    wants = serializers.BooleanField(help_text="incidents by mail")


class MailChangeSerializer(StrictSerializer):
    wants = Flag()


class IncidentMailView(ApiView):
    """Whether the signed-in person gets incidents by mail: of their tenants, an operator of all."""

    @extend_schema(responses=MailSerializer)
    def get(self, request: Request) -> Response:
        """Whether you get mail."""
        return Response({"wants": services.wants_mail(_person_id(request))})

    @extend_schema(request=MailChangeSerializer, responses=MailSerializer)
    def patch(self, request: Request) -> Response:
        """Switches mail on or off."""
        person_id = _person_id(request)
        body = checked(MailChangeSerializer, request)
        services.wish_mail(user_id=person_id, wants=body["wants"], actor=actor_of(request))
        return Response({"wants": services.wants_mail(person_id)})


def _person_id(request: Request) -> int:
    """Raises Problem (forbidden) for keys."""
    me = caller(request)
    if me.key_id is not None:
        raise Problem("forbidden", "Keys have no mail address: sign in.")
    return int(me.id.removeprefix("user:"))

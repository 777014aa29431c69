"""/api/v1/families and /api/v1/family-members: spaces that several models share."""

from typing import Any

import django_filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.fields import StrictSerializer, Text, WholeNumber
from cacheapi.base.filters import RowFilter, TenantFilter, TextFilter
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer, checked, no_body
from catalog import families
from catalog.models import Family, FamilyMember
from tenants.models import Tenant
from tenants.principal import actor_of


class FamilySerializer(TenantOwnedSerializer):
    space = serializers.IntegerField(
        source="space_id", read_only=True, help_text="number of the producer's space"
    )

    class Meta:
        model = Family
        fields = ("id", "tenant", "name", "space", "created_at")
        read_only_fields = fields


class NewFamilySerializer(StrictSerializer):
    tenant = Text(help_text="slug")
    name = Text(max_length=100)
    space = WholeNumber(min_value=1, help_text="number of the producer's space")


class FamilyFilter(TenantFilter):
    name = TextFilter()


class FamiliesView(ReadOnlyView):
    """Spaces that several models share, since they compute the same bits."""

    model = Family
    orderings = ("name",)
    operators_only = ("create", "destroy")
    serializer_class = FamilySerializer
    filterset_class = FamilyFilter

    @extend_schema(request=NewFamilySerializer, responses={201: FamilySerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Lets other models share the KV of a space, once their engines have proven it equal."""
        body = checked(NewFamilySerializer, request)
        tenant = Tenant.objects.filter(slug=body["tenant"]).first()
        if tenant is None:
            raise Problem("malformed", "tenant: there is no such tenant.", field="tenant")
        family = families.create_family(
            tenant=tenant, name=body["name"], space_id=body["space"], actor=actor_of(request)
        )
        return Response(FamilySerializer(family).data, status=201)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Ends the members' sessions. The producer keeps its space and its KV."""
        family = self.get_object()
        no_body(request)
        families.remove_family(family=family, actor=actor_of(request))
        return Response(status=204)


class FamilyMemberSerializer(TenantOwnedSerializer):
    family = serializers.CharField(source="family.name", read_only=True)

    class Meta:
        model = FamilyMember
        fields = (
            *("id", "tenant", "family", "model", "revision", "device", "engine", "weights"),
            *("state", "blocks", "near", "layer", "first_token", "end_token", "hit_tokens"),
            *("created_at", "decided_at", "seen_at"),
        )
        read_only_fields = fields


class MemberFilter(TenantFilter):
    family = RowFilter(field_name="family_id", help_text="number of the family")
    state = django_filters.ChoiceFilter(choices=[(s.value, s.value) for s in FamilyMember.State])


class MembersView(ReadOnlyView):
    """Models of families: whether their KV is the producer's, and what they loaded."""

    model = FamilyMember
    select = ("tenant", "family")
    orderings = ("-created_at",)
    operators_only = ("try_again",)
    serializer_class = FamilyMemberSerializer
    moving = ("hit_tokens", "seen_at")
    filterset_class = MemberFilter

    @extend_schema(request=None, responses=FamilyMemberSerializer)
    @action(methods=["post"], detail=True, url_path="try-again", url_name="try-again")
    def try_again(self, request: Request, pk: str) -> Response:
        """Forgets what was found of a member: its engines prove their KV anew."""
        member = self.get_object()
        no_body(request)
        families.let_try_again(member=member, actor=actor_of(request))
        return Response(FamilyMemberSerializer(self.get_object()).data)

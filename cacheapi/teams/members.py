"""/api/v1/members: people's roles in tenants."""

from typing import Any

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.access import caller
from cacheapi.base.fields import Choice, StrictSerializer, Text
from cacheapi.base.filters import TenantFilter, TextFilter
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer, checked, no_body
from tenants import members
from tenants.models import Membership, Tenant


class TenantMemberSerializer(TenantOwnedSerializer):
    user = serializers.CharField(source="user.username", read_only=True, help_text="user name")

    class Meta:
        model = Membership
        fields = ("id", "tenant", "user", "role")
        read_only_fields = fields


class TenantMemberRoleSerializer(StrictSerializer):
    role = Choice(choices=Membership.Role.choices)


class NewTenantMemberSerializer(TenantMemberRoleSerializer):
    tenant = Text(help_text="slug")
    user = Text(max_length=254, help_text="user name or e-mail address of an account")


class MembershipFilter(TenantFilter):
    user = TextFilter(field_name="user__username", help_text="user name")
    role = django_filters.ChoiceFilter(choices=Membership.Role.choices)


class MembershipsView(ReadOnlyView):
    """People's roles in tenants. Everybody sees those of their own tenants."""

    model = Membership  # type: ignore[assignment]  # not scoped: people belong to several tenants
    select = ("tenant", "user")
    orderings = ("id",)
    operators_only = ("create", "partial_update", "destroy")
    serializer_class = TenantMemberSerializer
    filterset_class = MembershipFilter

    def visible(self) -> QuerySet[Membership]:
        ids = caller(self.request).tenant_ids
        rows = Membership.objects.all()
        return rows if ids is None else rows.filter(tenant_id__in=ids)

    @extend_schema(request=NewTenantMemberSerializer, responses={201: TenantMemberSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Gives an account a role in a tenant."""
        body = checked(NewTenantMemberSerializer, request)
        tenant = Tenant.objects.filter(slug=body["tenant"]).first()
        if tenant is None:
            raise Problem("malformed", "tenant: there is no such tenant.", field="tenant")
        made = members.add_member(
            tenant=tenant, user=members.person_named(body["user"]), role=body["role"]
        )
        return Response(TenantMemberSerializer(made).data, status=201)

    @extend_schema(request=TenantMemberRoleSerializer, responses=TenantMemberSerializer)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Changes the role; it holds from the person's next request on."""
        membership = self.get_object()
        body = checked(TenantMemberRoleSerializer, request)
        changed = members.change_member(membership=membership, role=body["role"])
        return Response(TenantMemberSerializer(changed).data)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Ends the person's access to the tenant. Keys that they made stay."""
        membership = self.get_object()
        no_body(request)
        members.remove_member(membership=membership)
        return Response(status=204)

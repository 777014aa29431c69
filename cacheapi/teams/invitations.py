"""/api/v1/invitations: links that give their first user a role in a tenant. For operators."""

from typing import Any

import django_filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.access import Operators
from cacheapi.base.fields import Choice, StrictSerializer, Text
from cacheapi.base.filters import TenantFilter, TextFilter
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer, checked, no_body
from tenants import invitations
from tenants.links import invitation_link
from tenants.models import Invitation, Membership, Tenant
from tenants.principal import actor_of


class InvitationSerializer(TenantOwnedSerializer):
    role = serializers.ChoiceField(choices=Membership.Role.choices, read_only=True)
    accepted_by = serializers.CharField(
        source="accepted_by.username", read_only=True, allow_null=True, default=None
    )

    class Meta:
        model = Invitation
        fields: tuple[str, ...] = (
            *("id", "tenant", "email", "role", "invited_by", "is_mailed", "created_at"),
            *("expires_at", "revoked_at", "accepted_at", "accepted_by"),
        )
        read_only_fields = fields


class MadeInvitationSerializer(InvitationSerializer):
    link = serializers.CharField(
        allow_null=True, help_text="shown once; null: it was mailed to the address"
    )

    class Meta(InvitationSerializer.Meta):
        fields = (*InvitationSerializer.Meta.fields, "link")
        read_only_fields = fields


class NewInvitationSerializer(StrictSerializer):
    tenant = Text(help_text="slug")
    email = Text(max_length=254)
    role = Choice(choices=Membership.Role.choices)


class InvitationFilter(TenantFilter):
    email = TextFilter()
    role = django_filters.ChoiceFilter(choices=Membership.Role.choices)


class InvitationsView(ReadOnlyView):
    """Invitations, open and ended. Ended ones are kept for 30 days."""

    model = Invitation
    permission_classes = (Operators,)
    select = ("tenant", "accepted_by")
    serializer_class = InvitationSerializer
    filterset_class = InvitationFilter
    secret_members = ("link",)

    @extend_schema(request=NewInvitationSerializer, responses={201: MadeInvitationSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Invites a person by a link, which can be used once within three days."""
        body = checked(NewInvitationSerializer, request)
        tenant = Tenant.objects.filter(slug=body["tenant"], is_active=True).first()
        if tenant is None:
            raise Problem("malformed", "tenant: there is no such active tenant.", field="tenant")
        made, link = invitations.invite(
            tenant=tenant,
            email=body["email"],
            role=body["role"],
            link=lambda token: invitation_link(request, token),
            actor=actor_of(request),
        )
        made.link = link  # type: ignore[attr-defined]  # read by the serializer alone
        return Response(MadeInvitationSerializer(made).data, status=201)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Revokes the link. An accepted invitation is refused: remove the member instead."""
        invitation = self.get_object()
        no_body(request)
        invitations.revoke(invitation=invitation, actor=actor_of(request))
        return Response(status=204)

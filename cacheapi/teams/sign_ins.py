"""/api/v1/sign-ins: browser sessions of people."""

from typing import Any

import django_filters
from allauth.usersessions.models import UserSession
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from cacheapi.base.access import caller
from cacheapi.base.filters import TextFilter
from cacheapi.base.viewsets import ReadOnlyView, no_body
from tenants import sign_ins
from tenants.principal import actor_of


class SignInSerializer(serializers.ModelSerializer[Any]):
    user = serializers.CharField(source="user.username", read_only=True, help_text="user name")
    address = serializers.CharField(source="ip", read_only=True)
    signed_in_at = serializers.DateTimeField(source="created_at", read_only=True)

    class Meta:
        model = UserSession
        fields = ("id", "user", "address", "user_agent", "signed_in_at", "last_seen_at")
        read_only_fields = fields


class SignInFilter(django_filters.FilterSet):
    user = TextFilter(field_name="user__username", help_text="user name")
    address = TextFilter(field_name="ip")


class SignInsView(ReadOnlyView):
    """Browser sessions: a person's own; everybody's for operators; none for keys of teams."""

    model = UserSession
    select = ("user",)
    orderings = ("-created_at",)
    serializer_class = SignInSerializer
    filterset_class = SignInFilter

    def visible(self) -> QuerySet[UserSession]:
        return sign_ins.of(caller(self.request)).order_by()

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Ends the session: its next request is signed out, and its open pages are told."""
        row = self.get_object()
        no_body(request)
        sign_ins.end(rows=[row], actor=actor_of(request))
        return Response(status=204)

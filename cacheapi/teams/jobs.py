"""/api/v1/jobs: background work."""

from collections.abc import Callable
from typing import Any

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.mixins import CreateModelMixin
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.access import ScopesOfContexts, caller
from cacheapi.base.fields import Choice, StrictSerializer, Text
from cacheapi.base.filters import TenantFilter, TextFilter
from cacheapi.base.viewsets import UUID, ReadOnlyView, TenantOwnedSerializer, checked, no_body
from catalog import jobs
from catalog.kinds import KINDS, WHAT_IF
from catalog.models import Job
from tenants.audit import Actor
from tenants.models import ApiKey, Tenant
from tenants.principal import actor_of

Scope = ApiKey.Scope
OF_TEAMS = [kind.name for kind in KINDS.values() if kind.is_of_team]


class JobSerializer(TenantOwnedSerializer):
    id = serializers.UUIDField(source="pk", read_only=True)
    duration_s = serializers.FloatField(read_only=True, allow_null=True)

    class Meta:
        model = Job
        fields = (
            *("id", "tenant", "kind", "state", "progress", "blocks", "bytes", "detail", "error"),
            *("attempts", "created_at", "started_at", "finished_at", "retry_at", "duration_s"),
            *("is_requested", "requested_by", "cancel_asked_at", "arguments", "log"),
        )
        read_only_fields = fields


class NewJobSerializer(StrictSerializer):
    kind = Choice(choices=[(kind.name, kind.about) for kind in KINDS.values() if kind.is_offered])
    tenant = Text(required=False, help_text="slug; kinds of the whole platform have none")


class JobFilter(TenantFilter):
    kind = TextFilter()
    state = django_filters.ChoiceFilter(choices=Job.State.choices)


class JobsView(ScopesOfContexts, CreateModelMixin, ReadOnlyView):
    """Background work: found by periodic tasks, or requested.

    A key with the scope `contexts` alone sees the jobs of contexts that teams request."""

    model = Job
    lookup_field = "uuid"
    lookup_value_regex = UUID
    serializer_class = JobSerializer
    moving = ("progress", "blocks", "bytes", "detail", "log", "duration_s")
    filterset_class = JobFilter
    operators_only = ("create",)

    def visible(self) -> QuerySet[Job]:
        asking = caller(self.request)
        rows = asking.rows(Job)
        if asking.has_one_of((Scope.READ,)):
            return rows
        return rows.filter(kind__in=OF_TEAMS).exclude(kind=WHAT_IF.name)  # of no context

    @extend_schema(request=NewJobSerializer, responses={201: JobSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Requests a job of a worker, such as compacting a tenant now."""
        if not caller(request).has_one_of((Scope.WRITE,)):
            raise Problem("forbidden", "This needs a key with the scope write.")
        body = checked(NewJobSerializer, request)
        tenant = None
        if "tenant" in body:
            tenant = Tenant.objects.filter(slug=body["tenant"], is_active=True).first()
            if tenant is None:
                words = f"tenant: there is no active tenant {body['tenant']!r}."
                raise Problem("malformed", words, field="tenant")
        asked_by = actor_of(request)
        job = jobs.request(kind=body["kind"], tenant=tenant, actor=asked_by)
        return Response(JobSerializer(job).data, status=201)

    @extend_schema(request=None, responses=JobSerializer)
    @action(methods=["post"], detail=True)
    def cancel(self, request: Request, uuid: str) -> Response:
        """Ends a requested job: a waiting one now, a running one at its next step. Teams end jobs
        that teams request, such as warming a context."""
        return self._changed(jobs.cancel_by, "an ended job cannot be cancelled")

    @extend_schema(request=None, responses=JobSerializer)
    @action(methods=["post"], detail=True)
    def retry(self, request: Request, uuid: str) -> Response:
        """Runs a failed or cancelled job again, if it was requested; teams as in `cancel`."""
        return self._changed(jobs.retry_by, "only a failed or cancelled job can be retried")

    def _changed(self, change: Callable[[Job, Actor], bool], refusal: str) -> Response:
        job = self.get_object()
        asking = caller(self.request)
        is_own = job.kind in OF_TEAMS and job.tenant_id and asking.may_write(job.tenant_id)
        if not asking.is_operator and not is_own:
            raise Problem("forbidden", f"Only operators cancel and retry {job.kind} jobs.")
        no_body(self.request)
        if not change(job, actor_of(self.request)):
            if not job.is_requested:
                refusal = "only jobs that somebody requested can be cancelled or retried"
            raise Problem("conflict", f"This {job.kind} job is {job.state}: {refusal}.")
        job.refresh_from_db()
        return Response(JobSerializer(job).data)

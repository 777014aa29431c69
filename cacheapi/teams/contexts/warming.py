"""POST /contexts/{id}/warm: an engine computes what is not stored."""

from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.fields import WholeNumber
from cacheapi.base.viewsets import checked
from cacheapi.teams.jobs import JobSerializer
from cacheapi.teams.prompts import OptionalPromptSerializer, wanted_of
from catalog.models import Context
from contexts import making, warming
from engines.models import Engine
from tenants.models import Tenant
from tenants.principal import actor_of
from tenants.scope import tenant_scope


class ContextWarmSerializer(OptionalPromptSerializer):
    """Without a prompt, the tokens that the platform has of the context. With one, its blocks must
    be the context's; it is kept, sealed, until the context is deleted."""

    engine = WholeNumber(
        min_value=1, required=False, help_text="number of an engine; default: any healthy one"
    )


class WarmAction:
    """For the view of contexts."""

    @extend_schema(request=ContextWarmSerializer, responses={202: JobSerializer})
    @action(methods=["post"], detail=True)
    def warm(self, request: Request, uuid: str) -> Response:
        """Has an engine of the space compute the prompt, so that its blocks are stored. The job's
        `detail` has tokens stored, seconds of the engine and GPU-seconds. A job under way for this
        context is the answer to a further request."""
        context: Context = self.object_to_change()  # type: ignore[attr-defined]  # of the view
        body = checked(ContextWarmSerializer, request)
        engine = engine_of(context.tenant, body.get("engine"))
        wanted = wanted_of(body)
        tokens = None
        if wanted is not None:
            tokens = making.tokens_of(context.space, wanted, only=engine)
        job = warming.request(
            context=context, engine=engine, tokens=tokens, actor=actor_of(request)
        )
        return Response(JobSerializer(job).data, status=202)


def engine_of(tenant: Tenant, number: int | None) -> Engine | None:
    """Raises Problem (malformed) for an engine that the tenant does not have."""
    if number is None:
        return None
    with tenant_scope(tenant.pk):
        engine: Engine | None = Engine.objects.filter(pk=number).first()
    if engine is None:
        raise Problem("malformed", f"engine: the tenant has no engine {number}.", field="engine")
    return engine

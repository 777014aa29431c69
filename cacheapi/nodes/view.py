"""The base of /cache/v1: a node key, and the scope of its tenant."""

from typing import Any
from uuid import UUID

from rest_framework.request import Request
from structlog.contextvars import bind_contextvars

from base.problems import Problem
from cacheapi.base.access import KeyAuthentication, Nodes
from cacheapi.base.queries import StrictQuery
from cacheapi.base.throttles import NodeThrottle, SlowDown
from catalog.models import NodeSession
from tenants.models import ApiKey, Tenant
from tenants.scope import tenant_scope


class NodeView(SlowDown, StrictQuery):
    """Node keys only; each handler runs in the scope of the key's tenant."""

    authentication_classes = (KeyAuthentication,)
    permission_classes = (Nodes,)
    throttle_classes = (NodeThrottle,)

    @property
    def tenant(self) -> Tenant:
        tenant = self.key.tenant
        assert tenant is not None  # a node's key
        return tenant

    @property
    def key(self) -> ApiKey:
        key = self.request.auth
        assert isinstance(key, ApiKey)  # KeyAuthentication
        return key

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        # The scope is entered in `initial`, once the key is known, and left here.
        self.scope: Any = None
        try:
            return super().dispatch(request, *args, **kwargs)
        finally:
            if self.scope is not None:
                self.scope.__exit__(None, None, None)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if session_id := kwargs.get("session_id"):
            bind_contextvars(session=str(session_id))
        self.scope = tenant_scope(self.tenant.pk)
        self.scope.__enter__()


def open_session(session_id: UUID) -> NodeSession:
    session = NodeSession.objects.filter(pk=session_id, ended_at=None).first()
    if session is None:
        raise Problem("not-found", "This session is unknown or has ended: open a new one.")
    bind_contextvars(session=str(session.pk), node=session.node)
    return session

"""Who may scrape: an operator's key gets everything, a team's key the series of its own tenant."""

from typing import Any

from django.http import HttpResponse
from drf_spectacular.utils import extend_schema
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.request import Request

from cacheapi.base.access import KeyAuthentication, Teams, caller
from cacheapi.base.queries import StrictQuery
from cacheapi.base.throttles import SlowDown
from metrics.scrape import Scrape


class AnyAccepted(BaseContentNegotiation):
    """Ignores Accept: every version of Prometheus reads the one format; refusals are JSON."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: Any = None) -> Any:
        return renderers[0], renderers[0].media_type


@extend_schema(exclude=True)
class MetricsView(SlowDown, StrictQuery):
    """Keys only: Prometheus has no browser session."""

    authentication_classes = (KeyAuthentication,)
    permission_classes = (Teams,)
    content_negotiation_class = AnyAccepted

    def get(self, request: Request) -> HttpResponse:
        text = generate_latest(Scrape(caller(request)))
        return HttpResponse(text, content_type=CONTENT_TYPE_PLAIN_0_0_4)

"""/api/v1/schema: the OpenAPI document."""

from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import get_conditional_response
from drf_spectacular.utils import extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request

from cacheapi.base import openapi
from cacheapi.base.queries import StrictQuery


class SchemaView(StrictQuery):
    """The description of both APIs, for anybody."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponseBase:
        raw, etag = openapi.document()
        response = HttpResponse(raw, content_type="application/json")
        response["ETag"], response["Cache-Control"] = etag, "max-age=300"
        return get_conditional_response(request._request, etag=etag, response=response) or response

"""Plotly.js out of the Python package `plotly`: 5 MB that are neither committed nor fetched from
another host. Sent compressed, once per browser and version."""

import gzip
from functools import cache
from importlib.metadata import version
from importlib.resources import files

from django.http import HttpRequest, HttpResponse
from django.utils.cache import patch_vary_headers
from django.views.decorators.http import require_safe

PLOTLY_VERSION = version("plotly")  # in the address, so that browsers may keep the file for good


@require_safe
def plotly(request: HttpRequest) -> HttpResponse:
    is_packed = "gzip" in request.headers.get("Accept-Encoding", "")
    response = HttpResponse(_packed() if is_packed else _plain(), content_type="text/javascript")
    if is_packed:
        response.headers["Content-Encoding"] = "gzip"
    patch_vary_headers(response, ["Accept-Encoding"])
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return response


@cache
def _packed() -> bytes:
    return gzip.compress(_plain(), compresslevel=6)


def _plain() -> bytes:
    return files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()

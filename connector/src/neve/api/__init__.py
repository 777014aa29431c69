"""The platform's REST API for Python programs, synchronous and asynchronous.

    with Neve("https://cache.example", os.environ["NEVE_API_KEY"]) as neve:
        for context in neve.contexts.list(label="agent"):
            neve.contexts.pin(context.id, for_="2h")

Needs httpx: pip install 'neve[api]'. The data path of nodes imports nothing of it.
"""

try:
    import httpx as _httpx  # noqa: F401
except ImportError as error:
    raise ImportError("neve.api needs httpx: pip install 'neve[api]'") from error

from neve.api import models
from neve.api._async.client import AsyncNeve
from neve.api._async.paging import AsyncPages
from neve.api._sync.client import Neve
from neve.api._sync.paging import Pages
from neve.api.errors import ApiProblem
from neve.api.models import Event
from neve.api.page import Page
from neve.api.records import Record
from neve.api.values import OMIT, Duration, Moment

__all__ = [
    "OMIT",
    "ApiProblem",
    "AsyncNeve",
    "AsyncPages",
    "Duration",
    "Event",
    "Moment",
    "Neve",
    "Page",
    "Pages",
    "Record",
    "models",
]

"""`neve router`: an OpenAI-compatible proxy before decode nodes and prefill pools.

For those without a gateway. It stands on `neve.gateway`, which the plug-in for LiteLLM shares:
contexts, the choice of a decode node, look-ups, prefill pools. Needs `pip install 'neve[router]'`.

| module | has |
|---|---|
| `options` | the configuration, checked before anything starts |
| `start` | what is asked of Neve and the engines at the start |
| `router` | one request's way: tokens, look-up, pool, decode node |
| `upstream` | requests to engines, whose answers pass unharmed |
| `app` | the ASGI application: routes, cancellation |
| `metrics`, `observing` | /metrics, the log |
"""

try:
    import httpx as _http  # noqa: F401
    import prometheus_client as _metrics  # noqa: F401
    import starlette as _web  # noqa: F401
    import uvicorn as _server  # noqa: F401
except ImportError as error:
    raise ImportError(f"{error.name} is missing: pip install 'neve[router]'") from error

from neve.router.app import checked, serve
from neve.router.observing import log_to_stderr
from neve.router.options import RouterOptions, read_options

__all__ = ["RouterOptions", "checked", "log_to_stderr", "read_options", "serve"]

"""ASGI: HTTP to Django, WebSockets to the dashboard's consumers, for signed-in people only."""

import os
import sys
from importlib import import_module
from pathlib import Path

for source_root in (Path(__file__).resolve().parents[2], Path(__file__).resolve().parents[1]):
    if str(source_root) not in sys.path:
        sys.path.append(str(source_root))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
# A node waits 3 s for an answer: without SQLite's write lock by then, it must try again.
os.environ.setdefault("NEVE_DATABASE_WAIT_S", "2")
# A heartbeat gives up Python's lock at each statement. At the default of 5 ms it would wait as long
# each time for a thread that renders a page, and hold SQLite's write lock meanwhile.
sys.setswitchinterval(0.0005)

from base import tracing  # noqa: E402

tracing.start("neve-web")  # before Django reads its middleware

import django  # noqa: E402

django.setup(set_prefix=False)  # before anything that imports models

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402

from base.counting import PROCESS  # noqa: E402
from controlplane.front import Front  # noqa: E402
from controlplane.handler import PooledHandler  # noqa: E402
from controlplane.observing import ObservedSockets  # noqa: E402

# By name, since nothing in `platform/` imports what stands above it.
routes = import_module("dashboard.routing").websocket_urlpatterns

application = Front(
    ProtocolTypeRouter(
        {
            "http": PooledHandler(),
            "websocket": ObservedSockets(
                AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(routes)))
            ),
        }
    )
)

PROCESS.start()

"""WebSocket addresses. `controlplane.asgi` puts sessions and the origin check before them."""

from django.urls import path

from dashboard.consumers import LiveConsumer, QuietConsumer

# Django's `path` is typed for views; Channels lets it route ASGI applications.
websocket_urlpatterns = [
    path("ws/usage", LiveConsumer.as_asgi()),  # type: ignore[arg-type]
    path("ws/changes", QuietConsumer.as_asgi()),  # type: ignore[arg-type]
]

"""WebSocket addresses. `controlplane.asgi` puts sessions and the origin check before them."""

from django.urls import path

from dashboard.consumers import UsageConsumer

websocket_urlpatterns = [path("ws/usage", UsageConsumer.as_asgi())]

"""WebSocket clients of the dashboard without a browser."""

import json
from typing import Any

from asgiref.testing import ApplicationCommunicator
from channels.routing import URLRouter

from dashboard.routing import websocket_urlpatterns


class Socket(ApplicationCommunicator):
    """The browser's end of a WebSocket. (`channels.testing` needs another server installed.)"""

    @classmethod
    async def open(cls, user: Any, path: str = "ws/usage") -> "Socket":
        scope = {"type": "websocket", "path": f"/{path}", "headers": [], "user": user}
        socket = cls(URLRouter(websocket_urlpatterns), scope)
        await socket.send_input({"type": "websocket.connect"})
        assert (await socket.receive_output(30))["type"] == "websocket.accept"
        return socket

    async def hear(self) -> Any:
        return json.loads((await self.receive_output(30))["text"])

    async def leave(self) -> None:
        await self.send_input({"type": "websocket.disconnect", "code": 1000})
        await self.wait(30)

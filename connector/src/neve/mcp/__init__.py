"""Contexts as tools for agents, over the Model Context Protocol: `neve mcp`.

Needs the official SDK: pip install 'neve[mcp]'.
"""

try:
    import mcp as _sdk  # noqa: F401
except ImportError as error:
    raise ImportError("neve.mcp needs the MCP SDK: pip install 'neve[mcp]'") from error

from neve.mcp.callers import CallersKey, Credentials, OwnKey
from neve.mcp.http import http_app
from neve.mcp.server import make_server

__all__ = ["CallersKey", "Credentials", "OwnKey", "http_app", "make_server"]

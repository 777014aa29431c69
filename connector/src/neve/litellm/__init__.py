"""Neve's plug-in for the proxy of LiteLLM: `callbacks: ["neve.litellm.plugin"]`.

Routes requests to the node that holds their prefix, names their contexts, and reports what was
reused. docs/litellm.md says how to configure it; what it shares with other gateways is
`neve.gateway`.

| module | has |
|---|---|
| `settings` | `callback_settings: neve:` of the proxy's configuration |
| `deployments` | deployments of LiteLLM as nodes |
| `pools` | prefill pools of a tenant |
| `reports` | response headers, and metadata of spend logs |
| `callback` | the hooks that LiteLLM calls |
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neve.litellm.callback import NevePlugin

    plugin: NevePlugin

__all__ = ["plugin"]


def __getattr__(name: str) -> Any:
    """`plugin`, made on first use: LiteLLM has read its configuration by then. Raises `Misuse`,
    which stops the proxy's start, if a setting is wrong."""
    if name != "plugin":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import litellm
    from neve.litellm.callback import NevePlugin
    from neve.litellm.settings import read_settings

    made = NevePlugin(read_settings(litellm.callback_settings.get("neve")))
    globals()["plugin"] = made
    return made

"""vLLM's adapter: `NeveConnector` and `NeveTier`, found by the entry point `vllm.general_plugins`.

Importing this package imports neither vllm nor torch; `connector`, `tier`, `metrics`, `built` and
`router_events` do. Code that needs nothing of vLLM belongs in `neve.engine`.
"""

from typing import Any

_MODULE = "neve.vllm.connector"


def register() -> None:
    """Registers `"kv_connector": "NeveConnector"`, and `"type": "neve"` as a secondary tier of
    vLLM's own offloading. May be called more than once."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if "NeveConnector" not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector("NeveConnector", _MODULE, "NeveConnector")
    try:
        from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
    except ImportError:  # a build without it still has the connector
        return
    if "neve" not in SecondaryTierFactory._registry:
        SecondaryTierFactory.register_tier("neve", "neve.vllm.tier", "NeveTier")


def __getattr__(name: str) -> Any:
    # For `kv_connector_module_path: "neve.vllm"`, where plugins are switched off.
    if name == "NeveConnector":
        from neve.vllm.connector import NeveConnector

        return NeveConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

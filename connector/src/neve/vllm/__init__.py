"""vLLM nodes: `NeveConnector`, registered by the entry point `vllm.general_plugins`.

Importing this package imports neither vllm nor torch. Only `connector` and `tensors` do; the other
modules hold the engine-agnostic part: chains, plans of loads and saves, transfers.
"""

from typing import Any

_MODULE = "neve.vllm.connector"


def register() -> None:
    """Makes `"kv_connector": "NeveConnector"` known to vLLM. May be called more than once."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if "NeveConnector" not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector("NeveConnector", _MODULE, "NeveConnector")


def __getattr__(name: str) -> Any:
    # For `kv_connector_module_path: "neve.vllm"`, where plugins are switched off.
    if name == "NeveConnector":
        from neve.vllm.connector import NeveConnector

        return NeveConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

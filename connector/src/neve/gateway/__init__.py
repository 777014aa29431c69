"""What gateways and routers in front of engines have in common: contexts, nodes, the choice.

    store = Store(endpoint, api_key)                    # one tenant's key
    gateway = Gateway(store)                            # one tenant
    nodes = [Node("gpu-01", "http://gpu-01:8000", space=3), Node("gpu-02", ...)]
    route = await gateway.route(headers, body, nodes)   # never raises, never waits for long
    ... send the request to route.node, with route.engine_params(body) as its kv_transfer_params
    gateway.end(route)                                  # failed=True: the node did not answer

A gateway is one tenant's: its key names contexts and keys the hashes of prefixes, so tenants of
one process learn nothing of each other. Prompts are hashed, sent to Neve's `lookup` and forgotten;
they are neither kept nor logged.

| module | has |
|---|---|
| `naming` | which context a request belongs to, by headers and body |
| `prompts` | a request's prompt, and its prefixes as keyed hashes |
| `holders` | which node computed or loaded a prefix last, and names of shared prefixes |
| `nodes` | nodes, their requests in flight, their health |
| `choice` | the rule: the holder, unless its load is above the least by a margin. Pure |
| `store` | Neve's `lookup` and engines, with deadline and breaker |
| `gateway` | all of it for one tenant |
| `pools` | prefill pools: options, speeds, queues |
| `tokens` | token ids of prompts that a pool may compute |
| `prefill` | which prompts a pool computes, and the hand-over of the blocks (`Prefills`) |

Whoever routes brings the HTTP server: no web framework, no LiteLLM and no engine is imported here.
With prefill pools, a route's `found` and node go to `Prefills.prepared`, which see.
"""

from neve.gateway.choice import Choice, Margin, choose
from neve.gateway.gateway import Gateway, Route
from neve.gateway.naming import ContextName, name_in
from neve.gateway.nodes import Node, Nodes
from neve.gateway.prompts import Prompt, read_prompt
from neve.gateway.store import Engine, Found, Store

__all__ = [
    "Choice",
    "ContextName",
    "Engine",
    "Found",
    "Gateway",
    "Margin",
    "Node",
    "Nodes",
    "Prompt",
    "Route",
    "Store",
    "choose",
    "name_in",
    "read_prompt",
]

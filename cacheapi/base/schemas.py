"""JSON schemas that several resources share."""

from itertools import combinations
from typing import Any

from neve.formats.parts import PartKind

PART_GROUP = {
    "type": "object",
    "description": "A KV group of the engine: of each chunk it has one part.",
    "properties": {
        "kind": {"type": "string", "enum": [str(kind) for kind in PartKind]},
        "span_tokens": {
            "type": "integer",
            "nullable": True,
            "minimum": 1,
            "maximum": 2**31 - 1,
            "description": "tokens of a window, the reader's own included, or of a local chunk",
        },
        "block_tokens": {
            "type": "integer",
            "minimum": 1,
            "maximum": 2**31 - 1,
            "description": "tokens of one of the engine's blocks",
        },
        "bytes_per_token": {
            "type": "integer",
            "minimum": 0,
            "maximum": 2**31 - 1,
            "description": "of KV, all layers; 0 for a state",
        },
        "state_bytes": {
            "type": "integer",
            "minimum": 0,
            "maximum": 2**31 - 1,
            "description": "of one state; else 0",
        },
    },
    "required": ["kind", "span_tokens", "block_tokens", "bytes_per_token", "state_bytes"],
    "additionalProperties": False,
}


def exactly_one(*names: str) -> dict[str, Any]:
    """For a body's schema. Not `oneOf`: generated clients make a body without members of that."""
    pairs = [{"required": list(pair)} for pair in combinations(names, 2)]
    none = {"not": {"anyOf": [{"required": [name]} for name in names]}}
    return {"minProperties": 1, "not": {"anyOf": [none, *pairs]}}

"""JSON schemas that several resources share."""

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

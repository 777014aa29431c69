"""Where two KV layouts differ, and what makes them equal: for handshakes and for people.

`FIXES` is the one place that names what to set. Words of vLLM, the engine that there is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from base.problems import Problem
from catalog.models import Space
from neve.formats.space import EXACT

# Both halves of `revision`, as `neve.vllm.identity` writes it.
WEIGHTS, SETTINGS = "revision.weights", "revision.settings"
_OTHER_RANK = "Nothing: each rank has a space of its own. Compare the spaces of equal ranks."
FIXES = {
    "tenant": "Nothing: tenants never share KV.",
    "codec": "Set the connector option `codec` to the same value on both, or leave it out on both: "
    "KV with loss and exact KV never meet. The tenant's policy lists the models that may be stored "
    "with loss (`lossy_codecs`).",
    "model": "Serve the same model: `--model`, or a folder of the same name.",
    "revision": "Serve the same weights with the same settings of the engine.",
    WEIGHTS: "Serve the same weights: `--revision`, or the same files; the option `revision` where "
    "the engine cannot tell its weights.",
    SETTINGS: "Make all settings equal that decide KV, such as `--quantization`, "
    "`--max-model-len`, `--hf-overrides`, `--attention-backend`, the drafter, or vLLM's release.",
    "dtype": "Set `--dtype` to the same value.",
    "kv_dtype": "Set `--kv-cache-dtype` to the same value.",
    "layout": "Use the same attention backend (`--attention-backend`), the same connector options "
    "`layout` and `cross_layer_blocks`, and equal GPUs.",
    "layout_version": "Run the same release of Neve on both nodes.",
    "engine_block_tokens": "Set `--block-size` to the same value.",
    "bytes_per_token": "Make model, `--kv-cache-dtype` and the sizes of parallelism equal: the "
    "bytes follow from them.",
    "tp_size": "Set `--tensor-parallel-size` to the same value, or the connector option "
    '`"layout": "canonical"` on all nodes.',
    "tp_rank": _OTHER_RANK,
    "pp_size": "Set `--pipeline-parallel-size` to the same value.",
    "pp_rank": _OTHER_RANK,
    "chunk_tokens": "Set the connector option `max_chunk_tokens` to the same value.",
    "max_chunk_tokens": "Set the connector option `max_chunk_tokens` at least so high.",
    "groups": "Make the KV cache groups equal: same model, `--block-size` and "
    "`--disable-hybrid-kv-cache-manager`, and the connector option `state_every_tokens`.",
    "selective_weights": "Serve the same weights: rows of embeddings or experts differ.",
}


@dataclass(frozen=True)
class Difference:
    """`this` and `other`: JSON values; None where the layout does not have the field."""

    field: str
    this: Any
    other: Any
    fix: str


def clash(field: str, *, expected: Any, got: Any, owner: str = "space", fix: str = "") -> Problem:
    """`owner`: of the expected layout, for the message. `fix`: in place of that of `FIXES`."""
    fix = fix or FIXES.get(field, "")
    return Problem(
        "fingerprint-clash",
        f"{field}: the {owner} has {expected!r}, this node has {got!r}.{f' {fix}' if fix else ''}",
        field=field,
        expected=expected,
        got=got,
    )


@dataclass(frozen=True)
class Compared(Difference):
    """A field of both layouts, whether it differs or not."""

    @property
    def differs(self) -> bool:
        return bool(self.this != self.other)


_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,39}", re.ASCII)
# What sets a field of the identity in vLLM.
_FLAGS = {
    "dtype": "--dtype",
    "kv_dtype": "--kv-cache-dtype",
    "tp_size": "--tensor-parallel-size",
    "pp_size": "--pipeline-parallel-size",
    "engine_block_tokens": "--block-size",
}


def flags_to_be(found: Sequence[Difference]) -> str:
    """Flags of vLLM that give `other` where it differs, as far as flags can. People paste them
    into a shell, and nodes write what they like: other values than plain words are left out."""
    words = []
    for each in found:
        value = str(each.other).partition(":")[0].removeprefix("torch.")
        if each.field in _FLAGS and _PLAIN.fullmatch(value):
            words.append(f"{_FLAGS[each.field]} {value}")
    return " ".join(words)


def differences(this: Space, other: Space) -> list[Difference]:
    """In the order of `FIXES`; empty: engines of both would share KV."""
    return [each for each in compared(this, other) if each.differs]


def compared(this: Space, other: Space) -> list[Compared]:
    """All fields, in the order of `FIXES`."""
    ours, theirs = _layout(this), _layout(other)
    if WEIGHTS in ours and WEIGHTS in theirs:
        ours.pop("revision", None), theirs.pop("revision", None)
    else:
        for layout in (ours, theirs):
            layout.pop(WEIGHTS, None), layout.pop(SETTINGS, None)
    names = sorted({**ours, **theirs}, key=lambda name: (*FIXES, name).index(name))
    return [Compared(name, ours.get(name), theirs.get(name), FIXES.get(name, "")) for name in names]


def _layout(space: Space) -> dict[str, Any]:
    found = {
        "tenant": space.tenant.slug,
        "codec": EXACT,  # older nodes do not name it
        **space.identity,
        "chunk_tokens": space.chunk_tokens,
        "groups": space.groups,
        "selective_weights": space.selective_weights or None,
    }
    weights, mark, settings = str(found.get("revision", "")).partition(" settings:")
    return {**found, WEIGHTS: weights, SETTINGS: settings} if mark else found

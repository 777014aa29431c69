"""Which rank holds which part of a block's KV.

Plans speak of columns: for each chunk one id, one location a column. With the layout `rank` a
column is one rank's KV (MLA: one pipeline stage's, the same on all TP ranks), and the fingerprint
holds TP size and rank. With `canonical` it is one KV head's, and the fingerprint holds that
instead: what was stored under one TP size is loaded under any other.
"""

from dataclasses import dataclass
from typing import Final

from neve.errors import Misuse

RANK: Final = "rank"
CANONICAL: Final = "canonical"


@dataclass(frozen=True)
class Share:
    """One rank's part of each chunk.

    `columns`: those it holds, of the `shards` columns of its space. Ranks that hold the same
    columns save by turns: this rank saves every `turns`-th chunk, from number `turn` on. Each rank
    of a space has its own session; `seat` tells them apart.
    """

    columns: tuple[int, ...]
    turn: int = 0
    turns: int = 1
    seat: int = 0
    shards: int = 1


def shards_of(layout: str, *, kv_heads: int, latent: bool) -> int:
    """Columns of one space: the model's KV heads in the canonical layout, otherwise 1."""
    return kv_heads if layout == CANONICAL and not latent else 1


def share_of(
    layout: str, *, tp_rank: int, tp_size: int, pp_rank: int, kv_heads: int, latent: bool
) -> Share:
    """The share of one rank of an engine; `kv_heads` are those of the whole model.

    Every rank holds `kv_heads / tp_size` neighbouring heads or, with fewer heads than ranks,
    `tp_size / kv_heads` neighbouring ranks hold the same head, as in vLLM.

    Raises:
        Misuse: neither number divides the other; use the layout `rank`.
    """
    if latent:
        return Share((pp_rank,), turn=tp_rank, turns=tp_size, seat=tp_rank)
    if layout == RANK:
        return Share((pp_rank * tp_size + tp_rank,))
    first = pp_rank * kv_heads
    if kv_heads % tp_size == 0:
        heads = kv_heads // tp_size
        start = first + tp_rank * heads
        columns = tuple(range(start, start + heads))
        return Share(columns, seat=tp_rank, shards=kv_heads)
    if tp_size % kv_heads == 0:
        same = tp_size // kv_heads
        return Share(
            (first + tp_rank // same,),
            turn=tp_rank % same,
            turns=same,
            seat=tp_rank,
            shards=kv_heads,
        )
    raise Misuse(
        f"{kv_heads} KV heads and {tp_size} TP ranks don't divide: use the layout '{RANK}'",
        field="layout",
    )

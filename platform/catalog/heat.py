"""How warm segments are: in how many minutes a node asked for their addresses, halved with time.

Nodes keep an address for some minutes, so this counts loads of whole contexts, not of blocks.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from django.utils import timezone

from catalog.models import Segment

HALF_LIFE: Final = timedelta(hours=6)
NOTED: Final = timedelta(minutes=1)  # requests within it count once


def heat_at(row: Segment, now: datetime) -> float:
    if row.read_at is None:
        return 0.0
    return float(row.heat * 0.5 ** (max(now - row.read_at, timedelta()) / HALF_LIFE))


def note_read(rows: Iterable[Segment]) -> int:
    """Notes that a node asked for their addresses. Returns how many rows it wrote."""
    now = timezone.now()
    # A time ahead was written before the clock was set back.
    due = [row for row in rows if row.read_at is None or abs(now - row.read_at) >= NOTED]
    for row in due:
        row.heat, row.read_at = heat_at(row, now) + 1, now
    return int(Segment.objects.bulk_update(due, ["heat", "read_at"], batch_size=200))

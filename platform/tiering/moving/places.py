"""Where a segment is: every change of its store is a compare-and-set of its row here."""

from botocore.exceptions import BotoCoreError, ClientError
from django.db import transaction
from django.utils import timezone

from base import log_events
from catalog.models import Segment, SegmentCopy
from catalog.stores import Stores
from neve.errors import Corrupt, Unavailable
from tiering.objects import footer_of_segment

_State = SegmentCopy.State


def flip(row: Segment, copy: SegmentCopy) -> bool:
    """The segment's place becomes that of `copy`, and the copy's that of the segment, which leaves.

    False, and nothing changed: the segment or its copy changed since they were read.
    """
    new, old, now = copy.store_id, row.store_id, timezone.now()
    with transaction.atomic():
        mine = Segment.objects.filter(pk=row.pk, store=old, state=Segment.State.LIVE)
        if not mine.update(store=new, moved_at=now):
            return False
        swapped = SegmentCopy.objects.filter(pk=copy.pk, state=copy.state, store=new)
        if not swapped.update(
            store=old, target=new, state=_State.LEAVING, since=now, leased_until=None
        ):
            transaction.set_rollback(True)
            return False
    row.store_id = new
    log_events.SEGMENT_MOVED.log(segment=row.pk, source=old or 0, target=new or 0)
    return True


def take_copy(row: Segment, stores: Stores) -> bool:
    """Makes a whole copy the segment's place, if its own object is missing or damaged.

    False: there is none. In the tenant's scope.
    """
    copies = SegmentCopy.objects.filter(segment=row, state__in=SegmentCopy.READABLE)
    for copy in copies:
        try:
            found = stores.bucket(copy.store_id).object(row.object_key)
            footer_of_segment(row, found)
        except (BotoCoreError, ClientError, Corrupt, Unavailable):
            continue
        if flip(row, copy):
            Segment.objects.filter(pk=row.pk).update(
                damaged_at=None, readable_bytes=None, checked_at=timezone.now()
            )
            return True
    return False

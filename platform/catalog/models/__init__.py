"""Spaces, node sessions, contexts, segments, usage, jobs. Never a row per block."""

from catalog.models.bulk import BulkAction
from catalog.models.contexts import ID_BYTES, Context, Pin
from catalog.models.families import Family, FamilyMember
from catalog.models.jobs import Job
from catalog.models.requests import KeptRequest
from catalog.models.segments import Round, Segment, Stray
from catalog.models.slices import Slice, SlicedSession, SliceState
from catalog.models.spaces import NodeSession, Space
from catalog.models.stores import MoveRule, SegmentCopy, Store
from catalog.models.usage import GAUGES, RESOLUTIONS_S, TIER_COUNTERS, UsageRollup

__all__ = [
    "GAUGES",
    "ID_BYTES",
    "RESOLUTIONS_S",
    "TIER_COUNTERS",
    "BulkAction",
    "Context",
    "Family",
    "FamilyMember",
    "Job",
    "KeptRequest",
    "MoveRule",
    "NodeSession",
    "Pin",
    "Round",
    "Segment",
    "SegmentCopy",
    "Slice",
    "SliceState",
    "SlicedSession",
    "Space",
    "Store",
    "Stray",
    "UsageRollup",
]

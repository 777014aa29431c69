"""Samples of tenants' traffic in S3: which tenants have some, and a window of them."""

from datetime import datetime

from neve.planner.simulate.samples import Samples, Totals


def read(tenant_id: int, start: datetime, end: datetime, *, space_id: int = 0) -> Samples:
    """The samples of a window, of one space or (0) of all. Without any: no requests."""
    return Samples(0, (), Totals())


def tenants_with_samples() -> list[int]:
    """Active tenants of which samples are stored. Cheap: for a tick."""
    return []


def is_enabled(tenant_id: int) -> bool:
    """Whether nodes of the tenant are asked for samples."""
    return True

"""What people type into forms, for pages; `neve.typed` reads it."""

__all__ = (
    *("MOST_BYTES", "MOST_S", "NO_LIMIT", "parse_moment", "parse_size", "parse_size_or_none"),
    *("parse_time", "size_typed", "time_typed"),
)

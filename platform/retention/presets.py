"""Named policies to begin with: values that `retention.services.set_policy` takes.

Nothing stores the name of a preset; a policy is its values.
"""

from dataclasses import dataclass
from typing import Any, Final

_HOUR, _DAY = 3_600, 86_400


@dataclass(frozen=True)
class Preset:
    """`values`: fields of RetentionPolicy; the others keep their defaults."""

    name: str
    label: str
    words: str
    values: dict[str, Any]


PRESETS: Final = (
    Preset("keep", "Keep until full", "flushed at once; the longest unread leave a full tier", {}),
    Preset(
        "chat",
        "Chats",
        "idle ones leave Valkey after 2 h, and all end after 7 d",
        {"hot_idle_s": 2 * _HOUR, "cold_ttl_s": 7 * _DAY},
    ),
    Preset(
        "documents",
        "Documents",
        "idle ones leave Valkey after 6 h and rest in S3 for 90 d",
        {"hot_idle_s": 6 * _HOUR, "cold_ttl_s": 90 * _DAY, "priority": 6},
    ),
    Preset(
        "private",
        "Short-lived",
        "in memory only, and gone after a day",
        {"flush_mode": "never", "hot_idle_s": _HOUR, "max_age_s": _DAY},
    ),
)


BY_NAME: Final = {each.name: each for each in PRESETS}

"""Labels of contexts: names and texts that teams find and count contexts by.

The platform and requests' `kv_transfer_params` have the same bounds.
"""

import re
from typing import Final

MOST_LABELS: Final = 16
MOST_NAME_CHARACTERS: Final = 63
MOST_VALUE_CHARACTERS: Final = 200
# A letter first: databases take a number for an index of an array.
_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_name(text: str) -> bool:
    """1 to 63 letters, digits and ._/-, a letter first, a letter or digit last."""
    return _NAME.fullmatch(text) is not None


def is_value(text: str) -> bool:
    """At most 200 characters, without control characters."""
    return len(text) <= MOST_VALUE_CHARACTERS and not _CONTROL.search(text)

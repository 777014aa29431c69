"""Reads the list of models that may be stored with loss. Pure."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Final

from neve.formats.space import EXACT

LOSSY: Final = ("int8", "fp8", "int4")  # those of neve.engine.device, which loads torch


def read_list(text: str) -> Iterator[tuple[str, str]]:
    """Patterns of models with their codecs, from "smollm*=int8, *=fp8". Raises ValueError."""
    for entry in filter(None, (part.strip() for part in text.split(","))):
        pattern, _, codec = (word.strip() for word in entry.rpartition("="))
        if not pattern or codec not in LOSSY:
            raise ValueError(f"{entry!r:.80}: need MODEL={'|'.join(LOSSY)}, such as smollm*=int8")
        yield pattern, codec


def allowed(text: str, model: str) -> str:
    """The codec that the list gives to a model: the first pattern counts. EXACT: none."""
    for pattern, codec in read_list(text):
        if fnmatchcase(model, pattern.replace("[", "[[]")):
            return codec
    return EXACT

"""A static files finder for Plotly.js, which the Python package `plotly` carries.

So the 5 MB file is neither committed nor fetched from another host.
"""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.contrib.staticfiles.finders import BaseFinder
from django.core.files.storage import FileSystemStorage

URL_PATH = "plotly/plotly.min.js"


def _package_data() -> Path:
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the Python package plotly is not installed: pip install plotly")
    return Path(spec.origin).parent / "package_data"


class PlotlyFinder(BaseFinder):
    """Finds exactly one file: `plotly/plotly.min.js`."""

    def find(self, path: str, find_all: bool = False, **_: Any) -> str | list[str]:
        found = [str(_package_data() / "plotly.min.js")] if path == URL_PATH else []
        return found if find_all else (found[0] if found else [])

    def list(self, ignore_patterns: Iterable[str] | None) -> Iterator[tuple[str, Any]]:
        storage = FileSystemStorage(location=_package_data())
        storage.prefix = "plotly"  # type: ignore[attr-defined]  # as collectstatic expects it
        yield "plotly.min.js", storage

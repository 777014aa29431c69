"""Pages that are made from tables in the code are as the tables are now."""

import pytest

from deploy.reference import pages


@pytest.mark.parametrize("name", ["events.md", "metrics.md"])
def test_the_page_is_current(name):
    (path,) = [path for path in pages() if path.name == name]
    assert path.read_text() == pages()[path], "make reference"

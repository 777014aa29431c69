"""Every page in a window of 390 px."""

import pytest

from support.every_page import OPERATORS, SHARED, fill, walk

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", autouse=True)
def filled(control_plane):
    fill(control_plane)


def test_every_page_is_readable_on_a_phone(open_page, control_plane):
    walk(open_page, control_plane, width=390, least=SHARED | OPERATORS)

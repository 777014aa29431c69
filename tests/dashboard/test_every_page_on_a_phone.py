"""Every page in a window of 390 px."""

import pytest

from support.every_page import OPERATORS, SHARED, incident, walk

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", autouse=True)
def filled(control_plane):
    with incident(control_plane):
        yield


def test_every_page_is_readable_on_a_phone(open_page, control_plane):
    walk(open_page, control_plane, width=390, least=SHARED | OPERATORS)

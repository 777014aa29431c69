"""Every page at 1440 px. The phone has a file of its own: two workers share the walks."""

import pytest

from support.every_page import OPERATORS, SHARED, fill, walk

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", autouse=True)
def filled(control_plane):
    fill(control_plane)


def test_every_page_is_readable_at_a_desk(open_page, control_plane):
    walk(open_page, control_plane, width=1440, least=SHARED | OPERATORS)


def test_every_page_of_a_member_is_readable(open_page, control_plane, member):
    walk(open_page, control_plane, width=1440, person=member, least=SHARED)

"""The attack script's short form, with every process that is there in production."""

import time
from threading import Event

import pytest

from attacks.arena import Arena
from attacks.hostile import ATTACKS
from support.servers import wait_until

pytestmark = pytest.mark.integration


def test_a_tenant_that_fills_the_server_is_stopped_and_its_neighbour_goes_on(tmp_path, s3):
    with Arena(tmp_path, s3) as arena:

        def goes_on(neighbour):
            wait_until(lambda: bool(arena.cut_off()[0]), what="cut off")
            refused, served = neighbour.refused, neighbour.served
            deadline = time.monotonic() + 60
            while neighbour.served < served + 40:  # in a row
                assert time.monotonic() < deadline, f"refused: {neighbour.why}"
                if neighbour.refused > refused:
                    refused, served = neighbour.refused, neighbour.served
                time.sleep(0.05)

        attack = ATTACKS["SET of 1 MiB without an end"]
        _, hostile = arena.fight(attack, Event(), until=goes_on)
        with arena.platform.hot.client() as admin:
            junk = f"{{t{hostile.tenant_id}.*}}:b:1:junk*"
            wait_until(lambda: not list(admin.scan_iter(match=junk)), what="removed junk")
        assert "MiB in the hot tier" in arena.cut_off()[1]

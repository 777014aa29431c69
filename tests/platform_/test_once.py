from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from base.once import once


def test_threads_that_come_at_once_get_one_object_though_each_makes_one():
    made, all_make = [], Barrier(3)

    @once
    def client(name: str) -> object:
        all_make.wait(30)
        made.append(object())
        return made[-1]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(client, ["a"] * 3))
    assert len(made) == 3
    assert {id(each) for each in found} == {id(client("a"))}


def test_each_argument_has_its_own_and_what_failed_is_made_anew():
    tries = []

    @once
    def client(name: str) -> object:
        tries.append(name)
        if len(tries) == 1:
            raise ConnectionError
        return object()

    with pytest.raises(ConnectionError):
        client("a")
    assert client("a") is client("a") is not client("b")
    assert tries == ["a", "a", "b"]
    client.cache_clear()
    client("a")
    assert tries == ["a", "a", "b", "a"]

"""What an object of LMCache is bound to, and the options of the adapter; without LMCache."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import Misuse
from neve.lmcache.keys import Layout, ref_of
from neve.lmcache.settings import TAKEN, identify, read_options

GIVEN = {"endpoint": "http://127.0.0.1:8000", "api_key": "neve_test_secret", "revision": "r1"}


@dataclass(frozen=True)
class Key:
    """As lmcache's `ObjectKey`."""

    chunk_hash: bytes = bytes(32)
    model_name: str = "m"
    kv_rank: int = 1 << 24 | 1 << 8
    object_group_id: int = 0
    cache_salt: str = ""


class Shape(tuple):
    """As torch.Size."""

    def numel(self):
        return math.prod(self)


@dataclass(frozen=True)
class Dtype:
    """As torch.dtype."""

    name: str
    itemsize: int

    def __repr__(self):
        return f"torch.{self.name}"


BF16, F16, BYTES = Dtype("bfloat16", 2), Dtype("float16", 2), Dtype("uint8", 1)
LAYOUT = Layout.of([Shape((2, 16, 8))], [BF16])

keys = st.builds(
    Key,
    chunk_hash=st.binary(min_size=16, max_size=33),
    model_name=st.text(max_size=4),
    kv_rank=st.integers(0, 2**32),
    object_group_id=st.integers(0, 300),
    cache_salt=st.text(max_size=4),
)
layouts = st.builds(
    lambda pairs: Layout.of([Shape(shape) for shape, _ in pairs], [dtype for _, dtype in pairs]),
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 9), min_size=1, max_size=3),
            st.sampled_from([BF16, F16, BYTES]),
        ),
        min_size=1,
        max_size=3,
    ),
)


@given(keys, layouts, keys, layouts)
def test_two_objects_have_one_id_only_if_they_are_one(key, layout, other, other_layout):
    same = (key, layout) == (other, other_layout)
    assert (ref_of(key, layout, 256) == ref_of(other, other_layout, 256)) == same


def test_the_borders_of_fields_are_part_of_the_key():
    shifted = replace(Key(), model_name="m" + "16", kv_rank=int(str(Key().kv_rank)[2:]))
    assert Key().model_name + str(Key().kv_rank) == "m" + str(Key().kv_rank)
    assert ref_of(Key(), LAYOUT, 256).key != ref_of(shifted, LAYOUT, 256).key


def test_a_layout_says_its_size_and_whether_it_is_a_row_of_bytes():
    assert LAYOUT.size_bytes == 512
    assert not LAYOUT.is_raw
    assert Layout.of([Shape((100,))], [BYTES]).is_raw
    assert not Layout.of([Shape((100,)), Shape((4,))], [BYTES, BYTES]).is_raw
    assert Layout.of([], []) is None
    assert Layout.of(None, None) is None


@pytest.mark.parametrize(("world", "tokens"), [(0, 256), (1, 256), (4, 64)])
def test_a_rank_counts_for_its_share_of_a_chunks_tokens(world, tokens):
    assert ref_of(Key(kv_rank=world << 24), LAYOUT, 256).tokens == tokens


def test_the_options_are_those_of_a_node():
    options = read_options(GIVEN | {"chunk_tokens": 512, "near_stores": "a,b"})
    assert options.max_chunk_tokens == 512
    assert options.near_stores == ("a", "b")
    assert read_options(GIVEN).load_deadline_s == 5
    environ = {"NEVE_ENDPOINT": GIVEN["endpoint"], "NEVE_API_KEY": GIVEN["api_key"]}
    assert read_options({"revision": "r1"}, environ) == read_options(GIVEN)


@pytest.mark.parametrize("name", ["space", "family", "codec", "load", "layout", "canary"])
def test_options_that_mean_nothing_here_are_refused(name):
    with pytest.raises(Misuse, match="unknown option in adapter_params"):
        read_options(GIVEN | {name: "x"})


def test_a_model_is_a_space_and_so_is_each_revision_of_it():
    plain = identify("m", read_options(GIVEN))
    assert identify("m", read_options(GIVEN)) == plain
    assert identify("n", read_options(GIVEN)) != plain
    assert identify("m", read_options(GIVEN | {"revision": "r2"})) != plain
    with pytest.raises(Misuse, match=r"revision: name the weights and .* fp8_e5m2"):
        read_options({name: GIVEN[name] for name in ("endpoint", "api_key")})
    with pytest.raises(Misuse, match="model"):
        identify("", read_options(GIVEN))


def test_the_page_has_each_option_with_its_default():
    page = Path(__file__).parents[2].joinpath("docs/lmcache.md").read_text()
    rows = page.split("| option | default | what |\n", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    documented = {name: cell[1] for cell in cells for name in re.findall(r"`(\w+)`", cell[0])}
    assert documented.keys() == {*TAKEN, "chunk_tokens"}
    options = read_options(GIVEN)
    assert documented["chunk_tokens"] == str(options.max_chunk_tokens)
    assert documented["save_budget_bytes"] == f"{options.save_budget_bytes >> 20} MiB"
    for name in ("match_deadline_s", "load_deadline_s", "connections", "cold_connections"):
        assert documented[name] == f"{getattr(options, name):g}"

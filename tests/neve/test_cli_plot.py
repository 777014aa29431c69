"""Figures of commands: SVG that changes only with its data."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from neve.cli.plot import Line, Mark, draw
from neve.errors import Misuse

WORDS = {"title": "Hit rate", "x_label": "capacity (GiB)", "y_label": "hit rate"}


def test_the_same_data_make_the_same_bytes(tmp_path: Path):
    lines = [
        Line("lru", [1, 2, 4], [0.1, 0.2, 0.3], low=[0, 0.1, 0.2], high=[0.2, 0.3, 0.4]),
        Line("2q", [1, 2, 4], [0.2, 0.3, 0.35], is_dashed=True),
    ]
    for name in ("a.svg", "b.svg"):
        draw(tmp_path / name, lines, marks=[Mark(2, "today")], x_scale="log", **WORDS)
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes()
    words = {"".join(one.itertext()).strip() for one in ElementTree.fromstring(first).iter()}
    assert {"lru", "2q", "today", "Hit rate", "capacity (GiB)", "hit rate"} <= words


def test_only_svg_of_equal_numbers_of_x_and_y(tmp_path: Path):
    with pytest.raises(Misuse, match=r"plot: .*\.svg"):
        draw(tmp_path / "a.png", [], **WORDS)
    with pytest.raises(Misuse, match="line 'lru': 2 x, 1 y"):
        draw(tmp_path / "a.svg", [Line("lru", [1, 2], [1])], **WORDS)
    with pytest.raises(Misuse, match="cannot write"):
        draw(tmp_path / "none" / "a.svg", [Line("lru", [1], [1])], **WORDS)


def test_without_matplotlib_the_command_to_install_it_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Misuse, match=r"pip install 'neve\[plot\]'"):
        draw(tmp_path / "a.svg", [Line("lru", [1], [1])], **WORDS)

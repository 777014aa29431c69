"""docs/planning.md: its commands print what the page says, and draw its figures."""

import re
from pathlib import Path

import pytest

from deploy.planning_page import IMAGES, PAGE, RECORDED, commands, renewed

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def test_commands_print_what_the_page_says_and_draw_its_figures(tmp_path: Path):
    page = PAGE.read_text()
    assert renewed(page, tmp_path) == page, "make figures"
    drawn = {figure.name for figure in tmp_path.glob("*.svg")}
    shown = set(re.findall(r"\(images/([\w-]+\.svg)\)", page))
    assert shown == drawn if RECORDED.exists() else shown >= drawn
    for name in drawn:
        ours, theirs = (folder / name for folder in (tmp_path, IMAGES))
        assert_same_figure(ours.read_text(), theirs.read_text())


def assert_same_figure(one: str, other: str) -> None:
    """Equal but for the last digits, in which processors may differ."""
    assert NUMBER.split(one) == NUMBER.split(other), "make figures"
    numbers = [[float(each) for each in NUMBER.findall(text)] for text in (one, other)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.01), "make figures"


def test_console_blocks_are_read_with_continued_lines():
    block = "$ neve plan \\\n    size x\none\n\ntwo\n$ neve version > f\n"
    assert list(commands(block)) == [
        ("$ neve plan \\\n    size x\n", "one\n\ntwo\n"),
        ("$ neve version > f\n", ""),
    ]

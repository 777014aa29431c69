"""Prose is readable on a narrow screen. ruff, luacheck and rumdl hold Python, Lua and Markdown to
their columns; here are the comments of everything else."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST = 120
COMMENT = re.compile(r"\s*(#|//|/\*|\*\s|--|;|\{#)")
FOLDERS = (
    "benchmarks",
    "cacheapi",
    "connector",
    "dashboard",
    "deploy",
    "platform",
    "tests",
    "workers",
)
SUFFIXES = {"", ".c", ".conf", ".cpp", ".css", ".h", ".html", ".inc", ".js", ".toml", ".yml"}


def test_no_comment_is_wider_than_120_columns():
    found = [path for name in FOLDERS for path in (ROOT / name).rglob("*")]
    files = [path for path in (*ROOT.iterdir(), *found) if is_ours(path)]
    assert len(files) > 100
    too_wide = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)} columns"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > MOST and COMMENT.match(line)
    ]
    assert not too_wide, "\n".join(too_wide)


def is_ours(path):
    others = {"third_party", "corpus", "build", "dist", "__pycache__"} & set(path.parts)
    return path.is_file() and path.suffix in SUFFIXES and not others

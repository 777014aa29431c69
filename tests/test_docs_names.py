"""Documents for developers name what there is: files, functions, make targets, Lua functions."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/architecture.md", "docs/engine-adapters.md", "CONTRIBUTING.md", "SECURITY.md")
SOURCES = ("connector/src", "platform", ".")
PACKAGES = {
    *("neve", "base", "storage", "tenants", "catalog", "retention", "contexts", "tiering"),
    *("planning", "controlplane", "metrics", "cacheapi", "dashboard", "workers", "deploy"),
}
FILE = re.compile(r"[\w.-]+(/[\w.-]+)+/?|[\w-]+\.(py|toml|yml|txt|md)")
DOTTED = re.compile(r"([a-z_]\w*)(\.\w+)+")
LUA = re.compile(r"neve_[a-z_]+")


def code_words(page: str) -> list[str]:
    """What stands in backticks, diagrams and blocks of commands left out."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def has_name(dotted: str) -> bool:
    """Whether a module, or a name in one, or an attribute of a class in one, is called so."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        for source in SOURCES:
            path = ROOT.joinpath(source, *parts[:length])
            file = path.with_suffix(".py") if path.with_suffix(".py").exists() else None
            if file is None and path.is_dir():
                file = path / "__init__.py"
            if file is not None and file.exists():
                return defines(ast.parse(file.read_text()).body, parts[length:])
            if path.is_dir() and length == len(parts):
                return True
    return False


def defines(body: list[ast.stmt], names: list[str]) -> bool:
    if not names:
        return True
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name == names[0]:
            return defines(node.body, names[1:])
        if len(names) == 1 and names[0] in names_of(node):
            return True
    return False


def names_of(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    if isinstance(node, ast.ImportFrom):  # a package's own module, shown under the package's name
        return {alias.name for alias in node.names}
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    return {n.id for t in targets if t is not None for n in ast.walk(t) if isinstance(n, ast.Name)}


@cache
def lua_functions() -> set[str]:
    sources = (ROOT / "connector/src/neve").rglob("*.lua")
    text = "\n".join(path.read_text() for path in sources)
    return {f"neve_{name}" for name in re.findall(r'^register\("(\w+)"', text, re.MULTILINE)}


@cache
def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    stamps = re.findall(r"^[A-Z]+ := (\.venv\S+)$", text, re.MULTILINE)
    return {*re.findall(r"^([a-z-]+):", text, re.MULTILINE), *stamps}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    checked, wrong = 0, []
    for word in code_words(page):
        if word.startswith("make "):
            found = word.split()[1] in make_targets()
        elif LUA.fullmatch(word):
            found = word in lua_functions()
        elif DOTTED.fullmatch(word) and word.partition(".")[0] in PACKAGES and "/" not in word:
            found = has_name(word)
        elif FILE.fullmatch(word) and not word.startswith("var/"):  # made when the platform runs
            found = (ROOT / word).exists()
        else:
            continue
        checked += 1
        if not found:
            wrong.append(word)
    assert not wrong
    assert checked > 20


@pytest.mark.parametrize(
    ("dotted", "there"),
    [
        ("neve.errors.MissReason", True),
        ("neve.errors.MissReason.EVICTED", True),
        ("neve.formats", True),
        ("catalog.jobs.enqueue", True),
        ("catalog.jobs.enqueued", False),
        ("neve.errors.MissReason.GONE", False),
        ("neve.nowhere.name", False),
    ],
)
def test_a_name_that_is_not_there_is_found_out(dotted, there):
    assert has_name(dotted) is there

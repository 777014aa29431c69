"""Public classes that other parts of the code import are terms: docs/glossary.md explains them."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"connector/src": ("neve",), "platform": (), ".": ("cacheapi", "dashboard", "workers")}
SHELLS = SOURCES["."]  # their classes are nobody's vocabulary
WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z]|\b)|[A-Z][a-z]+|\d+")

# Not terms: errors that say what the caller does, shapes of one tool, ways of Django.
EXCEPTIONS = {
    *("NeveError", "Misuse", "Unavailable", "DeadlineExceeded", "ReplyError"),
    *("AddressRefused", "OverBudget", "WrongBlock", "Superseded", "EngineFailed", "Unsealable"),
    *("Generator", "Runner", "Settings", "Workload", "Pace", "Progress", "SingleTier"),
    *("TenantOwnedAdmin", "ReadOnlyAdmin", "Counted", "Timed", "Timing", "BusFacts"),
    *("LogLine", "Metric", "Options", "TlsSettings"),
}


def modules():
    """Name and syntax tree of each module of the product."""
    for root, packages in SOURCES.items():
        base = ROOT / root
        for package in packages or [path.parent.name for path in base.glob("*/__init__.py")]:
            for path in (base / package).rglob("*.py"):
                parts = path.relative_to(base).with_suffix("").parts
                if "migrations" not in parts:
                    name = ".".join(parts).removesuffix(".__init__")
                    yield name, ast.parse(path.read_text())


def part(module):
    """A room of neve, or a package of the platform."""
    return ".".join(module.split(".")[: 2 if module.startswith("neve.") else 1])


def shared_classes():
    trees = dict(modules())
    public = {
        (module, node.name)
        for module, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        if part(module) not in SHELLS
    }
    return {
        alias.name
        for module, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and part(node.module) != part(module)
        for alias in node.names
        if (node.module, alias.name) in public
    }


def is_explained(name, glossary):
    words = " ".join(WORD.findall(name)).lower()
    return f"`{name}`" in glossary or bool(re.search(rf"\b{words}s?\b", glossary.lower()))


def test_classes_that_others_import_are_explained_in_the_glossary():
    glossary = " ".join((ROOT / "docs/glossary.md").read_text().split())
    shared = shared_classes()
    assert len(shared) > 80
    unknown = {name for name in shared if not is_explained(name, glossary)}
    assert not unknown - EXCEPTIONS, "explain in docs/glossary.md, or use its words"
    assert not EXCEPTIONS - unknown, "no exception any more"

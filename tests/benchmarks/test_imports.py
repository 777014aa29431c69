"""Benchmarks import each other in one direction."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def imported(file: Path) -> set[str]:
    """Names of the modules of benchmarks/ that a file imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    modules = {each.stem for each in BENCHMARKS.glob("*.py")}
    return {name.removeprefix("benchmarks.") for name in found} & modules


def test_no_benchmark_imports_itself_by_way_of_others():
    graph = {file.stem: imported(file) for file in BENCHMARKS.glob("*.py")}
    assert graph["cold_eviction"] == {"policies"}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle

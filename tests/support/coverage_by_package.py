"""Prints line coverage by package, from the data of `coverage combine`: `make test-coverage`."""

import json
import tempfile
from collections import Counter
from pathlib import Path

from coverage import Coverage

SOURCE_ROOTS = ("connector/src", "platform")


def package_of(file: str) -> str:
    """The folder of a file without its source root: "neve/engine/device", "tenants"."""
    folder = Path(file).parent
    for root in SOURCE_ROOTS:
        if folder.is_relative_to(root):
            folder = folder.relative_to(root)
    return str(folder)


def main() -> None:
    coverage = Coverage()
    coverage.load()
    with tempfile.NamedTemporaryFile() as file:
        coverage.json_report(outfile=file.name)
        files = json.loads(Path(file.name).read_text())["files"]
    lines: Counter[str] = Counter()
    covered: Counter[str] = Counter()
    for name, found in files.items():
        for package in (package_of(name), "all"):
            lines[package] += found["summary"]["num_statements"]
            covered[package] += found["summary"]["covered_lines"]
    width = max(map(len, lines))
    for package in [*sorted(lines.keys() - {"all"}), "all"]:
        if lines[package]:
            hit, all_ = covered[package], lines[package]
            print(f"{package:{width}} {hit:7,} of {all_:6,} lines {hit / all_:5.0%}")


if __name__ == "__main__":
    main()

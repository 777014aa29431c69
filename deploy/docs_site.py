"""MkDocs hooks: add Markdown pages of the repository's root to the site.

Links in the files work in the repository; the hooks rewrite them for the site.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#:\s]+)(?=[)#])")


def on_files(files: Files, config: Any) -> Files:
    for name in ROOT_PAGES:
        if (ROOT / name).exists():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    name: str = page.file.src_uri
    folder = ROOT if name in ROOT_PAGES else (ROOT / "docs" / name).parent
    depth = name.count("/")

    def rewrite(found: re.Match[str]) -> str:
        target = (folder / found["path"]).resolve()
        if target.parent == ROOT and target.name in ROOT_PAGES:
            return "../" * depth + target.name
        if target.is_dir() and target.is_relative_to(ROOT / "docs"):
            first = min(target.glob("*.md"))  # a folder has no page itself
            return "../" * depth + str(first.relative_to(ROOT / "docs"))
        if name in ROOT_PAGES and target.is_relative_to(ROOT / "docs"):
            return str(target.relative_to(ROOT / "docs"))
        return found["path"]

    return LINK.sub(rewrite, markdown)

"""`platform/` is a source root and no package, so the standard library's modules stay reachable."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_platform_is_no_package():
    assert not (ROOT / "platform/__init__.py").exists()


def test_every_package_has_its_rung_on_the_ladder():
    """As `exhaustive` would demand, which layers of top-level packages do not have."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    ladder = next(c for c in settings["contracts"] if "ladder" in c["name"])
    rungs = {name for layer in ladder["layers"] for name in layer.split(" | ")}
    packages = {file.parent.name for file in ROOT.glob("platform/*/__init__.py")}
    assert rungs == packages | {"neve", "cacheapi", "dashboard", "workers"}
    assert rungs == set(settings["root_packages"])
    assert "ignore_imports" not in ladder


def test_the_standard_librarys_platform_and_uuid_import_from_the_repository_root():
    code = "import platform, uuid; print(platform.system(), uuid.uuid4(), platform.__file__)"
    for path in ("", f"{ROOT}:{ROOT / 'platform'}"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert str(ROOT) not in done.stdout


def test_the_format_of_the_hot_tier_names_the_functions_that_nodes_may_call():
    from storage.hot_users import NODE_FUNCTIONS

    text = " ".join((ROOT / "docs/formats/hot-tier.md").read_text().split())
    sentence = text.split("A node's user may call ", 1)[1].split(" and no other function", 1)[0]
    assert tuple(re.findall(r"`(\w+)`", sentence)) == NODE_FUNCTIONS

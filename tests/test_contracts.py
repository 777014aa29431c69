"""Every import contract of pyproject.toml bites: one forbidden import in a copy breaks it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
NEVE = "connector/src/neve"
LAZY = "\n\ndef load():\n    import {}\n"

# contract → a module of the copy, and an import that it must not have
PLANTS = {
    "the platform is a ladder: no package imports one above it": (
        "platform/catalog/models/spaces.py",
        "import tiering.flush",
    ),
    "only workers, the project and catalog.jobs, which enqueues, know Celery": (
        "platform/tiering/flush.py",
        LAZY.format("celery"),
    ),
    "only storage makes a client of S3": ("platform/tiering/upload.py", "import boto3"),
    "neve knows no Django, no Celery and no platform": (f"{NEVE}/node/stats.py", "import django"),
    "neve: adapters and commands -> engine -> datapath -> node -> index -> formats": (
        f"{NEVE}/formats/ids.py",
        "import neve.index.tier",
    ),
    "neve's formats, index and economics open no connection": (
        f"{NEVE}/index/tier.py",
        "import socket",
    ),
    "neve.planner.simulate is pure: no input, output, clock or randomness": (
        f"{NEVE}/planner/simulate/__init__.py",
        LAZY.format("random"),
    ),
    "only neve.api and what sends requests to engines import httpx": (
        f"{NEVE}/planner/breakeven.py",
        LAZY.format("httpx"),
    ),
    "only neve's own servers import a web framework": (
        f"{NEVE}/gateway/choice.py",
        LAZY.format("starlette"),
    ),
    "the data path of nodes loads nothing of neve.api": (
        f"{NEVE}/engine/loader.py",
        LAZY.format("neve.api"),
    ),
    "only neve.mcp imports the SDK of the Model Context Protocol": (
        f"{NEVE}/cli/ping.py",
        LAZY.format("mcp"),
    ),
    "only neve.vllm imports vllm": (f"{NEVE}/engine/loader.py", LAZY.format("vllm")),
    "only neve.lmcache imports lmcache": (f"{NEVE}/engine/loader.py", LAZY.format("lmcache")),
    "only neve.sglang imports sglang": (f"{NEVE}/engine/page_store.py", LAZY.format("sglang")),
    "only neve.litellm imports litellm": (f"{NEVE}/gateway/store.py", LAZY.format("litellm")),
    "only neve.engine.device and the adapters import torch": (
        f"{NEVE}/formats/ids.py",
        LAZY.format("torch"),
    ),
    "only adapters import neve.engine.device": (
        f"{NEVE}/engine/loader.py",
        LAZY.format("neve.engine.device"),
    ),
    "the platform and neve's commands load neither an engine nor torch": (
        f"{NEVE}/cli/ping.py",
        LAZY.format("neve.engine.device.tensors"),
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The sources that the contracts are about, and pyproject.toml."""
    folder = tmp_path_factory.mktemp("contracts")
    for name in ("cacheapi", "dashboard", "platform", "workers", NEVE):
        shutil.copytree(ROOT / name, folder / name, ignore=_no_source)
    shutil.copy2(ROOT / "pyproject.toml", folder)
    return folder


def _no_source(folder, names):
    return [n for n in names if not (n.endswith(".py") or Path(folder, n).is_dir())]


def lint_imports(copy):
    """Standard output. Without `site`: an editable installation of neve would win over the copy."""
    path = [copy, copy / "platform", copy / "connector/src", sysconfig.get_path("purelib")]
    found = subprocess.run(
        [sys.executable, "-S", "-c", "from importlinter import cli; cli.lint_imports_command()"],
        cwd=copy,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
    )
    assert "Contracts:" in found.stdout, found.stdout + found.stderr
    return found.stdout


def test_a_plant_for_each_contract():
    assert PLANTS.keys() == {contract["name"] for contract in CONTRACTS["contracts"]}


def test_the_sources_keep_every_contract(copy):
    assert "0 broken" in lint_imports(copy)


@pytest.mark.parametrize("contract", PLANTS)
def test_a_forbidden_import_breaks_the_contract(contract, copy):
    name, planted = PLANTS[contract]
    module = copy / name
    source = module.read_text()
    module.write_text(f"{source}\n{planted}\n")
    try:
        assert f"{contract} BROKEN" in lint_imports(copy)
    finally:
        module.write_text(source)

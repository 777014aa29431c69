"""The committed stub of the native module is the one that nanobind writes for it."""

import subprocess
import sys
from pathlib import Path

import neve


def test_the_stub_is_up_to_date(tmp_path):
    written = tmp_path / "_core.pyi"
    command = ["-m", "nanobind.stubgen", "-q", "-m", "neve._core", "-o", str(written)]
    subprocess.run([sys.executable, *command], check=True)
    committed = Path(neve.__file__).with_name("_core.pyi")
    assert committed.read_text() == written.read_text()

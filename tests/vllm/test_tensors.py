import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm


def test_every_layout_is_read_and_written_block_by_block(vllm_python, engine_environment):
    script = Path(__file__).with_name("check_tensors.py")
    done = subprocess.run(
        [str(vllm_python), str(script)],
        env=engine_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]

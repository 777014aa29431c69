"""The installed vLLM logs requests as neve.planner.simulate.traces reads them."""

import subprocess

import pytest

from neve.planner.simulate.traces import block_ids, vllm_log

LOG = """
import logging

from vllm.entrypoints.serve.utils.request_logger import RequestLogger
from vllm.lora.request import LoRARequest

form = "DEBUG %(asctime)s [%(filename)s:%(lineno)d] %(message)s"
logging.basicConfig(level=logging.DEBUG, format=form, datefmt="%m-%d %H:%M:%S")
log = RequestLogger(max_log_len=None)
for lora in None, LoRARequest("fine", 1, "/fine"):
    log.log_inputs("cmpl-1-0", "some 'text'\\n", list(range(40)), None, None, lora)
"""


@pytest.mark.vllm
def test_requests_that_vllm_logs_are_read(vllm_python, engine_environment):
    logged = subprocess.run(
        [vllm_python, "-c", LOG],
        env=engine_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    plain, adapted = vllm_log(logged.stderr.splitlines(), block_tokens=16)
    assert plain.ids == block_ids(range(40), block_tokens=16)
    assert adapted.ids == block_ids(range(40), block_tokens=16, salt="fine")
    assert plain.tokens == adapted.tokens == 40

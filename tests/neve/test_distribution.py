"""What `pip install ./connector` brings into a node's environment, and how vLLM finds it there."""

import re
from importlib.metadata import entry_points, requires

import neve.vllm


def test_a_node_keeps_its_own_torch_and_vllm():
    names = {re.split(r"[^\w.-]", wanted)[0].lower() for wanted in requires("neve") or ()}
    assert names == {"click", "numpy", "tqdm", "urllib3", "xxhash"}


def test_vllm_finds_the_connector_by_its_name_alone():
    (found,) = entry_points(group="vllm.general_plugins", name="neve")
    assert found.load() is neve.vllm.register

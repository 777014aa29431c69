"""What `pip install ./connector` brings into a node's environment, and how vLLM finds it there."""

import re
import subprocess
import sys
from importlib.metadata import entry_points, requires

import neve
import neve.vllm


def test_a_node_keeps_its_own_torch_and_vllm():
    wanted = [one for one in requires("neve") or () if "extra ==" not in one]
    names = {re.split(r"[^\w.-]", one)[0].lower() for one in wanted}
    assert names == {"click", "numpy", "tqdm", "urllib3", "xxhash"}


def test_vllm_finds_the_connector_by_its_name_alone():
    (found,) = entry_points(group="vllm.general_plugins", name="neve")
    assert found.load() is neve.vllm.register


def test_what_neve_offers_is_there_and_costs_nothing_before_it_is_asked():
    code = (
        "import sys, neve; before = {'numpy', 'urllib3', 'neve._core'} & set(sys.modules);"
        "offered = [getattr(neve, name) for name in neve.__all__];"
        "assert neve.connect == neve.Client.connect and None not in offered; print(before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert set(neve.__all__) <= set(dir(neve))

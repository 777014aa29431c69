"""SGLang's server on a CPU: `python serve.py --model-path …`. Its processes import this too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import on_cpu

if __name__ == "__main__":
    import runpy

    sys.argv = ["launch_server", *sys.argv[1:]]
    runpy.run_module("sglang.launch_server", run_name="__main__")
else:  # a process that the server started
    on_cpu.prepare()

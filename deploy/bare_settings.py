"""Settings without a platform, for tools that only import the code (mypy, the OpenAPI generator).

They need neither `var/` nor secrets, and connect to no server.
"""

import os

for name in [name for name in os.environ if name.startswith("NEVE_")]:
    del os.environ[name]
os.environ.update(
    NEVE_VAR="var/none",
    NEVE_SECRET_KEY="0" * 32,
    NEVE_KEY_PEPPER="0" * 32,
    NEVE_S3_ACCESS_KEY="x",
    NEVE_S3_SECRET_KEY="x",
)

from controlplane.settings import *  # noqa: E402, F403

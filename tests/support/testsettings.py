"""The platform's settings for tests: `controlplane.settings` with the test servers' addresses.

pytest-django loads settings before any conftest.py, so this module prepares the environment. It
chooses the ports; conftest.py's fixtures start the servers on them when a test first needs them.
Child processes inherit this environment and load `controlplane.settings` themselves.
"""

import os
import secrets
import tempfile

from support.servers import free_port

FOLDER = tempfile.mkdtemp(prefix="neve-tests-")
HOT_PORT = free_port(hold=True)
BUS_PORT = free_port(hold=True)
S3_PORT = free_port(8, hold=True)
POSTGRES_URL = os.environ.get("NEVE_TEST_DATABASE_URL", "")  # on_postgres.py sets it

for name in [name for name in os.environ if name.startswith("NEVE_") and "TEST" not in name]:
    del os.environ[name]  # a developer's environment must not affect tests
os.environ.update(
    DJANGO_SETTINGS_MODULE="controlplane.settings",
    NEVE_VAR=FOLDER,
    NEVE_SECRET_KEY=secrets.token_hex(32),
    NEVE_KEY_PEPPER=secrets.token_hex(32),
    NEVE_PAGE_PROCESSES="0",  # of tests that answer requests in this process
    NEVE_DATABASE_URL=POSTGRES_URL or f"sqlite:///{FOLDER}/neve.sqlite3",
    NEVE_HOT_URL=f"valkey://127.0.0.1:{HOT_PORT}/0",
    NEVE_BUS_URL=f"redis://127.0.0.1:{BUS_PORT}/0",
    NEVE_S3_ENDPOINT=f"http://127.0.0.1:{S3_PORT}",
    NEVE_S3_BUCKET="neve-tests",
    NEVE_S3_REGION="us-east-1",
    NEVE_S3_ACCESS_KEY="AK" + secrets.token_hex(8),
    NEVE_S3_SECRET_KEY=secrets.token_hex(20),
    NEVE_HOSTS="127.0.0.1,localhost,testserver",
    NEVE_OUTBOUND_ALLOW="public,127.0.0.0/8,::1/128",
    NEVE_HEARTBEAT_S="1",
)

from controlplane.settings import *  # noqa: E402, F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # fast logins

"""The servers of `testsettings`, for programs that call the platform's code without pytest.

Import it after `django.setup()`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings
from django.core.management import call_command

from storage import s3
from support import testsettings
from support.servers import S3Server, ValkeyServer
from tiering import recovery


@contextmanager
def platform_servers(*, maxmemory: str = "1gb") -> Iterator[None]:
    """Run the servers that `testsettings` names, and migrate its database."""
    folder = Path(testsettings.FOLDER)
    keys = settings.ENV.s3_access_key, settings.ENV.s3_secret_key
    with (
        ValkeyServer(folder / "hot", port=testsettings.HOT_PORT, maxmemory=maxmemory),
        ValkeyServer(folder / "bus", port=testsettings.BUS_PORT),
        S3Server(folder / "s3", port=testsettings.S3_PORT, keys=keys),
    ):
        call_command("migrate", verbosity=0)
        s3.ensure_bucket()
        recovery.rebuild_all()
        yield

"""Each file of tasks has a platform of its own: what others left in one that they share, larger
contexts or worse incidents, would stand first on its pages."""

from collections.abc import Iterator

import pytest

from support import testsettings
from support.servers import ControlPlane, S3Server


@pytest.fixture(scope="module")
def control_plane(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("platform")
    with ControlPlane(folder, s3, postgres_url=testsettings.POSTGRES_URL) as server:
        yield server

"""The local tier: real Valkey, real files; a disk's trouble is a limit, a mode or a pipe."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from neve.datapath import local as local_module
from neve.datapath.local_files import LocalFiles, locked, space_folder, tenant_folder
from neve.datapath.status import BreakerState
from neve.errors import DeadlineExceeded, Misuse, Refused
from neve.formats.block import HEADER_BYTES
from neve.index.tier import Location, Tier
from support import servers
from support.chains import PAYLOAD, Chain, connect, counters

pytestmark = pytest.mark.integration

BLOCK = HEADER_BYTES + PAYLOAD


def wait_until(condition):
    servers.wait_until(condition, what="the local tier")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "local"


@pytest.fixture
def client(hot, endpoint, folder):
    with connect(endpoint, local_dir=str(folder), local_bytes=100 * BLOCK) as client:
        yield client


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/??/" + "?" * 32))


def paths(client, chain: Chain) -> list[Path]:
    return [Path(client.local._files.path(id_)) for id_ in chain.ids]


def keep(client, count=4, seed=1) -> Chain:
    """A chain that was stored and read, and whose blocks the local tier has."""
    assert client.local.flush(30)
    chain = Chain(client, count, seed)
    assert chain.put() == [None] * count
    assert chain.get() == [None] * count
    assert client.local.flush(30)
    assert all(map(client.local.has, chain.ids))
    return chain


def read_again(client, chain) -> dict[str, int]:
    """What reading the chain counts."""
    before = counters(client)
    chain.back[:] = 0
    assert chain.get() == [None] * len(chain.ids)
    assert (chain.back == chain.sent).all()
    return {n: c - before.get(n, 0) for n, c in counters(client).items() if c != before.get(n, 0)}


class TestReading:
    def test_a_block_is_kept_at_its_second_use_and_read_from_its_file(self, client, folder):
        chain = Chain(client, 4)
        chain.put()
        assert client.local.flush(30)
        assert not files(folder)
        chain.get()
        assert client.local.flush(30)
        assert [path.name for path in files(folder)] == sorted(i.hex() for i in chain.ids)
        assert counters(client)["local_write_bytes"] == 4 * BLOCK == client.local.used_bytes
        match = client.match(chain.ids)
        assert match.locations == [Location(Tier.HOT, BLOCK, is_local=True)] * 4
        assert {location.nearest for location in match.locations} == {Tier.LOCAL}
        counted = read_again(client, chain)
        assert counted.pop("requested_tokens") == counted.pop("hit_local_tokens")
        assert counted == {
            "requested_blocks": 4,
            "hit_local_blocks": 4,
            "local_read_bytes": 4 * BLOCK,
        }

    def test_a_read_from_elsewhere_is_the_first_use_of_another_nodes_block(
        self, client, endpoint, tmp_path
    ):
        chain = Chain(client, 2)
        chain.put()
        other = str(tmp_path / "other")
        with connect(endpoint, local_dir=other, local_bytes=100 * BLOCK) as reader:
            same = Chain(reader, 2)
            same.get()
            assert reader.local.flush(30)
            assert not files(Path(other))
            same.get()
            assert reader.local.flush(30)
            assert len(files(Path(other))) == 2

    def test_files_are_as_in_valkey_and_only_their_owner_reads_them(
        self, client, folder, clean_hot
    ):
        chain = keep(client, 1)
        (path,) = files(folder)
        assert path.read_bytes() == clean_hot.client().get(chain.key(0))
        every = [folder, *folder.rglob("*")]
        assert {oct(p.stat().st_mode & 0o777) for p in every if p.is_file()} == {"0o600"}
        assert {oct(p.stat().st_mode & 0o777) for p in every if p.is_dir()} == {"0o700"}

    def test_the_index_hears_of_blocks_that_are_read_here(self, client, hot, clean_hot):
        chain = keep(client, 1)
        match = client.match(chain.ids)
        with clean_hot.client() as valkey:

            def calls():
                return valkey.info("commandstats")["cmdstat_fcall"]["calls"]

            before = calls()
            assert chain.get(match) == [None]
            assert "hit_local_blocks" in counters(client)
            wait_until(lambda: calls() > before)


class TestAuthority:
    """A file alone is no hit."""

    def test_an_expired_block_is_a_miss(self, client, hot, folder):
        chain = keep(client)
        hot.expire(chain.ids)
        match = client.match(chain.ids)
        assert not match.locations
        assert len(files(folder)) == 4

    def test_a_block_of_another_space_is_not_found(self, client, endpoint, hot, folder):
        chain = keep(client, 1)
        other = LocalFiles(
            folder,
            tenant=tenant_folder(endpoint.url, client.session.tenant_id),
            space=space_folder(bytes(32)),
        )
        other.look()
        assert not other.has(chain.ids[0])

    def test_another_block_in_the_file_is_none(self, client, folder):
        chain = keep(client, 2)
        one, two = (Path(client.local._files.path(id_)) for id_ in chain.ids)
        one.write_bytes(two.read_bytes())
        counted = read_again(client, chain)
        assert (counted["hit_hot_blocks"], counted["hit_local_blocks"]) == (1, 1)
        wait_until(lambda: counters(client).get("local_bad_blocks") == 1)
        assert not one.exists()


class TestTrouble:
    @pytest.mark.parametrize("left", [0, 10, 64, PAYLOAD, BLOCK - 1])
    def test_a_torn_file_is_read_from_the_hot_tier_and_goes(self, client, left):
        chain = keep(client, 2)
        path = Path(client.local._files.path(chain.ids[1]))
        os.truncate(path, left)
        counted = read_again(client, chain)
        assert (counted["hit_hot_blocks"], counted["hit_local_blocks"]) == (1, 1)
        wait_until(lambda: not path.exists() and "local_bad_blocks" in counters(client))
        assert "corrupt" not in counters(client)

    def test_flipped_and_added_bytes_are_found(self, client):
        chain = keep(client, 2)
        one, two = (Path(client.local._files.path(id_)) for id_ in chain.ids)
        raw = bytearray(one.read_bytes())
        raw[BLOCK // 2] ^= 1
        one.write_bytes(raw)
        two.write_bytes(two.read_bytes() + b"x")
        assert read_again(client, chain)["hit_hot_blocks"] == 2

    def test_files_that_have_gone_are_read_from_the_hot_tier(self, client, folder):
        chain = keep(client)
        for path in files(folder):
            path.unlink()
        assert read_again(client, chain)["hit_hot_blocks"] == 4
        assert client.local.read_breaker.state == BreakerState.CLOSED

    def test_a_full_disk_is_no_error(self, endpoint, hot, folder, monkeypatch):
        monkeypatch.setattr(os, "writev", _no_space)
        with connect(endpoint, local_dir=str(folder), local_bytes=100 * BLOCK) as client:
            for seed in range(3):
                chain = Chain(client, 2, seed)
                chain.put()
                assert chain.get() == [None, None]
                assert client.local.flush(30)
                assert read_again(client, chain)["hit_hot_blocks"] == 2
            assert not files(folder)
            assert not list(folder.rglob("*.tmp"))
            assert "local_write_bytes" not in counters(client)

    def test_a_directory_that_cannot_be_written_serves_what_it_has(
        self, client, endpoint, folder, monkeypatch
    ):
        chain = keep(client)
        monkeypatch.setattr(os, "open", _read_only)
        monkeypatch.setattr(os, "utime", _read_only)
        with connect(endpoint, local_dir=str(folder), local_bytes=100 * BLOCK) as other:
            wait_until(lambda: other.local.has(chain.ids[0]))
            assert read_again(other, Chain(other, 4))["hit_local_blocks"] == 4
            more = Chain(other, 2, 9)
            more.put()
            assert more.get() == [None, None]

    def test_a_directory_that_cannot_be_made_is_no_tier(self, endpoint, hot, tmp_path):
        (tmp_path / "file").write_text("")
        with connect(endpoint, local_dir=str(tmp_path / "file" / "x"), local_bytes=BLOCK) as client:
            chain = Chain(client, 2)
            chain.put()
            assert chain.get() == [None, None]
            assert read_again(client, chain)["hit_hot_blocks"] == 2

    def test_a_disk_that_hangs_costs_a_part_of_the_deadline_then_nothing(
        self, client, folder, monkeypatch
    ):
        """A pipe without a writer: whoever opens it waits."""
        monkeypatch.setattr(local_module, "STALL_S", 0.1)
        chain = keep(client, 2)
        for path in files(folder):
            path.unlink()
            os.mkfifo(path)
        for _ in range(3):
            assert read_again(client, chain)["hit_hot_blocks"] == 2
        wait_until(lambda: client.local.read_breaker.state != BreakerState.CLOSED)
        assert not any(location.is_local for location in client.match(chain.ids).locations)
        for path in files(folder):  # lets the threads go
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))

    def test_bytes_that_come_late_are_not_written_to_the_callers_memory(
        self, client, folder, monkeypatch
    ):
        monkeypatch.setattr(local_module, "STALL_S", 0.1)
        chain = keep(client, 1)
        (path,) = files(folder)
        raw = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        assert read_again(client, chain)["hit_hot_blocks"] == 1
        chain.back[:] = 7
        with open(path, "wb", buffering=0) as out:
            with suppress(BrokenPipeError):  # the reader is let go at the first bytes
                out.write(raw)
        assert (chain.back == 7).all()

    def test_a_killed_writer_leaves_no_wrong_block_and_its_rest_goes(
        self, client, endpoint, folder
    ):
        chain = keep(client)
        session = client.session
        code = (
            "import os, sys; from pathlib import Path\n"
            "from neve.datapath.local_files import LocalFiles\n"
            f"files = LocalFiles(Path({str(folder)!r}), "
            f"tenant={tenant_folder(endpoint.url, session.tenant_id)!r}, "
            f"space={space_folder(session.fingerprint)!r})\n"
            "write = os.writev\n"
            "def half(file, parts):\n"
            "    write(file, [parts[0], parts[1][:1000]])\n"
            "    os.kill(os.getpid(), 9)\n"
            "os.writev = half\n"
            "with files.locked():\n"
            f"    files.write({chain.ids[0]!r}, bytes(64), memoryview(bytes({PAYLOAD})))\n"
        )
        ended = subprocess.run([sys.executable, "-c", code], timeout=60)
        assert ended.returncode == -signal.SIGKILL
        assert len(list(folder.rglob("*.tmp"))) == 1
        assert read_again(client, chain)["hit_local_blocks"] == 4
        keep(client, 1, seed=5)  # the lock went with the killed process
        assert not list(folder.rglob("*.tmp"))


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")


class TestDisk:
    """A disk of its own: a small tmpfs."""

    @pytest.fixture
    def disk(self, tmp_path):
        path = tmp_path / "disk"
        path.mkdir()
        mount("-t", "tmpfs", "-o", f"size={3 * BLOCK}", "tmpfs", str(path))
        yield path
        subprocess.run(["umount", "--lazy", str(path)], check=True)

    def test_what_does_not_fit_a_full_disk_is_read_from_the_hot_tier(self, endpoint, hot, disk):
        with connect(endpoint, local_dir=str(disk / "local"), local_bytes=100 * BLOCK) as client:
            chain = Chain(client, 6)
            chain.put()
            assert chain.get() == [None] * 6
            assert client.local.flush(30)
            kept = len(files(disk / "local"))
            assert 0 < kept < 6
            assert not list(disk.rglob("*.tmp"))
            counted = read_again(client, chain)
            assert (counted["hit_local_blocks"], counted["hit_hot_blocks"]) == (kept, 6 - kept)

    def test_a_disk_that_became_read_only_serves_what_it_has(self, endpoint, hot, disk):
        with connect(endpoint, local_dir=str(disk / "local"), local_bytes=2 * BLOCK) as client:
            chain = keep(client, 2)
            mount("-o", "remount,ro", str(disk))
            assert read_again(client, chain)["hit_local_blocks"] == 2
            more = Chain(client, 2, 9)
            more.put()
            assert more.get() == [None, None]
            assert client.local.flush(30)
            assert read_again(client, more)["hit_hot_blocks"] == 2


class TestSize:
    def test_the_size_is_kept_and_the_longest_unread_leave(self, endpoint, hot, folder):
        with connect(endpoint, local_dir=str(folder), local_bytes=4 * BLOCK) as client:
            used = keep(client, 2, seed=1)
            for seed in range(2, 5):
                other = max(path.stat().st_mtime for path in paths(client, keep(client, 2, seed)))

                def read_later(other=other):  # the clock of files has ticks of some ms
                    read_again(client, used)
                    return min(path.stat().st_mtime for path in paths(client, used)) > other

                wait_until(read_later)
                assert client.local.used_bytes <= 4 * BLOCK
            assert len(files(folder)) == 4
            assert all(map(client.local.has, used.ids))
            assert counters(client)["local_evicted_blocks"] == 4

    def test_a_smaller_size_is_reached_at_the_start(self, client, endpoint, folder):
        keep(client, 6)
        with connect(endpoint, local_dir=str(folder), local_bytes=2 * BLOCK):
            wait_until(lambda: len(files(folder)) == 2)

    def test_a_block_larger_than_all_is_not_kept(self, endpoint, hot, folder):
        with connect(endpoint, local_dir=str(folder), local_bytes=BLOCK - 1) as client:
            chain = Chain(client, 1)
            chain.put()
            chain.get()
            assert client.local.flush(30)
            assert not files(folder)


class TestSharing:
    def test_engines_of_one_host_read_each_others_files(
        self, client, endpoint, folder, monkeypatch
    ):
        monkeypatch.setattr(local_module, "LOOK_S", 0.05)
        with connect(endpoint, local_dir=str(folder), local_bytes=100 * BLOCK) as other:
            chain = keep(client)
            wait_until(lambda: all(map(other.local.has, chain.ids)))
            assert read_again(other, Chain(other, 4))["hit_local_blocks"] == 4

    def test_the_size_bounds_all_of_them(self, endpoint, hot, folder):
        options = {"local_dir": str(folder), "local_bytes": 4 * BLOCK}
        with connect(endpoint, **options) as one, connect(endpoint, **options) as two:
            for seed in range(3):
                keep(one, 2, seed)
                keep(two, 2, 10 + seed)
            assert len(files(folder)) == 4

    def test_who_waits_for_the_lock_gives_up(self, tmp_path, monkeypatch):
        monkeypatch.setattr("neve.datapath.local_files.LOCK_S", 0.05)
        with locked(tmp_path), pytest.raises(DeadlineExceeded):
            with locked(tmp_path):
                pass


class TestRevokedKey:
    UNKNOWN = (401, {"title": "Unauthorized", "status": 401, "detail": "unknown key"})

    def test_a_running_node_deletes_the_tenants_blocks(self, client, endpoint, folder):
        chain = keep(client)
        match = client.match(chain.ids)
        endpoint.fail = self.UNKNOWN
        wait_until(lambda: not files(folder))
        assert chain.get(match) != [None] * 4
        endpoint.fail = None  # and goes on with a key that is known
        wait_until(lambda: client._path.suspended_for is None)
        assert read_again(client, chain)["hit_hot_blocks"] == 4

    def test_a_node_that_starts_with_it_deletes_them(self, client, endpoint, folder):
        keep(client)
        client.close()
        assert len(files(folder)) == 4
        endpoint.fail = self.UNKNOWN
        with pytest.raises(Refused):
            connect(endpoint, local_dir=str(folder), local_bytes=BLOCK)
        assert not files(folder)

    def test_other_refusals_delete_nothing(self, client, endpoint, folder):
        keep(client)
        client.close()
        endpoint.fail = (403, {"title": "Forbidden", "status": 403, "detail": "node limit"})
        with pytest.raises(Refused):
            connect(endpoint, local_dir=str(folder), local_bytes=BLOCK)
        assert len(files(folder)) == 4


def test_nothing_else_in_the_directory_is_touched(endpoint, hot, folder):
    folder.mkdir()
    others = [folder / "notes.txt", folder / "a" / "b" / "ab" / ("c" * 32)]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    with connect(endpoint, local_dir=str(folder), local_bytes=BLOCK) as client:
        keep(client, 1, seed=1)
        keep(client, 1, seed=2)
        endpoint.fail = TestRevokedKey.UNKNOWN
        wait_until(lambda: not [path for path in files(folder) if path not in others])
    assert [path.read_text() for path in others] == ["mine", "mine"]


def test_nothing_is_written_behind_a_link(endpoint, hot, folder, tmp_path):
    with connect(endpoint, local_dir=str(folder), local_bytes=4 * BLOCK) as client:
        keep(client, 1)
    (tenant,) = (path for path in folder.iterdir() if path.is_dir() and path.name != "keys")
    behind = tmp_path / "behind"
    shutil.rmtree(tenant)
    behind.mkdir()
    tenant.symlink_to(behind)
    with connect(endpoint, local_dir=str(folder), local_bytes=4 * BLOCK) as client:
        chain = Chain(client, 2, seed=7)
        assert chain.put() == [None] * 2
        assert chain.get() == [None] * 2
        assert client.local.flush(30)
        assert read_again(client, chain)["hit_hot_blocks"] == 2
        assert not list(behind.iterdir())
        endpoint.fail = TestRevokedKey.UNKNOWN
        wait_until(lambda: not tenant.exists())
    assert behind.is_dir()


def test_what_is_no_file_is_no_block(client, endpoint, folder):
    chain = keep(client)
    client.close()
    pipe = paths(client, chain)[0]
    pipe.unlink()
    os.mkfifo(pipe)
    with connect(endpoint, local_dir=str(folder), local_bytes=8 * BLOCK) as again:
        assert again.local.flush(30)
        wait_until(lambda: again.local.has(chain.ids[1]))
        assert not again.local.has(chain.ids[0])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"local_dir": "/x"}, "local_bytes"),
        ({"local_bytes": 1}, "local_dir"),
        ({"local_dir": "x", "local_bytes": 1}, "local_dir"),
    ],
)
def test_both_options_are_needed(endpoint, options, field):
    with pytest.raises(Misuse) as caught:
        connect(endpoint, **options)
    assert caught.value.field == field


def _no_space(*_):
    raise OSError(28, "No space left on device")


_open = os.open


def _read_only(path, flags=0, *rest, **more):
    if flags and not flags & (os.O_WRONLY | os.O_RDWR):
        return _open(path, flags, *rest, **more)
    raise OSError(30, "Read-only file system")

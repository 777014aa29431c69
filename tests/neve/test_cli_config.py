"""Profiles of `neve`: where keys lie, who may read them, and where they go."""

import stat
import tomllib

import pytest

from neve.cli import config
from neve.cli.config import Config, Profile
from neve.cli.exits import NoKey
from neve.errors import Misuse

URL, KEY = "http://127.0.0.1:8000", "neve_abc_secret"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("NEVE_ENDPOINT", "NEVE_API_KEY", "NEVE_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def stored(**profiles: Profile):
    return config.save(Config(profiles, next(iter(profiles))))


def test_what_is_saved_is_read_back_and_is_private(home):
    path = stored(demo=Profile(URL, KEY))
    assert path == home / "neve/config.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert config.load() == Config({"demo": Profile(URL, KEY)}, "demo")
    assert KEY not in repr(config.load())
    assert [each.name for each in path.parent.iterdir()] == ["config.toml"]


def test_quotes_and_backslashes_in_a_key_survive():
    stored(demo=Profile(URL, 'a"b\\c'))
    assert config.load().profiles["demo"].api_key == 'a"b\\c'


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o606])
def test_a_file_that_others_may_read_is_refused_with_the_command_to_run(mode):
    path = stored(demo=Profile(URL, KEY))
    path.chmod(mode)
    with pytest.raises(Misuse, match=f"chmod 600 {path}"):
        config.load()


def test_an_open_folder_is_closed_when_a_key_is_stored(home):
    (home / "neve").mkdir(mode=0o755)
    path = stored(demo=Profile(URL, KEY))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_link_stays_a_link(home, tmp_path_factory):
    real = tmp_path_factory.mktemp("dotfiles") / "neve.toml"
    (home / "neve").mkdir()
    (home / "neve/config.toml").symlink_to(real)
    stored(demo=Profile(URL, KEY))
    assert (home / "neve/config.toml").is_symlink()
    assert tomllib.loads(real.read_text())["profiles"]["demo"]["api_key"] == KEY


@pytest.mark.parametrize(
    "text", ["profiles = 3", "[profiles]\ndemo = 1", '[profiles.demo]\nendpoint = "x"', "[", "\x80"]
)
def test_a_broken_file_is_named(text):
    path = stored(demo=Profile(URL, KEY))
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Misuse, match=r"config\.toml"):
        config.load()


def test_no_profile_says_how_to_make_one():
    with pytest.raises(NoKey, match="neve login"):
        config.find_credentials()
    stored(demo=Profile(URL, KEY))
    with pytest.raises(NoKey, match="there: demo"):
        config.find_credentials(profile="prod")


def test_the_environment_wins_over_the_file(monkeypatch):
    stored(demo=Profile(URL, KEY))
    found = config.find_credentials()
    assert (found.endpoint, found.api_key, found.profile) == (URL, KEY, "demo")
    monkeypatch.setenv("NEVE_API_KEY", "neve_env_secret")
    found = config.find_credentials("demo")
    assert (found.endpoint, found.api_key, found.profile) == (URL, "neve_env_secret", None)
    monkeypatch.setenv("NEVE_ENDPOINT", "https://cache.example/")
    assert config.find_credentials("demo").endpoint == "https://cache.example"


def test_profiles_are_chosen_by_option_then_environment_then_default(monkeypatch):
    others = {name: Profile(f"http://{name}:80", f"key-{name}") for name in ("a", "b", "c")}
    stored(**others)
    assert config.find_credentials().profile == "a"
    monkeypatch.setenv("NEVE_PROFILE", "b")
    assert config.find_credentials().profile == "b"
    assert config.find_credentials("c").profile == "c"


def test_a_profiles_key_goes_to_its_own_endpoint_only(monkeypatch):
    stored(demo=Profile(URL, KEY))
    assert config.find_credentials(endpoint=f"{URL}/").api_key == KEY
    with pytest.raises(NoKey, match="not sent to http://elsewhere"):
        config.find_credentials(endpoint="http://elsewhere")
    monkeypatch.setenv("NEVE_ENDPOINT", "http://elsewhere")
    with pytest.raises(NoKey, match="not sent"):
        config.find_credentials("demo")


@pytest.mark.parametrize("name", ["", "a b", 'a"]', "../x", "-a", "a" * 51, "a\n"])
def test_a_name_that_toml_would_read_otherwise_is_refused(name):
    with pytest.raises(Misuse):
        config.check_name(name)

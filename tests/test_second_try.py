import json

import pytest

from support import second_try


@pytest.mark.parametrize(
    ("failed", "codes", "code", "tried"),
    [
        ([], [0], 0, 0),
        (["tests/a.py::b"], [1, 0], 0, 1),
        (["tests/a.py::b"], [1, 1], 1, 1),
        (["tests/a.py::b"], [2], 2, 0),  # stopped, or not collected
        (["tests/a.py::b", "tests/hot/c.py::d"], [1], 1, 0),
        ([f"tests/a.py::b{n}" for n in range(second_try.MOST + 1)], [1], 1, 0),
    ],
)
def test_few_failures_have_a_second_try(monkeypatch, tmp_path, failed, codes, code, tried):
    found, calls = tmp_path / "lastfailed", []

    def run(*arguments):
        calls.append(arguments)
        if len(calls) == 1 and failed:
            found.write_text(json.dumps(dict.fromkeys(failed, True)))
        return codes[len(calls) - 1]

    monkeypatch.setattr(second_try, "FAILED", found)
    monkeypatch.setattr(second_try, "_pytest", run)
    assert second_try.main(["-q"]) == code
    assert len(calls) - 1 == tried
    assert all("--last-failed" in call for call in calls[1:])


@pytest.mark.integration
def test_only_what_failed_is_tried_again_in_the_order_of_its_file(monkeypatch, tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "test_two.py").write_text(
        "import pathlib, pytest\n"
        "log = pathlib.Path('log')\n"
        "def seen(name):\n"
        "    log.open('a').write(name + ' ')\n"
        "    return log.read_text().split().count(name) > 1\n"
        "@pytest.fixture\n"
        "def server():\n"
        "    assert seen('server')\n"
        "def test_z(server): pass\n"
        "def test_well(): seen('well')\n"
        "def test_a(): assert seen('a')\n"
    )
    monkeypatch.setattr(second_try, "ROOT", tmp_path)
    monkeypatch.setattr(second_try, "FAILED", tmp_path / ".pytest_cache/v/cache/lastfailed")
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
    assert second_try.main(["--numprocesses=1", "--dist=loadfile"]) == 0
    assert (tmp_path / "log").read_text().split() == ["server", "well", "a", "server", "a"]

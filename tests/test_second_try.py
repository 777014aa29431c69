import json

import pytest

from support import second_try


@pytest.mark.parametrize(
    ("failed", "codes", "code", "tried"),
    [
        ([], [0], 0, []),
        (["tests/a.py::b"], [1, 0], 0, ["tests/a.py::b"]),
        (["tests/a.py::b"], [1, 1], 1, ["tests/a.py::b"]),
        (["tests/a.py::b"], [2], 2, []),  # stopped, or not collected
        (["tests/a.py::b", "tests/hot/c.py::d"], [1], 1, []),
        ([f"tests/a.py::b{n}" for n in range(second_try.MOST + 1)], [1], 1, []),
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
    assert [name for call in calls[1:] for name in call if "::" in name] == tried

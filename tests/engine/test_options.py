import math
from dataclasses import replace

import pytest

from neve.engine.losses import reported
from neve.engine.options import Options
from neve.errors import Misuse
from neve.formats.loss import Loss


def test_endpoint_and_key_are_enough():
    options = Options.from_config({"endpoint": "http://e", "api_key": "neve_x_y"}, {})
    assert (options.endpoint, options.space, options.max_chunk_tokens) == ("http://e", None, 256)


def test_the_environment_fills_what_the_config_leaves_out():
    environ = {"NEVE_ENDPOINT": "http://env", "NEVE_API_KEY": "neve_env"}
    options = Options.from_config({"endpoint": "http://config"}, environ)
    assert (options.endpoint, options.api_key) == ("http://config", "neve_env")


def test_saves_may_stage_two_steps_within_bounds_unless_told_otherwise():
    options = Options.from_config({"endpoint": "http://e", "api_key": "k"}, {})
    step_of_8b = 16_384 * 131_072
    assert options.save_budget(step_of_8b) == 2 * step_of_8b == 4 << 30
    assert options.save_budget(1000) == 1 << 30
    assert options.save_budget(10 * step_of_8b) == 8 << 30
    for given in (1e6, 100 << 30):
        assert replace(options, save_budget_bytes=given).save_budget(step_of_8b) == given
    read = Options.from_config(
        {"endpoint": "http://e", "api_key": "k", "save_budget_bytes": 2e9}, {}
    )
    assert repr(read.save_budget(0)) == "2000000000"


def test_every_data_parallel_engine_has_a_name_of_its_own():
    options = Options.from_config({"endpoint": "http://e", "api_key": "k", "node": "gpu-07"}, {})
    assert [options.of_replica(n).node for n in range(3)] == ["gpu-07", "gpu-07/dp1", "gpu-07/dp2"]


def test_a_key_from_a_file_with_a_line_end_is_the_key():
    assert Options.from_config({"endpoint": "http://e/", "api_key": "k\n"}, {}).api_key == "k"


@pytest.mark.parametrize("key", ["se\ncret", "secret ☃", "\n", "two secrets"])
def test_what_cannot_be_a_key_is_refused_and_not_shown(key):
    with pytest.raises(Misuse, match="api_key") as error:
        Options.from_config({"endpoint": "http://e", "api_key": key}, {})
    assert "secret" not in str(error.value)


def test_the_key_is_never_shown():
    options = Options.from_config({"endpoint": "http://e", "api_key": "neve_x_secret"}, {})
    assert "secret" not in repr(options)


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({}, "endpoint"),
        ({"endpoint": "neve.example:8000", "api_key": "k"}, "endpoint"),
        ({"endpoint": "http://e"}, "api_key"),
        ({"endpoint": "http://e", "api_key": "k", "chunk": 5}, "chunk"),
        ({"endpoint": "http://e", "api_key": "k", "node": 5}, "node"),
        ({"endpoint": "http://e", "api_key": "k", "max_chunk_tokens": "x"}, "max_chunk_tokens"),
        ({"endpoint": "http://e", "api_key": "k", "load": "never"}, "load"),
        ({"endpoint": "http://e", "api_key": "k", "layout": "head"}, "layout"),
        (
            {"endpoint": "http://e", "api_key": "k", "cross_layer_blocks": "no"},
            "cross_layer_blocks",
        ),
        ({"endpoint": "http://e", "api_key": "k", "cross_layer_blocks": 1}, "cross_layer_blocks"),
        ({"endpoint": "http://e", "api_key": "k", "layout": []}, "layout"),
        ({"endpoint": "http://e", "api_key": "k", "canary": True}, "canary"),
        ({"endpoint": "http://e", "api_key": "k", "load_deadline_s": 0}, "load_deadline_s"),
        ({"endpoint": "http://e", "api_key": "k", "load_deadline_s": math.nan}, "load_deadline_s"),
        ({"endpoint": "http://e", "api_key": "k", "match_deadline_s": 1e999}, "match_deadline_s"),
        ({"endpoint": "http://e", "api_key": "k", "connections": 0.5}, "connections"),
        ({"endpoint": "http://e", "api_key": "k", "save_budget_bytes": "1G"}, "save_budget_bytes"),
    ],
)
def test_a_wrong_option_is_named(extra, field):
    with pytest.raises(Misuse) as error:
        Options.from_config(extra, {})
    assert error.value.field == field


def test_an_option_that_may_be_zero_says_so():
    with pytest.raises(Misuse, match="canary: need a whole number, 0 or more, got -1"):
        Options.from_config({"endpoint": "http://e", "api_key": "k", "canary": -1}, {})


def test_a_misspelt_option_is_named_with_those_that_there_are():
    """The misspelt option is named, not the option that is missing for it."""
    with pytest.raises(Misuse, match=r"endpont: unknown option .* known are endpoint, api_key, "):
        Options.from_config({"endpont": "http://e", "api_key": "k"}, {})


def test_storing_with_loss_compares_nothing_and_joins_no_family():
    given = {"endpoint": "http://e", "api_key": "k", "codec": "int8"}
    options = Options.from_config(given, {})
    assert (options.codec, options.canary) == ("int8", 0)
    assert Options.from_config(given | {"codec": "none"}, {}).canary > 0
    with pytest.raises(Misuse, match="family"):
        Options.from_config(given | {"family": "f"}, {})
    with pytest.raises(Misuse, match="int2"):
        Options.from_config(given | {"codec": "int2"}, {})


def test_a_report_of_the_codec_is_read_at_the_start(tmp_path):
    path = tmp_path / "report.json"
    given = {"endpoint": "http://e", "api_key": "k", "codec_report": str(path)}
    assert Options.from_config(given, {}).codec_report == str(path)  # exact: nothing to report
    for text in (None, "{", '{"losses": 5}', '{"losses": [{"codec": "fp8", "kl": 0.1}]}'):
        if text is not None:
            path.write_text(text)
        with pytest.raises(Misuse, match="codec-check") as raised:
            Options.from_config(given | {"codec": "int4"}, {})
        assert raised.value.field == "codec_report"
    path.write_text('{"losses": [{"codec": "int4", "kl": 0.5, "argmax": 7, "error": "x"}]}')
    Options.from_config(given | {"codec": "int4"}, {})
    assert reported(str(path), "int4") == Loss("int4", kl=0.5)
    assert reported(str(path), "none") == Loss("none")

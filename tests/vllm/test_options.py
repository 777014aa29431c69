import pytest

from neve.errors import Misuse
from neve.vllm.options import Options


def test_endpoint_and_key_are_enough():
    options = Options.from_config({"endpoint": "http://e", "api_key": "neve_x_y"}, {})
    assert (options.endpoint, options.space, options.max_chunk_tokens) == ("http://e", None, 256)


def test_the_environment_fills_what_the_config_leaves_out():
    environ = {"NEVE_ENDPOINT": "http://env", "NEVE_API_KEY": "neve_env"}
    options = Options.from_config({"endpoint": "http://config"}, environ)
    assert (options.endpoint, options.api_key) == ("http://config", "neve_env")


def test_the_key_is_never_shown():
    options = Options.from_config({"endpoint": "http://e", "api_key": "neve_x_secret"}, {})
    assert "secret" not in repr(options)


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({}, "endpoint"),
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
        ({"endpoint": "http://e", "api_key": "k", "layout": []}, "layout"),
        ({"endpoint": "http://e", "api_key": "k", "load_deadline_s": 0}, "load_deadline_s"),
    ],
)
def test_a_wrong_option_is_named(extra, field):
    with pytest.raises(Misuse) as error:
        Options.from_config(extra, {})
    assert error.value.field == field

"""SGLang's server on CPU over a real platform: the same text, whether computed or loaded."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from support.servers import wait_until
from support.sglang import (
    PROMPT,
    WHOLE_PAGES,
    SglangServer,
    make_model,
    neve_config,
)

pytestmark = pytest.mark.sglang

ADMIN = "an-admin-key"
BACKEND = "NeveStorage"
FROM_STORAGE = {"device": 0, "host": 0, "storage": WHOLE_PAGES, "storage_backend": BACKEND}
PROMPTS = [f"Question {n}: what is computed once is kept for the next one. " * 5 for n in range(6)]


@pytest.fixture(scope="module")
def serve(sglang_python, model, platform, tmp_path_factory):
    def make(name: str, *, other: Path | None = None, config: Any = (), **options) -> SglangServer:
        folder = tmp_path_factory.mktemp(name)
        given = None if config is None else neve_config(platform, **dict(config))
        return SglangServer(folder, sglang_python, other or model, given, **options)

    return make


@pytest.fixture(scope="module")
def first(serve) -> Iterator[SglangServer]:
    with serve("first") as server:
        yield server


@pytest.fixture(scope="module")
def computed(first) -> str:
    text, source = first.generate()
    assert not source.get("storage")
    return text


def stored(server: SglangServer, text: str = PROMPT) -> None:
    """Saves happen behind an answer: wait until all of a prompt's pages are stored."""

    def is_stored() -> bool:
        server.flush()
        return server.generate(text)[1].get("storage", 0) == len(text) // 16 * 16

    wait_until(is_stored, what="the prompt's pages")


def test_a_text_is_the_same_computed_and_loaded(first, computed):
    stored(first)
    first.flush()
    assert first.generate() == (computed, FROM_STORAGE)
    text, source = first.generate()
    assert (text, source["device"]) == (computed, WHOLE_PAGES)


def test_another_salt_or_key_finds_nothing_of_it(first, computed):
    stored(first)
    first.flush()
    for divide in ({"cache_salt": "another"}, {"extra_key": "another"}):
        text, source = first.generate(**divide)
        assert text == computed
        assert not source.get("storage")


@pytest.mark.long
def test_another_server_loads_what_this_one_computed(serve, first, computed):
    stored(first)
    with serve("second") as second:
        assert second.generate() == (computed, FROM_STORAGE)
        # And the other way round.
        text, _ = second.generate(PROMPTS[0])
        stored(second, PROMPTS[0])
        first.flush()
        loaded, source = first.generate(PROMPTS[0])
        assert (loaded, source["storage_backend"]) == (text, BACKEND)


@pytest.mark.long
@pytest.mark.parametrize(
    ("layout", "io"),
    [("layer_first", "direct"), ("page_first_direct", "direct"), ("page_head", "kernel")],
)
def test_a_restarted_server_loads_in_each_layout(serve, computed, layout, io):
    more = ("--hicache-mem-layout", layout, "--hicache-io-backend", io)
    with serve(layout, more=more) as server:
        assert server.generate()[0] == computed
        stored(server)
        server.restart()
        assert server.generate() == (computed, FROM_STORAGE)


@pytest.mark.long
def test_the_file_backend_answers_the_same(sglang_python, model, computed, tmp_path):
    config = {"file_storage_path": str(tmp_path / "pages")}
    with SglangServer(tmp_path / "server", sglang_python, model, config, backend="file") as server:
        assert server.generate()[0] == computed
        stored(server)
        server.flush()
        text, source = server.generate()
        assert (text, source["storage"]) == (computed, WHOLE_PAGES)


@pytest.mark.long
def test_faults_cost_time_and_change_no_text(serve, first):
    expected = [first.generate(prompt)[0] for prompt in PROMPTS]
    faults = {
        "SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY": "0.05",
        "SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE": "0.3",
    }
    with serve("faults", **faults) as server:
        loaded = 0
        for _ in range(3):
            answers = [server.generate(prompt) for prompt in PROMPTS]
            assert [text for text, _ in answers] == expected
            loaded += sum(source.get("storage", 0) for _, source in answers)
            server.flush()
        assert loaded > 0


@pytest.mark.long
def test_a_valkey_that_dies_under_load_changes_no_text(serve, platform, computed):
    with serve("valkey", config={"match_deadline_s": 0.5, "load_deadline_s": 1}.items()) as server:
        stored(server)
        for trouble, mend in (
            (platform.hot.freeze, platform.hot.thaw),
            (platform.hot.kill, platform.hot.__enter__),
        ):
            trouble()
            try:
                server.flush()
                began = time.monotonic()
                assert server.generate()[0] == computed
                assert time.monotonic() - began < 60  # far above: SGLang itself waits for ever
            finally:
                mend()
        platform.manage("provision")
        stored(server)


@pytest.mark.long
def test_other_weights_share_nothing_and_changed_ones_load_nothing(
    serve, sglang_python, first, computed, tmp_path
):
    stored(first)
    make_model(sglang_python, tmp_path, seed=8)
    with serve("others", other=tmp_path) as server:
        text, source = server.generate()
        assert text != computed
        assert not source.get("storage")
    with serve("changed") as server:
        assert server.generate() == (computed, FROM_STORAGE)
        # SGLang's own flush would be refused while it saves behind the answer.
        update = {"model_path": str(tmp_path), "flush_cache": False}
        assert json.loads(server.post("/update_weights_from_disk", update))["success"]
        for _ in range(2):
            server.flush()
            changed, source = server.generate()
            assert changed == text
            assert not source.get("storage")


@pytest.mark.long
def test_a_backend_that_comes_later_needs_the_name_of_the_weights(
    serve, first, computed, platform, sglang_python, tmp_path
):
    """Those that the server has by then: SGLang tells of no change before."""
    stored(first)
    make_model(sglang_python, tmp_path, seed=8)
    with serve("later", config=None, more=("--admin-api-key", ADMIN)) as server:
        update = {"model_path": str(tmp_path), "flush_cache": True}
        assert json.loads(server.post("/update_weights_from_disk", update, key=ADMIN))["success"]
        text, _ = server.generate()
        assert text != computed
        config = {"prefetch_threshold": 16, **neve_config(platform)}
        with pytest.raises(HTTPError) as refused:
            server.attach(config, key=ADMIN)
        assert "revision: weights may have been changed" in refused.value.read().decode()
        server.attach(config | {"revision": "seed 8"}, key=ADMIN)
        server.flush(key=ADMIN)
        again, source = server.generate()
        assert (again, source.get("storage", 0)) == (text, 0)


@pytest.mark.long
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"interface_v1": 0}, "interface_v1: set it to 1"),
        ({"layout": "canonical"}, "layout: unknown option"),
    ],
)
def test_a_server_that_cannot_be_served_says_why_and_ends(serve, config, message):
    server = serve("refused", config=config.items())
    with pytest.raises(RuntimeError):
        server.__enter__()
    assert message in server.log.read_text()


@pytest.mark.long
def test_without_the_platform_the_server_serves_alone(serve, computed):
    for trouble in ({"endpoint": "http://127.0.0.1:9"}, {"api_key": "neve_wrong"}):
        with serve("alone", config=trouble.items()) as server:
            for _ in range(2):
                text, source = server.generate()
                assert text == computed
                assert not source.get("storage")
                server.flush()

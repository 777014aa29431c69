"""LoRA adapters are named by what is in their files."""

import time

import pytest

from neve.engine.lora import LoraContents
from neve.engine.step import Lora


@pytest.fixture
def adapters():
    made = LoraContents()
    yield made
    made.close()


def write(folder, weights=b"weights", rank=8):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(len(b"{}").to_bytes(8, "little") + b"{}")
    (folder / "adapter_model.bin").write_bytes(weights)
    (folder / "adapter_config.json").write_text(f'{{"r": {rank}}}')
    return folder


def named(adapters, folder, number=1, **more):
    lora = Lora(number, "a", str(folder), **more)
    deadline = time.monotonic() + 60
    while (name := adapters.content(lora)) is None:
        assert time.monotonic() < deadline
    return name


def test_the_name_is_the_contents(adapters, tmp_path):
    one = named(adapters, write(tmp_path / "one"))
    assert named(adapters, write(tmp_path / "same")) == one
    others = [
        named(adapters, write(tmp_path / "weights", weights=b"wEights")),
        named(adapters, write(tmp_path / "rank", rank=4)),
        named(adapters, tmp_path / "one", is_3d=True, number=2),
    ]
    assert len({one, *others}) == 4


def test_one_whose_files_changed_since_it_was_read_has_no_name_until_it_has_another_id(
    adapters, tmp_path
):
    folder = write(tmp_path / "a")
    first = named(adapters, folder)
    write(folder, weights=b"retrained")
    assert named(adapters, folder) == b""
    write(folder)  # as it was, but the engine may have read either
    assert named(adapters, folder) == b""
    assert named(adapters, folder, number=2) == first


@pytest.mark.parametrize("more", [{}, {"is_readable": False}])
def test_one_without_files_to_read_has_no_name_as_long_as_it_has_none(adapters, tmp_path, more):
    folder = tmp_path / "a"
    if more:
        write(folder)
    assert named(adapters, folder, **more) == b""
    write(folder)
    assert (named(adapters, folder, **more) == b"") == bool(more)

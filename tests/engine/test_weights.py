import json

import pytest

from neve.engine.weights import folder_revision


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(tensors.values()))


@pytest.fixture
def weights(tmp_path):
    def make(name, change=None, at=0):
        tensors = {"big": bytearray(b"a" * 300_000), "small": bytearray(b"b" * 100)}
        if change is not None:
            tensors[change][at] ^= 1
        folder = tmp_path / name
        folder.mkdir()
        write_safetensors(folder / "model.safetensors", tensors)
        return folder

    return make


@pytest.mark.parametrize("full_hash_bytes", [1 << 30, 0])
@pytest.mark.parametrize(
    ("tensor", "at"), [("big", 0), ("big", 150_000), ("big", -1), ("small", 7)]
)
def test_other_weights_have_another_revision(weights, full_hash_bytes, tensor, at):
    one, same, other = weights("one"), weights("same"), weights("other", tensor, at)
    revisions = [folder_revision(f, full_hash_bytes=full_hash_bytes) for f in (one, same, other)]
    assert revisions[0] == revisions[1] != revisions[2]


def test_up_to_the_limit_every_byte_counts(weights):
    assert folder_revision(weights("one")) != folder_revision(weights("two", "big", 77_777))


def test_a_damaged_header_is_no_revision(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100_000)
    with pytest.raises(ValueError):
        folder_revision(tmp_path, full_hash_bytes=0)

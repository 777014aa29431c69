"""Writes the inputs with which the fuzzers begin into corpus/: python connector/fuzz/make_corpus.py

Each is a tiny file; what its bytes mean stands in the fuzzer of that name.
"""

import struct
from pathlib import Path

import xxhash

CORPUS = Path(__file__).parent / "corpus"

REPLIES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":-17\r\n",
    b"_\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"#t\r\n",
    b",1.5\r\n",
    b"(123\r\n",
    b"$0\r\n\r\n",
    b"$5\r\na\r\nb\n\r\n",
    b"=7\r\ntxt:abc\r\n",
    b"!5\r\nE why\r\n",
    b"~2\r\n:1\r\n:2\r\n",
    b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n_\r\n",
    b">2\r\n+message\r\n+x\r\n+after\r\n",
    b"|1\r\n+ttl\r\n:3\r\n+value\r\n",
    b"*3\r\n*2\r\n:1\r\n$1\r\nx\r\n|1\r\n+k\r\n+v\r\n:9\r\n_\r\n",
    b"*1\r\n" * 9 + b"_\r\n",
    b"*1048577\r\n",
    b"$83886081\r\n",
    b"*1\r\n>0\r\n",
]

SLOTS = [
    b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:7000\r\n$2\r\nid\r\n",
    b"*2\r\n*4\r\n:0\r\n:99\r\n*2\r\n+a\r\n:1\r\n*2\r\n+b\r\n:2\r\n"
    b"*3\r\n:100\r\n:16383\r\n*2\r\n_\r\n:7001\r\n",
    b"*1\r\n*3\r\n:5\r\n:5\r\n*2\r\n$3\r\n::1\r\n:65535\r\n",
    b"*1\r\n*3\r\n:9\r\n:1\r\n*2\r\n+a\r\n:1\r\n",
    b"*0\r\n",
    b"MOVED 3999 10.0.0.2:7001",
    b"ASK 16383 :7002",
    b"-MOVED 1 [::1]:7000\r\n",
    b"CLUSTERDOWN The cluster is down",
    b"OOM command not allowed",
    b"ERR Function not found",
    b"unix:/tmp/socket",
    b"[::1]:6379",
    b"{t7.0}:b:1:{x}",
    b"{}{a}",
]


HEADS = [
    b"HTTP/1.1 206 -\r\nContent-Length: 10\r\nContent-Range: bytes 0-9/99\r\n\r\n0123",
    b"HTTP/1.1 503 Slow Down\r\nRetry-After: 7\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\nDate: Sun, 29 Nov 2026\r\n\r\n",
    b"HTTP/1.1 200 x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 204 -\r\nX:\r\n: y\r\n\r\n",
    b"https://s3.test:8333/bucket/key?X-Amz-Date=20261129T140000Z&X-Amz-Signature=0#part",
    b"[::1]:9/x?y",
    b"HTTP/1.1 204 -\r\nTransfer-Encoding: chunked\r\n\r\n",
]


def header(payload_bytes: int) -> bytes:
    """A right block header; layout: docs/formats/block.md."""
    start = b"NVB1" + struct.pack("<HH", 1, 1) + bytes(range(16)) + bytes(range(16, 32))
    rest = struct.pack("<IIQ4s", 256, payload_bytes, 0x0123456789ABCDEF, b"tag!")
    check = xxhash.xxh3_64_intdigest(start + rest) & 0xFFFFFFFF
    return start + rest + struct.pack("<I", check)


def blocks() -> list[bytes]:
    right = header(2 << 20)
    wrong = [right[:at] + bytes([right[at] ^ 0x80]) + right[at + 1 :] for at in (0, 4, 6, 44, 60)]
    sizes = [header(size) for size in (0, 1, 64 << 20, (64 << 20) + 1)]
    return [bytes([bit, 0]) + each for bit, each in enumerate([right, *wrong, *sizes])]


def matches() -> list[bytes]:
    """Buckets - 1, ids, a byte for each id; per call: status, type, bytes / 3, the rows' bytes."""
    found, missed = b"\x01" + bytes(19), bytes(20)
    call = b"\x00\x00" + bytes([20]) + found * 3
    return [
        b"\x00\x03" + bytes(3) + call,
        b"\x00\x03" + bytes(3) + b"\x00\x00\x0e" + found + missed + bytes(2),
        b"\x01\x06" + bytes(range(6)) + call + call,
        b"\x02\x06" + bytes(range(6)) + call + b"\x07\x00\x00" + call,
        b"\x04\x00",
        b"\x00\x02" + bytes(2) + b"\x00\x07\x05" + found,
    ]


def connections() -> list[bytes]:
    """Size of pieces, which operations are preceded by ASKING, words (see `words_of`)."""
    loads = b"\x00\x00\x00\x01\x00\x02"
    calls = b":3\r\n+PONG\r\n+PONG\r\n"
    stores = b"\x02\x03\x01\x05"  # the second block was there already
    whole = loads + calls + stores
    return [
        b"\x00\x00" + whole,
        b"\x3f\x00" + whole,
        b"\x50\x00" + whole,
        b"\x4f\xff" + b"".join(b"\x02" + each for each in (b"\x00\x00", b"\x00\x01", b"\x00\x02")),
        b"\x4f\x00" + b"\x00\x40\x00\x05\x00\x81\x00\x01" + calls + stores,
        b"\x4f\x00" + b"\x03$-1\r\n-MOVED 1 10.0.0.2:7000\r\n" + calls + stores,
        b"\x4f\x00" + loads + calls + b"\x02-ASK 1 10.0.0.2:7000\r\n-TRYAGAIN x\r\n",
        b"\x4f\x00" + loads + calls + b"\x02-OOM full\r\n\x01\x0f",
        b"\x4f\x00" + loads + calls + b"\x02\x02*2\r\n_\r\n+x\r\n",
        b"\x4f\x00" + loads + calls + b"\x02\x02-NOPERM no\r\n",
        b"\x4f\x00" + b">1\r\n+push\r\n|1\r\n+k\r\n+v\r\n" + whole,
        b"\x4f\x00" + b"=70\r\n" + b"x" * 70 + b"\r\n-WRONGTYPE x\r\n*0\r\n" + calls + stores,
        b"\x4f\x00" + whole + b"+more\r\n",
        b"\x4f\x00" + b"$65\r\n" + b"x" * 65 + b"!!",
        # The harness speaks over a Unix socket, which has no host that a redirect could mean.
        b"\x4f\x00" + b"\x03$-1\r\n-MOVED 1 :7000\r\n" + calls + stores,
    ]


def main() -> None:
    inputs = {
        "resp": [bytes([step]) + reply for step, reply in enumerate([*REPLIES, b"".join(REPLIES)])],
        "block": blocks(),
        "slots": SLOTS,
        "match": matches(),
        "connection": connections(),
        "http": [bytes([step]) + head for step, head in enumerate(HEADS)],
    }
    for name, each in inputs.items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(each):
            (folder / f"{number:02}").write_bytes(data)


if __name__ == "__main__":
    main()

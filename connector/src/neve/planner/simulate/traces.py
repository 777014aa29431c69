"""Readers of traces: from lines of text to requests of block ids.

Readers take lines, such as an open file, and yield `BlockRequest`s as they read. A line that is no
request raises Misuse with the line's number, the field and the expected value.
"""

from collections.abc import Iterable, Iterator

from neve.planner.simulate.requests import BlockRequest

BLOCK_TOKENS = 512  # of a Mooncake trace


def mooncake(lines: Iterable[str]) -> Iterator[BlockRequest]:
    """Reads Mooncake's format: `{"timestamp": ms, "input_length": tokens, "output_length": tokens,
    "hash_ids": [int, …]}` a line. The last id may stand for fewer than BLOCK_TOKENS."""
    raise NotImplementedError


def vllm_log(lines: Iterable[str], *, block_tokens: int = BLOCK_TOKENS) -> Iterator[BlockRequest]:
    """Reads a log of vLLM with prompt token ids: `VLLM_LOGGING_LEVEL=DEBUG vllm serve …
    --enable-log-requests`, without `--max-log-len`. Yields whole blocks of `block_tokens`."""
    raise NotImplementedError


def read(lines: Iterable[str], *, block_tokens: int = BLOCK_TOKENS) -> Iterator[BlockRequest]:
    """Reads any of the formats, known by its first line that is not blank."""
    raise NotImplementedError

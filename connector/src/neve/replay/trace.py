"""Requests of a workload: their type, the reader of trace files, and their token ids.

A trace is JSON lines in the format of Mooncake's (FAST'25) conversation trace, one request a line:

    {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [int, …]}

A hash id stands for 512 tokens *and everything before them*: equal id, equal whole prefix. The last
id of a request may stand for fewer (see `input_length`). Other fields of a line are ignored.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from neve.errors import Misuse

TRACE_BLOCK_TOKENS = 512
# Token ids are below 2 ** VOCABULARY_BITS.
VOCABULARY_BITS = 17


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt. `conversation` names the chat or agent it continues; None in recorded traces."""

    timestamp_ms: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...]
    conversation: str | None = None
    label: str | None = None


def read_trace(path: Path, *, limit: int | None = None) -> list[Request]:
    """The first `limit` requests of a trace file, blank lines skipped.

    Checks all of them. Raises `Misuse` with file, line, field and expected value.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            requests = list(islice(_requests(path, lines), limit))
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"{path}: cannot be read as a UTF-8 trace ({error})") from error
    if not requests:
        raise Misuse(f"{path}: holds no request; expected one JSON object a line")
    return requests


def _requests(path: Path, lines: Iterator[str]) -> Iterator[Request]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield parse_request(line)
            except Misuse as error:
                raise Misuse(f"{path}:{number}: {error}") from error


def parse_request(line: str) -> Request:
    """Reads one line of a trace. Raises `Misuse` with the field and the expected value."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise Misuse(f"expected a JSON object, but {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise Misuse(f"expected a JSON object, got {_kind(row)}")
    timestamp = _field(row, "timestamp")
    if (
        not isinstance(timestamp, int | float)
        or isinstance(timestamp, bool)
        or not 0 <= timestamp < float("inf")
    ):
        raise Misuse(f"expected milliseconds from 0 up, got {timestamp!r}", field="timestamp")
    input_tokens = _count(row, "input_length", least=1)
    output_tokens = _count(row, "output_length", least=0)
    hash_ids = _field(row, "hash_ids")
    if not isinstance(hash_ids, list):
        raise Misuse(f"expected a list of integers, got {_kind(hash_ids)}", field="hash_ids")
    for i, hash_id in enumerate(hash_ids):
        if type(hash_id) is not int or not 0 <= hash_id < 2**64:
            raise Misuse(f"expected an integer 0 … 2⁶⁴-1, got {hash_id!r}", field=f"hash_ids[{i}]")
    needed = -(-input_tokens // TRACE_BLOCK_TOKENS)
    if len(hash_ids) != needed:
        raise Misuse(
            f"expected {needed} ids (input_length {input_tokens} / {TRACE_BLOCK_TOKENS}, "
            f"rounded up), got {len(hash_ids)}",
            field="hash_ids",
        )
    return Request(float(timestamp), input_tokens, output_tokens, tuple(hash_ids))


def tokens_of(request: Request) -> npt.NDArray[np.uint64]:
    """Returns the request's token ids, uint64[input_tokens], computed from its hash ids alone.

    Equal hash ids give equal tokens in every process. A partial last block holds the first tokens
    of the whole block.
    """
    blocks = np.array(request.hash_ids, dtype=np.uint64)[:, np.newaxis]
    positions = np.arange(TRACE_BLOCK_TOKENS, dtype=np.uint64)[np.newaxis, :]
    mixed = _scramble(_scramble(blocks) + positions) >> np.uint64(64 - VOCABULARY_BITS)
    return mixed.reshape(-1)[: request.input_tokens]


def _scramble(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A pseudorandom bijection of 64-bit words. Source: SplitMix64 (Steele et al., 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _field(row: dict[str, object], name: str) -> object:
    if name not in row:
        raise Misuse("is missing", field=name)
    return row[name]


def _count(row: dict[str, object], name: str, *, least: int) -> int:
    value = _field(row, name)
    if type(value) is not int or not least <= value < 2**31:
        raise Misuse(f"expected an integer from {least} up, got {value!r}", field=name)
    return value


def _kind(value: object) -> str:
    """JSON's name of a value's type."""
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a string",
        int: "a number",
        float: "a number",
        bool: "a boolean",
    }
    return names.get(type(value), "null")

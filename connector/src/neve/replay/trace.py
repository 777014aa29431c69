"""Requests of a workload: their type, the reader of trace files, and their token ids.

A trace is JSON lines in the format of Mooncake's (FAST'25) conversation trace, one request a line:

    {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [int, …]}

A hash id stands for 512 tokens *and everything before them*: equal id, equal whole prefix. The last
id of a request may stand for fewer (see `input_length`). Other fields of a line are ignored.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from neve.errors import Misuse
from neve.planner.simulate.traces import BLOCK_TOKENS, parse_row

TRACE_BLOCK_TOKENS = BLOCK_TOKENS
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
    row = parse_row(line)
    return Request(row.timestamp_ms, row.input_tokens, row.output_tokens, row.hash_ids)


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

"""Readers of traces: from lines of text to requests of block ids.

Formats, known by their first line:

mooncake   one JSON object a line: {"timestamp": ms, "input_length": tokens, "output_length":
           tokens, "hash_ids": [int, …]}; an id stands for a block and all before it
vllm       the log of `VLLM_LOGGING_LEVEL=DEBUG vllm serve … --enable-log-requests`, without
           --max-log-len, which cuts the prompts' token ids off
neve       samples of real traffic, as `neve samples export` writes them

Readers take lines, such as an open file, and read no further than asked. A line that is no request
raises Misuse with the line's number, the field, and the expected value.
"""

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import blake2b
from itertools import chain
from typing import Final

from neve.errors import Misuse
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.samples import MOST_MS, Samples, read_lines

BLOCK_TOKENS: Final = 512  # of Mooncake's traces


class Format(StrEnum):
    MOONCAKE = "mooncake"
    VLLM = "vllm"
    NEVE = "neve"


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their time. `rate`: share of the blocks that are in it, below 1 for
    samples of traffic: then capacities of a simulation are × `rate`. `samples`: what was read, with
    the totals of the traffic; None for the other formats."""

    format: Format
    requests: Sequence[BlockRequest]
    rate: float = 1.0
    samples: Samples | None = None


def read(lines: Iterable[str], *, block_tokens: int = BLOCK_TOKENS) -> Trace:
    """Reads a whole trace in any of the formats. Samples ignore `block_tokens`.

    Raises: Misuse for a line that is no request, or no block at all.
    """
    lines = iter(lines)
    blank = 0
    for first in lines:
        if first.strip():
            break
        blank += 1
    else:
        raise Misuse("holds no line; expected a trace")
    rest = chain([""] * blank, [first], lines)
    kind = _format_of(first)
    if kind is Format.NEVE:
        samples = read_lines(rest)
        return Trace(kind, list(samples.as_requests()), samples.rate, samples)
    reader = {Format.MOONCAKE: mooncake, Format.VLLM: vllm_log}[kind]
    requests = list(reader(rest, block_tokens=block_tokens))
    if not requests:
        raise Misuse("holds no request; expected at least one")
    if not any(request.ids for request in requests):
        longest = max(request.tokens or 0 for request in requests)
        raise Misuse(
            f"no prompt fills a block of {block_tokens} tokens, the longest has {longest}; "
            "choose smaller blocks",
            field="block_tokens",
        )
    return Trace(kind, requests)


def _format_of(line: str) -> Format:
    if not line.lstrip().startswith("{"):
        return Format.VLLM
    return Format.NEVE if '"neve_samples"' in line else Format.MOONCAKE


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a Mooncake trace."""

    timestamp_ms: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...]


def mooncake(lines: Iterable[str], *, block_tokens: int = BLOCK_TOKENS) -> Iterator[BlockRequest]:
    """Reads Mooncake's format, in the order of time. The last id of a request may stand for fewer
    than `block_tokens`. Other fields of a line are ignored."""
    latest_s = 0.0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        with _line(number):
            row = parse_row(line, block_tokens=block_tokens)
            at_s = row.timestamp_ms / 1000
            if at_s < latest_s:
                raise Misuse(
                    f"{row.timestamp_ms:g} is earlier than before; sort the lines by it",
                    field="timestamp",
                )
        latest_s = at_s
        yield BlockRequest(row.hash_ids, at_s, tokens=row.input_tokens)


def parse_row(line: str, *, block_tokens: int = BLOCK_TOKENS) -> Row:
    """Reads one line of a Mooncake trace. Raises: Misuse with the field and the expected value."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise Misuse(f"expected a JSON object, but {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; deep lists
        raise Misuse(f"expected a JSON object, but {error}") from error
    if not isinstance(row, dict):
        raise Misuse(f"expected a JSON object, got {_kind(row)}")
    timestamp = _field(row, "timestamp")
    if (
        not isinstance(timestamp, int | float)
        or isinstance(timestamp, bool)
        or not 0 <= timestamp <= MOST_MS
    ):
        raise Misuse(
            f"expected milliseconds from 0 to {MOST_MS:g}, got {timestamp!r}", field="timestamp"
        )
    input_tokens = _count(row, "input_length", least=1)
    output_tokens = _count(row, "output_length", least=0)
    hash_ids = _field(row, "hash_ids")
    if not isinstance(hash_ids, list):
        raise Misuse(f"expected a list of integers, got {_kind(hash_ids)}", field="hash_ids")
    for i, hash_id in enumerate(hash_ids):
        if type(hash_id) is not int or not 0 <= hash_id < 2**64:
            raise Misuse(f"expected an integer 0 … 2⁶⁴-1, got {hash_id!r}", field=f"hash_ids[{i}]")
    needed = -(-input_tokens // block_tokens)
    if len(hash_ids) != needed:
        raise Misuse(
            f"expected {needed} ids (input_length {input_tokens} / {block_tokens}, "
            f"rounded up), got {len(hash_ids)}",
            field="hash_ids",
        )
    return Row(float(timestamp), input_tokens, output_tokens, tuple(hash_ids))


# A line of vLLM's request logger; the prompt's text may hold anything, so the last match counts.
_DETAILS = re.compile(
    r"(?P<at>\d\d-\d\d \d\d:\d\d:\d\d) \[\S*request_logger\.py:\d+\] "
    r"Request (?P<id>\S+) details: prompt: .*, prompt_token_ids: (?P<tokens>\[[\d, ]*\]|None), "
    r"prompt_embeds shape: .*\.\s*$"
)
_RECEIVED = re.compile(
    r"\[\S*request_logger\.py:\d+\] Received request (?P<id>\S+): params: .*, "
    r"lora_request: (?:None|LoRARequest\(lora_name='(?P<lora>[^']*)'.*)\.\s*$"
)
_COLOUR = re.compile("\x1b\\[[\\d;]*m")
_YEAR = 2000  # a log names no year; this one has a 29 February
_DAY_S = 86_400


def vllm_log(lines: Iterable[str], *, block_tokens: int = BLOCK_TOKENS) -> Iterator[BlockRequest]:
    """Reads the prompts of vLLM's log as blocks of `block_tokens`; a rest is no block, as it is
    never stored. Times count from the first request, in whole seconds.

    Two prompts share blocks if their tokens and their LoRA adapter are equal. The log does not name
    `cache_salt` and has the same tokens for all images: such requests seem to share more than they
    do. Other lines are ignored, as is a request whose second line is missing where the log ends.
    """
    waiting: dict[str, tuple[float, list[int]]] = {}
    first_s: float | None = None
    latest_s = 0.0
    received = 0
    for number, line in enumerate(lines, start=1):
        if "request_logger.py" not in line:
            continue
        line = _COLOUR.sub("", line)
        if found := _DETAILS.search(line):
            with _line(number):
                tokens = _tokens(found["tokens"])
                at_s = _seconds(found["at"])
            if first_s is None:
                first_s = at_s
            elif at_s < latest_s - 180 * _DAY_S:  # a new year has begun
                first_s -= 366 * _DAY_S
            latest_s = at_s
            waiting[found["id"]] = max(0.0, at_s - first_s), tokens
        elif found := _RECEIVED.search(line):
            received += 1
            if found["id"] in waiting:
                at_s, tokens = waiting.pop(found["id"])
                ids = block_ids(tokens, block_tokens=block_tokens, salt=found["lora"] or "")
                yield BlockRequest(ids, at_s, tokens=len(tokens))
    if first_s is None:
        raise Misuse(
            (
                "names no prompt's token ids"
                if received
                else "is neither JSON Lines nor a log of requests"
            )
            + "; expected the log of `VLLM_LOGGING_LEVEL=DEBUG vllm serve … --enable-log-requests`"
        )


def block_ids(tokens: Sequence[int], *, block_tokens: int, salt: str = "") -> tuple[int, ...]:
    """Ids of a prompt's whole blocks, each from its tokens and all before them."""
    digest = salt.encode()
    ids = []
    for end in range(block_tokens, len(tokens) + 1, block_tokens):
        block = array("Q", tokens[end - block_tokens : end]).tobytes()
        digest = blake2b(digest + block, digest_size=8, person=b"neve.trace").digest()
        ids.append(int.from_bytes(digest))
    return tuple(ids)


def _tokens(text: str) -> list[int]:
    if text == "None":
        raise Misuse("expected token ids, got None; leave out prompts given as embeddings")
    try:
        tokens: list[int] = json.loads(text)
    except ValueError as error:
        raise Misuse(f"expected token ids: {error}") from error
    if max(tokens, default=0) >= 2**64:
        raise Misuse("expected token ids below 2⁶⁴")
    return tokens


def _seconds(text: str) -> float:
    try:
        at = datetime.fromisoformat(f"{_YEAR}-{text}+00:00")
    except ValueError as error:
        raise Misuse(f"expected month-day hours:minutes:seconds, got {text!r}") from error
    return at.timestamp()


@contextmanager
def _line(number: int) -> Iterator[None]:
    """Misuse inside names the line."""
    try:
        yield
    except Misuse as error:
        raise Misuse(f"line {number}: {error}") from error


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

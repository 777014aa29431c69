"""A request's prompt, and its prefixes as keyed hashes. Pure.

A gateway has no tokeniser. It compares prompts by text: the prompt as bytes, cut into pieces, each
piece's hash covering all before it. Equal hash, equal whole prefix. Source of the idea:
prefix cache plugin of the Gateway API Inference Extension (docs/proposals/0602-prefix-cache),
with 64-token blocks of 4 characters each.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

PIECE_BYTES: Final = 1024  # about 256 tokens of English: no block of Neve has more
MOST_PIECES: Final = 4096  # of a prompt that are hashed; what follows has no say
DIGEST_BYTES: Final = 16
_OF_TEXT: Final = ("add_special_tokens",)
_OF_MESSAGES: Final = (
    *("tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"),
    "add_special_tokens",
)
_OF_CONTENTS: Final = ("systemInstruction", "system_instruction", "tools")


@dataclass(frozen=True)
class Prompt:
    """One of `tokens`, `text`, `messages`, or `items` (of the Responses API or Gemini's, which
    `lookup` does not take).

    `options`: members of the request that decide its tokens. `salt`: its cache_salt.
    """

    tokens: Sequence[int] | None = None
    text: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    items: Sequence[Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    salt: str | None = None

    def __repr__(self) -> str:  # prompts stay out of logs
        return "Prompt()"

    @property
    def query(self) -> dict[str, Any] | None:
        """Arguments of `lookup`, without the space; None if it cannot take this prompt: parts
        other than text, or `items`."""
        if self.tokens is not None:
            asked: dict[str, Any] = {"tokens": self.tokens}
        elif self.text is not None:
            asked = {"text": self.text, **self.options}
        elif self.messages is not None and all(map(_is_of_text, self.messages)):
            asked = {"messages": self.messages, **self.options}
        else:
            return None
        return asked | ({"salt": self.salt} if self.salt else {})

    def prefixes(self, key: bytes, piece_bytes: int = PIECE_BYTES) -> list[bytes]:
        """One hash of `DIGEST_BYTES` for each whole piece, of all bytes up to its end.

        Args:
            key: up to 64 bytes; hashes of other keys cannot be compared.
            piece_bytes: shorter prompts have no prefix.
        """
        whole = self._beginning(MOST_PIECES * piece_bytes)
        digest = blake2b((self.salt or "").encode(), key=key, digest_size=DIGEST_BYTES).digest()
        found = []
        for n in range(min(len(whole) // piece_bytes, MOST_PIECES)):
            piece = whole[n * piece_bytes : (n + 1) * piece_bytes]
            digest = blake2b(digest + piece, key=key, digest_size=DIGEST_BYTES).digest()
            found.append(digest)
        return found

    def _beginning(self, most_bytes: int) -> bytes:
        found = bytearray()
        for part in self._bytes(most_bytes):
            found += part[: most_bytes - len(found)]
            if len(found) == most_bytes:
                break
        return bytes(found)

    def _bytes(self, most_bytes: int) -> Iterator[bytes]:
        if self.tokens is not None:
            first = self.tokens[: most_bytes // 4]
            yield struct.pack(f"<{len(first)}I", *first)
        elif self.text is not None:
            yield self.text[:most_bytes].encode(errors="surrogatepass")
        else:
            if self.options:
                yield _canonical(self.options)
            for each in self.messages or self.items or ():
                yield _canonical(each)


def read_prompt(body: Mapping[str, Any]) -> Prompt | None:
    """The prompt of a body of /v1/chat/completions, /v1/messages, /v1/completions, /v1/responses
    or Gemini's generateContent; None if there is none, or several, or it is malformed (the engine
    will say so).

    Not for embeddings, whose `input` looks alike.
    """
    salt = body.get("cache_salt")
    salt = salt if isinstance(salt, str) else None
    messages, prompt, items = body.get("messages"), body.get("prompt"), body.get("input")
    if isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages):
        system = body.get("system")  # of the Anthropic API
        if system:
            messages = [{"role": "system", "content": system}, *messages]
        return Prompt(messages=messages, options=_options(body, _OF_MESSAGES), salt=salt)
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]  # a batch of one
    if isinstance(prompt, str) and prompt:
        return Prompt(text=prompt, options=_options(body, _OF_TEXT), salt=salt)
    if isinstance(prompt, list) and prompt and all(type(t) is int for t in prompt):
        if all(0 <= t < 2**32 for t in prompt):
            return Prompt(tokens=prompt, salt=salt)
        return None
    if isinstance(items, list) and items and all(isinstance(each, dict) for each in items):
        return Prompt(items=items, options=_options(body, ("instructions", "tools")), salt=salt)
    contents = body.get("contents")
    contents = [contents] if isinstance(contents, dict) else contents
    if isinstance(contents, list) and contents and all(isinstance(c, dict) for c in contents):
        return Prompt(items=contents, options=_options(body, _OF_CONTENTS), salt=salt)
    return None


def _options(body: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: body[name] for name in names if body.get(name) is not None}


def _is_of_text(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return content is None or isinstance(content, str)


def _canonical(value: object) -> bytes:
    """Without `cache_control`, which agents move along from turn to turn."""
    return json.dumps(_without_marks(value), sort_keys=True, separators=(",", ":")).encode()


def _without_marks(value: object) -> object:
    if isinstance(value, Mapping):
        return {k: _without_marks(v) for k, v in value.items() if k != "cache_control"}
    if isinstance(value, list):
        return [_without_marks(each) for each in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)

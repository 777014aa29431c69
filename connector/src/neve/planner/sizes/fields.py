"""A model's `config.json`, read field by field. Whatever is missing or unclear raises `Misuse`."""

from collections.abc import Mapping, Sequence
from typing import Any

from neve.errors import Misuse

# Where multimodal models keep the configuration of their language model.
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_DEEPEST = 4
_MOST = 1 << 24  # layers, heads and widths beyond this are mistakes
_REQUIRED: Any = object()


class Fields:
    """The fields of the language model. `defaults`: what its family's configurations leave out."""

    def __init__(
        self, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> None:
        self._config = {**(defaults or {}), **config}

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Fields":
        return Fields(self._config, defaults)

    def all(self) -> Mapping[str, Any]:
        return self._config

    def inside(self, name: str) -> "Fields":
        """The object under `name`. Raises `Misuse` if there is none."""
        value = self._config.get(name)
        if not isinstance(value, Mapping):
            raise Misuse("config.json has no such object", field=name)
        return Fields(value)

    def get(self, *names: str) -> Any:
        """The first of these fields that is there and not null, else None."""
        return next((self._config[n] for n in names if self._config.get(n) is not None), None)

    def number(
        self, *names: str, default: int = _REQUIRED, least: int = 1, most: int = _MOST
    ) -> int:
        """A whole number. Without a default the field is required; `names` are its synonyms."""
        for name in names:
            value = self._config.get(name)
            if value is None:
                continue
            if type(value) is not int or not least <= value <= most:
                raise Misuse(
                    f"config.json needs a whole number of {least} … {most:,}, not {value!r:.60}",
                    field=name,
                )
            return value
        if default is _REQUIRED:
            raise Misuse("config.json has no such number", field=names[0])
        return default

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self._config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise Misuse(f"config.json needs true or false here, not {value!r:.60}", field=name)
        return value

    def word(self, name: str) -> str | None:
        """A word, or None if it is missing."""
        value = self._config.get(name)
        if value is not None and not isinstance(value, str):
            raise Misuse(f"config.json needs a word here, not {value!r:.60}", field=name)
        return value

    def numbers(self, name: str) -> list[int]:
        """A list of whole numbers from 0. Raises `Misuse` if it is missing."""
        value = self._list(name)
        if value is None or any(type(each) is not int or each < 0 for each in value):
            raise Misuse("config.json needs a list of whole numbers here", field=name)
        return value

    def words(self, *names: str) -> tuple[str, list[str]] | None:
        """The first of these lists of words that is there, with its name; None: there is none."""
        for name in names:
            value = self._list(name)
            if value is None:
                continue
            if not all(isinstance(each, str) for each in value):
                raise Misuse("config.json needs a list of words here", field=name)
            return name, value
        return None

    def _list(self, name: str) -> list[Any] | None:
        value = self._config.get(name)
        if value is None:
            return None
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) > _MOST:
            raise Misuse("config.json needs a list here", field=name)
        return list(value)


def language_model(config: Mapping[str, Any]) -> tuple[list[str], Fields]:
    """The `model_type`s from the outer configuration to the language model's, and its fields. What
    only an outer configuration says holds inside as well, but for its kind. Raises `Misuse` if the
    language model names no kind."""
    found, kinds = dict(config), list[str]()
    for _ in range(_DEEPEST):
        kind = found.pop("model_type", None)
        nested = [key for key in _NESTED if isinstance(found.get(key), Mapping)]
        if isinstance(kind, str):
            kinds.append(kind)
        elif not nested:
            raise Misuse("config.json has none", field="model_type")
        if not nested:
            break
        inner = found[nested[0]]
        found = {key: value for key, value in found.items() if key not in _NESTED}
        found |= {key: value for key, value in inner.items() if value is not None}
    return kinds, Fields(found)

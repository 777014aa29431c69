"""Cuts a sequence of sized items into pieces, in order. Pure."""

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Sized(Protocol):
    @property
    def size_bytes(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


def cut_batches(items: Sequence[Item], most_bytes: int) -> list[list[Item]]:
    """Pieces of `most_bytes` at most; a larger item is a piece of its own."""
    pieces: list[list[Item]] = []
    room = 0
    for item in items:
        if not pieces or item.size_bytes > room:
            pieces.append([])
            room = most_bytes
        pieces[-1].append(item)
        room -= item.size_bytes
    return pieces


def cut_evenly(items: Sequence[Item], most_bytes: int) -> list[list[Item]]:
    """The fewest pieces possible, all about equally large, so that no small rest is left.

    A piece exceeds `most_bytes` by less than one item.
    """
    total = sum(item.size_bytes for item in items)
    share = total / max(1, -(-total // most_bytes))
    pieces: list[list[Item]] = []
    done = 0
    for item in items:
        if done >= share * len(pieces):
            pieces.append([])
        pieces[-1].append(item)
        done += item.size_bytes
    return pieces

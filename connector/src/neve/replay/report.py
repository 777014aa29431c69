"""Progress and summary of a replay for people: a bar or status lines, then a table.

Only this module formats bytes as GiB and rates as percent.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import click
from tqdm import tqdm

from neve.replay.tally import Tally

STATUS_EVERY_S = 5.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Progress(Protocol):
    """Progress display. `update` is called often and redraws rarely."""

    def update(self, tally: Tally) -> None: ...

    def say(self, message: str) -> None:
        """Shows one line at once, without tearing the bar."""

    def close(self) -> None: ...


def make_progress(*, total: int | None, quiet: bool) -> Progress:
    """A bar on a terminal, else a line every few seconds; with `quiet` only `say`'s messages."""
    if not quiet and sys.stderr.isatty():
        return Bar(total)
    return StatusLines(total, every_s=float("inf") if quiet else STATUS_EVERY_S)


class Bar:
    """A tqdm bar on stderr."""

    def __init__(self, total: int | None) -> None:
        self._bar = tqdm(total=total, unit=" requests", dynamic_ncols=True, smoothing=0.1)

    def update(self, tally: Tally) -> None:
        self._bar.set_postfix_str(_rates(tally), refresh=False)
        self._bar.update(tally.requests - self._bar.n)

    def say(self, message: str) -> None:
        self._bar.write(message, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


class StatusLines:
    """Plain lines on stderr, for logs."""

    def __init__(self, total: int | None, *, every_s: float) -> None:
        self._total = total
        self._every_s = every_s
        self._shown = time.monotonic()

    def update(self, tally: Tally) -> None:
        if time.monotonic() - self._shown >= self._every_s:
            self._shown = time.monotonic()
            of = f"/{self._total}" if self._total else ""
            self.say(f"replay: {tally.requests}{of} requests, {_rates(tally)}")

    def say(self, message: str) -> None:
        click.echo(message, err=True)

    def close(self) -> None: ...


def _rates(tally: Tally) -> str:
    wall_s = max(tally.wall_s, 1e-9)
    return (
        f"hit rate {format_share(tally.token_hit_rate)}, "
        f"read {tally.read_bytes / wall_s / 1e9:.2f} GB/s, "
        f"written {tally.written_bytes / wall_s / 1e9:.2f} GB/s"
    )


def format_table(summary: dict[str, Any]) -> str:
    """The summary as aligned lines. Unknown is "—", zero is "0"."""
    tokens, blocks, ideal = summary["tokens"], summary["blocks"], summary["ideal_lru"]
    read, write, load = summary["read"], summary["write"], summary["load_ms"]
    first = summary["first_token_ms"]
    missed = ", ".join(f"{name} {n:,}" for name, n in blocks["missed"].items()) or "none"
    failed = ", ".join(f"{name} {n:,}" for name, n in write["failed"].items()) or "none"
    one_load = read["gb_per_s_of_one_load"]
    capacity = ideal["capacity_blocks"]
    rows = [
        ("requests", f"{summary['requests']:,} in {summary['wall_s']:.1f} s"),
        ("tokens asked", f"{tokens['asked']:,}"),
        ("tokens loaded", f"{tokens['hit']:,}  ({format_share(tokens['hit_rate'])} of prompts)"),
        (
            "blocks asked",
            f"{blocks['asked']:,}  of {blocks['chunk_tokens']} tokens, "
            f"{format_bytes(blocks['payload_bytes'])}",
        ),
        (
            "blocks loaded",
            f"{blocks['hit']:,}  ({format_share(blocks['hit_rate'])};"
            f" hot {blocks['hit_hot']:,}, cold {blocks['hit_cold']:,}"
            + (f", local {blocks['hit_local']:,})" if blocks["hit_local"] else ")"),
        ),
        ("blocks missed", missed),
        ("ideal LRU, no limit", format_share(ideal["unbounded_hit_rate"])),
        (
            "ideal LRU, capacity",
            format_share(ideal["hit_rate"]) + (f"  ({capacity:,} blocks)" if capacity else ""),
        ),
        (
            "read",
            f"{format_bytes(read['bytes'])}  (hot {format_bytes(read['hot_bytes'])},"
            f" cold {format_bytes(read['cold_bytes'])})",
        ),
        (
            "read rate",
            f"{read['gb_per_s']:.3f} GB/s over all, "
            + (f"{one_load:.3f} GB/s while one request loads" if one_load else "—"),
        ),
        ("load time", f"p50 {_ms(load['p50'])}, p99 {_ms(load['p99'])}"),
        ("first token", f"p50 {_ms(first['p50'])}, p99 {_ms(first['p99'])}"),
        ("written", f"{format_bytes(write['bytes'])}  ({write['stored_blocks']:,} blocks)"),
        ("write rate", f"{write['gb_per_s']:.3f} GB/s over all"),
        ("refused by quota", f"{write['refused_by_quota_blocks']:,} blocks"),
        ("writes failed", failed),
        ("verified", f"{read['verified_blocks']:,} blocks, byte for byte"),
        ("wrong", f"{read['wrong_blocks']:,} blocks"),
    ]
    return _aligned(rows)


def format_comparison(shared: dict[str, Any], apart: dict[str, Any], *, models: int) -> str:
    """Two summaries of one workload side by side: `shared`, where all models are one family, and
    `apart`, where each has a space of its own."""

    def row(name: str, value: Callable[[dict[str, Any]], str]) -> tuple[str, str, str]:
        return name, value(shared), value(apart)

    def loaded(summary: dict[str, Any]) -> str:
        tokens = summary["tokens"]
        return f"{tokens['hit']:,} ({format_share(tokens['hit_rate'])})"

    def first_token(summary: dict[str, Any]) -> str:
        times = summary["first_token_ms"]
        return " / ".join(_ms(times[name]) for name in ("p50", "p95", "p99"))

    return _aligned(
        [
            (f"{models} models, in turns", "one family", "a space each"),
            row("requests", lambda each: f"{each['requests']:,} in {each['wall_s']:.1f} s"),
            row("prompt tokens", lambda each: f"{each['tokens']['asked']:,}"),
            row("prefill tokens", lambda each: f"{each['tokens']['computed']:,}"),
            row("tokens loaded", loaded),
            row(
                "ideal LRU, no limit",
                lambda each: format_share(each["ideal_lru"]["unbounded_hit_rate"]),
            ),
            row("ideal LRU, capacity", lambda each: format_share(each["ideal_lru"]["hit_rate"])),
            row("first token p50/p95/p99", first_token),
            row("written", lambda each: format_bytes(each["write"]["bytes"])),
            row(
                "refused by quota",
                lambda each: f"{each['write']['refused_by_quota_blocks']:,} blocks",
            ),
            row("wrong", lambda each: f"{each['read']['wrong_blocks']:,} blocks"),
        ]
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def format_share(share: float | None) -> str:
    return "—" if share is None else f"{share:.1%}"


def format_bytes(count: int) -> str:
    """Formats in binary units: 1.50 GiB."""
    power = min(4, max(0, count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.2f} {_UNITS[power]}" if power else f"{count} B"


def _ms(value: float | None) -> str:
    return "—" if value is None else f"{value:.1f} ms"

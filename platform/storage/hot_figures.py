"""What the primaries of the hot tier tell of themselves: memory, traffic, time of commands.

Source: Valkey's INFO (memory, stats, commandstats, latencystats). The logs of slow commands stay
off (`storage.hot_setup`): they would keep what tenants wrote.
"""

from dataclasses import dataclass
from typing import Any

from valkey.exceptions import ValkeyError

from base import log_events
from storage.hot_servers import primaries

COMMANDS = 5  # of a primary: those that took most time


@dataclass(frozen=True)
class Command:
    """One kind of command since the server's start. Times are of the server alone, in ms."""

    name: str
    calls: int
    share: float  # of the time of all commands
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class Primary:
    """`max_bytes` 0: no limit. `fragmentation`: resident / used; None while nearly empty."""

    address: str
    version: str
    uptime_s: int
    used_bytes: int
    resident_bytes: int
    max_bytes: int
    clients: int
    calls_per_s: int
    in_bytes_per_s: float
    out_bytes_per_s: float
    commands: tuple[Command, ...]

    @property
    def fragmentation(self) -> float | None:
        """Process overhead would make small servers look bad: none below 64 MiB."""
        return self.resident_bytes / self.used_bytes if self.used_bytes >= 64 << 20 else None


def figures() -> list[Primary] | None:
    """Of all primaries that answer; None when none does."""
    try:
        clients = primaries()
    except (ValkeyError, OSError):
        return None
    found = []
    for client in clients:
        try:
            told = client.info("default", "commandstats", "latencystats")
        except (ValkeyError, OSError) as error:
            log_events.HOT_SERVER_AWAY.log(error=error)
            continue
        found.append(primary_of(_address(client), told))
    return found or None


def primary_of(address: str, told: dict[str, Any]) -> Primary:
    """`told`: the sections of INFO, joined, as valkey-py parses them."""
    return Primary(
        address=address,
        version=str(told.get("valkey_version", told.get("redis_version", ""))),
        uptime_s=int(told["uptime_in_seconds"]),
        used_bytes=int(told["used_memory"]),
        resident_bytes=int(told["used_memory_rss"]),
        max_bytes=int(told["maxmemory"]),
        clients=int(told["connected_clients"]),
        calls_per_s=int(told["instantaneous_ops_per_sec"]),
        in_bytes_per_s=float(told["instantaneous_input_kbps"]) * 1024,
        out_bytes_per_s=float(told["instantaneous_output_kbps"]) * 1024,
        commands=_commands(told),
    )


def _commands(told: dict[str, Any]) -> tuple[Command, ...]:
    stats = {
        name.removeprefix("cmdstat_"): each
        for name, each in told.items()
        if name.startswith("cmdstat_")
    }
    whole_us = sum(each["usec"] for each in stats.values())
    longest = sorted(stats.items(), key=lambda item: (-item[1]["usec"], item[0]))[:COMMANDS]
    found = []
    for name, each in longest:
        times = told.get(f"latency_percentiles_usec_{name}", {})
        p50_us, p99_us = times.get("p50"), times.get("p99")
        found.append(
            Command(
                name=name,
                calls=int(each["calls"]),
                share=each["usec"] / whole_us if whole_us else 0.0,
                p50_ms=None if p50_us is None else p50_us / 1000,
                p99_ms=None if p99_us is None else p99_us / 1000,
            )
        )
    return tuple(found)


def _address(client: Any) -> str:
    options = client.connection_pool.connection_kwargs
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"

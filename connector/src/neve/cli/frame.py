"""A frame of `neve top`: figures in, lines out. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from neve.cli import text
from neve.cli.nodes import NODE_COLUMNS, node_row, one_a_node
from neve.cli.output import table_lines
from neve.cli.usage import tokens_of
from neve.planner.causes import misses_of, ranked, summed

if TYPE_CHECKING:
    from rich.text import Text

MOST_TENANTS = 6
BUCKET_S = 10  # resolution of the last 15 minutes
_BUCKETS = 90
_NOW_BUCKETS = 6  # "now" is the last minute that is complete
_BARS = "▁▂▃▄▅▆▇█"
_LABEL = 10
_JOBS = ("no job runs", "1 job runs")


@dataclass(frozen=True)
class Figures:
    """`points`: buckets of 10 s of the last 15 minutes that had traffic, oldest first. `quotas`:
    (tenant, its limits with `used`). `trouble`: why the figures are of an earlier moment."""

    endpoint: str
    caller: str
    at: datetime
    points: Sequence[Mapping[str, Any]]
    nodes: Sequence[dict[str, Any]]
    spaces: dict[Any, str]
    running: int
    quotas: Sequence[tuple[str, Mapping[str, Any]]]
    trouble: str = field(default="")

    def stale(self, trouble: str) -> "Figures":
        return replace(self, trouble=trouble)

    def as_json(self) -> dict[str, Any]:
        """What the frame says, as numbers."""
        recent = self.recent()
        total = summed(recent)
        asked, hit = tokens_of(total)
        seconds = _NOW_BUCKETS * BUCKET_S
        return {
            "at": self.at.isoformat(),
            "endpoint": self.endpoint,
            "hit_rate": text.ratio(hit, asked),
            "prompt_tokens_per_s": asked / seconds,
            "bytes_per_s": {
                name: total.get(counter, 0) / seconds for name, counter in _TRAFFIC.items()
            },
            "misses": misses_of(recent),
            "tenants": [
                {
                    "tenant": slug,
                    "hot_used_bytes": quota["used"]["hot_bytes"],
                    "hot_quota_bytes": quota["hot_bytes"],
                    "cold_used_bytes": quota["used"]["cold_bytes"],
                    "cold_quota_bytes": quota["cold_bytes"],
                }
                for slug, quota in self.quotas
            ],
            "nodes": [
                {"node": node["node"], "space": node.get("space"), "breaker": node.get("breaker")}
                for node in self.nodes
            ],
            "jobs_running": self.running,
        }

    def recent(self) -> list[Mapping[str, Any]]:
        """Buckets of the last complete minute."""
        end = _bucket(self.at)
        since = end - _NOW_BUCKETS * BUCKET_S
        return [point for point in self.points if since <= point["bucket_ts"] < end]

    def series(self, names: Sequence[str]) -> list[float | None]:
        """The sum of counters for each bucket of the last 15 minutes; None: no traffic."""
        end = _bucket(self.at)
        by_bucket = {point["bucket_ts"]: point for point in self.points}
        found = (by_bucket.get(end - BUCKET_S * n) for n in range(_BUCKETS, 0, -1))
        return [
            None if point is None else sum(point.get(name) or 0 for name in names)
            for point in found
        ]


_TRAFFIC = {
    "hot_read": "hot_read_bytes",
    "cold_read": "cold_read_bytes",
    "local_read": "local_read_bytes",
    "written": "hot_write_bytes",
}
_WORDS = {
    **{"hot_read": "read hot", "cold_read": "read cold", "local_read": "read local"},
    "written": "written",
}


def _bucket(at: datetime) -> int:
    second = int(at.timestamp())
    return second - second % BUCKET_S


def frame(
    figures: Figures, *, width: int, height: int, interval_s: float | None = None
) -> "list[Text]":
    """At most `height` lines, none wider than `width`."""
    from rich.text import Text

    end = "" if interval_s is None else f"every {interval_s:g} s, q ends"
    lines = [_title(figures, width), *_hits(figures, width), *_traffic(figures, width)]
    lines += [_misses(figures, width), Text("")]
    lines += [_quota(*each, width) for each in figures.quotas[:MOST_TENANTS]]
    jobs = f"{figures.running} jobs run" if figures.running > 1 else _JOBS[figures.running]
    nodes = one_a_node(figures.nodes)
    live = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    lines += [Text(""), Text(f"{live} live, {jobs}", "bold")]
    if nodes:
        room = height - len(lines) - 1 - (1 if end else 0)
        rows = [node_row(node, figures.spaces, figures.at) for node in nodes]
        shown = rows if len(rows) <= room else rows[: max(0, room - 1)]
        lines += table_lines(NODE_COLUMNS, shown, width=width)
        if len(shown) < len(rows):
            lines.append(Text(f"… {len(rows) - len(shown)} more: neve nodes", "dim"))
    lines = lines[: height - 1] if end else lines[:height]
    if end:
        lines += [Text("")] * (height - 1 - len(lines)) + [Text(end, "dim")]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return lines


def _title(figures: Figures, width: int) -> "Text":
    from rich.text import Text

    stamp = figures.at.astimezone().strftime("%H:%M:%S")
    if figures.trouble:
        return Text(f"as of {stamp}: {text.printable(figures.trouble)}", "bold red")
    left = f"neve top  {text.printable(figures.endpoint)}  {text.printable(figures.caller)}"
    return Text(f"{left[: width - len(stamp) - 2]:<{width - len(stamp)}}{stamp}", "bold")


def _hits(figures: Figures, width: int) -> "list[Text]":
    from rich.text import Text

    total = summed(figures.recent())
    asked, hit = tokens_of(total)
    asked_by_bucket = figures.series(("requested_tokens", "tail_tokens"))
    hit_by_bucket = figures.series(("hit_hot_tokens", "hit_cold_tokens", "hit_local_tokens"))
    rates = [
        text.ratio(one, whole) for one, whole in zip(hit_by_bucket, asked_by_bucket, strict=True)
    ]
    first = Text.assemble((f"{'hit rate':<{_LABEL}}", "bold"))
    first.append(f"{text.share(text.ratio(hit, asked)):>11}  ", "bold green")
    first.append(spark(rates, width - _LABEL - 13, most=1.0), "green")
    hot = text.share(text.ratio(total.get("hit_hot_tokens"), asked))
    cold = text.share(text.ratio(total.get("hit_cold_tokens"), asked))
    tiers = f"hot {hot}, cold {cold}"
    if local := total.get("hit_local_tokens"):
        tiers += f", local {text.share(text.ratio(local, asked))}"
    per_s = asked / (_NOW_BUCKETS * BUCKET_S)
    second = Text(f"{'':<{_LABEL}}{tiers}, of {text.count(per_s)} tokens/s asked")
    return [first, second]


def _traffic(figures: Figures, width: int) -> "list[Text]":
    from rich.text import Text

    total = summed(figures.recent())
    lines = []
    for name, counter in _TRAFFIC.items():
        if name == "local_read" and not total.get(counter):
            continue  # few nodes have a tier of their own
        now = total.get(counter, 0) / (_NOW_BUCKETS * BUCKET_S)
        line = Text.assemble((f"{_WORDS[name]:<{_LABEL}}", "bold"))
        line.append(f"{text.rate(now):>11}  ")
        line.append(spark(figures.series((counter,)), width - _LABEL - 13), "cyan")
        lines.append(line)
    return lines


def _misses(figures: Figures, width: int) -> "Text":
    from rich.text import Text

    line = Text.assemble((f"{'missed':<{_LABEL}}", "bold"))
    found = ranked(misses_of(figures.recent()))
    line.append(", ".join(f"{each.reason} {each.share:.0%}" for each in found) or "nothing")
    return line


def _quota(slug: str, quota: Mapping[str, Any], width: int) -> "Text":
    """The tenant's name and a bar for each tier."""
    from rich.cells import set_cell_size
    from rich.text import Text

    line = Text.assemble((set_cell_size(text.printable(slug), _LABEL - 1) + " ", "bold"))
    room = max(3, (width - _LABEL) // 2 - 25)
    for tier in ("hot", "cold"):
        used, most = quota["used"][f"{tier}_bytes"], quota[f"{tier}_bytes"]
        part = text.ratio(used, most)
        full = round(min(1.0, part or 0.0) * room)
        style = "red" if (part or 0) > 0.95 else "yellow" if (part or 0) > 0.8 else "green"
        line.append(f"{tier:<4} ")
        line.append("█" * full, style)
        line.append("░" * (room - full), "dim")
        line.append(f" {text.share(part):>6} {text.size(used):>9}  ")
    return line


def spark(values: Sequence[float | None], room: int, *, most: float | None = None) -> str:
    """The newest `room` values as bars; a space: unknown. `most`: the highest bar's value."""
    shown = values[-room:] if room > 0 else []
    top = most or max((value for value in shown if value is not None), default=0) or 1
    return "".join(
        " "
        if value is None
        else _BARS[min(len(_BARS) - 1, int(max(0.0, value) / top * (len(_BARS) - 1) + 0.5))]
        for value in shown
    ).rjust(max(0, room))

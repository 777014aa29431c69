"""`make reference`: generates docs/events.md and docs/metrics.md, and the table of types in
docs/webhooks.md, from the tables in the code.

Runs inside Django (`manage.py shell`). A test compares the pages with the tables.
"""

import logging
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from deploy.installation import ROOT
from neve.log_events import events_of

EVENTS = """\
# Log events

Made from `base.log_events` and `neve.log_events` by `make reference`. Each line of the log has an
event's name and its fields ([how lines look](operators.md#logs-metrics-traces)). Warnings and
errors of web and workers are counted in `neve_log_events_total`. Libraries (Django, Celery,
uvicorn, boto3) use words of their own.

An API key is named by its prefix alone; prompts and token ids are no fields of any event.

## Of the platform

{platform}
## Of nodes

{nodes}"""

METRICS = """\
# Metrics

Made from `metrics.table` by `make reference`. `GET /metrics` has these series and no others
([who may scrape, and how](operators.md#metrics)).

## Of each tenant

With the label `tenant`, a slug; an operator's key gets all tenants, a team's key its own.

{tenant}
## Of the platform

For operators' keys.

{platform}"""


def pages() -> dict[Path, str]:
    """File → its generated text."""
    table = import_module("metrics.table")
    events = EVENTS.format(platform=_events("base.log_events"), nodes=_events("neve.log_events"))
    metrics = METRICS.format(tenant=_metrics(table.TENANT), platform=_metrics(table.PLATFORM))
    return {
        ROOT / "docs/events.md": events,
        ROOT / "docs/metrics.md": metrics,
        ROOT / "docs/webhooks.md": _with_types((ROOT / "docs/webhooks.md").read_text()),
    }


def _with_types(page: str) -> str:
    """The page with the table of events' types between its two comments."""
    kinds = import_module("events.kinds").KINDS.values()
    rows = [
        (
            f"`{kind.name}`",
            kind.about,
            "; ".join(f"`{name}`: {meaning}" for name, meaning in kind.data.items()),
        )
        for kind in kinds
    ]
    before, _, rest = page.partition("<!-- types -->\n")
    _, _, after = rest.partition("<!-- end of types -->")
    table = _table(("type", "when", "data"), rows)
    return f"{before}<!-- types -->\n\n{table}\n<!-- end of types -->{after}"


def _events(module: str) -> str:
    events = events_of(vars(import_module(module))).values()
    rows = [
        (
            f"`{event.name}`",
            logging.getLevelName(event.level).lower(),
            ", ".join(f"`{name}`" for name in event.fields),
            event.meaning,
            event.remedy,
        )
        for event in sorted(events, key=lambda event: event.name)
    ]
    return _table(("event", "level", "fields", "meaning", "what to do"), rows)


def _metrics(table: Iterable[Any]) -> str:
    rows = []
    for row in table:
        name = row.name + ("_total" if row.type == "counter" else "")
        labels = ", ".join(row.by)
        name += f"{{{labels}}}" if labels else ""
        rows.append((f"`{name}`", row.type, row.help))
    return _table(("metric", "type", "meaning"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def write() -> None:
    for path, text in pages().items():
        path.write_text(text)

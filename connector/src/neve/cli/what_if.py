"""`neve what-if`: what another quota, policy, codec or tier would give, from sampled traffic."""

from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.jobs import follow
from neve.cli.output import Cell, name, number

_SIZE = "x2, +64GiB or 512GiB"


@click.command("what-if")
@click.option("--hot", metavar="SIZE", multiple=True, help=f"Hot quota: {_SIZE}.")
@click.option("--cold", metavar="SIZE", multiple=True, help="Cold quota; also unlimited, none.")
@click.option("--local", metavar="SIZE", multiple=True, help="A tier more on the nodes' disks.")
@click.option("--cold-lifetime", metavar="DURATION", multiple=True, help="30d, or unlimited.")
@click.option("--hot-idle", metavar="DURATION", multiple=True, help="6h, or unlimited.")
@click.option("--eviction", metavar="NAME", multiple=True, help="lru, 2q, s3-fifo, lfu, gdsf.")
@click.option("--promote", metavar="WHEN", multiple=True, help="second, every or never.")
@click.option("--promote-window", metavar="DURATION", multiple=True, help="1h.")
@click.option("--codec", metavar="RATIO", multiple=True, help="Bytes before ÷ after, such as 2.")
@click.option("--window", metavar="DURATION", help="Traffic of so long.  [default: 24h]")
@click.option("--space", metavar="ID", type=int, help="Only this space's traffic.")
@click.option("--tenant", metavar="SLUG", help="[default: your own]")
@platform_options
def what_if(
    platform: Connection,
    window: str | None,
    space: int | None,
    tenant: str | None,
    **options: tuple[str, ...],
) -> None:
    """Say what other quotas and policies would give.

    Each option is tried alone, and all together unless one is given twice. Without any, prints the
    platform's recommendation. All options are repeatable.
    """
    changes = changes_of(options)
    if not changes:
        advice = platform.get("/what-if/recommendation", tenant=tenant)
        platform.show(advice, lambda: _say_advice(platform, advice))
        return
    body = {"tenant": tenant, "space": space, "window": window, "changes": changes}
    given = {key: value for key, value in body.items() if value is not None}
    job = follow(platform, platform.call("POST", "/what-if", given))
    found = job.get("detail") or {}
    platform.show(found, lambda: _say(platform, found))


def changes_of(options: dict[str, tuple[str, ...]]) -> list[dict[str, str]]:
    """Each given option alone, then all together if each is given once."""
    alone = [{option: value} for option, values in options.items() for value in values]
    given = {option: values[0] for option, values in options.items() if len(values) == 1}
    return [*alone, given] if 1 < len(given) == len(alone) else alone


def _say_advice(platform: Connection, advice: dict[str, Any]) -> None:
    platform.out.say(advice["words"])
    if advice["made_at"]:
        old = " Quota or policy changed since, or it is old." if advice["is_outdated"] else ""
        platform.out.say(f"Made {text.span(advice['age_s'])} ago.{old}")
    if advice["result"]:
        platform.out.say("")
        _say(platform, advice["result"])


_COLUMNS = (
    name("CHANGE"),
    number("HITS"),
    number("AGAINST TODAY"),
    number("HOT", drop=3),
    number("COLD", drop=3),
    number("HELD HOT", drop=5),
    number("HELD COLD", drop=4),
    number("GPU HOURS A MONTH", drop=2),
    number("NET A MONTH", drop=1),
    number("AGAINST TODAY", drop=1),
)


def _say(platform: Connection, found: dict[str, Any]) -> None:
    if "today" not in found:
        platform.out.say(found["recommendation"]["words"])
        return
    currency = found["economics"]["prices"]["currency"]
    rows = [_row(found["today"], currency)]
    rows += [_row(each, currency) for each in found["changes"]]
    platform.out.table(_COLUMNS, rows)
    platform.out.say("")
    for each in found["changes"]:
        for note in each["notes"]:
            platform.out.say(f"{each['words']}: {note}")
    platform.out.facts(basis(found))


def _row(outcome: dict[str, Any], currency: str) -> list[Cell]:
    figures, against = outcome["figures"], outcome["against"]
    is_today = outcome["change"] is None

    def value(key: str) -> float | None:
        return figures[key]["value"] if key in figures else None

    def points() -> Cell:
        return difference(against["hit_rate"], lambda n: f"{n * 100:.1f}") + " pt"

    def money() -> Cell:
        return difference(against["money.net"], lambda n: f"{n:,.2f}")

    gpu_s = value("gpu_s")
    return [
        outcome["words"],
        plus_minus(figures["hit_rate"], lambda n: f"{n * 100:.1f}") + " %",
        text.NOTHING if is_today else points(),
        text.share(value("hit_rate.hot")),
        text.share(value("hit_rate.cold")),
        text.size(value("held_bytes.hot")),
        text.size(value("held_bytes.cold")),
        text.NOTHING if gpu_s is None else f"{gpu_s / 3600:,.1f}",
        f"{figures['money.net']['value']:,.2f} {currency}",
        text.NOTHING if is_today else money(),
    ]


def plus_minus(estimate: dict[str, float], show: Any) -> str:
    return f"{show(estimate['value'])} ± {show(estimate['error'])}"


def difference(estimate: dict[str, float], show: Any) -> str:
    sign = "+" if estimate["value"] >= 0 else "-"
    return f"{sign}{show(abs(estimate['value']))} ± {show(estimate['error'])}"


def basis(found: dict[str, Any]) -> list[tuple[str, Cell]]:
    """Window, samples, error and check of an answer, as facts."""
    window, samples = found["window"], found["samples"]
    economics, check = found["economics"], found["calibration"]
    prefill = economics["prefill_gpu_s_per_token"]
    worth = (
        "no engine reported its prefill speed: hits count nothing"
        if prefill is None
        else f"{prefill * 1e6:,.1f} GPU-µs of prefill a token ({economics['basis']})"
    )
    loads = ", ".join(
        f"{tier} {seconds * 1e6:,.1f} GPU-µs a token"
        for tier, seconds in economics["load_gpu_s_per_token"].items()
    )
    prices = economics["prices"]
    good = check["is_good"]
    return [
        (
            "window",
            f"{text.span(window['to_s'] - window['from_s'])}, after "
            f"{text.span(window['warm_up_s'])} that only fill the tiers",
        ),
        (
            "samples",
            f"{text.count(samples['reads'])} reads of {text.count(samples['blocks'])} blocks, "
            f"1 in {1 / samples['rate']:,.0f} blocks",
        ),
        ("error", "± is a 95 % interval of the sampling; other weeks have other traffic"),
        ("check", (check["words"], "" if good else "yellow")),
        ("worth of a hit", worth),
        ("loads", loads or "none was measured: hits count nothing"),
        (
            "prices",
            f"{prices['gpu_hour']} {prices['currency']} a GPU hour, {prices['hot_gib_hour']} a GiB "
            f"hour hot, {prices['cold_gib_month']} a GiB month cold",
        ),
        ("requests", f"{economics.get('gets_per_hit', 1.0):.2g} GETs for each cold hit"),
        ("hot memory", "is priced by its quota, since quotas are granted against real memory"),
    ]

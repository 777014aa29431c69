"""Tables, the headline and plots from the JSON of a benchmark.

python benchmarks/report.py var/bench/datapath.json [datapath.png]
"""

import argparse
import json
import os
import statistics
import subprocess
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Result = dict[str, Any]
ORDER = (
    "raw-cached", "raw", "raw-single", "neve", "python", "lmcache-resp", "glide", "libvalkey",
    "naive",
)  # fmt: skip
COLOURS = {  # Okabe and Ito's palette, safe for colour-blind readers
    "raw-cached": "#999999",
    "raw": "#000000",
    "raw-single": "#555555",
    "neve": "#0072B2",
    "python": "#56B4E9",
    "lmcache-resp": "#D55E00",
    "glide": "#E69F00",
    "libvalkey": "#009E73",
    "naive": "#CC79A7",
}


def median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def percentile(values: list[float], share: float) -> float | None:
    """Nearest-rank percentile; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ratio(row: Row, other: Row | None) -> float | None:
    """Median over the rounds of the ratio of both rows in that round."""
    if other is None:
        return None
    pairs = zip(row["gb_per_s"], other["gb_per_s"], strict=True)
    return median([mine / theirs for mine, theirs in pairs])


def find(rows: list[Row], row: Row, contestant: str) -> Row | None:
    """Another contestant's row of the same cell and operation. Raw sockets have no cold memory."""
    operation = row["operation"]
    if contestant == "raw" and operation == "put_cold":
        operation = "put_warm"
    same = (row["primaries"], row["block_kib"], operation, contestant)
    for other in rows:
        if (
            other["primaries"],
            other["block_kib"],
            other["operation"],
            other["contestant"],
        ) == same:
            return other
    return None


def show(value: float | None, form: str) -> str:
    return "—" if value is None else format(value, form)


def table(result: Result) -> str:
    rows = result["rows"]
    host, options = result["host"], result["options"]
    lines = [
        f"{host['cores']} cores, kernel {host['kernel']}, Python {host['python']}, "
        f"Valkey {host['valkey']}, congestion control {host['congestion']}, "
        f"load before {host['load_before'][0]:.1f}; "
        f"{options['rounds']} rounds, {options['in_flight']} batches in flight, "
        f"{options['connections']} connections a primary",
        "",
        f"{'primaries':>9} {'KiB':>5} {'what':10} {'client':13} {'GB/s':>6} {'min … max':>13} "
        f"{'×naive':>7} {'/raw':>5} {'CPU s/GB':>9} {'/raw':>5} {'server':>7} "
        f"{'p50 ms':>8} {'p99 ms':>8}",
    ]
    key = ("get", "put_warm", "put_cold", "get_quiet", "get_spin")
    rows = sorted(
        rows,
        key=lambda r: (
            r["primaries"], r["block_kib"], key.index(r["operation"]), ORDER.index(r["contestant"])
            if r["contestant"] in ORDER else len(ORDER),
        ),
    )  # fmt: skip
    before = None
    for row in rows:
        group = (row["primaries"], row["block_kib"], row["operation"])
        if before not in (None, group):
            lines.append("")
        before = group
        raw = find(rows, row, "raw")
        cpu = median(row["cpu_s_per_gb"])
        raw_cpu = median(raw["cpu_s_per_gb"]) if raw else None
        spread = f"{min(row['gb_per_s']):.2f} … {max(row['gb_per_s']):.2f}"
        lines.append(
            f"{row['primaries']:>9} {row['block_kib']:>5} {row['operation']:10} "
            f"{row['contestant']:13} {show(median(row['gb_per_s']), '6.2f')} {spread:>13} "
            f"{show(ratio(row, find(rows, row, 'naive')), '7.1f'):>7} "
            f"{show(ratio(row, raw), '5.2f'):>5} {show(cpu, '9.3f'):>9} "
            f"{show(cpu / raw_cpu if cpu and raw_cpu else None, '5.2f'):>5} "
            f"{show(median(row['server_cpu_s_per_gb']), '7.3f'):>7} "
            f"{show(percentile(row['batch_ms'], 0.5), '8.2f'):>8} "
            f"{show(percentile(row['batch_ms'], 0.99), '8.2f'):>8}"
        )
    lines.append("")
    for name, values in result["match512_ms"].items():
        lines.append(
            f"match of 512 ids, {name}: p50 {show(percentile(values, 0.5), '.3f')} ms, "
            f"p99 {show(percentile(values, 0.99), '.3f')} ms"
        )
    for row in rows:
        if row["operation"] == "get_spin":
            quiet = next(
                other for other in rows
                if other["operation"] == "get_quiet" and other["contestant"] == row["contestant"]
                and other["primaries"] == row["primaries"]
            )  # fmt: skip
            kept = ratio(row, quiet)
            lines.append(
                f"with a Python thread at 100 %, {row['primaries']}/{row['contestant']}: "
                f"{show(kept, '.2f')} of the throughput without"
            )
    return "\n".join(lines) + "\n"


def headline(result: Result) -> str:
    """For 2 MiB blocks: of 4 primaries if measured on at least 8 cores, else of the fewest."""
    rows = [row for row in result["rows"] if row["block_kib"] == 2048]
    measured = sorted({row["primaries"] for row in rows})
    chosen = 4 if 4 in measured and result["host"]["cores"] >= 8 else (measured or [0])[0]

    def of(operation: str, other: str) -> float | None:
        for row in rows:
            if (row["primaries"], row["operation"], row["contestant"]) == (
                chosen,
                operation,
                "neve",
            ):
                return ratio(row, find(rows, row, other))
        return None

    match_p99 = percentile(result["match512_ms"].get(f"{chosen}/neve", []), 0.99)
    return (
        f"datapath get_vs_naive={show(of('get', 'naive'), '.1f')} "
        f"get_vs_raw={show(of('get', 'raw'), '.2f')} "
        f"put_vs_raw={show(of('put_warm', 'raw'), '.2f')} "
        f"match512_p99_ms={show(match_p99, '.2f')}"
    )


def plot(python: str, result: Path, image: Path) -> None:
    """Draw the plot with `python`, which needs matplotlib; prints a note if it is missing."""
    command = [python, __file__, str(result), "--image", str(image)]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        print("no plot:", (done.stderr.strip().splitlines() or ["?"])[-1])
    else:
        print(f"plot: {image}")


def draw(result: Result, image: Path) -> None:
    """Plot GB/s over block size: a column per number of primaries, a line per client."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = result["rows"]
    primaries = sorted({row["primaries"] for row in rows})
    operations = ("get", "put_warm", "put_cold")
    figure, axes = pyplot.subplots(
        len(operations), len(primaries), sharex=True, sharey="row", squeeze=False,
        figsize=(1.5 + 3.4 * len(primaries), 8), layout="constrained",
    )  # fmt: skip
    for y, operation in enumerate(operations):
        for x, count in enumerate(primaries):
            axis = axes[y][x]
            for name in ORDER:
                line = sorted(
                    (row["block_kib"], statistics.median(row["gb_per_s"]), row["gb_per_s"])
                    for row in rows
                    if (row["primaries"], row["operation"], row["contestant"])
                    == (count, operation, name)
                )
                if not line:
                    continue
                sizes, middle, all_ = zip(*line, strict=True)
                axis.plot(sizes, middle, marker="o", markersize=3, color=COLOURS[name], label=name)
                axis.fill_between(
                    sizes, [min(v) for v in all_], [max(v) for v in all_],
                    color=COLOURS[name], alpha=0.15, linewidth=0,
                )  # fmt: skip
            axis.set_xscale("log", base=2)
            ticks = sorted({row["block_kib"] for row in rows})
            names = [f"{kib >> 10} MiB" if kib >= 1024 else f"{kib} KiB" for kib in ticks]
            axis.set_xticks(ticks, names, rotation=45, fontsize=8)
            axis.grid(alpha=0.3)
            if y == 0:
                axis.set_title(f"{count} Valkey" + (" primaries" if count > 1 else ""))
            if x == 0:
                axis.set_ylabel(f"{operation.replace('_', ', ')}  GB/s")
    for line in axes:
        line[0].set_ylim(bottom=0)  # shared by the row of plots, so set after all are drawn
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8)
    host = result["host"]
    figure.suptitle(f"{host['cores']} cores, loopback, verified; medians, shaded: all rounds")
    figure.savefig(image, dpi=110)


def join(results: list[Result]) -> Result:
    """Merge rows; the later result wins in a cell. Host and options are the first result's."""
    rows: dict[tuple[Any, ...], Row] = {}
    match_ms: dict[str, list[float]] = {}
    for result in results:
        match_ms |= result["match512_ms"]
        for row in result["rows"]:
            rows[row["primaries"], row["block_kib"], row["operation"], row["contestant"]] = row
    return {**results[0], "rows": list(rows.values()), "match512_ms": match_ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--image", type=Path)
    options = parser.parse_args()
    result = join([json.loads(path.read_text()) for path in options.results])
    if options.image:
        draw(result, options.image)
    print(table(result))
    print(headline(result))


if __name__ == "__main__":
    main()

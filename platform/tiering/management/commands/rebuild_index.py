import time
from typing import Any

from django.core.management.base import BaseCommand

from catalog import jobs
from tiering import recovery
from tiering.rebuild import RebuildReport


class Command(BaseCommand):
    help = "Rebuild the index of an emptied hot Valkey from the segments' footers in S3."

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "--if-lost", action="store_true", help="do nothing when the index is whole"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["if_lost"] and recovery.index_is_whole():
            self.stdout.write("The index is whole: nothing to rebuild.")
            return
        started = time.monotonic()
        with jobs.attempt("rebuild_index", None) as run:

            def show(tenant: str, report: RebuildReport, total: int) -> None:
                recovery.show_in_job(run, tenant, report, total)
                self._progress(tenant, report, total)

            report = recovery.rebuild_all(progress=show)
            run.progress(1.0, blocks=report.blocks)
            run.detail(vars(report))
        seconds = time.monotonic() - started
        self.stdout.write(
            f"Rebuilt in {seconds:.2f} s: {report.blocks} blocks from {report.segments} segments"
            f" ({report.segments / seconds:.0f} segments/s, {report.blocks / seconds:.0f} blocks/s)"
        )
        if report.lost_segments:
            self.stderr.write(
                f"{report.lost_segments} segments are missing or damaged in S3: their blocks are "
                "misses and will be computed again. The log names their keys."
            )

    def _progress(self, tenant: str, report: RebuildReport, total: int) -> None:
        if report.looked_at % 100 == 0 or report.looked_at == total:
            done = f"{report.looked_at} of {total} segments, {report.blocks} blocks"
            self.stdout.write(f"  {tenant}: {done}")

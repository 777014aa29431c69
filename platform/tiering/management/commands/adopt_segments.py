import time
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from catalog import jobs
from tenants.models import Tenant
from tiering import recovery
from tiering.adoption import AdoptReport, adopt_tenant


class Command(BaseCommand):
    help = (
        "Give tenants that exist their segments in S3 again, after the database was lost or came "
        "back from an old copy. Then run rebuild_index. Repeating it goes on where it was."
    )

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("--tenant", help="slug of the only tenant (default: all)")

    def handle(self, *args: Any, **options: Any) -> None:
        tenants = Tenant.objects.filter(is_leaving=False).order_by("pk")
        if slug := options["tenant"]:
            tenants = tenants.filter(slug=slug)
            if not tenants:
                raise CommandError(f"--tenant: there is no tenant {slug!r}")
        recovery.forget_index()  # nothing is flushed until it is whole again
        for tenant in tenants:
            started = time.monotonic()
            with jobs.attempt("adopt_segments", tenant.pk) as run:
                report = adopt_tenant(tenant.pk, progress=partial(self._progress, tenant.slug, run))
                run.progress(1.0, blocks=report.blocks, bytes_=report.bytes)
                run.detail(vars(report))
            seconds = time.monotonic() - started
            self.stdout.write(
                f"{tenant.slug}: adopted {report.adopted} segments with {report.blocks} blocks in "
                f"{seconds:.2f} s ({report.looked_at / seconds:.0f} segments/s); "
                f"{report.known} were known, {report.forgotten} blocks had places of no segment"
            )
            if report.unclaimed:
                self.stderr.write(
                    f"{tenant.slug}: {report.unclaimed} segments are of spaces that the tenant "
                    "does not have: let its nodes connect once, then run this again."
                )
            if report.rubbish:
                self.stderr.write(f"{tenant.slug}: {report.rubbish} objects are no whole segments.")
        self.stdout.write("Next: manage.py rebuild_index")

    def _progress(self, slug: str, run: jobs.JobRun, report: AdoptReport) -> None:
        if report.looked_at % 100 == 0:
            run.progress(report.looked_at / report.to_look_at, blocks=report.blocks)
            run.detail(vars(report))
            self.stdout.write(f"  {slug}: {report.looked_at} of {report.to_look_at} objects")

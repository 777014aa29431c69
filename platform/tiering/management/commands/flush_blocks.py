from typing import Any

from django.core.management.base import BaseCommand, CommandError

from catalog import jobs, kinds
from catalog.targets import Opener
from tenants.models import Tenant
from tiering import work
from tiering.flush import Flusher


class Command(BaseCommand):
    help = "Flush the dirty blocks that are due to S3 now, without waiting for a worker."

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("--tenant", help="slug of the only tenant to flush (default: all)")

    def handle(self, *args: Any, **options: Any) -> None:
        tenants = Tenant.objects.order_by("pk")
        if slug := options["tenant"]:
            tenants = tenants.filter(slug=slug)
            if not tenants:
                raise CommandError(f"--tenant: there is no tenant {slug!r}")
        work.rebuild_index(
            Opener(kinds.REBUILD_INDEX, None), None
        )  # nothing is flushed until the index is whole
        for tenant in tenants:
            with jobs.attempt("flush", tenant.pk) as run:
                report = Flusher(tenant.pk).run()
                run.progress(1.0, blocks=report.blocks, bytes_=report.bytes)
                run.detail(vars(report))
            facts = " ".join(f"{name}={value}" for name, value in vars(report).items())
            self.stdout.write(f"{tenant.slug}: {facts}")

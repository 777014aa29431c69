"""`manage.py bootstrap`: makes a migrated platform usable. Repeatable; shows credentials once."""

import os
import secrets
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser

from base.problems import Problem
from neve.index.hot_memory import touch_memory
from storage import hot_servers, s3
from tenants import services
from tenants.keys import find_key
from tenants.models import ApiKey, Tenant
from tenants.room import fitting_bytes

DEMO_SLUG = "demo"
DEMO_HOT_BYTES = 256 << 20
# Takes 1.5 times that on disk, and space that SeaweedFS has not vacuumed: below 8 GiB.
DEMO_COLD_BYTES = 3 << 30


class Command(BaseCommand):
    help = "Bucket, hot tier, operator account, demo tenant, its node key and its team key."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--touch-memory",
            action="store_true",
            help="have an empty hot Valkey take its memory now: first stores need not wait for it",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            made = s3.ensure_bucket()
            s3.ensure_probe()
        except (BotoCoreError, ClientError) as error:
            raise CommandError(f"The S3 of NEVE_S3_ENDPOINT does not answer: {error}") from error
        settings.STATIC_ROOT.mkdir(parents=True, exist_ok=True)  # or WhiteNoise warns at each start
        self.stdout.write(
            f"S3 bucket {settings.ENV.s3_bucket}: {'made' if made else 'there already'}"
        )
        servers = hot_servers.primaries() if options["touch_memory"] else []
        if touched := sum(touch_memory(each) for each in servers):
            self.stdout.write(f"Hot Valkey: took {touched >> 20} MiB of memory")
        tenant = Tenant.objects.filter(slug=DEMO_SLUG).first() or self._demo_tenant()
        self._operator()
        self._demo_key(tenant, ApiKey.Role.NODE, settings.VAR / "demo.key")
        self._demo_key(tenant, ApiKey.Role.TEAM, settings.VAR / "team.key")
        call_command("provision", stdout=self.stdout)  # last: the demo key's user comes with it

    def _demo_tenant(self) -> Tenant:
        try:
            hot_bytes = fitting_bytes(DEMO_HOT_BYTES)
        except Problem as error:
            raise CommandError(f"There is no room for the demo tenant. {error}") from error
        return services.create_tenant(
            slug=DEMO_SLUG, name="Demo", hot_bytes=hot_bytes, cold_bytes=DEMO_COLD_BYTES
        )

    def _operator(self) -> None:
        given = os.environ.get("NEVE_OPERATOR_PASSWORD")
        user, created = get_user_model().objects.get_or_create(
            username="operator", defaults={"is_staff": True, "is_superuser": True}
        )
        if given is not None:
            if not user.check_password(given):
                user.set_password(given)
                user.save()
            self.stdout.write("Operator account: operator, password from NEVE_OPERATOR_PASSWORD")
        elif created:
            password = secrets.token_urlsafe(15)
            user.set_password(password)
            user.save()
            self.stdout.write(f"Operator account: operator, password {password}  (shown once)")
        else:
            self.stdout.write(
                "Operator account: operator (forgot it? manage.py changepassword operator)"
            )

    def _demo_key(self, tenant: Tenant, role: ApiKey.Role, path: Path) -> None:
        """Writes a valid key of that role into `path`, unless one is there."""
        if path.is_file() and find_key(path.read_text().strip()):
            self.stdout.write(f"Demo {role} key: in {path}")
            return
        _, plaintext = services.issue_key(tenant=tenant, role=role, name=f"demo {role}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(plaintext + "\n")
        self.stdout.write(f"Demo {role} key: {plaintext}  (shown once; kept in {path})")

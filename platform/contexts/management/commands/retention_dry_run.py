"""`manage.py retention_dry_run TENANT cold_ttl_s=3600`: counts what a change would remove."""

import json
from argparse import FileType
from dataclasses import asdict
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from catalog.models import Space
from contexts.dry_run import dry_run, proposed_rulebook
from retention.services import FIELDS
from tenants.models import Tenant
from tenants.scope import tenant_scope


class Command(BaseCommand):
    help = "Say what a change of a tenant's policy or rules would remove. Looks at all its blocks."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", help="slug")
        parser.add_argument(
            "change",
            nargs="*",
            help=f"name=value; names: {', '.join(FIELDS)}; value null: without limit",
        )
        parser.add_argument(
            "--rules",
            type=FileType(),
            help="JSON file with all rules as they would be: a list of objects with space "
            "(number), label, context, order, overrides",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        tenant = Tenant.objects.filter(slug=options["tenant"]).first()
        if tenant is None:
            raise CommandError(f"there is no tenant {options['tenant']!r}")
        rules = None if options["rules"] is None else json.load(options["rules"])
        try:
            book = proposed_rulebook(
                tenant,
                policy=dict(self._field(text) for text in options["change"]),
                rules=None if rules is None else [self._rule(tenant, rule) for rule in rules],
            )
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        report = asdict(dry_run(tenant.pk, book))
        report["named"] = ", ".join(one["name"] for one in report["named"])
        for name, value in report.items():
            self.stdout.write(f"{name}={value}")

    def _field(self, text: str) -> tuple[str, Any]:
        name, _, value = text.partition("=")
        if name not in FIELDS:
            raise CommandError(f"{name}: need one of {', '.join(FIELDS)}")
        if name == "flush_mode":
            return name, value
        try:
            return name, None if value == "null" else int(value)
        except ValueError as error:
            raise CommandError(f"{name}: need a whole number or null, got {value!r}") from error

    def _rule(self, tenant: Tenant, fields: dict[str, Any]) -> dict[str, Any]:
        if fields.get("space") is None:
            return fields
        with tenant_scope(tenant.pk):
            space = Space.objects.filter(pk=fields["space"]).first()
        if space is None:
            raise CommandError(f"space: {tenant} has no space {fields['space']}")
        return {**fields, "space": space}

"""`manage.py let_in SLUG`: lets in a tenant that `tiering.watch` cut off."""

from argparse import ArgumentParser

from django.core.management.base import BaseCommand, CommandError

from tenants.audit import Actor
from tenants.models import Tenant
from tenants.services import let_in


class Command(BaseCommand):
    help = "Let a tenant's nodes into the hot tier again, once it is known why they were cut off."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("slug")

    def handle(self, *, slug: str, **options: object) -> None:
        tenant = Tenant.objects.filter(slug=slug).first()
        if tenant is None:
            raise CommandError(f"There is no tenant {slug}.")
        if not let_in(tenant=tenant, actor=Actor("manage.py let_in")):
            raise CommandError(f"{slug} is not cut off.")
        self.stdout.write(f"{slug} is let in: its nodes connect again by themselves.")

"""`manage.py provision`: loads functions, tenants' users and quotas into the hot Valkey."""

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from valkey.exceptions import ValkeyError

from retention import provisioning


class Command(BaseCommand):
    help = "Loads functions, ACL users and quotas into the hot Valkey. May be repeated."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            tenants = provisioning.provision()
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        except ValkeyError as error:
            raise CommandError(f"The hot Valkey (NEVE_HOT_URL) does not answer: {error}") from error
        self.stdout.write(f"The hot tier is ready; tenants: {tenants}")

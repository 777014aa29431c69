"""`manage.py reset_second_factor NAME`: for a person who lost app and recovery codes."""

from argparse import ArgumentParser

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError

from tenants import second_factor
from tenants.audit import Actor


class Command(BaseCommand):
    help = "Switch a person's second factor off; they set up a new one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="user name")

    def handle(self, *, name: str, **options: object) -> None:
        user = get_user_model().objects.filter(username=name).first()
        if user is None:
            raise CommandError(f"There is no account {name}.")
        if not second_factor.turn_off(user=user, actor=Actor("manage.py reset_second_factor")):
            raise CommandError(f"{name} has no second factor.")
        self.stdout.write(f"The second factor of {name} is off.")

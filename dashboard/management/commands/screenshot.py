"""`manage.py screenshot`: a picture of the running platform's overview, as the README shows it.

Needs Playwright and Chromium (requirements-dev.txt). It signs in with a session of its own, which
it deletes again, so no password is asked for.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
LIVE = '[data-live][data-state="live"]'


class Command(BaseCommand):
    help = "Takes docs/images/overview.png from the running platform."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", default="http://127.0.0.1:8000")
        parser.add_argument("--out", default="docs/images/overview.png")
        parser.add_argument("--path", default="/?range=15m", help="page to take")
        parser.add_argument("--theme", choices=("light", "dark"), default="light")
        parser.add_argument("--chromium", default="/usr/bin/chromium")
        parser.add_argument("--width", type=int, default=1440)
        parser.add_argument("--height", type=int, default=810)
        parser.add_argument(
            "--scale", type=float, default=1.25, help="2 is sharper, and over 250 KB large"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        operator = get_user_model().objects.filter(is_staff=True, is_active=True).first()
        if operator is None:
            raise CommandError("There is no operator account: run `manage.py bootstrap` first.")
        session = import_module(settings.SESSION_ENGINE).SessionStore()
        session[SESSION_KEY] = str(operator.pk)
        session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
        session[HASH_SESSION_KEY] = operator.get_session_auth_hash()
        session.set_expiry(300)
        session.create()
        try:
            self._take(session.session_key, **options)
        finally:
            session.delete()
        self.stdout.write(f"{options['out']}: look at it before you commit it")

    def _take(
        self, session_key: str, *, url: str, out: str, path: str, theme: str, chromium: str,
        width: int, height: int, scale: float, **_: Any,
    ) -> None:  # fmt: skip
        from playwright.sync_api import sync_playwright

        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            context = browser.new_context(
                viewport={"width": width, "height": height},
                device_scale_factor=scale,
                color_scheme="dark" if theme == "dark" else "light",
            )
            context.add_cookies(
                [{"name": settings.SESSION_COOKIE_NAME, "value": session_key, "url": url}]
            )
            page = context.new_page()
            page.goto(f"{url}{path}")
            if page.locator("[data-live]").count():
                page.locator(LIVE).wait_for()
                page.wait_for_timeout(2500)  # the first answers of the health probes
            page.screenshot(path=out)
            browser.close()

"""`manage.py screenshot`: pictures of the running platform, for the README and docs/dashboard.md.

Needs Playwright, Chromium and Pillow (requirements-dev.txt). It signs in with a session of its own,
which it deletes again, so no password is asked for.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dashboard.page import menu

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
LIVE = '[data-live][data-state="live"]'
README = Path("docs/images/overview.png")
PAGES = Path("docs/images/pages")
DESK, PHONE = (1440, 900), (390, 844)
# Pages of one object: the page that links to them, and the link.
DETAILS = {
    "tenant": ("tenants", '[data-list] a[href^="/tenants/"]'),
    "space": ("spaces", '[data-list] a[href^="/spaces/"]'),
    "context": ("contexts", 'main a[href^="/contexts/"]:not(.danger):not([href*="expire"])'),
    "node": ("nodes", '[data-list] a[href^="/nodes/"]'),
    "job": ("jobs", '[data-list] th a[href^="/jobs/"]'),
    "incident": ("incidents", 'main a[href^="/incidents/"]'),
}
DARK = ("overview", "explorer")
NARROW = ("overview", "contexts")
COLOURS = 96  # of a picture: a page has few, and the file is a third


class Command(BaseCommand):
    help = f"Takes {README} from the running platform, or with --pages each page into {PAGES}."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", default="http://127.0.0.1:8000")
        parser.add_argument("--out", default=str(README))
        parser.add_argument("--path", default="/?range=15m", help="page to take")
        parser.add_argument("--theme", choices=("light", "dark"), default="light")
        parser.add_argument("--chromium", default="/usr/bin/chromium")
        parser.add_argument("--width", type=int, default=1440)
        parser.add_argument("--height", type=int, default=810)
        parser.add_argument(
            "--scale", type=float, default=1.25, help="2 is sharper, and over 250 KB large"
        )
        parser.add_argument("--pages", action="store_true", help=f"each page into {PAGES}")
        parser.add_argument("--only", nargs="+", default=[], help="with --pages: these names")

    def handle(self, *args: Any, **options: Any) -> None:
        with _signed_in(options["url"]) as cookie, _browser(options["chromium"]) as browser:
            if options["pages"]:
                self._take_pages(browser, cookie, options["url"], options["only"])
                return
            size = (options["width"], options["height"])
            page = _open(browser, cookie, size, options["theme"], scale=options["scale"])
            _go(page, options["url"] + options["path"])
            Path(options["out"]).parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=options["out"])
        self.stdout.write(f"{options['out']}: look at it before you commit it")

    def _take_pages(self, browser: Any, cookie: Any, url: str, only: list[str]) -> None:
        PAGES.mkdir(parents=True, exist_ok=True)
        page = _open(browser, cookie, DESK, "light")
        page.goto(url)
        links = page.eval_on_selector_all(
            ".side a[data-key]", "all => all.map((a) => [a.dataset.key, a.href])"
        )
        by_key = dict(links)
        urls = {item["name"]: by_key[item["key"]] for group in menu() for item in group}
        for name, (parent, selector) in DETAILS.items():
            if parent in urls and (found := self._first(page, urls[parent], selector)):
                urls[name] = found
        taken = [(name, DESK, "light", name) for name in urls]
        taken += [(name, DESK, "dark", f"{name}-dark") for name in DARK if name in urls]
        taken += [(name, PHONE, "light", f"{name}-phone") for name in NARROW if name in urls]
        for name, size, theme, file in taken:
            if only and name not in only:
                continue
            page = _open(browser, cookie, size, theme)
            _go(page, urls[name])
            _save(page.screenshot(), PAGES / f"{file}.png")
            self.stdout.write(f"{PAGES / file}.png: {urls[name].removeprefix(url)}")
            page.context.close()

    def _first(self, page: Any, url: str, selector: str) -> str | None:
        page.goto(f"{url}{'&' if '?' in url else '?'}sort=-created_at" if "/jobs/" in url else url)
        # Of a link in a drawing, `href` is an object.
        script = "all => all.map((a) => new URL(a.getAttribute('href'), location.href).href)"
        found: list[str] = page.eval_on_selector_all(selector, script)
        own = url.split("?")[0]
        return next((each for each in found if each.split("?")[0] != own), None)


@contextmanager
def _signed_in(url: str) -> Iterator[dict[str, str]]:
    """The cookie of an operator's session."""
    operator = get_user_model().objects.filter(is_staff=True, is_active=True).first()
    if operator is None:
        raise CommandError("There is no operator account: run `manage.py bootstrap` first.")
    session = import_module(settings.SESSION_ENGINE).SessionStore()
    session[SESSION_KEY] = str(operator.pk)
    session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
    session[HASH_SESSION_KEY] = operator.get_session_auth_hash()
    session.set_expiry(900)
    session.create()
    try:
        yield {"name": settings.SESSION_COOKIE_NAME, "value": session.session_key, "url": url}
    finally:
        session.delete()


@contextmanager
def _browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


def _open(
    browser: Any, cookie: dict[str, str], size: tuple[int, int], theme: str, *, scale: float = 1
) -> Any:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        device_scale_factor=scale,
        color_scheme=theme,
        timezone_id="UTC",
    )
    context.add_cookies([cookie])
    context.set_default_timeout(60_000)
    return context.new_page()


def _go(page: Any, url: str) -> None:
    page.goto(url)
    page.locator(LIVE).wait_for()
    page.wait_for_timeout(2500)  # charts, and the first answers of the health probes


def _save(png: bytes, path: Path) -> None:
    from PIL import Image

    image: Any = Image.open(io.BytesIO(png)).convert("RGB")
    # Surfaces keep their colours exactly, and rare ones, as of a state, about.
    counted = sorted(image.getcolors(1 << 24), reverse=True)
    exact = [colour for _, colour in counted[: COLOURS // 3]]
    rest = image.quantize(COLOURS - len(exact), method=Image.Quantize.MAXCOVERAGE).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([each for colour in exact for each in colour] + rest)
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)

"""A real proxy in front: TLS, another port, a path prefix that it hands on or cuts off."""

import json
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from support.certificates import issue, make_ca
from support.chromium import CHROMIUM, FLAGS, PAGES
from support.servers import ControlPlane, Server, free_port, http_status

pytestmark = pytest.mark.browser

CADDYFILE = """
{{
    admin off
    auto_https off
    skip_install_trust
}}
https://localhost:{port} {{
    tls {folder}/front.crt {folder}/front.key
    reverse_proxy /neve* 127.0.0.1:{web}
}}
https://127.0.0.1:{port} {{
    tls {folder}/front.crt {folder}/front.key
    handle_path /neve* {{
        reverse_proxy 127.0.0.1:{web}
    }}
}}
"""


class Web(Server):
    """One more web process of a platform, with other settings."""

    name = "web-behind"

    def __init__(self, platform: ControlPlane, **settings: str) -> None:
        super().__init__(platform.folder)
        self.platform = platform
        self.settings = settings
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        return self.platform.environment() | self.settings

    def command(self) -> list[str]:
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--log-level", "warning"]
        return [sys.executable, "-m", "uvicorn", "controlplane.asgi:application", *options]

    def ready(self) -> bool:
        return http_status(f"{self.url}/healthz") == 200


class Caddy(Server):
    """TLS on `port`: as localhost it hands the prefix /neve on, as 127.0.0.1 it cuts it off."""

    name = "caddy"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.web_port = 0

    def command(self) -> list[str]:
        file = self.folder / "Caddyfile"
        file.write_text(CADDYFILE.format(folder=self.folder, port=self.port, web=self.web_port))
        caddy = Path(sys.executable).with_name("caddy")
        return [str(caddy), "run", "--config", str(file), "--adapter", "caddyfile"]

    def environment(self) -> dict[str, str]:
        homes = dict.fromkeys(("XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME"), str(self.folder))
        return super().environment() | homes

    def ready(self) -> bool:
        return b"serving initial configuration" in self.log.read_bytes()


@pytest.fixture(scope="module")
def front(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Web, Caddy]]:
    folder = tmp_path_factory.mktemp("caddy")
    make_ca(folder, "ca")
    issue(folder, "ca", "front", "DNS:localhost,IP:127.0.0.1")
    caddy = Caddy(folder)
    with Web(control_plane, NEVE_URL=f"https://localhost:{caddy.port}/neve") as web:
        caddy.web_port = web.port
        with caddy:
            yield web, caddy


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def ask(url: str, ca: Path | None = None, **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers in lower case, body. Follows no redirect."""
    context = ssl.create_default_context(cafile=ca) if ca else None
    opener = urllib.request.build_opener(NoRedirect, urllib.request.HTTPSHandler(context=context))
    try:
        answer = opener.open(urllib.request.Request(url, headers=headers), timeout=10)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        found = {name.lower(): value for name, value in answer.headers.items()}
        return answer.status, found, answer.read().decode()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_every_page_works_below_the_prefix(front, control_plane, host):
    """Links, static files, forms, live socket, admin, API pages; nothing breaks the policy."""
    _, caddy = front
    base = f"https://{host}:{caddy.port}/neve"
    said, asked = [], []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = chromium.new_context(ignore_https_errors=True).new_page()
        page.on(
            "console",
            lambda message: message.type == "error" and said.append(f"{page.url}: {message.text}"),
        )
        page.on("request", lambda request: asked.append(request.url))
        page.goto(base)
        user, password = control_plane.operator
        page.get_by_label("User name").fill(user)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{base}/")
        expect(page.locator("[data-live]")).to_have_attribute("data-state", "live")
        for path in PAGES if host == "localhost" else PAGES[:1]:
            assert page.goto(f"{base}/{path}").status == 200
            links = page.evaluate(
                "[...document.links, ...document.forms].map(e => e.href ??"
                " new URL(e.getAttribute('action') ?? '', location.href).href)"
            )
            assert [link for link in links if not link.startswith(base)] == []
        page.goto(f"{base}/keys/?tenant=demo")
        page.get_by_label("Name").fill(f"behind {host}")
        page.get_by_role("button", name="Make key").click()
        expect(page.locator("[data-secret]")).to_contain_text("neve_")
        for path in (
            "admin/",
            "admin/tenants/tenant/",
            "admin/tenants/tenant/1/change/",
            "admin/auth/user/add/",
        ):
            assert page.goto(f"{base}/{path}").status == 200
        page.goto(f"{base}/api/v1/docs/")
        expect(page.locator(".swagger-ui .info .title")).to_contain_text("Neve")
        cookies = {cookie["name"]: cookie for cookie in page.context.cookies()}
        chromium.close()
    assert not said, "\n".join(said)
    assert [url for url in asked if not url.startswith((base, "data:"))] == []
    for name in ("sessionid", "csrftoken"):
        assert (cookies[name]["secure"], cookies[name]["path"]) == (True, "/neve/")


def test_links_of_the_api_name_the_public_address(front, control_plane):
    _, caddy = front
    key = re.search(
        r"neve_\w+",
        control_plane.manage(
            "shell", "--no-imports", "-v0", "-c",
            "from tenants.services import issue_key; "
            "print([issue_key(tenant=None, role='operator', name='front')[1] for _ in range(2)])",
        ),
    )[0]  # fmt: skip
    base = f"https://localhost:{caddy.port}/neve"
    bearer = {"Authorization": f"Bearer {key}"}
    status, headers, body = ask(
        f"{base}/api/v1/keys?page_size=1", caddy.folder / "ca.crt", **bearer
    )
    assert status == 200
    assert f'"next":"{base}/api/v1/keys?' in body.replace(" ", "")
    assert headers["cache-control"] == "no-store"
    _, _, schema = ask(f"{base}/api/v1/schema/", caddy.folder / "ca.crt")
    assert json.loads(schema)["servers"] == [{"url": "/neve"}]
    status, _, body = ask(f"{base}/api/v1/nothing", caddy.folder / "ca.crt")
    assert '"type": "/neve/problems/not-found"' in body
    status, _, body = ask(f"{base}/metrics", caddy.folder / "ca.crt", **bearer)
    assert (status, "neve_jobs{" in body) == (200, True)
    status, _, body = ask(f"{base}/metrics", caddy.folder / "ca.crt")
    assert (status, json.loads(body)["type"]) == (401, "/neve/problems/unauthorized")


def test_plain_http_is_sent_to_tls_and_tls_is_to_stay(front):
    web, caddy = front
    status, headers, _ = ask(f"{web.url}/login/", Host=f"localhost:{caddy.port}")
    assert (status, headers["location"]) == (301, f"https://localhost:{caddy.port}/neve/login/")
    assert ask(f"{web.url}/cache/v1/")[0] == 404  # the demo node's way
    status, headers, _ = ask(f"https://localhost:{caddy.port}/neve/login/", caddy.folder / "ca.crt")
    assert status == 200
    assert headers["strict-transport-security"] == "max-age=31536000"
    assert ask(f"https://localhost:{caddy.port}/neve", caddy.folder / "ca.crt")[0] == 308


def test_a_node_connects_below_the_prefix(front, control_plane):
    _, caddy = front
    done = subprocess.run(
        [Path(sys.executable).with_name("neve"), "ping", "--api-key", control_plane.node_key,
         "--endpoint", f"https://localhost:{caddy.port}/neve"],
        env=control_plane.environment() | {"SSL_CERT_FILE": str(caddy.folder / "ca.crt")},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_left_to_say_for_the_deployment_check(control_plane):
    control_plane.settings["URL"] = "https://kv.example.com"
    try:
        said = control_plane.manage("check", "--deploy", "--fail-level", "WARNING")
    finally:
        del control_plane.settings["URL"]
    assert "no issues" in said


def test_an_unknown_host_is_told_which_setting_to_change(control_plane):
    other = f"http://127.1:{control_plane.port}"
    status, headers, body = ask(f"{other}/api/v1/tenants")
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert "/problems/unknown-host" in body
    assert "NEVE_HOSTS" in body
    status, headers, body = ask(f"{other}/")
    assert (status, headers["content-type"]) == (400, "text/plain; charset=utf-8")
    assert "NEVE_URL" in body
    assert "'127.1:" in body
    assert ask(f"{other}/healthz")[::2] == (200, "ok\n")
    done = subprocess.run(
        [Path(sys.executable).with_name("neve"), "ping", "--api-key", "neve_a_b",
         "--endpoint", other],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "add the name to NEVE_HOSTS" in done.stdout + done.stderr
    assert "NEVE_URL" in done.stdout + done.stderr

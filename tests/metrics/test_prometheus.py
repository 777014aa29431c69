"""A real Prometheus scrapes a real platform with traffic: every panel and alert has data."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import urllib3

from support.browser import Node
from support.servers import ROOT, Server, free_port, wait_until

pytestmark = pytest.mark.integration

BOARDS = sorted((ROOT / "deploy/grafana").glob("*.json"))
CONFIG = ROOT / "deploy/prometheus"
KEY = (
    "from tenants.services import issue_key; "
    "print(issue_key(tenant=None, role='operator', name='scrape', scopes=['read'])[1])"
)
VARIABLES = {"$tenant": ".*", "$__rate_interval": "10s"}


class Prometheus(Server):
    """Scrapes `target` each second, as deploy/prometheus says else."""

    name = "prometheus"

    def __init__(self, folder: Path, target: str, key: str) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder.mkdir(parents=True)
        (folder / "alerts.yml").write_text((CONFIG / "alerts.yml").read_text())
        (folder / "neve.key").write_text(key)
        text = (CONFIG / "prometheus.yml").read_text()
        for old, new in (
            ("scrape_interval: 15s", "scrape_interval: 1s\n  evaluation_interval: 1s"),
            ("scheme: https", "scheme: http"),
            ("/etc/prometheus/neve.key", str(folder / "neve.key")),
            ("kv.example.com", target),
        ):
            assert old in text
            text = text.replace(old, new)
        (folder / "prometheus.yml").write_text(text)

    def command(self) -> list[str]:
        return [
            "prometheus",
            f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]

    def ready(self) -> bool:
        answer = urllib3.request("GET", f"{self.url}/-/ready", timeout=2, retries=False)
        return answer.status == 200

    def _ready_or_dead(self) -> bool:
        try:
            return super()._ready_or_dead()
        except urllib3.exceptions.HTTPError:
            return False

    def ask(self, path: str, **fields: Any) -> Any:
        answer = urllib3.request("GET", f"{self.url}/api/v1/{path}", fields=fields, timeout=30)
        told = answer.json()
        assert told["status"] == "success", told
        return told["data"]


def queries() -> list[tuple[str, str]]:
    """(board and panel, expression) of every panel's queries, with the variables filled in."""
    found = []
    for path in BOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                text = target["expr"]
                for name, value in VARIABLES.items():
                    text = text.replace(name, value)
                found.append((f"{path.stem}: {panel['title']}", text))
    return found


@pytest.fixture(scope="module")
def prometheus(control_plane, tmp_path_factory):
    """After half a dozen scrapes of a platform whose node reports all kinds of counts."""
    key = control_plane.manage("shell", "--no-imports", "-v0", "-c", KEY).split()[-1]
    target = control_plane.url.removeprefix("http://")
    node = Node(control_plane, "gpu-metrics").connect()
    counts = {"requested_tokens": 2560, "tail_tokens": 10, "hit_hot_tokens": 1280}
    counts |= {"hit_cold_tokens": 256, "cold_requests": 2, "cold_fetched_bytes": 1 << 20}
    folder = tmp_path_factory.mktemp("prometheus") / "server"
    with control_plane.workers(), Prometheus(folder, target, key) as server:
        seen = 'count_over_time(neve_task_seconds_count{kind="sample"}[1m]) >= 3'

        def has_data() -> bool:
            node.beat(misses={"never_stored": 3, "evicted": 1}, **counts)
            time.sleep(0.2)
            return bool(server.ask("query", query=seen)["result"])

        wait_until(has_data, timeout_s=120, what="three scrapes with a worker's counts")
        yield server


@pytest.mark.parametrize(("panel", "text"), queries(), ids=lambda part: part[:60])
def test_each_panels_query_returns_numbers(prometheus, panel, text):
    def answered() -> bool:
        found = prometheus.ask("query", query=text)["result"]
        return any(one["value"][1] != "NaN" for one in found)

    wait_until(answered, timeout_s=60, what=f"{panel}: {text}")


def test_each_alert_is_evaluated_and_reads_metrics_that_exist(prometheus):
    (group,) = prometheus.ask("rules")["groups"]
    names = set(prometheus.ask("label/__name__/values"))
    assert len(group["rules"]) > 8
    for rule in group["rules"]:
        assert rule["health"] in ("ok", "unknown"), rule
        used = set(re.findall(r"\b(?:neve_\w+|up)\b", rule["query"]))
        assert used, rule["name"]
        assert used - names == set(), rule["name"]


def test_boards_are_importable_and_name_no_data_source_of_one_installation():
    uids = [json.loads(path.read_text())["uid"] for path in BOARDS]
    assert len(uids) == len(set(uids)) == 3
    for path in BOARDS:
        board = json.loads(path.read_text())
        assert {each["name"] for each in board["templating"]["list"]} == {"datasource", "tenant"}
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))
        for panel in board["panels"]:
            for target in panel["targets"]:
                assert target["datasource"]["uid"] == "${datasource}"

"""A new release goes on with the database and the queues of the last one."""

import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from importlib import import_module
from pathlib import Path

import pytest
from django.apps import apps

from controlplane.celery import app as celery_app

ROOT = Path(__file__).resolve().parents[2]
OLD = Path(__file__).with_name("release_0_2.sql")
LABELS = ("controlplane", "tenants", "catalog", "retention")  # apps that had tables
TASKS = {
    *("watch", "flush", "sweep", "compact", "expire", "retain", "remove_tenant", "remove_space"),
    *("rebuild_tenant", "rebuild_index", "end_access", "sample", "reconcile", "prune"),
    "housekeeping",
}


@pytest.mark.integration
def test_a_database_of_the_last_release_is_migrated_and_read(tmp_path):
    file = tmp_path / "neve.sqlite3"

    def manage(*arguments: str) -> str:
        command = [sys.executable, str(ROOT / "manage.py"), *arguments]
        env = {
            **os.environ,
            "NEVE_DATABASE_URL": f"sqlite:///{file}",
            "DJANGO_SETTINGS_MODULE": "controlplane.settings",
        }
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout

    with closing(sqlite3.connect(file)) as old:
        old.executescript(OLD.read_text())
        tables = {
            f"{label}.{model}": f"{label}_{model}"
            for label, model in old.execute("SELECT app_label, model FROM django_content_type")
            if label in LABELS
        }
        counts = {
            model: old.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for model, table in tables.items()
        }
        permissions = set(old.execute("SELECT id, content_type_id, codename FROM auth_permission"))
        chain, chunk_tokens = old.execute(
            "SELECT chain, chunk_tokens FROM catalog_context JOIN catalog_space ON id = space_id"
        ).fetchone()
    assert min(counts.values()) > 0

    manage("migrate", "--verbosity=0")
    manage("migrate", "--check")

    rows = json.loads(manage("dumpdata", "--all", *LABELS))
    assert Counter(row["model"] for row in rows) >= Counter(counts)
    found = {row["model"]: row["fields"] for row in rows}
    assert found["tenants.tenant"]["slug"] == "acme"
    assert found["tenants.quota"]["hot_bytes"] == 1 << 20
    assert found["catalog.space"]["chunk_tokens"] == chunk_tokens
    assert found["catalog.context"]["blocks"] * 16 == len(chain)
    assert found["catalog.usagerollup"]["put_blocks"] == 3
    assert found["retention.retentionrule"]["overrides"] == {"priority": 6}
    assert found["controlplane.storedanswer"]["status"] == 200
    with closing(sqlite3.connect(file)) as new:
        now = set(new.execute("SELECT id, content_type_id, codename FROM auth_permission"))
    assert now >= permissions
    assert all(apps.get_model(model) for model in tables)  # no content type lost its model


def test_workers_know_the_tasks_that_the_last_release_queued():
    import_module("workers.tasks")
    assert celery_app.tasks.keys() >= {f"workers.{name}" for name in TASKS}

"""A wrong environment stops the boot, and the message says which variable and how to fix it."""

import re

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.urls import get_resolver

from controlplane import env
from storage.addresses import each_url


@pytest.fixture(autouse=True)
def no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(env, "VAR", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["NEVE_SECRET_KEY", "NEVE_KEY_PEPPER", "NEVE_S3_SECRET_KEY"])
def test_a_missing_secret_is_named_with_the_command_that_makes_one(monkeypatch, name):
    monkeypatch.delenv(name)
    with pytest.raises(ImproperlyConfigured, match=rf"{name} is not set[\s\S]*openssl rand"):
        env.read()


def test_a_short_secret_is_refused(monkeypatch):
    monkeypatch.setenv("NEVE_KEY_PEPPER", "abc")
    with pytest.raises(ImproperlyConfigured, match="has 3 characters, needs 32"):
        env.read()


def test_the_file_fills_in_what_the_environment_leaves_open(monkeypatch, no_file):
    monkeypatch.setenv("NEVE_S3_BUCKET", "from-environment")
    monkeypatch.delenv("NEVE_S3_REGION", raising=False)
    (no_file / "env").write_text("NEVE_S3_BUCKET=from-file\nNEVE_S3_REGION=from-file\n")
    read = env.read()
    assert (read.s3_bucket, read.s3_region) == ("from-environment", "from-file")


def test_values_of_the_file_may_be_quoted_and_begin_with_a_dollar(monkeypatch, no_file):
    monkeypatch.delenv("NEVE_S3_SECRET_KEY")
    monkeypatch.delenv("NEVE_S3_REGION")
    (no_file / "env").write_text(
        "NEVE_S3_SECRET_KEY='$NEVE_S3_BUCKET # \\$'\nNEVE_S3_REGION=\"a b\"\n"
    )
    read = env.read()
    assert (read.s3_secret_key, read.s3_region) == ("$NEVE_S3_BUCKET # \\$", "a b")


def test_sqlite_waits_for_its_lock_and_a_relative_path_is_below_the_root(monkeypatch):
    monkeypatch.setenv("NEVE_DATABASE_URL", "sqlite:///var/x.sqlite3")
    monkeypatch.delenv("NEVE_DATABASE_WAIT_S", raising=False)  # importing asgi sets it
    database = env.read().database
    assert database["NAME"] == str(env.ROOT / "var/x.sqlite3")
    assert database["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
    assert database["OPTIONS"]["timeout"] == 20


def test_the_database_lies_in_var_also_for_who_runs_manage_py_alone(monkeypatch, no_file):
    monkeypatch.delenv("NEVE_DATABASE_URL")
    assert env.read().database["NAME"] == str(no_file / "neve.sqlite3")


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("valkey://:pw@bus:1/0", "redis://:pw@bus:1/0"),
        ("redis://bus:1/0", "redis://bus:1/0"),
        ("valkeys://bus:1/0", "rediss://bus:1/0"),
        ("rediss://bus:1/0", "rediss://bus:1/0"),
    ],
)
def test_celery_and_channels_get_the_one_scheme_that_they_know(monkeypatch, given, used):
    monkeypatch.setenv("NEVE_BUS_URL", given)
    assert env.read().bus_url == used


def test_postgresql_is_the_other_database(monkeypatch):
    monkeypatch.setenv("NEVE_DATABASE_URL", "postgres://neve:pw@db:5432/neve")
    assert env.read().database["ENGINE"].endswith("postgresql")
    monkeypatch.setenv("NEVE_DATABASE_URL", "mysql://neve:pw@db/neve")
    with pytest.raises(ImproperlyConfigured, match="NEVE_DATABASE_URL uses mysql"):
        env.read()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NEVE_HOT_URL", "http://x:1", "NEVE_HOT_URL"),
        ("NEVE_BUS_URL", "http://x:1", "NEVE_BUS_URL is 'http'…; use valkey://"),
        ("NEVE_BUS_URL", "x:6391", "NEVE_BUS_URL"),
        ("NEVE_URL", "kv.example.com", "NEVE_URL=kv.example.com: write the address"),
        ("NEVE_URL", "https://kv.example.com/?a=1", "NEVE_URL"),
        ("NEVE_URL", "https://kv.example.com:web/", "NEVE_|web"),
        ("NEVE_URL", "https://kv.example.com/api/x", "may not begin with /api"),
        ("NEVE_HEARTBEAT_S", "soon", "soon"),
        ("NEVE_HEARTBEAT_S", "0", "NEVE_HEARTBEAT_S=0"),
        ("NEVE_LOG_FORMAT", "xml", "NEVE_LOG_FORMAT=xml: write console or json"),
        ("NEVE_HOT_BUCKETS", "0", "NEVE_HOT_BUCKETS=0"),
        ("NEVE_HOT_BUCKETS", "1537", "NEVE_HOT_BUCKETS=1537: needs to be 1536 or less"),
        ("NEVE_RATE_CALLER", "10/5min", "NEVE_RATE_CALLER=10/5min: write 1200/min"),
        ("NEVE_RATE_ADDRESS", "0/min", "NEVE_RATE_ADDRESS=0/min"),
    ],
)
def test_a_wrong_value_is_named(monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    with pytest.raises(ImproperlyConfigured, match=said):
        env.read()


@pytest.mark.parametrize(
    ("given", "origin", "prefix"),
    [
        ("", "", ""),
        ("https://kv.example.com/", "kv.example.com", ""),
        ("http://kv.example.com:8080/gpu/neve/", "kv.example.com:8080", "/gpu/neve"),
    ],
)
def test_the_public_address_has_a_host_and_a_prefix(monkeypatch, given, origin, prefix):
    monkeypatch.setenv("NEVE_URL", given)
    assert (env.read().url.netloc, env.read().url.path) == (origin, prefix)


def test_no_path_of_the_platform_may_be_a_prefix():
    """A first part that is missing in OWN_PATHS could be cut off as if it were the prefix."""
    firsts = {str(one.pattern).strip("^/$").split("/")[0] for one in get_resolver().url_patterns}
    dashboard = get_resolver("dashboard.urls").url_patterns
    firsts |= {str(one.pattern).split("/")[0] for one in dashboard}
    assert {first for first in firsts if re.fullmatch(r"[a-z]+", first)} <= env.OWN_PATHS


def test_an_empty_rate_is_no_limit(monkeypatch):
    monkeypatch.setenv("NEVE_RATE_CALLER", "")
    monkeypatch.setenv("NEVE_RATE_ADDRESS", "5/sec")
    assert (env.read().rate_caller, env.read().rate_address) == (None, "5/sec")


def test_nodes_are_told_the_address_of_the_hot_url_unless_seeds_are_given(monkeypatch):
    monkeypatch.setenv("NEVE_HOT_URL", "valkeys://:pw@cache:7000/0")
    assert (env.read().hot_seeds, env.read().hot_tls) == (["cache:7000"], True)
    monkeypatch.setenv("NEVE_HOT_URL", "valkey://u:p%2C@a:7000,b,[::1]:7002/0")
    assert env.read().hot_seeds == ["a:7000", "b:6379", "::1:7002"]
    assert each_url(env.read().hot_url)[2] == "valkey://u:p%2C@[::1]:7002/0"
    monkeypatch.setenv("NEVE_HOT_SEEDS", "a:1,b:2")
    assert env.read().hot_seeds == ["a:1", "b:2"]


def test_outbound_addresses_are_public_networks_or_both(monkeypatch):
    monkeypatch.delenv("NEVE_OUTBOUND_ALLOW")
    assert env.read().outbound_allow == ["public"]
    monkeypatch.setenv("NEVE_OUTBOUND_ALLOW", "public, 10.0.0.0/8,fd12::/16,")
    assert env.read().outbound_allow == ["public", "10.0.0.0/8", "fd12::/16"]
    monkeypatch.setenv("NEVE_OUTBOUND_ALLOW", "10.0.0.1/8")
    with pytest.raises(ImproperlyConfigured, match=r"NEVE_OUTBOUND_ALLOW: '10.0.0.1/8' is no netw"):
        env.read()

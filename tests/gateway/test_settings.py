"""`callback_settings.neve` of LiteLLM's proxy, and deployments as nodes. No LiteLLM needed."""

import re
from dataclasses import fields

import pytest

from neve.errors import Misuse
from neve.gateway import Margin
from neve.gateway.pools import Handover, PoolOptions
from neve.gateway.store import Engine
from neve.litellm.deployments import is_nobodys, node_of, served_model, takes_salts
from neve.litellm.pools import PoolSettings
from neve.litellm.settings import Settings, TenantSettings, read_settings
from support.servers import ROOT

ACME = {"name": "acme", "api_key": "neve_x", "teams": ["t1"], "keys": ["k1"]}
OTHERS = {"name": "others", "api_key": "neve_y", "is_default": True}
POOL = {"name": "far", "space": 3, "model": "m", "urls": ["http://far:1/v1"]}
GOOD = {"endpoint": "http://neve.example", "tenants": [ACME, OTHERS]}


def test_whose_request_it_is():
    settings = read_settings(GOOD)

    def owner(**caller):
        return settings.tenant_of(**{"team": None, "key": None} | caller).name

    assert owner(team="t1") == owner(key="k1") == owner(team="t2", key="k1") == "acme"
    assert owner(team="t2") == owner() == "others"
    alone = read_settings(GOOD | {"tenants": [ACME]})
    assert alone.tenant_of(team="t2", key=None) is None


def test_secrets_come_from_the_environment_and_stay_out_of_logs(monkeypatch):
    monkeypatch.setenv("ACME_KEY", "neve_secret")
    settings = read_settings(GOOD | {"tenants": [ACME | {"api_key": "os.environ/ACME_KEY"}]})
    assert settings.tenants[0].api_key == "neve_secret"
    assert "neve_secret" not in repr(settings)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (None, ""),
        ({}, ".tenants"),
        (GOOD | {"endpoint": ""}, ".endpoint"),
        (GOOD | {"tenant": []}, ".tenant"),
        (GOOD | {"routes": "yes"}, ".routes"),
        (GOOD | {"piece_bytes": 0}, ".piece_bytes"),
        (GOOD | {"lookup_deadline_s": -1}, ".lookup_deadline_s"),
        (GOOD | {"margin": {"ratio": 0.5}}, ".margin.ratio"),
        (GOOD | {"margin": {"request": 1}}, ".margin.request"),
        (GOOD | {"tenants": [{"name": "a", "api_key": "k"}]}, ".tenants[0]"),
        (GOOD | {"tenants": [ACME | {"api_key": "os.environ/ABSENT"}]}, ".tenants[0].api_key"),
        (GOOD | {"tenants": [ACME | {"salt_by": "user"}]}, ".tenants[0].salt_by"),
        (GOOD | {"tenants": [ACME | {"teams": "t1"}]}, ".tenants[0].teams"),
        (GOOD | {"tenants": [ACME, OTHERS | {"teams": ["t1"]}]}, ".tenants[1]"),
        (GOOD | {"tenants": [OTHERS, OTHERS | {"name": "b"}]}, ".tenants[1]"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch, given, field):
    monkeypatch.delenv("NEVE_ENDPOINT", raising=False)
    with pytest.raises(Misuse) as caught:
        read_settings(given)
    assert caught.value.field == f"callback_settings.neve{field}"


def test_pools_of_a_tenant_are_read_as_the_routers(monkeypatch):
    monkeypatch.setenv("FAR_KEY", "far_secret")
    more = {"api_key": "os.environ/FAR_KEY", "link_mbit": 8, "handover": "cold", "wait_s": 5}
    settings = read_settings(GOOD | {"tenants": [ACME | {"pools": [POOL | more]}]})
    [pool] = settings.tenants[0].pools
    assert pool == PoolSettings(
        3,
        PoolOptions(
            *("far", ("http://far:1",), "m"),
            api_key="far_secret",
            handover=Handover.COLD,
            link_bytes_per_s=1e6,
            wait_s=5,
        ),
    )
    assert "far_secret" not in repr(settings)


@pytest.mark.parametrize(
    ("pools", "field"),
    [
        (POOL, ".pools"),
        (["far"], ".pools[0]"),
        ([{"name": "far"}], ".pools[0].urls"),
        ([POOL | {"urls": ["far:1"]}], ".pools[0].urls"),
        ([POOL | {"space": "three"}], ".pools[0].space"),
        ([POOL | {"model": ""}], ".pools[0].model"),
        ([POOL | {"handover": "warm"}], ".pools[0].handover"),
        ([POOL | {"link_mbit": 0}], ".pools[0].link_mbit"),
        ([POOL | {"least_tokens": True}], ".pools[0].least_tokens"),
        ([POOL | {"registered": True}], ".pools[0].registered"),
        ([POOL, POOL], ".pools: pool.name"),
    ],
)
def test_a_wrong_pool_is_named(pools, field):
    with pytest.raises(Misuse) as caught:
        read_settings(GOOD | {"tenants": [ACME | {"pools": pools}]})
    assert caught.value.field == f"callback_settings.neve.tenants[0]{field}"


def test_who_has_no_team_is_kept_apart_by_key():
    tenant = read_settings(GOOD | {"tenants": [OTHERS | {"salt_by": "team"}]}).tenants[0]
    callers = [("t1", "k1"), (None, "k1"), (None, "k2"), ("k1", "k1")]
    for of in (tenant.scope_of, lambda **by: tenant.salt_of(**by, given=None)):
        assert len({of(team=team, key=key) for team, key in callers}) == 4
        assert of(team="t1", key="k1") == of(team="t1", key="k2")
    assert read_settings(GOOD).tenants[0].scope_of(team="t1", key="k1") == ""


def test_salts_keep_teams_and_clients_apart():
    tenant = read_settings(GOOD | {"tenants": [ACME | {"salt_by": "team"}]}).tenants[0]
    other = read_settings(GOOD | {"tenants": [ACME | {"api_key": "neve_z", "salt_by": "team"}]})

    def salt(of=tenant, team="t1", key="k", given=None):
        return of.salt_of(team=team, key=key, given=given)

    assert salt() == salt(key="another")
    different = {salt(), salt(team="t2"), salt(given="own"), salt(of=other.tenants[0])}
    assert len(different) == 4
    plain = read_settings(GOOD).tenants[0]
    assert (salt(of=plain), salt(of=plain, given="own")) == (None, "own")


def deployment(base="http://gpu-01:8000/v1", model="hosted_vllm/tiny", **info):
    return {"litellm_params": {"model": model, "api_base": base}, "model_info": {"id": "d"} | info}


def test_deployments_are_nodes_by_their_info_or_by_the_engines_that_neve_knows():
    engines = [Engine("http://gpu-01:8000", "tiny", 7)]

    def space(*given, **info):
        return node_of(deployment(*given, **info), tenant="acme", engines=engines).space

    assert space() == space("HTTP://GPU-01:8000/v1/") == 7
    assert space(neve={"space": 3}) == 3
    assert space("http://gpu-02:8000/v1") is None
    assert space("http://gpu-02:8000/v1", neve={"space": 3}) == 3
    assert space(neve=False) is None
    assert space("http://gpu-01:8000/v1", "anthropic/tiny") is None
    assert space(None, "openai/gpt") is None


def test_a_node_of_another_tenant_is_none():
    kept = deployment(neve={"space": 3, "tenant": "acme"})
    assert node_of(kept, tenant="acme", engines=[]).space == 3
    assert node_of(kept, tenant="other", engines=[]) is None


def test_what_is_kept_for_a_tenant_and_what_may_take_salts():
    assert is_nobodys(deployment())
    assert is_nobodys(deployment(neve={"space": 3}))
    assert is_nobodys(deployment(neve=False))
    assert not is_nobodys(deployment(neve={"tenant": "acme"}))
    assert takes_salts(deployment())
    assert not takes_salts(deployment(model="openai/gpt"))
    assert served_model({"model": "hosted_vllm/qwen/qwen-3"}) == "qwen/qwen-3"
    assert served_model({"model": "qwen/qwen-3"}) == "qwen/qwen-3"


def test_a_nodes_name_has_no_credentials():
    node = node_of(deployment("http://ann:secret@gpu-01:8000/v1"), tenant="acme", engines=[])
    assert node.name == "gpu-01:8000"


def test_the_page_has_every_setting_with_its_default():
    page = (ROOT / "docs/litellm.md").read_text()
    documented = {}
    for head in ("| in `neve` |", "| in a tenant |", "| in `margin` |"):
        rows = page.split(head, 1)[1].split("\n\n", 1)[0].splitlines()[2:]
        for row in rows:
            names, default = (cell.strip() for cell in row.strip("|").split("|")[:2])
            documented |= dict.fromkeys(re.findall(r"`(\w+)`", names), default)
    expected = {
        each.name: each.default
        for kind in (Settings, TenantSettings, Margin)
        for each in fields(kind)
    }
    assert documented.keys() == expected.keys()
    for name, default in expected.items():
        if isinstance(default, (bool, int, float)):
            shown = str(default).lower() if isinstance(default, bool) else f"{default:g}"
            assert documented[name] == shown, name

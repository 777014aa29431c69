"""Addresses of the dashboard: pages, actions of pages, and the live numbers."""

from django.urls import path

from dashboard.views import assets, contexts, keys, let_in, lists, login, overview

app_name = "dashboard"
urlpatterns = [
    path("", overview.overview, name="overview"),
    path("dashboard/data/overview.json", overview.overview_data, name="overview-data"),
    path(f"dashboard/plotly-{assets.PLOTLY_VERSION}.min.js", assets.plotly, name="plotly"),
    path("login/", login.sign_in, name="login"),
    path("logout/", login.sign_out, name="logout"),
    path("tenants/", lists.tenants, name="tenants"),
    path("tenants/<int:tenant_id>/let-in", let_in.let_in, name="tenant-let-in"),
    path("nodes/", lists.nodes, name="nodes"),
    path("tiers/", lists.tiers, name="tiers"),
    path("jobs/", lists.jobs, name="jobs"),
    path("audit/", lists.audit, name="audit"),
    path("contexts/", contexts.contexts, name="contexts"),
    path("contexts/<uuid:uuid>/pin", contexts.pin, name="context-pin"),
    path("contexts/<uuid:uuid>/unpin", contexts.unpin, name="context-unpin"),
    path("contexts/<uuid:uuid>/expire", contexts.expire, name="context-expire"),
    path("contexts/<uuid:uuid>/delete", contexts.delete, name="context-delete"),
    path("keys/", keys.keys, name="keys"),
    path("keys/<int:key_id>/revoke", keys.revoke, name="key-revoke"),
]

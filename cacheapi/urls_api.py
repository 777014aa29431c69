"""Addresses of /api/v1: no trailing slash, except the two pages."""

from csp.decorators import csp_update
from django.urls import path
from drf_spectacular.views import SpectacularSwaggerSplitView
from rest_framework.routers import SimpleRouter

from cacheapi import api_views as views
from cacheapi.retention_views import PoliciesView, RulesView

router = SimpleRouter(trailing_slash=False)
router.register("contexts", views.ContextsView, basename="context")
router.register("tenants", views.TenantsView, basename="tenant")
router.register("spaces", views.SpacesView, basename="space")
router.register("nodes", views.NodesView, basename="node")
router.register("segments", views.SegmentsView, basename="segment")
router.register("jobs", views.JobsView, basename="job")
router.register("audit", views.AuditView, basename="audit")
router.register("policies", PoliciesView, basename="policy")
router.register("rules", RulesView, basename="rule")
router.register("keys", views.KeysView, basename="key")

docs = csp_update({"img-src": "data:"})(  # Swagger's icons
    SpectacularSwaggerSplitView.as_view(url_name="api:schema", template_name="cacheapi/docs.html")
)

app_name = "api"
urlpatterns = [
    path("usage", views.UsageView.as_view(), name="usage"),
    path("schema/", views.SchemaView.as_view(), name="schema"),
    path("docs/", docs, name="docs"),
    *router.urls,
]

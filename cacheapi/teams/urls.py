"""Addresses of /api/v1: no trailing slash, except the two pages."""

from csp.decorators import csp_update
from django.urls import path
from drf_spectacular.views import SpectacularSwaggerSplitView
from rest_framework.routers import SimpleRouter

from cacheapi.base.viewsets import UUID
from cacheapi.teams.audit import AuditView
from cacheapi.teams.contexts.view import ContextsView
from cacheapi.teams.engines import EnginesView
from cacheapi.teams.events import EventsView
from cacheapi.teams.explore import ExploreView
from cacheapi.teams.families import FamiliesView, MembersView
from cacheapi.teams.incidents import (
    AlertRulesView,
    AlertRuleView,
    IncidentMailView,
    IncidentsView,
)
from cacheapi.teams.invitations import InvitationsView
from cacheapi.teams.jobs import JobsView
from cacheapi.teams.keys import KeysView
from cacheapi.teams.lookup import LookupView
from cacheapi.teams.me import MeView
from cacheapi.teams.members import MembershipsView
from cacheapi.teams.nodes import NodesView
from cacheapi.teams.policies import PoliciesView
from cacheapi.teams.prices import PricesView
from cacheapi.teams.rules import RulesView
from cacheapi.teams.samples import SamplesExportView, SamplesView
from cacheapi.teams.savings import SavingsExportView, SavingsView
from cacheapi.teams.schema import SchemaView
from cacheapi.teams.segments import SegmentsView
from cacheapi.teams.sign_ins import SignInsView
from cacheapi.teams.spaces import SpacesView
from cacheapi.teams.stores import MoveRulesView, MovesView, StoresView
from cacheapi.teams.tenants import TenantsView
from cacheapi.teams.usage import UsageView
from cacheapi.teams.warm_policies import WarmPoliciesView
from cacheapi.teams.webhooks import DeliveriesView, WebhooksView
from cacheapi.teams.whatif import RecommendationView, WhatIfView
from cacheapi.teams.why import WhyView

router = SimpleRouter(trailing_slash=False)
router.register("contexts", ContextsView, basename="context")
router.register("tenants", TenantsView, basename="tenant")
router.register("members", MembershipsView, basename="membership")
router.register("sign-ins", SignInsView, basename="signin")
router.register("invitations", InvitationsView, basename="invitation")
router.register("spaces", SpacesView, basename="space")
router.register("families", FamiliesView, basename="family")
router.register("family-members", MembersView, basename="member")
router.register("engines", EnginesView, basename="engine")
router.register("warm-policies", WarmPoliciesView, basename="warm_policy")
router.register("nodes", NodesView, basename="node")
router.register("segments", SegmentsView, basename="segment")
router.register("stores", StoresView, basename="store")
router.register("move-rules", MoveRulesView, basename="move_rule")
router.register("moves", MovesView, basename="move")
router.register("jobs", JobsView, basename="job")
router.register("incidents", IncidentsView, basename="incident")
router.register("events", EventsView, basename="event")
router.register("webhooks", WebhooksView, basename="webhook")
router.register(f"webhooks/(?P<webhook>{UUID})/deliveries", DeliveriesView, basename="delivery")
router.register("audit", AuditView, basename="audit")
router.register("policies", PoliciesView, basename="policy")
router.register("rules", RulesView, basename="rule")
router.register("keys", KeysView, basename="key")

docs = csp_update({"img-src": "data:"})(  # Swagger's icons
    SpectacularSwaggerSplitView.as_view(url_name="api:schema", template_name="cacheapi/docs.html")
)

app_name = "api"
urlpatterns = [
    path("me", MeView.as_view(), name="me"),
    path("lookup", LookupView.as_view(), name="lookup"),
    path("explore", ExploreView.as_view(), name="explore"),
    path("usage", UsageView.as_view(), name="usage"),
    path("why", WhyView.as_view(), name="why"),
    path("what-if", WhatIfView.as_view(), name="what-if"),
    path("what-if/recommendation", RecommendationView.as_view(), name="what-if-recommendation"),
    path("savings", SavingsView.as_view(), name="savings"),
    path("savings/export", SavingsExportView.as_view(), name="savings-export"),
    path(
        "prices", PricesView.as_view({"get": "retrieve", "patch": "partial_update"}), name="prices"
    ),
    path("alert-rules", AlertRulesView.as_view(), name="alert-rules"),
    path("alert-rules/<slug:kind>", AlertRuleView.as_view(), name="alert-rule"),
    path("incident-mail", IncidentMailView.as_view(), name="incident-mail"),
    path("samples", SamplesView.as_view(), name="samples"),
    path("samples/export", SamplesExportView.as_view(), name="samples-export"),
    path("schema/", SchemaView.as_view(), name="schema"),
    path("docs/", docs, name="docs"),
    *router.urls,
]

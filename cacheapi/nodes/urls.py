"""Addresses of the cache endpoint."""

from django.urls import path

from cacheapi.nodes.contexts import ContextsView
from cacheapi.nodes.removals import RemovalsView
from cacheapi.nodes.segments import SegmentsView
from cacheapi.nodes.sessions import AttestationView, HeartbeatView, SessionsView, SessionView

app_name = "cache"
urlpatterns = [
    path("sessions", SessionsView.as_view(), name="sessions"),
    path("sessions/<uuid:session_id>", SessionView.as_view(), name="session"),
    path("sessions/<uuid:session_id>/heartbeat", HeartbeatView.as_view(), name="heartbeat"),
    path("sessions/<uuid:session_id>/attestation", AttestationView.as_view(), name="attestation"),
    path("sessions/<uuid:session_id>/segments", SegmentsView.as_view(), name="segments"),
    path("sessions/<uuid:session_id>/removals", RemovalsView.as_view(), name="removals"),
    path("contexts", ContextsView.as_view(), name="contexts"),
]

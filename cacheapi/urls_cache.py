"""Addresses of the cache endpoint."""

from django.urls import path

from cacheapi import cache_views as views

app_name = "cache"
urlpatterns = [
    path("sessions", views.SessionsView.as_view(), name="sessions"),
    path("sessions/<uuid:session_id>", views.SessionView.as_view(), name="session"),
    path("sessions/<uuid:session_id>/heartbeat", views.HeartbeatView.as_view(), name="heartbeat"),
    path("sessions/<uuid:session_id>/segments", views.SegmentsView.as_view(), name="segments"),
    path("contexts", views.ContextsView.as_view(), name="contexts"),
]

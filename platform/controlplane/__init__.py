"""The Django project: settings, urls, ASGI, Celery, and the platform's two storage clients."""

from controlplane.celery import app as celery_app

__all__ = ["celery_app"]

"""The Celery shell: which function of the platform each kind of background work calls."""

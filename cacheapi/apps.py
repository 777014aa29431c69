from django.apps import AppConfig


class CacheapiConfig(AppConfig):
    name = "cacheapi"

    def ready(self) -> None:
        from cacheapi.base import openapi  # noqa: F401  registers how to describe authentication

from django.apps import AppConfig


class CacheapiConfig(AppConfig):
    name = "cacheapi"

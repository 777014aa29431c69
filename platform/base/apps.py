from django.apps import AppConfig


class BaseConfig(AppConfig):
    name = "base"
    label = "controlplane"  # of its table and migrations since the first release

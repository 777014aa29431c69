from django.apps import AppConfig


class CatalogConfig(AppConfig):
    name = "catalog"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from catalog import sessions
        from tenants.announcements import access_ended

        access_ended.connect(sessions.end_access)
